"""Conditioners of rows and tokens as values: settings of nets that parts build."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mixerflow.nets import (
    MADE,
    AttentionNet,
    KernelNet,
    LipschitzDense,
    LipschitzMLP,
    Norm,
    ResidualMLP,
    SplineNet,
    Velocity,
)
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.registry import register


class RowNet(Part):
    """A conditioner of rows: ``(rows, given)`` and ``(rows, context)`` to ``(rows, out)``."""

    def build(self, given: int, out: int, *, context: int = 0) -> nn.Module:
        """Return the net, whose output starts at 0."""
        return self.make(given, out, context=context)


@dataclass(frozen=True)
class _HiddenRows(PositiveCounts):
    """Settings of a net with normalised hidden rows."""

    width: int = 64
    """Hidden units."""
    norm: Norm = "batch"
    """Norm of the hidden rows."""
    squash: bool = True
    """Whether the net reads sign(x) log(1 + |x|)."""


@register("mlp")
@dataclass(frozen=True)
class MLP(_HiddenRows, RowNet):
    """The paper's residual block of two linear maps; with affine couplings kernels run it."""

    makes = ResidualMLP

    width: int = 128
    """Hidden units."""
    norm: Norm = "batch"
    """Norm of the hidden rows, before each GELU; the paper has "batch"."""
    squash: bool = True
    """Whether the net reads sign(x) log(1 + |x|); the paper's net reads x."""
    squares: bool = False
    """Whether the net reads the squares of the squashed numbers too."""


@register("kan")
@dataclass(frozen=True)
class KAN(_HiddenRows, RowNet):
    """A Kolmogorov-Arnold network: two layers of cubic splines on edges."""

    makes = SplineNet

    grid: int = 5
    """Intervals of an edge's spline."""
    extent: float = 2.0
    """The grid reaches from -extent to extent."""


@register("kernel")
@dataclass(frozen=True)
class KernelMachine(_HiddenRows, RowNet):
    """A weighted sum of kernels around learned points."""

    makes = KernelNet

    width: int = 64
    """Number of points."""
    norm: Norm = "batch"
    """Norm of the net's input."""


@register("masked")
@dataclass(frozen=True)
class MaskedNet(_HiddenRows, Part):
    """A masked net of rows: the outputs of an entry read the entries before it alone."""

    makes = MADE

    width: int = 128
    """Hidden units."""
    norm: Norm = "batch"
    """Norm of the hidden rows: "batch" or "none"; with others an entry would read later ones."""

    def build(
        self, n: int, params: int, *, context: int = 0, order: Sequence[int] | None = None
    ) -> nn.Module:
        """Return the net, ``(rows, n)`` to ``(rows, params * n)``; `order` is that of the entries.

        Parameter k of entry j is number ``k n + j`` of the output.
        """
        return self.make(n, params, context=context, order=order)


class _Contraction(PositiveCounts, Part):
    def build(self, n: int, *, context: int = 0) -> nn.Module:
        """Return the net, ``(rows, n)`` to the same shape."""
        return self.make(n, n, context=context)


@register("lipschitz")
@dataclass(frozen=True)
class LipschitzNet(_Contraction):
    """A contraction of rows."""

    makes = LipschitzMLP

    width: int = 128
    """Hidden units."""
    depth: int = 2
    """Hidden layers."""


@register("dense-lipschitz")
@dataclass(frozen=True)
class DenseLipschitzNet(_Contraction):
    """A densely connected contraction of rows."""

    makes = LipschitzDense

    width: int = 32
    """Units that each layer adds."""
    depth: int = 3
    """Number of layers."""


@register("velocity")
@dataclass(frozen=True)
class VelocityNet(PositiveCounts, Part):
    """The right-hand side of an ordinary differential equation."""

    makes = Velocity

    width: int = 128
    """Hidden units."""

    def build(self, n: int, *, context: int = 0) -> nn.Module:
        """Return the net, which reads a time and ``(rows, n)``."""
        return self.make(n, context=context)


@register
@dataclass(frozen=True)
class Attention(PositiveCounts, Part):
    """Self-attention over the tokens of ``(B, tokens, given)``."""

    makes = AttentionNet

    width: int = 128
    """Length of a hidden token."""
    heads: int = 4
    """Number of heads; only as many as divide the width are built."""
    squash: bool = True
    """Whether the net reads sign(x) log(1 + |x|)."""

    def build(self, given: int, out: int, *, tokens: int, context: int = 0) -> nn.Module:
        """Return the net, whose output is ``(B, tokens, out)``."""
        heads = math.gcd(self.heads, self.width)
        return self.make(given, out, tokens=tokens, context=context, heads=heads)
