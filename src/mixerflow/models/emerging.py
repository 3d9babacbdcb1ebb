"""Emerging convolutions: Glow's scales and steps, with two triangular convolutions in each step.

References:
    Hoogeboom, van den Berg, Welling: Emerging convolutions for generative normalizing flows (2019).
    https://arxiv.org/abs/1901.11137
    The defaults are the MixerFlow paper's at another depth (Table 1: 8 steps a scale, 11,429,172
    parameters at 3x32x32), "settings as in" Lu, Huang: Woodbury transformations for deep
    generative flows (2020), https://arxiv.org/abs/2002.12229.

Departs from the paper:
    - in the paper a 1x1 convolution precedes the two, and the count above is of steps without one:
      ``linear=EmergingMap(first=MatrixMap())`` has it;
    - the paper's convolutions have a bias, which the step's ActNorm has too.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.glow import Glow
from mixerflow.parts import EmergingMap, ImageMap
from mixerflow.registry import register


@register("emerging")
@dataclass(frozen=True)
class Emerging(Glow):
    """Settings of a flow with emerging convolutions: those of a Glow with another linear map."""

    linear: ImageMap = EmergingMap()
    """The linear map of a step."""
