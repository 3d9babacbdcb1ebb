"""Conditioners as values: the settings of a net that is built where its sizes are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from torch import nn

from mixerflow.nets import (
    MADE,
    AttentionNet,
    DenseConvNet,
    KernelNet,
    LipschitzDense,
    LipschitzMLP,
    Norm,
    ResidualConvNet,
    ResidualMLP,
    SplineNet,
    Velocity,
)
from mixerflow.parts.model import PositiveCounts
from mixerflow.registry import register

Axes = Literal[1, 2, 3]


class RowNet:
    """A conditioner of rows: ``(rows, given)`` and ``(rows, context)`` to ``(rows, out)``."""

    def build(self, given: int, out: int, *, context: int = 0) -> nn.Module:
        """The net, whose output starts at 0."""
        raise NotImplementedError


class ImageNet:
    """A conditioner of images ``(B, given, *spatial)``; a context is ``(B, context)`` or a map."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        """The net, which gives ``(B, out, *spatial)``, for so many spatial axes."""
        raise NotImplementedError


@register("mlp")
@dataclass(frozen=True)
class MLP(PositiveCounts, RowNet):
    """The paper's residual block of two linear maps; with affine couplings kernels run it."""

    width: int = 128
    """Hidden units."""
    norm: Norm = "batch"
    """Of hidden rows, before each GELU; the paper has "batch"."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|); the paper's reads x."""

    def build(self, given: int, out: int, *, context: int = 0) -> nn.Module:
        return ResidualMLP(
            given, out, width=self.width, norm=self.norm, squash=self.squash, context=context
        )


@register("kan")
@dataclass(frozen=True)
class KAN(PositiveCounts, RowNet):
    """A Kolmogorov-Arnold network: two layers of cubic splines on edges."""

    width: int = 64
    """Hidden units."""
    norm: Norm = "batch"
    """Of hidden rows."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|)."""
    grid: int = 5
    """Intervals of an edge's spline."""
    extent: float = 2.0
    """The grid reaches from -extent to extent."""

    def build(self, given: int, out: int, *, context: int = 0) -> nn.Module:
        return SplineNet(
            given,
            out,
            width=self.width,
            norm=self.norm,
            squash=self.squash,
            context=context,
            grid=self.grid,
            extent=self.extent,
        )


@register("kernel")
@dataclass(frozen=True)
class KernelMachine(PositiveCounts, RowNet):
    """A weighted sum of kernels around learned points."""

    width: int = 64
    """How many points."""
    norm: Norm = "batch"
    """Of what it reads."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|)."""

    def build(self, given: int, out: int, *, context: int = 0) -> nn.Module:
        return KernelNet(
            given, out, width=self.width, norm=self.norm, squash=self.squash, context=context
        )


@register("masked")
@dataclass(frozen=True)
class MaskedNet(PositiveCounts):
    """A masked net of rows, each of whose outputs reads the entries before its own."""

    width: int = 128
    """Hidden units."""
    norm: Norm = "batch"
    """Of its hidden rows: "batch" or "none"; others would let an entry see those behind it."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|)."""

    def build(
        self, n: int, params: int, *, context: int = 0, order: Sequence[int] | None = None
    ) -> nn.Module:
        """The net: ``(rows, n)`` to ``(rows, params * n)``, the entries read in that order."""
        return MADE(
            n,
            params,
            width=self.width,
            norm=self.norm,
            squash=self.squash,
            context=context,
            order=order,
        )


@register("lipschitz")
@dataclass(frozen=True)
class LipschitzNet(PositiveCounts):
    """A contraction of rows."""

    width: int = 128
    """Hidden units."""
    depth: int = 2
    """Hidden layers."""

    def build(self, n: int, *, context: int = 0) -> nn.Module:
        """The net, ``(rows, n)`` to the same."""
        return LipschitzMLP(n, n, width=self.width, depth=self.depth, context=context)


@register("dense-lipschitz")
@dataclass(frozen=True)
class DenseLipschitzNet(PositiveCounts):
    """A densely connected contraction of rows."""

    width: int = 32
    """Units that each layer adds."""
    depth: int = 3
    """Layers that add."""

    def build(self, n: int, *, context: int = 0) -> nn.Module:
        """The net, ``(rows, n)`` to the same."""
        return LipschitzDense(n, n, width=self.width, depth=self.depth, context=context)


@register("velocity")
@dataclass(frozen=True)
class VelocityNet(PositiveCounts):
    """The right-hand side of an ordinary differential equation."""

    width: int = 128
    """Hidden units."""

    def build(self, n: int, *, context: int = 0) -> nn.Module:
        """The net, of a time and ``(rows, n)``."""
        return Velocity(n, width=self.width, context=context)


@register("convolution")
@dataclass(frozen=True)
class ConvNet(PositiveCounts, ImageNet):
    """Residual blocks of convolutions."""

    width: int = 128
    """Hidden channels."""
    depth: int = 1
    """Residual blocks."""
    kernel: int = 3
    """Side of the convolutions that are not pointwise; odd."""
    norm: Norm = "batch"
    """Of each pixel's hidden channels."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|)."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        return ResidualConvNet(
            given,
            out,
            width=self.width,
            depth=self.depth,
            norm=self.norm,
            squash=self.squash,
            context=context,
            kernel=self.kernel,
            axes=cast(Axes, axes),
        )


@register("dense")
@dataclass(frozen=True)
class DenseNet(PositiveCounts, ImageNet):
    """A densely connected block of convolutions."""

    width: int = 128
    """Channels that the block reads and gives."""
    growth: int = 64
    """Channels that each of its convolutions adds."""
    depth: int = 3
    """How many convolutions add."""
    kernel: int = 3
    """Their side; odd."""
    norm: Norm = "batch"
    """Of each pixel's channels behind the block."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|)."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        return DenseConvNet(
            given,
            out,
            width=self.width,
            growth=self.growth,
            depth=self.depth,
            norm=self.norm,
            squash=self.squash,
            context=context,
            kernel=self.kernel,
            axes=cast(Axes, axes),
        )


@register
@dataclass(frozen=True)
class Attention(PositiveCounts):
    """Self-attention over the tokens of ``(B, tokens, given)``."""

    width: int = 128
    """Hidden numbers of a token."""
    heads: int = 4
    """Of them as many as divide the width."""
    squash: bool = True
    """Whether it reads sign(x) log(1 + |x|)."""

    def build(self, given: int, out: int, *, tokens: int, context: int = 0) -> nn.Module:
        """The net, which gives ``(B, tokens, out)``."""
        return AttentionNet(
            given,
            out,
            width=self.width,
            heads=math.gcd(self.heads, self.width),
            squash=self.squash,
            context=context,
            tokens=tokens,
        )
