"""Conditioners of Glow's kin as values: its own net, plain and residual convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn

from mixerflow.nets import GlowNet, Norm, PlainConvNet, ResNet, ZeroConv
from mixerflow.parts.conditioners import Axes, ImageNet
from mixerflow.parts.model import PositiveCounts
from mixerflow.registry import register


@register("glow")
@dataclass(frozen=True)
class GlowConv(PositiveCounts, ImageNet):
    """Glow's convolutions 3-1-3 with norms that start from data; the last one starts at 0."""

    width: int = 512
    """Hidden channels."""
    factor: float = 1.0
    """By how much quicker the last convolution's scale learns; 3 in Glow's published code."""
    second_bias: bool = True
    """Whether the last convolution has another bias, which can do no more than its own."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        return GlowNet(
            given,
            out,
            width=self.width,
            context=context,
            axes=cast(Axes, axes),
            factor=self.factor,
            second_bias=self.second_bias,
        )


@register("zero")
@dataclass(frozen=True)
class ZeroConvolution(ImageNet):
    """One convolution that starts at 0, with which Glow's priors read their means and scales."""

    factor: float = 1.0
    """By how much quicker its scale learns."""
    second_bias: bool = True
    """Whether it has another bias, which can do no more than its own."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        return ZeroConv(
            given,
            out,
            axes=cast(Axes, axes),
            factor=self.factor,
            second_bias=self.second_bias,
            context=context,
        )


@register("plain")
@dataclass(frozen=True)
class PlainConv(PositiveCounts, ImageNet):
    """Plain convolutions 3-1-3."""

    width: int = 256
    """Hidden channels."""
    zero: bool = False
    """Whether the last one starts at 0, and with it whatever map reads the output as identity."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        return PlainConvNet(
            given, out, width=self.width, zero=self.zero, context=context, axes=cast(Axes, axes)
        )


@register("residual")
@dataclass(frozen=True)
class ResidualConv(PositiveCounts, ImageNet):
    """A residual net with skip connections from every block; its output starts at 0."""

    width: int = 64
    """Hidden channels."""
    depth: int = 8
    """Residual blocks."""
    norm: Norm = "batch"
    """Of each pixel's hidden channels."""

    def build(self, given: int, out: int, *, context: int = 0, axes: int = 2) -> nn.Module:
        return ResNet(
            given,
            out,
            width=self.width,
            depth=self.depth,
            norm=self.norm,
            context=context,
            axes=cast(Axes, axes),
        )
