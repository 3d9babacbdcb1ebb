"""ButterflyFlow: Glow with butterflies of the whole image after each 1x1 convolution.

    step = ActNorm -> 1x1 convolution -> butterflies of all C H W numbers -> affine coupling

A butterfly pairs numbers at halving distances, in log-many levels of 2x2 blocks: a sparse linear
map in which distant pixels meet. Several of them can undo a fixed permutation of the pixels, for
which the paper has 10 a step that start as random rotations: ``linear.stacks`` and
``linear.rotated``.

Reference: Meng et al., ButterflyFlow: building invertible layers with butterfly matrices (2022),
    arXiv:2209.13774. No count is published for its images' models.

Departs from the paper:
    - the published model has MaCow's variant of Glow's step, and a step of its own for the channels
      that leave a scale; this is Glow's step and Glow's scales;
    - blocks are never singular, see `mixerflow.transforms.Butterfly`;
    - butterflies share their learning rate and weight averages with the rest;
    - what `mixerflow.models.glow` lists.
"""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.models.glow import Glow
from mixerflow.parts import ButterflyImage, ImageMap
from mixerflow.registry import register


@register("butterfly-flow")
@dataclass(frozen=True)
class ButterflyFlow(Glow):
    """Settings of a ButterflyFlow: those of a Glow with another linear map."""

    linear: ImageMap = ButterflyImage()
    """The linear map of a step: a 1x1 convolution and butterflies."""
