"""Linear maps as values: of images, or of vectors that each pixel of an image is one of."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Along, Shape, Transform
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.registry import register, word_of
from mixerflow.transforms import LU, PLU, RLU, Butterfly, Matrix, UnpackedPLU, Whiten, Woodbury
from mixerflow.transforms.lu import LinearStart


class ImageMap(Part):
    """An invertible linear map of images, which mixes channels, pixels or both."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        """Return the transforms of images ``(C, *spatial)``, nearest the data first."""
        raise NotImplementedError


class LinearMap(ImageMap):
    """An invertible linear map of vectors; on images the same for each pixel, a 1x1 convolution."""

    reverses: bool = False
    """Whether the map reverses the order of the entries."""

    def build(self, n: int, *, bias: bool = True) -> Transform | None:
        """Return the map of vectors of length n; None for no map."""
        return self.make(n, bias=bias)

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        mix = self.build(shape[0], bias=bias)
        return [] if mix is None else [Along(0, mix)]


@register("lu")
@dataclass(frozen=True)
class LUMap(LinearMap):
    """``L U x + b``: the paper's linear block."""

    makes = LU

    start: LinearStart = "identity"
    """The map before training: the identity, or that which whitens the first images' vectors."""


@register("rlu")
@dataclass(frozen=True)
class RLUMap(LUMap):
    """The same after a reversal of the order; the paper's block where no layer shifts."""

    makes = RLU
    reverses = True


@register("plu")
@dataclass(frozen=True)
class PLUMap(LinearMap):
    """``P L U x`` with a fixed permutation, which starts as a random rotation: Glow's."""

    makes = PLU


class _MapWithoutBias(LinearMap):
    def build(self, n: int, *, bias: bool = True) -> Transform:
        if bias:
            raise ValueError(f"linear {word_of(type(self))} has no bias: it is for Glow's steps")
        return self.make(n)


@register("matrix")
@dataclass(frozen=True)
class MatrixMap(_MapWithoutBias):
    """``W x`` with any matrix, which starts as a random rotation: Glow's without PLU."""

    makes = Matrix


@register("unpacked-plu")
@dataclass(frozen=True)
class UnpackedPLUMap(_MapWithoutBias):
    """`PLUMap` stored as two full matrices, as in published code; half of each is unused."""

    makes = UnpackedPLU


@register("woodbury")
@dataclass(frozen=True)
class WoodburyMap(PositiveCounts, LinearMap):
    """The identity plus a map of low rank, for long vectors."""

    makes = Woodbury

    rank: int = 16
    """Rank of the added map; at most the length of the vectors."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return self.make(n, rank=min(self.rank, n), bias=bias)


@register("white")
@dataclass(frozen=True)
class WhiteMap(LinearMap):
    """Makes the numbers of the first batch uncorrelated, of variances of at most 1; then fixed."""

    makes = Whiten

    ridge: float = 0.01
    """Added to the eigenvalues of the covariance, relative to their mean; bounds what is
    amplified."""


@register("butterfly")
@dataclass(frozen=True)
class ButterflyMap(LinearMap):
    """Rotations of pairs in log n levels."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return Butterfly(n, bias=bias) if n > 1 else LU(n, bias=bias)  # one entry has no partner


@register("same")
@dataclass(frozen=True)
class SameMap:
    """The same linear map as the channel flows have."""


@register("none")
@dataclass(frozen=True)
class NoMap(LinearMap):
    """No linear map."""

    def build(self, n: int, *, bias: bool = True) -> None:
        return None
