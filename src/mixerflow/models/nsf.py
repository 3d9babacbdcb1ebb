"""Neural Spline Flow on images: Glow's scales and steps, with splines in the couplings.

References:
    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows (2019), sections 3 and 5.2.
    https://arxiv.org/abs/1906.04032
    The defaults are the MixerFlow paper's at another depth (Tables 1 and 2: 8 and 16 steps a scale,
    10,907,424 parameters at 3x32x32, 38,307,632 at 3x64x64 with nets of width 224).

Departs from the paper:
    - the paper's models of images have residual nets; the counts above are for plain convolutions;
    - the paper divides the logits of widths and heights by the root of the net's width; here the
      net learns the factor.
"""

from __future__ import annotations

from dataclasses import dataclass

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
