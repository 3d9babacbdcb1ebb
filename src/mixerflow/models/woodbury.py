"""Woodbury Glow: Glow with low-rank maps of the channels and of the pixels for 1x1 convolutions.

    step = ActNorm -> channels' map -> width's map -> height's map -> affine coupling

Each map is ``I + U V`` along its axis; the three commute, so their order does not matter. This is
the memory-efficient form (ME-Woodbury). In the full form one map of all pixels of a channel takes
the place of the last two: ``linear.memory_efficient`` is False.

Reference: Lu, Huang, Woodbury transformations for deep generative flows (2020), arXiv:2002.12229.
    With 8 steps a scale and the ranks of the recipe, the memory-efficient form has the MixerFlow
    paper's count (Table 1: 11,021,876 parameters at 3x32x32, printed as 11.02M). The full form does
    not (11,101,236 at ranks 16).

Departs from the paper:
    - U starts at 0 and V at N(0, 1 / n), so each map as the identity; both start at N(0, 0.01^2)
      there, near the identity;
    - what `mixerflow.models.glow` lists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mixerflow.models.glow import Glow
from mixerflow.parts import WoodburyPlanes
from mixerflow.registry import register


@register("woodbury-glow")
@dataclass(frozen=True)
class WoodburyGlow(Glow):
    """Settings of a Woodbury Glow: those of a Glow, and ranks for each scale."""

    linear: WoodburyPlanes = WoodburyPlanes()
    """The low-rank maps of a step."""
    channel_ranks: tuple[int, ...] = ()
    """Ranks of the channels' maps at each scale, the last one at all further scales; none for the
    rank of `linear` at all scales."""
    spatial_ranks: tuple[int, ...] = ()
    """Ranks of the pixels' maps, likewise."""

    def linear_at(self, scale: int) -> WoodburyPlanes:
        """Return the low-rank maps of the steps of a scale, numbered from 0."""
        channels = self.channel_ranks or (self.linear.channel_rank,)
        pixels = self.spatial_ranks or (self.linear.spatial_rank,)
        return replace(
            self.linear,
            channel_rank=channels[min(scale, len(channels) - 1)],
            spatial_rank=pixels[min(scale, len(pixels) - 1)],
        )
