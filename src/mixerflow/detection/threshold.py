"""A threshold at a stated rate of false alarms, and how far the true rate may lie from it.

The threshold is the k-th smallest of n scores of inside images that neither training nor fitting
has seen. If an image to come is drawn as they were, and scores have no ties, then its probability
of a false alarm, given the n scores, is a draw from Beta(n + 1 - k, k), whatever the scores'
distribution is; and among m images to come the number of false alarms is beta-binomial.

References:
    Wilks: Determination of sample sizes for setting tolerance limits (1941),
        doi:10.1214/aoms/1177731788.
    David, Nagaraja: Order statistics (2003), sections 2.1 and 7.2.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from mixerflow.registry import register

CONFIDENCE = 0.95
LEAST_RATE = 1e-9
"""The lowest rate of false alarms that can be asked for."""


@register
@dataclass(frozen=True)
class Threshold:
    """An image is an outlier if its score is larger than `value`.

    Attributes:
        value: the threshold, the k-th smallest of the scores.
        false_alarms: the rate that was asked for: the expected rate is at most that, and less than
            ``1 / (images + 1)`` below it.
        images: n, the number of inside images whose scores it comes from.
        rank: k.
    """

    value: float
    false_alarms: float
    images: int
    rank: int

    @property
    def expected(self) -> float:
        """The expected rate of false alarms, ``(n + 1 - k) / (n + 1)``."""
        return (self.images + 1 - self.rank) / (self.images + 1)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the two-sided tolerance interval of the true rate, given these n scores."""
        above, tail = self.images + 1 - self.rank, (1 - confidence) / 2
        return _beta(tail, above, self.rank), _beta(1 - tail, above, self.rank)

    def observed_interval(self, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Return the prediction interval of the rate that `count` further inside images show.

        It is wider than `interval`, for it has the chance of the further images too. The observed
        rate lies in it with at least the confidence.
        """
        if count < 1:
            raise ValueError(f"observed_interval: {count} images")
        above, tail = self.images + 1 - self.rank, (1 - confidence) / 2
        odds = np.exp([_log_beta_binomial(j, count, above, self.rank) for j in range(count + 1)])
        below = odds.cumsum()
        low = int(np.argmax(below > tail))
        high = int(np.argmax(below >= 1 - tail))
        return low / count, high / count

    def flags(self, scores: np.ndarray) -> np.ndarray:
        """Return which scores ``(N,)`` are outliers'; NaN is one."""
        return ~(np.asarray(scores) <= self.value)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        low, high = self.interval()
        return (
            f"{self.value:.4g}: {100 * self.false_alarms:g} % false alarms, "
            f"{percent(low)} to {percent(high)} % with {100 * CONFIDENCE:g} % confidence, from "
            f"{self.images:,} images"
        )


def percent(share: float) -> str:
    """Return a share in per cent, of two digits or more."""
    return f"{100 * share:.2g}" if share < 0.1 else f"{100 * share:.1f}"


def least_images(false_alarms: float) -> int:
    """Return the smallest number of inside images that a rate of false alarms can come from."""
    return math.ceil(round(1 / false_alarms, 9)) - 1


def threshold_of(scores: np.ndarray, false_alarms: float) -> Threshold:
    """Return the threshold that `scores` ``(n,)`` of inside images give.

    With ``k = ceil((n + 1) (1 - false_alarms))`` it is the k-th smallest score.

    Raises:
        ValueError: a rate that is not between 0 and 1, scores that are NaN, or too few scores:
            fewer than `least_images`.
    """
    if not LEAST_RATE <= false_alarms < 1:
        low = f"at least {LEAST_RATE:g}, less than 1"
        raise ValueError(f"threshold_of: a rate of {false_alarms}; give {low}")
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError(
            f"threshold_of: scores {scores.shape}, {np.isnan(scores).sum()} of them NaN"
        )
    count = len(scores)
    rank = math.ceil(round((count + 1) * (1 - false_alarms), 9))
    if rank > count:
        need = least_images(false_alarms)
        raise ValueError(f"threshold_of: {count} scores for {false_alarms}; give at least {need}")
    return Threshold(float(np.sort(scores)[rank - 1]), false_alarms, count, rank)


def rarity(inside: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return how rare scores ``(N,)`` are among those of inside images ``(n,)``: ``(N,)``.

    It is ``(1 + number of inside scores at least as large) / (n + 1)``, the conformal p-value: of
    images that are as the inside ones are, at most the share r has a rarity of r or less. An image
    lies beyond a `threshold_of` the same scores if its rarity is at most the threshold's `expected`
    rate. NaN is as rare as can be.

    References:
        Vovk, Gammerman, Shafer: Algorithmic learning in a random world (2005), section 2.2.
    """
    known = np.sort(np.asarray(inside, np.float64))
    scores = np.where(np.isnan(scores), np.inf, scores)
    larger = len(known) - np.searchsorted(known, scores, side="left")
    return (1 + larger) / (len(known) + 1)


@cache
def _beta(share: float, a: int, b: int) -> float:
    """Return the quantile of Beta(a, b), for whole a and b, by bisection.

    ``P(X < x)`` is the probability of at least a successes in a + b - 1 trials of chance x.
    """
    trials = a + b - 1
    numbers = np.arange(trials + 1)
    steps = np.log((trials - numbers[:-1]) / numbers[1:])
    log_choose = np.concatenate([[0.0], steps.cumsum()])[a:]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chances = (math.log(middle), math.log1p(-middle))
        logs = log_choose + numbers[a:] * chances[0] + (trials - numbers[a:]) * chances[1]
        low, high = (middle, high) if np.exp(logs).sum() < share else (low, middle)
    return (low + high) / 2


def _log_beta_binomial(j: int, count: int, a: int, b: int) -> float:
    """Return the log-probability of j of `count`, where the chance is a draw from Beta(a, b)."""

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    def log_beta(x: int, y: int) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return log_choose(count, j) + log_beta(j + a, count - j + b) - log_beta(a, b)
