"""Linear maps as values: of images, or of vectors that each pixel of an image is one of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixerflow.core import Along, Inverse, Shape, Transform
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.registry import register, word_of
from mixerflow.transforms import LU, PLU, RLU, Butterfly, Matrix, Reshape, UnpackedPLU, Woodbury


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
    """``L U x + b``, which starts as the identity: the paper's linear block."""

    makes = LU


@register("rlu")
@dataclass(frozen=True)
class RLUMap(LinearMap):
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


@register("butterfly")
@dataclass(frozen=True)
class ButterflyMap(LinearMap):
    """Rotations of pairs in log n levels."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return Butterfly(n, bias=bias) if n > 1 else LU(n, bias=bias)  # one entry has no partner


@register
@dataclass(frozen=True)
class WoodburyPlanes(PositiveCounts, ImageMap):
    """The identity plus a map of low rank: of the channels, then of the pixels of each channel.

    Log-dets are those of matrices rank x rank, times the number of pixels or channels. Ranks may be
    above the length of their axis, see `mixerflow.transforms.Woodbury`.

    Reference: Lu, Huang, Woodbury transformations for deep generative flows (2020), sections 3.1
        to 3.3, arXiv:2002.12229.
    """

    channel_rank: int = 16
    """Rank of the channels' map."""
    spatial_rank: int = 16
    """Rank of the pixels' maps."""
    memory_efficient: bool = True
    """A map of each spatial axis, the last first; else one of all pixels of a channel together."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        channels, *sides = shape
        rank = self.spatial_rank
        maps: list[Transform] = [Along(0, Woodbury(channels, self.channel_rank, bias=bias))]
        if self.memory_efficient:
            axes = [(axis, sides[axis]) for axis in range(-1, -1 - len(sides), -1)]
            return maps + [Along(axis, Woodbury(n, rank, bias=False)) for axis, n in axes]
        pixels = Reshape(shape, (channels, math.prod(sides)))
        every = Along(-1, Woodbury(math.prod(sides), rank, bias=False))
        return [*maps, pixels, every, Inverse(pixels, shape)]


@register
@dataclass(frozen=True)
class ButterflyImage(PositiveCounts, ImageMap):
    """A linear map of each pixel's channels, and butterflies of all numbers of the image.

    An image ``(C, *spatial)`` is one vector, its last axis fastest, in which level l pairs numbers
    ``C * pixels / 2^(l+1)`` apart: first those half of the channels apart, last neighbours. An odd
    length has two butterflies in place of each, see `mixerflow.transforms.Butterfly`.

    Reference: Meng et al., ButterflyFlow: building invertible layers with butterfly matrices
        (2022), arXiv:2209.13774.
    """

    stacks: int = 1
    """Butterflies one after another; the paper's for permuted images are 10."""
    levels: int | None = None
    """Levels of each; None for as many as the length has factors 2."""
    rotated: bool = False
    """Whether they start as random rotations, as the paper's for permuted images; else as the
    identity."""
    channels: LinearMap = MatrixMap()
    """The map of each pixel's channels, before the butterflies."""

    def on_image(self, shape: Shape, *, bias: bool = True) -> list[Transform]:
        n = math.prod(shape)
        vector = Reshape(shape, (n,))

        def stack() -> Butterfly:
            settings = {"whole": n % 2 == 0, "rotated": self.rotated, "grouped": 1}
            return Butterfly(n, self.levels, bias=False, **settings)

        stacks = [stack() for _ in range(self.stacks)]
        mix = self.channels.on_image(shape, bias=bias)
        return [*mix, vector, *stacks, Inverse(vector, shape)]


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
