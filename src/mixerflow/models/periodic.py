"""Periodic convolutions: Glow's scales and steps, with a convolution on a torus in each step.

References:
    Hoogeboom, van den Berg, Welling: Emerging convolutions for generative normalizing flows (2019),
    section 3.2. https://arxiv.org/abs/1901.11137
    The defaults are the MixerFlow paper's at another depth (Table 1: 8 steps a scale, 11,211,444
    parameters at 3x32x32), "settings as in" Lu, Huang: Woodbury transformations for deep
    generative flows (2020), https://arxiv.org/abs/2002.12229.

Departs from the paper:
    - the paper's convolution has a bias, which the step's ActNorm has too; the count above is of
      steps without one: ``linear=PeriodicMap(bias=True)`` has it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.glow import Glow
from mixerflow.parts import ImageMap, PeriodicMap
from mixerflow.registry import register


@register("periodic")
@dataclass(frozen=True)
class Periodic(Glow):
    """Settings of a flow with periodic convolutions: those of a Glow with another linear map."""

    linear: ImageMap = PeriodicMap()
    """The linear map of a step."""
