"""Neural Spline Flow on images: Glow's scales and steps, with splines in the couplings.

References:
    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows (2019), sections 3 and 5.2.
    https://arxiv.org/abs/1906.04032
    The defaults are the MixerFlow paper's at another depth (Tables 1 and 2: 8 and 16 steps a scale,
    10,907,424 parameters at 3x32x32, 38,307,632 at 3x64x64 with nets of width 224).

    `nsf-large-cifar10` is ours for Tables 4 and 5, which print 89.9 M parameters and no settings:
    the structure of the spline flows' code with Glow's 32 steps a scale, 89,435,748 parameters. No
    natural configuration has 89.9 M.

Departs from the paper:
    - the paper's models of images have residual nets; the counts of Tables 1 and 2 are for plain
      convolutions;
    - a scale's linear maps are ``P L U``, in the published code L U after a permutation;
    - the paper divides the logits of widths and heights by the root of the net's width; here the
      net learns the factor.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Shape, Transform
from mixerflow.models.glow import Glow
from mixerflow.parts import ImageNet, PlainConv, Prior, ZeroConvolution
from mixerflow.registry import register
from mixerflow.transforms import Elementwise, RationalQuadratic


@register("nsf")
@dataclass(frozen=True)
class NSF(Glow):
    """Settings of a Neural Spline Flow: those of a Glow with other defaults."""

    elementwise: Elementwise = RationalQuadratic(bins=4, tail=3.0)
    """Transform of the changed half of the channels in couplings."""
    net: ImageNet = PlainConv()
    """Net of the couplings, which reads the other half; its output does not start at 0."""
    flip: bool = True
    """Whether couplings transform the first half, not the second."""
    split: ImageNet | None = ZeroConvolution(second_bias=False)
    """Net of the factored-out channels' Gaussian, given the other channels; None for N(0, I)."""
    prior: Prior | None = None
    """Gaussian of the last scale's latents; None for N(0, I)."""
    last_map: bool = False
    """Whether each scale ends in one more linear map, as in the published code."""

    def steps_of(self, shape: Shape, scale: int) -> list[Transform]:
        last = self.linear_at(scale).on_image(shape, bias=self.bias) if self.last_map else []
        return [*super().steps_of(shape, scale), *last]
