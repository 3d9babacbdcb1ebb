"""MaCow: masked convolutions, which read an image line by line, beside Glow's steps.

    pixels -> dequantise -> L times [squeeze -> K steps -> factor out half the channels] -> N(0, I)

A step is `units` units, then ActNorm, 1x1 convolution and affine coupling. A unit is ActNorm, two
masked convolutions over the rows, ActNorm, two over the columns; in each pair one reads the lines
before a line and the other those after it. The density takes one pass. A sample takes as many
passes as an image has rows or columns for each masked convolution, over a few lines each.

References:
    Ma, Kong, Zhang, Hovy: MaCow: masked convolutional generative flow (2019), section 3,
    arXiv:1902.04208.
    The defaults are those of the MixerFlow paper's Table 1, which gives 11.43 M parameters and 3.48
    bits/dim, and no settings. They are our reading, the best natural fit: 11,432,052 parameters at
    3x32x32. No published configuration has that number; the one of MaCow's code for CIFAR-10 has
    37,197,547.

Departs from the paper:
    - scales are Glow's: half of the channels leave after a scale, under a Gaussian given the
      others; in the paper a quarter leaves after each half of a scale's steps;
    - kernels are 2x5 and 5x2, in the paper's code 2x3 and 3x2;
    - convolutions have no weight norm, and only ActNorm starts from data;
    - squeezed channels are grouped by the image's channels, in the paper's code by pixels;
    - nets' outputs are all scales, then all shifts; in the code the shifts come first.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Layer, Shape, Transform
from mixerflow.models.glow import Glow
from mixerflow.nets import LineConvNet
from mixerflow.parts import ImageNet, PlainConv
from mixerflow.registry import register
from mixerflow.transforms import ActNorm, Elementwise, LineAutoregressive, SigmoidAffine


@register("macow")
@dataclass(frozen=True)
class MaCow(Glow):
    """Settings of a MaCow: those of a Glow with other defaults, and of its masked convolutions."""

    steps: int = 8
    """Steps of each scale, K."""
    elementwise: Elementwise = SigmoidAffine(shift_last=True)
    """Transform of each number, in masked convolutions and couplings."""
    net: ImageNet = PlainConv(160, zero=True)
    """Net of the couplings."""
    units: int = 2
    """Units of masked convolutions in a step."""
    reach: int = 2
    """Lines that a masked convolution reads."""
    span: int = 5
    """How many numbers of each of these lines it reads; odd."""
    factor: int = 4
    """Its hidden channels over the image's channels."""

    def step(self, shape: Shape, scale: int) -> Transform:
        units = [part for _ in range(self.units) for part in self.unit(shape)]
        return Layer(*units, super().step(shape, scale))

    def unit(self, shape: Shape) -> list[Transform]:
        """Return ActNorm and a pair of masked convolutions for each axis of ``(C, *spatial)``."""
        channels, *sides = shape
        parts: list[Transform] = []
        for axis in range(len(sides)):
            parts.append(ActNorm((channels, *(1,) * len(sides)), floor=self.floor))
            parts += [self.masked(shape, axis, after=after) for after in (False, True)]
        return parts

    def masked(self, shape: Shape, axis: int, *, after: bool) -> LineAutoregressive:
        """Return a masked convolution over the lines of a spatial axis: rows for 0."""
        channels, axes = shape[0], len(shape) - 1
        net = LineConvNet(
            channels,
            self.elementwise.params * channels,
            width=self.factor * channels,
            axis=axis,
            after=after,
            reach=self.reach,
            span=self.span,
            context=self.context,
            axes=axes,
        )
        return LineAutoregressive(net, self.elementwise)
