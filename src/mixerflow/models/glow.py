"""Glow: multi-scale convolutional couplings, mixed by 1x1 convolutions.

    pixels -> dequantise -> L times [squeeze -> K steps -> half of the channels is done] -> N(0, I)

A step is ActNorm, 1x1 convolution, affine coupling. What is done is scored under a Gaussian given
what goes on, which is an affine coupling before the standard normal; the last scale's latents are
scored under a learned Gaussian of their own.

References:
    Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018).
    https://arxiv.org/abs/1807.03039
    The defaults are those of the MixerFlow paper's Tables 1 and 2 at another depth (8 and 16 steps
    a scale, 11,017,908 parameters at 3x32x32): "settings as in" Lu, Huang: Woodbury transformations
    for deep generative flows (2020). https://arxiv.org/abs/2002.12229

Departs from the paper:
    - convolutions are not told where the border is by one more channel;
    - ActNorm is ``x exp(s) + b``, the paper's code has ``(x + b) exp(s)``: the same maps;
    - parameters come as all scales, then all shifts, the code's alternate: the same up to an order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mixerflow.core import Chain, Layer, MultiScale, Shape, Transform
from mixerflow.parts.conditioners import ImageNet
from mixerflow.parts.convolutions import GlowConv, ZeroConvolution
from mixerflow.parts.images import ActivationPrior, Prior, glow_step, image_coupling
from mixerflow.parts.linear import LinearMap, MatrixMap
from mixerflow.parts.model import Model, Pixels, PositiveCounts, ScaledPixels
from mixerflow.registry import register
from mixerflow.transforms import Affine, Elementwise, SigmoidAffine, Squeeze


@register("glow")
@dataclass(frozen=True)
class Glow(PositiveCounts, Model):
    """Everything that shapes a Glow."""

    scales: int = 3
    """L, each on half as many pixels a side as the one before."""
    steps: int = 32
    """K, of each scale."""
    linear: LinearMap = MatrixMap()
    """The 1x1 convolution."""
    elementwise: Elementwise = SigmoidAffine()
    """What the couplings do to half of the channels."""
    net: ImageNet = GlowConv()
    """What they read the other half with."""
    flip: bool = False
    """Whether couplings transform the first half, not the second."""
    split: ImageNet | None = ZeroConvolution()
    """What reads the Gaussian of the channels that are done off the others; None for N(0, I)."""
    prior: Prior | None = ActivationPrior()
    """The last scale's Gaussian; None for N(0, I)."""
    floor: float = 0.01
    """Smallest standard deviation that ActNorm's start from data believes."""
    pixels: Pixels = field(default=ScaledPixels(-0.5, 0.5), kw_only=True)
    """How an image's values become real numbers."""

    def compose(self, shape: Shape) -> Transform:
        at, scales = shape, []
        for number in range(self.scales):
            squeeze = Squeeze(at)
            at = squeeze.latent_shape
            steps = [squeeze, *(self.step(at) for _ in range(self.steps))]
            if number == self.scales - 1:
                steps += [self.prior.build(at, context=self.context)] if self.prior else []
            elif self.split:
                steps.append(image_coupling(self.split, Affine(), at, context=self.context))
            scales.append(Chain(*steps))
            at = (at[0] // 2, *at[1:])
        return Chain(*self.pixels.steps(), MultiScale(shape, scales))

    def step(self, shape: Shape) -> Transform:
        """ActNorm, 1x1 convolution, coupling."""
        steps = glow_step(
            self.net,
            self.elementwise,
            shape,
            linear=self.linear,
            bias=False,
            floor=self.floor,
            flip=self.flip,
            context=self.context,
        )
        return Layer(*steps)
