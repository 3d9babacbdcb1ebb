"""All outlier scores by name."""

from __future__ import annotations

from mixerflow.detection.places import MaximumPlace, TopPlaces
from mixerflow.detection.scores import (
    BitsPerDim,
    ComplexityCorrected,
    LatentMixture,
    LikelihoodRatio,
    Score,
    Typicality,
)
from mixerflow.errors import ConfigError, nearest

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        BitsPerDim(),
        Typicality(),
        ComplexityCorrected(),
        LikelihoodRatio(),
        LatentMixture(),
        MaximumPlace(),
        TopPlaces(),
    )
}
"""The scores by name, not fitted."""


def scores_named(names: list[str]) -> list[Score]:
    """Return scores by their names; an unknown name is a ConfigError."""
    for name in names:
        if name not in SCORES:
            raise ConfigError(f"no score {name}", "--scores", nearest(name, SCORES))
    return [SCORES[name] for name in dict.fromkeys(names)]


def scores_for(*, lengths: bool, background: bool, places: bool = False) -> list[Score]:
    """Return all scores that need no more than what there is."""
    there = {"complexity": lengths, "background": background, "places": places}
    return [score for score in SCORES.values() if all(there[need] for need in score.needs)]
