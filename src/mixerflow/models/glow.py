"""Glow: multi-scale convolutional couplings, mixed by 1x1 convolutions.

    pixels -> dequantise -> L times [squeeze -> K steps -> factor out half the channels] -> N(0, I)

A step is ActNorm, 1x1 convolution, affine coupling. Factored-out channels are scored under a
Gaussian given the other channels, which is an affine coupling before the standard normal; the last
scale's latents are scored under a learned Gaussian of their own.

References:
    Kingma, Dhariwal, Glow: generative flow with invertible 1x1 convolutions (2018),
    arXiv:1807.03039.
    The defaults are those of the MixerFlow paper's Tables 1 and 2 at another depth (8 and 16 steps
    a scale, 11,017,908 parameters at 3x32x32), "settings as in" Lu, Huang: Woodbury transformations
    for deep generative flows (2020), arXiv:2002.12229.

Departs from the paper:
    - no extra input channel marks the border for convolutions;
    - ActNorm is ``x exp(s) + b``, the paper's code has ``(x + b) exp(s)``: the same maps;
    - nets' outputs are all scales, then all shifts; in the code these alternate.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mixerflow.core import Chain, Layer, MultiScale, Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.image_nets import GlowConv, ImageNet, ZeroConvolution
from mixerflow.parts.images import (
    ActivationPrior,
    Prior,
    glow_step,
    image_coupling,
    require_halvable,
)
from mixerflow.parts.linear import ImageMap, MatrixMap
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import Pixels, ScaledPixels
from mixerflow.registry import register
from mixerflow.transforms import Affine, Elementwise, SigmoidAffine, Squeeze


@register("glow")
@dataclass(frozen=True)
class Glow(PositiveCounts, Model):
    """Settings of a Glow."""

    scales: int = 3
    """Number of scales, L; each has half as many pixels a side as the one before."""
    steps: int = 32
    """Steps of each scale, K."""
    linear: ImageMap = MatrixMap()
    """The linear map of a step; Glow's own is a 1x1 convolution."""
    elementwise: Elementwise = SigmoidAffine()
    """Transform of the changed half of the channels in couplings."""
    net: ImageNet = GlowConv()
    """Net of the couplings, which reads the other half."""
    flip: bool = False
    """Whether couplings transform the first half, not the second."""
    split: ImageNet | None = ZeroConvolution()
    """Net of the factored-out channels' Gaussian, given the other channels; None for N(0, I)."""
    prior: Prior | None = ActivationPrior()
    """Gaussian of the last scale's latents; None for N(0, I)."""
    bias: bool = False
    """Whether the linear maps have biases."""
    floor: float = 0.01
    """Lower bound of the standard deviations that ActNorm's start from data divides by."""
    pixels: Pixels = field(default=ScaledPixels(-0.5, 0.5), kw_only=True)
    """How an image's values become real numbers."""

    def compose(self, shape: Shape) -> Transform:
        require_halvable(shape, self.scales, f"{self.scales} scales")
        inner, scales = shape, []
        for number in range(self.scales):
            squeeze = Squeeze(inner)
            inner = squeeze.latent_shape
            steps = [squeeze, *self.steps_of(inner, number)]
            if number == self.scales - 1:
                steps += [self.prior.build(inner, context=self.context)] if self.prior else []
            elif self.split:
                steps.append(image_coupling(self.split, Affine(), inner, context=self.context))
            scales.append(Chain(*steps))
            inner = (inner[0] // 2, *inner[1:])
        return MultiScale(shape, scales)

    def steps_of(self, shape: Shape, scale: int) -> list[Transform]:
        """Return the steps of a scale, numbered from 0, on the squeezed image."""
        return [self.step(shape, scale) for _ in range(self.steps)]

    def step(self, shape: Shape, scale: int) -> Transform:
        """Return a step of a scale, numbered from 0, as one layer."""
        settings = {"bias": self.bias, "floor": self.floor, "flip": self.flip}
        settings |= {"linear": self.linear_at(scale), "context": self.context}
        return Layer(*glow_step(self.net, self.elementwise, shape, **settings))

    def linear_at(self, scale: int) -> ImageMap:
        """Return the linear map of the steps of a scale, numbered from 0."""
        return self.linear
