"""Linear maps as values: what mixes the entries of a vector before a flow layer."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Transform
from mixerflow.parts.model import PositiveCounts
from mixerflow.registry import register
from mixerflow.transforms import LU, PLU, RLU, Butterfly, Matrix, UnpackedPLU, Woodbury


class LinearMap:
    """An invertible linear map of vectors."""

    reverses: bool = False
    """Whether it reverses the order of the entries."""

    def build(self, n: int, *, bias: bool = True) -> Transform | None:
        """The map of vectors of length n; None for none."""
        raise NotImplementedError


@register("lu")
@dataclass(frozen=True)
class LUMap(LinearMap):
    """``L U x + b``, which starts as the identity: the paper's linear block."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return LU(n, bias=bias)


@register("rlu")
@dataclass(frozen=True)
class RLUMap(LinearMap):
    """The same behind a reversal of the order; the paper's where no layer shifts."""

    reverses = True

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return RLU(n, bias=bias)


@register("plu")
@dataclass(frozen=True)
class PLUMap(LinearMap):
    """``P L U x`` with a fixed permutation, which starts as a random rotation: Glow's."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return PLU(n, bias=bias)


@register("matrix")
@dataclass(frozen=True)
class MatrixMap(LinearMap):
    """``W x`` with any matrix, which starts as a random rotation: Glow's where it is not PLU."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        if bias:
            raise ValueError("linear matrix has no bias: it is for Glow's steps")
        return Matrix(n)


@register("unpacked-plu")
@dataclass(frozen=True)
class UnpackedPLUMap(LinearMap):
    """`PLUMap` that stores two full matrices, as published code does; the other halves idle."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        if bias:
            raise ValueError("linear unpacked-plu has no bias: it is for Glow's steps")
        return UnpackedPLU(n)


@register("woodbury")
@dataclass(frozen=True)
class WoodburyMap(PositiveCounts, LinearMap):
    """The identity and a map of low rank, for long vectors."""

    rank: int = 16
    """Of the map; shorter vectors have full rank."""

    def build(self, n: int, *, bias: bool = True) -> Transform:
        return Woodbury(n, min(self.rank, n), bias=bias)


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
    """No linear map at all."""

    def build(self, n: int, *, bias: bool = True) -> None:
        return None
