"""DenseFlow: noise added between the units of a flow, and densely connected couplings.

    pixels -> variational dequantisation -> squeeze -> block -> squeeze -> factor out half
    -> block -> squeeze -> factor out half -> block -> learned Gaussian

A block is a number of units, between which noise widens the image; all earlier units of the block
condition it (cross-unit coupling). A unit is a number of modules: ActNorm, 1x1 convolution, an
affine coupling whose net has a dense block beside Nyström attention (intra-unit coupling), and a
swap of the two halves of the channels.

References:
    Grcić, Grubišić, Šegvić: Densely connected normalizing flows (2021), arXiv:2106.04627.
    The defaults are DenseFlow-74-10's: 74 modules, growth 10, 130,647,294 parameters at 3x32x32.

Departs from the paper:
    - ActNorm is ``x exp(s) + b``, the paper's ``(x - m) exp(-s)``: the same maps;
    - nets' outputs are all scales, then all shifts; in the paper's code these alternate, and the
      noise's means come first;
    - attention is over pixels, with the softmax over keys; the released model's computation, which
      differs, is `DenseAttention.transposed`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from mixerflow.core import Chain, Layer, MultiScale, Shape, Transform
from mixerflow.parts.image_nets import DenseAttention, ImageNet, WideningConv
from mixerflow.parts.images import glow_step, require_halvable
from mixerflow.parts.linear import LinearMap, MatrixMap
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import Pixels, ScaledPixels, VariationalDequantizer
from mixerflow.registry import register
from mixerflow.transforms import (
    Affine,
    Augment,
    CrossUnits,
    DiagonalAffine,
    Elementwise,
    Squeeze,
    SwapHalves,
)


@register("denseflow")
@dataclass(frozen=True)
class DenseFlow(Model):
    """Settings of a DenseFlow."""

    units: tuple[int, ...] = (6, 4, 1)
    """Units of each block; each block has half as many pixels a side as the one before."""
    modules: tuple[int, ...] = (5, 6, 20)
    """Modules of each unit of a block."""
    growth: int = 10
    """Channels of noise added between two units; 0 for none."""
    net: ImageNet = DenseAttention()
    """Net of the couplings, which reads one half of the channels."""
    noise_net: ImageNet = WideningConv()
    """Net of the noise's mean and scale, which reads earlier units."""
    elementwise: Elementwise = Affine(2.0)
    """Transform of the other half of the channels, and of the noise."""
    linear: LinearMap = MatrixMap()
    """The 1x1 convolution."""
    floor: float = 0.01
    """Lower bound of the standard deviations that ActNorm's start from data divides by."""
    pixels: Pixels = field(
        default=ScaledPixels(-0.5, 0.5, dequantizer=VariationalDequantizer()), kw_only=True
    )
    """How an image's values become real numbers."""

    def __post_init__(self) -> None:
        for name in ("units", "modules"):
            counts = getattr(self, name)
            if not counts or min(counts) < 1:
                what = f"{name} must be a number of at least 1 for each block; got {counts}"
                raise ValueError(f"DenseFlow: {what}")
        if self.growth < 0:
            raise ValueError(f"DenseFlow: growth must be at least 0; got {self.growth}")

    def compose(self, shape: Shape) -> Transform:
        if len(self.units) != len(self.modules):
            what = f"as many modules as units; got {self.modules} for {self.units}"
            raise ValueError(f"DenseFlow: takes {what}")
        require_halvable(shape, len(self.units), f"the blocks of units {self.units}")
        squeeze = Squeeze(shape)
        inner, scales = squeeze.latent_shape, []
        for units, modules in zip(self.units, self.modules, strict=True):
            steps = [squeeze] if not scales else []
            block = self.block(inner, units, modules)
            inner = block.out_shape(inner)
            if len(scales) + 1 < len(self.units):  # squeezed before half of the channels leave
                transition = Squeeze(inner)
                inner = transition.latent_shape
            else:
                transition = DiagonalAffine((inner[0], *(1,) * (len(inner) - 1)))
            scales.append(Chain(*steps, block, transition))
            inner = (inner[0] // 2, *inner[1:])
        return Chain(*self.pixel_steps(shape), MultiScale(shape, scales))

    def block(self, shape: Shape, units: int, modules: int) -> Transform:
        """Return units of events `shape`, with noise between them."""
        channels, *spatial = shape
        made, augments, given = [], [], channels
        for number in range(units):
            wide = (channels + self.growth * number, *spatial)
            made.append(Chain(*(self.module(wide) for _ in range(modules))))
            if self.growth and number + 1 < units:
                augments.append(self.augment(wide, given))
                given += wide[0]
        return CrossUnits(shape, made, augments) if self.growth else Chain(*made)

    def augment(self, shape: Shape, given: int) -> Augment:
        """Return the noise beside events `shape`, whose net reads `given` channels."""
        out, axes = self.elementwise.params * self.growth, len(shape) - 1
        net = self.noise_net.build(given, out, context=self.context, axes=axes)
        return Augment(shape, self.growth, net, self.elementwise)

    def module(self, shape: Shape) -> Transform:
        """Return ActNorm, 1x1 convolution, coupling and swap as one layer."""
        step = functools.partial(glow_step, linear=self.linear, bias=False, floor=self.floor)
        steps = step(self.net, self.elementwise, shape, context=self.context)
        return Layer(*steps, SwapHalves())
