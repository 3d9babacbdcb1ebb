"""Neural Spline Flow on images: Glow's scales and steps, with splines in the couplings.

References:
    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows (2019), sections 3 and 5.2.
    https://arxiv.org/abs/1906.04032
    The defaults are the MixerFlow paper's at another depth (Tables 1 and 2: 8 and 16 steps a scale,
    10,907,424 parameters at 3x32x32, 38,307,632 at 3x64x64 with nets of width 224).

Departs from the paper:
    - its own images' models have residual nets; the counts above are those of plain convolutions;
    - it divides the logits of widths and heights by the root of the net's width; here the net
      learns that.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.glow import Glow
from mixerflow.parts.conditioners import ImageNet, PlainConv, ZeroConvolution
from mixerflow.parts.images import Prior
from mixerflow.registry import register
from mixerflow.transforms import Elementwise, RationalQuadratic


@register("nsf")
@dataclass(frozen=True)
class NSF(Glow):
    """Everything that shapes a Neural Spline Flow: a Glow's settings at other defaults."""

    elementwise: Elementwise = RationalQuadratic(bins=4, tail=3.0)
    """What the couplings do to half of the channels."""
    net: ImageNet = PlainConv()
    """What they read the other half with; it does not start as the identity."""
    flip: bool = True
    """Whether couplings transform the first half, not the second."""
    split: ImageNet | None = ZeroConvolution(second_bias=False)
    """What reads the Gaussian of the channels that are done off the others; None for N(0, I)."""
    prior: Prior | None = None
    """The last scale's Gaussian; None for N(0, I)."""
