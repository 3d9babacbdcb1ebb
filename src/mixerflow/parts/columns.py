"""Couplings of columns or channels with a 1x1 convolution of each part, and noise made by them.

Reference: Ho et al., Flow++ (2019), sections 3 and 4, arXiv:1902.00275.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from mixerflow.core import Along, Chain, Inverse, Layer, Shape, Transform
from mixerflow.nets import ColumnEncoder
from mixerflow.parts.added import AddedChannels
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.image_nets import GatedAttention
from mixerflow.parts.linear import LinearMap, LUMap
from mixerflow.parts.pixels import Dequantizer
from mixerflow.registry import register
from mixerflow.transforms import (
    ActNorm,
    AugmentByFlow,
    Columns,
    Coupling,
    EachPart,
    Elementwise,
    LogisticMixture,
    Logit,
    Split,
    VariationalDequantize,
)

FLOOR = 0.01
"""Lower bound of the standard deviations that ActNorm's start from data divides by."""


def split_step(
    split: Split,
    shape: Shape,
    *,
    net: GatedAttention,
    elementwise: Elementwise,
    linear: LinearMap,
    context: int = 0,
) -> Transform:
    """Return ActNorm of each number, a 1x1 convolution of each part, and a coupling, as a layer."""
    split.check(shape)
    given, changed = split.sizes(shape[0])
    sides = shape[1:]
    if isinstance(split, Columns):
        sides = (*sides[:-1], sides[-1] // 2)
    maps = [linear.build(n, bias=False) for n in (given, changed)]
    mixed = [Along(0, each) for each in maps if each is not None]
    mixes = [EachPart(split, *mixed)] if mixed else []
    built = net.build(given, elementwise.params * changed, sides=sides, context=context)
    return Layer(ActNorm(shape, floor=FLOOR), *mixes, Coupling(split, built, elementwise))


@dataclass(frozen=True)
class ColumnNoise(PositiveCounts):
    """Noise from a flow of couplings of columns, which read feature maps of the image."""

    steps: int = 4
    """Number of couplings."""
    context: int = 32
    """Channels of the feature maps."""
    blocks: int = 3
    """Gated convolutions of the net that makes the feature maps."""
    attention: bool = False
    """Whether each of these has a gated attention behind it."""
    net: GatedAttention = GatedAttention(depth=2)
    """Net of the couplings."""
    elementwise: Elementwise = LogisticMixture(32)
    """Transform of the changed columns, given the others."""
    linear: LinearMap = LUMap()
    """The 1x1 convolutions of even and of odd columns."""

    def encoder(self, shape: Shape) -> nn.Module:
        """Return the net that makes feature maps of images ``(C, *spatial)``."""
        Columns().check(shape)
        net = self.net
        return ColumnEncoder(
            shape,
            width=self.context,
            depth=self.blocks,
            attention=self.attention,
            heads=net.heads,
            dropout=net.dropout,
            norm=net.norm,
            weight_norm=net.weight_norm,
        )

    def flow(self, shape: Shape) -> list[Transform]:
        """Return the transforms of normal noise ``(C, *spatial)``."""
        settings = {"net": self.net, "elementwise": self.elementwise, "linear": self.linear}
        splits = (Columns(flip=number % 2 == 1) for number in range(self.steps))
        return [split_step(split, shape, context=self.context, **settings) for split in splits]


@register("columns")
@dataclass(frozen=True)
class ColumnDequantizer(ColumnNoise, Dequantizer):
    """Learned noise, from a flow of couplings of columns; the defaults are Flow++'s."""

    positive = True

    def build(self, shape: Shape, levels: int) -> Transform:
        return VariationalDequantize(
            shape, self.encoder(shape), Chain(*self.flow(shape)), shape, levels
        )


@register("columns")
@dataclass(frozen=True)
class ColumnChannels(ColumnNoise, AddedChannels):
    """Noise in the unit interval, from a flow of couplings of columns; the defaults are VFlow's."""

    net: GatedAttention = GatedAttention(depth=3)
    """Net of the couplings."""

    def build(self, shape: Shape, *, context: int = 0) -> AugmentByFlow:
        noise = (self.channels, *shape[1:])
        ends = Inverse(Logit(0.0, inside=True), noise)  # a sigmoid
        flow = Chain(*self.flow(noise), ends)
        return AugmentByFlow(shape, self.channels, self.encoder(shape), flow)
