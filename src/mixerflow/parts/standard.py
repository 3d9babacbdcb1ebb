"""Maps that bring features to a common scale, as values: fixed by the first batch."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Transform
from mixerflow.parts.base import Part
from mixerflow.registry import register
from mixerflow.transforms import Standardize, Whiten


class FeatureStandard(Part):
    """A fixed map of each place's channels, from the data-dependent initialisation."""

    def build(self, channels: int) -> Transform:
        """Return the map of vectors of that length."""
        return self.make(channels)


@register("channels")
@dataclass(frozen=True)
class ChannelStandard(FeatureStandard):
    """Each channel less its mean, over its standard deviation."""

    makes = Standardize

    floor: float = 0.1
    """Least standard deviation, relative to the root mean square over the channels."""


@register("white")
@dataclass(frozen=True)
class WhiteStandard(FeatureStandard):
    """Channels without correlations, all of a variance of at most 1."""

    makes = Whiten

    ridge: float = 0.01
    """Added to the diagonal of the channels' correlation matrix; bounds what is amplified."""
    floor: float = 0.1
    """Least standard deviation, relative to the root mean square over the channels."""
