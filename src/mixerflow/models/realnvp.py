"""RealNVP: affine couplings with masks in space and over channels, at several scales.

A scale has three couplings with a checkerboard mask, then, on the squeezed image, three that split
the channels, with nets twice as wide; one colour of the board is done, the other goes on. The last
scale has four with a checkerboard mask.

References:
    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), sections 3 and 4.1.
    https://arxiv.org/abs/1605.08803

Departs from the paper:
    - batch norm stands in the residual nets alone, not between the couplings;
    - nets without weight norm; depth and width as in its section 4.1 for 32x32 images.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mixerflow.core import Chain, Inverse, MultiScale, Shape, Transform
from mixerflow.nets import TanhScale
from mixerflow.parts.convolutions import ResidualConv
from mixerflow.parts.model import LogitPixels, Model, Pixels, PositiveCounts
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
    """Everything that shapes a RealNVP; the defaults are the paper's for 32x32 images."""

    scales: int = 2
    """The last of which has checkerboard masks only."""
    net: ResidualConv = ResidualConv()
    """What couplings read with; twice as wide on squeezed images, and from scale to scale."""
    pixels: Pixels = field(default=LogitPixels(0.05), kw_only=True)
    """How an image's values become real numbers."""

    def compose(self, shape: Shape) -> Transform:
        at, scales = shape, []
        for number in range(self.scales):
            net = replace(self.net, width=self.net.width * 2**number)
            last = number == self.scales - 1
            flips = (False, True, False, True) if last else (False, True, False)
            steps: list[Transform] = [self.coupling(Checkerboard(flip), at, net) for flip in flips]
            if not last:
                squeeze, wide = Squeeze(at), replace(net, width=2 * net.width)
                steps.append(squeeze)
                steps += [
                    self.coupling(Halves(0, flip), squeeze.latent_shape, wide)
                    for flip in (True, False, True)
                ]
                steps += [Inverse(squeeze, at), CheckerboardSqueeze(at)]
                channels, *spatial = squeeze.latent_shape
                at = (channels // 2, *spatial)
            scales.append(Chain(*steps))
        return Chain(*self.pixels.steps(), MultiScale(shape, scales))

    def coupling(self, split: Split, shape: Shape, net: ResidualConv) -> Coupling:
        """``x exp(g tanh(s)) + t`` of one part of the event, with a learned g for each channel."""
        given, changed = split.sizes(shape[0])
        built = net.build(given, 2 * changed, context=self.context, axes=len(shape) - 1)
        return Coupling(split, TanhScale(built, changed), Affine())
