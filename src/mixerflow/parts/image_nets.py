"""Conditioners of images as values: settings of nets that are built where their sizes are known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mixerflow.core import Shape
from mixerflow.nets import (
    ConvVelocity,
    DenseAttentionNet,
    DenseConvNet,
    GatedAttentionNet,
    GlowNet,
    Norm,
    PlainConvNet,
    PreactivationNet,
    ResidualConvNet,
    ResidualDenseNet,
    ResNet,
    WideningConvNet,
    ZeroConv,
)
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.registry import register


class ImageNet(Part):
    """A conditioner of images ``(B, given, *spatial)``; a context is ``(B, context)`` or a map."""

    def build(self, given: int, out: int, *, sides: Shape, context: int = 0) -> nn.Module:
        """Return the net, whose output is ``(B, out, *sides)``, for images of these sides."""
        return self.make(given, out, context=context, axes=len(sides))


@register("convolution")
@dataclass(frozen=True)
class ConvNet(PositiveCounts, ImageNet):
    """Residual blocks of convolutions."""

    makes = ResidualConvNet

    width: int = 128
    """Hidden channels."""
    depth: int = 1
    """Residual blocks."""
    kernel: int = 3
    """Side of the convolutions that are not pointwise; odd."""
    norm: Norm = "batch"
    """Norm of each pixel's hidden channels."""
    squash: bool = True
    """Whether the net reads sign(x) log(1 + |x|)."""


@register("dense")
@dataclass(frozen=True)
class DenseNet(PositiveCounts, ImageNet):
    """A densely connected block of convolutions."""

    makes = DenseConvNet

    width: int = 128
    """Channels before and after the block."""
    growth: int = 64
    """Channels that each convolution of the block adds."""
    depth: int = 3
    """Number of these convolutions."""
    kernel: int = 3
    """Side of these convolutions; odd."""
    norm: Norm = "batch"
    """Norm of each pixel's channels after the block."""
    squash: bool = True
    """Whether the net reads sign(x) log(1 + |x|)."""


@register("glow")
@dataclass(frozen=True)
class GlowConv(PositiveCounts, ImageNet):
    """Glow's convolutions 3-1-3 with norms that start from data; the last one starts at 0."""

    makes = GlowNet

    width: int = 512
    """Hidden channels."""
    factor: float = 1.0
    """How many times faster the last convolution's scale learns; 3 in Glow's published code."""
    second_bias: bool = True
    """Whether the last convolution has a second bias, which is redundant."""


@register("zero")
@dataclass(frozen=True)
class ZeroConvolution(ImageNet):
    """One convolution that starts at 0; it gives the means and scales of Glow's priors."""

    makes = ZeroConv

    factor: float = 1.0
    """How many times faster the convolution's scale learns."""
    second_bias: bool = True
    """Whether the convolution has a second bias, which is redundant."""


@register("plain")
@dataclass(frozen=True)
class PlainConv(PositiveCounts, ImageNet):
    """Plain convolutions 3-1-3."""

    makes = PlainConvNet

    width: int = 256
    """Hidden channels."""
    zero: bool = False
    """Whether the last convolution, and so the net's output, starts at 0."""


@register("residual")
@dataclass(frozen=True)
class ResidualConv(PositiveCounts, ImageNet):
    """A residual net with skip connections from every block; its output starts at 0."""

    makes = ResNet

    width: int = 64
    """Hidden channels."""
    depth: int = 8
    """Residual blocks."""
    norm: Norm = "batch"
    """Norm of each pixel's hidden channels."""


@register("preactivation")
@dataclass(frozen=True)
class PreactivationConv(PositiveCounts, ImageNet):
    """A pre-activation residual net between two pointwise convolutions."""

    makes = PreactivationNet

    width: int = 128
    """Hidden channels."""
    depth: int = 3
    """Residual blocks."""
    norm: Norm = "batch"
    """Norm of each pixel's hidden channels."""
    zero: bool = False
    """Whether the last convolution, and so the net's output, starts at 0."""


@register("residual-dense")
@dataclass(frozen=True)
class ResidualDense(PositiveCounts, ImageNet):
    """A densely connected block with a residual connection around it."""

    makes = ResidualDenseNet

    width: int = 64
    """Hidden channels."""
    growth: int = 64
    """Channels that each convolution of the block adds."""
    depth: int = 4
    """Number of these convolutions."""


@register("dense-attention")
@dataclass(frozen=True)
class DenseAttention(PositiveCounts, ImageNet):
    """A densely connected block beside Nyström attention; the defaults are DenseFlow's."""

    makes = DenseAttentionNet

    width: int = 48
    """Channels before and after the block and the attention."""
    growth: int = 64
    """Channels that each convolution of the block adds."""
    depth: int = 7
    """Number of these convolutions."""
    attention: int | None = None
    """Length of the attention's queries, keys and values; None for half of the width."""
    count: int = 4
    """Landmarks of the attention."""
    transposed: bool = False
    """Whether attention is computed as in DenseFlow's released model, along other axes."""
    norm: Norm = "batch"
    """Norm of each pixel's channels where block and attention meet."""


@register("gated-attention")
@dataclass(frozen=True)
class GatedAttention(PositiveCounts, ImageNet):
    """Gated convolutions and gated attention in turn; the defaults are Flow++'s."""

    makes = GatedAttentionNet

    width: int = 96
    """Hidden channels."""
    depth: int = 10
    """Blocks of a gated convolution and a gated attention."""
    heads: int = 4
    """Heads of the attention; a divisor of the width."""
    dropout: float = 0.0
    """Share of hidden numbers that are set to 0 in training."""
    norm: Norm = "layer"
    """Norm of each pixel's hidden channels after each convolution and attention."""
    weight_norm: bool = False
    """Whether each map's weight is a norm for each output times a direction."""
    last_elu: bool = False
    """Whether the last convolution reads a concatenated ELU."""

    def build(self, given: int, out: int, *, sides: Shape, context: int = 0) -> nn.Module:
        return self.make(given, out, context=context, sides=sides)


@register("widening")
@dataclass(frozen=True)
class WideningConv(PositiveCounts, ImageNet):
    """A convolution that widens the image, and a pointwise one that starts at 0."""

    makes = WideningConvNet

    factor: int = 4
    """Hidden channels over input channels."""


@register("velocity-convolution")
@dataclass(frozen=True)
class ConvVelocityNet(PositiveCounts, Part):
    """The right-hand side of an ordinary differential equation of images: 3x3 convolutions."""

    makes = ConvVelocity

    width: int = 64
    """Channels of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""

    def build(self, shape: Shape, *, context: int = 0) -> nn.Module:
        """Return the net, which reads a time and images ``(B, *shape)``."""
        return self.make(shape[0], context=context, axes=len(shape) - 1)
