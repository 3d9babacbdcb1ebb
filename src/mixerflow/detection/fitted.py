"""Scores fitted to held-out inside images, their thresholds, and what they say of other images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from mixerflow.core import Flow, as_tensor
from mixerflow.detection.groups import group_scores
from mixerflow.detection.known import scores_for, scores_named
from mixerflow.detection.measured import Measured, measure
from mixerflow.detection.metrics import Detection, detection
from mixerflow.detection.places import factorises
from mixerflow.detection.scores import Score, bits_of
from mixerflow.detection.threshold import LEAST_RATE, Threshold, least_images, threshold_of
from mixerflow.errors import ConfigError
from mixerflow.registry import register

GROUPS = "groups"
"""The name of group typicality among the scores."""
_SEED = 0
_ORDER = ("top", "complexity", "typicality")
"""Scores that order images; the first that there is."""


@register
@dataclass(frozen=True)
class Fitted:
    """Scores with what they have learned of inside images, and their thresholds.

    Half of the inside images, drawn once and for all, teach the scores; the others, which are then
    as new to a score as images to come are, give the thresholds.

    Attributes:
        scores: the scores, fitted.
        thresholds: one for each score.
        entropy: h, the mean bits/dim of the first half.
        group: images of a group.
        group_threshold: of groups of the second half; None where that half has too few groups.
        images: number of inside images.
        seed: of the noise that all images get.
    """

    scores: tuple[Score, ...]
    thresholds: tuple[Threshold, ...]
    entropy: float
    group: int
    group_threshold: Threshold | None
    images: int
    seed: int = 0

    @property
    def needs(self) -> set[str]:
        """What `Measured` must have beside log-densities: "complexity", "background"."""
        return {need for score in self.scores for need in score.needs}

    @property
    def ordering(self) -> str:
        """The name of the score that orders images where none is chosen."""
        names = [score.name for score in self.scores]
        return next((name for name in _ORDER if name in names), names[0])

    def without(self, need: str) -> Fitted:
        """Return the same without the scores that need `need`."""
        kept = [i for i, score in enumerate(self.scores) if need not in score.needs]
        scores, thresholds = (
            tuple(each[i] for i in kept) for each in (self.scores, self.thresholds)
        )
        return replace(self, scores=scores, thresholds=thresholds)

    def threshold(self, name: str) -> Threshold:
        """Return the threshold of a score."""
        names = [score.name for score in self.scores]
        if name not in names:
            raise ValueError(f"no score {name!r} was fitted: {', '.join(names)}")
        return self.thresholds[names.index(name)]


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the inside images that teach the scores, and those that give the thresholds."""
    order = np.random.default_rng(_SEED).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


def second_half(inside: Measured) -> Measured:
    """Return those of the inside images that give the thresholds, and taught no score."""
    return inside.take(halves(len(inside))[1])


def require_settings(false_alarms: float, group: int) -> None:
    """Raise a ConfigError for a rate of false alarms, or a size of groups, that cannot be."""
    if not LEAST_RATE <= false_alarms < 1:
        what = f"{false_alarms} false alarms"
        raise ConfigError(what, "--false-alarms", f"give a rate between {LEAST_RATE:g} and 1")
    if group < 1:
        raise ConfigError(f"groups of {group} images", "--group", "give at least 1")


def fit_scores(
    inside: Measured,
    scores: Sequence[Score],
    *,
    false_alarms: float = 0.05,
    group: int = 16,
    seed: int = 0,
) -> Fitted:
    """Fit scores to measured images of the inside that training has not seen.

    Args:
        inside: the images; twice as many as the rate needs, at least ``2 / false_alarms - 2``.
        scores: what to fit.
        false_alarms: the rate of inside images that a threshold flags, see `threshold_of`.
        group: images of a group, see `group_scores`.
        seed: seed of the noise with which they were measured.

    Raises:
        ConfigError: a rate that is not between 0 and 1, groups of no images, or too few images.
    """
    require_settings(false_alarms, group)
    require_needs(scores, inside.arrays())
    need = 2 * least_images(false_alarms)
    if len(inside) < max(need, 2):
        what = f"{len(inside):,} inside images for {100 * false_alarms:g} % false alarms"
        remedy = f"give at least {max(need, 2):,}, or a higher rate"
        raise ConfigError(what, "--inside", remedy)
    if not all(np.isfinite(each).all() for each in inside.arrays().values()):
        what = "the flow's figures of some inside images are not finite"
        raise ConfigError(what, "--inside", "train again, or leave these images out")
    first, second = (inside.take(half) for half in halves(len(inside)))
    fitted = tuple(score.fitted(first) for score in scores)
    entropy = float(bits_of(first).mean())
    together = group_scores(second, group, entropy)
    enough = len(together) >= least_images(false_alarms)
    return Fitted(
        scores=fitted,
        thresholds=tuple(threshold_of(score(second), false_alarms) for score in fitted),
        entropy=entropy,
        group=group,
        group_threshold=threshold_of(together, false_alarms) if enough else None,
        images=len(inside),
        seed=seed,
    )


def fit_outliers(
    flow: Flow,
    inside: np.ndarray | Tensor,
    *,
    scores: Sequence[Score | str] | None = None,
    labels: np.ndarray | Tensor | None = None,
    background: Flow | None = None,
    false_alarms: float = 0.05,
    group: int = 16,
    batch: int = 128,
    seed: int = 0,
) -> Fitted:
    """Measure inside images ``(N, *shape)`` that the flow was not trained on, and fit scores.

    `scores` may be names; without any it fits all that the images and the `background` allow. The
    other arguments are those of `fit_scores` and `mixerflow.detection.measure`, which name the
    errors too.
    """
    x = as_tensor(inside)
    lengths = not x.is_floating_point()
    if scores is None:
        by_place = (flow.context_net is None or labels is not None) and factorises(flow)
        given = {"lengths": lengths, "background": background is not None}
        chosen = scores_for(**given, places=by_place)
    else:
        chosen = [scores_named([s])[0] if isinstance(s, str) else s for s in scores]
    measured = measure(
        flow,
        x,
        labels=labels,
        background=background,
        lengths=lengths,
        places=any("places" in score.needs for score in chosen),
        batch=batch,
        seed=seed,
    )
    return fit_scores(measured, chosen, false_alarms=false_alarms, group=group, seed=seed)


def require_needs(scores: Sequence[Score], there: Collection[str]) -> None:
    """Raise a ConfigError for a score that needs more of `Measured` than there is, by names."""
    remedies = {
        "background": "give a --background",
        "complexity": "float data have no lengths: choose others",
        "places": "give a flow that maps each place by itself",
    }
    for score in scores:
        for need in score.needs:
            if need not in there:
                what = f"the score {score.name} needs {need}"
                raise ConfigError(what, "--scores", remedies[need])


@dataclass(frozen=True, eq=False)
class Outliers:
    """Outlier scores of N images.

    Attributes:
        measured: what the scores are made of.
        scores: name -> ``(N,)`` float64, larger is more outlying; NaN where the flow's figures are.
        fitted: the scores' thresholds, and what they have learned.
    """

    measured: Measured
    scores: dict[str, np.ndarray]
    fitted: Fitted

    def __len__(self) -> int:
        return len(self.measured)

    @classmethod
    def of(cls, measured: Measured, fitted: Fitted) -> Outliers:
        """Score measured images."""
        return cls(measured, {each.name: each(measured) for each in fitted.scores}, fitted)

    def flags(self, name: str) -> np.ndarray:
        """Return which images ``(N,)`` a score calls outliers; one of NaN is."""
        return self.fitted.threshold(name).flags(self.scores[name])

    def order(self, name: str) -> np.ndarray:
        """Return the images from the most outlying to the least; NaN comes first."""
        return np.argsort(-np.nan_to_num(self.scores[name], nan=np.inf), kind="stable")

    def groups(self) -> np.ndarray:
        """Return the scores of groups of images in their order, see `group_scores`."""
        return group_scores(self.measured, self.fitted.group, self.fitted.entropy)

    def summary(self) -> dict[str, Any]:
        """Return the share of images beyond each threshold, for JSON."""
        return {name: float(self.flags(name).mean()) for name in self.scores}


def outliers(
    flow: Flow,
    images: np.ndarray | Tensor,
    fitted: Fitted,
    *,
    labels: np.ndarray | Tensor | None = None,
    background: Flow | None = None,
    batch: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> Outliers:
    """Score images ``(N, *shape)`` as outliers, a larger score being more outlying.

    ``found.scores["complexity"]`` is an array ``(N,)``, as pytorch-ood's and scikit-learn's metrics
    take it; ``found.flags("complexity")`` says which images lie beyond the threshold.

    Args:
        flow: the flow that the scores were fitted with.
        images: integers as the flow's levels say, or floats.
        fitted: the scores with their thresholds, as `fit_outliers` or `mixerflow.runs` give them.
        labels: class numbers or vectors, for a conditional flow.
        background: the background flow, if a score needs one.
        batch: images at a time.
        on_batch: called with the number of images after each batch.

    Raises:
        ValueError: images of the wrong shape or range.
        ConfigError: scores that need a background flow, and none given.
    """
    if "background" in fitted.needs and background is None:
        remedy = "give the background flow that the scores were fitted with"
        raise ConfigError("a likelihood ratio needs a second flow", "background", remedy)
    measured = measure(
        flow,
        images,
        labels=labels,
        background=background if "background" in fitted.needs else None,
        lengths="complexity" in fitted.needs,
        places="places" in fitted.needs,
        batch=batch,
        seed=fitted.seed,
        on_batch=on_batch,
    )
    return Outliers.of(measured, fitted)


def compare_sets(inside: Measured, outside: Measured, fitted: Fitted) -> dict[str, Detection]:
    """Return how well each score tells `outside` images from the `inside` ones that fitted it.

    Inside images that taught the scores are left out; `compare` says the rest.
    """
    return compare(second_half(inside), outside, fitted)


def compare(inside: Measured, outside: Measured, fitted: Fitted) -> dict[str, Detection]:
    """Return how well each score tells `outside` images from `inside` ones that taught it nothing.

    `GROUPS` is of groups drawn at random, and is absent where a set has fewer images than a group.
    """
    found = {score.name: detection(score(inside), score(outside)) for score in fitted.scores}
    random = np.random.default_rng(_SEED)
    inner, outer = (
        group_scores(each.take(random.permutation(len(each))), fitted.group, fitted.entropy)
        for each in (inside, outside)
    )
    if len(inner) and len(outer):
        found[GROUPS] = detection(inner, outer)
    return found
