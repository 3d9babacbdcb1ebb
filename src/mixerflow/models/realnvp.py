"""RealNVP: affine couplings with masks in space and over channels, at several scales.

A scale has three couplings with a checkerboard mask, then, on the squeezed image, three that split
the channels, with nets twice as wide. One colour of the board is factored out. The last scale has
four couplings with a checkerboard mask.

Reference: Dinh et al., Density estimation using Real NVP (2017), sections 3 and 4.1,
    arXiv:1605.08803.

Departs from the paper:
    - batch norm is in the residual nets alone, not between the couplings;
    - nets have no weight norm; depth and width are as in section 4.1 for 32x32 images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mixerflow.core import Chain, Inverse, MultiScale, Shape, Transform
from mixerflow.nets import TanhScale
from mixerflow.parts import LogitPixels, Model, Pixels, PositiveCounts, ResidualConv
from mixerflow.parts.images import require_halvable
from mixerflow.registry import register
from mixerflow.transforms import (
    Affine,
    Checkerboard,
    CheckerboardSqueeze,
    Coupling,
    Halves,
    Split,
    Squeeze,
)


@register("realnvp")
@dataclass(frozen=True)
class RealNVP(PositiveCounts, Model):
    """Settings of a RealNVP; the defaults are the paper's for 32x32 images."""

    scales: int = 2
    """Number of scales; the last one has checkerboard masks only."""
    net: ResidualConv = ResidualConv()
    """Net of the couplings; twice as wide on squeezed images, and from scale to scale."""
    pixels: Pixels = field(default=LogitPixels(0.05), kw_only=True)
    """How an image's values become real numbers."""

    def compose(self, shape: Shape) -> Transform:
        require_halvable(shape, self.scales - 1, f"{self.scales} scales")
        inner, scales, net = shape, [], self.net
        for _ in range(self.scales - 1):
            squeeze, wide = Squeeze(inner), replace(net, width=2 * net.width)
            masks = [Checkerboard(flip) for flip in (False, True, False)]
            channel_masks = [Halves(0, flip) for flip in (True, False, True)]
            steps = [
                *(self.coupling(mask, inner, net) for mask in masks),
                squeeze,
                *(self.coupling(mask, squeeze.latent_shape, wide) for mask in channel_masks),
                Inverse(squeeze, inner),
                CheckerboardSqueeze(inner),
            ]
            scales.append(Chain(*steps))
            channels, *spatial = squeeze.latent_shape
            inner, net = (channels // 2, *spatial), wide
        masks = [Checkerboard(flip) for flip in (False, True, False, True)]
        scales.append(Chain(*(self.coupling(mask, inner, net) for mask in masks)))
        return MultiScale(shape, scales)

    def coupling(self, split: Split, shape: Shape, net: ResidualConv) -> Coupling:
        """Return ``x exp(g tanh(s)) + t`` of one part of the event, with g learned per channel."""
        given, changed = split.sizes(shape[0])
        built = net.build(given, 2 * changed, sides=shape[1:], context=self.context)
        return Coupling(split, TanhScale(built, changed), Affine())
