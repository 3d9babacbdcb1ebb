"""Whether a claim holds: differences between rows, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Outcome:
    """What the runs say of a claim."""

    difference: float | None
    """Mean of worse minus better, in bits/dim; None without a seed that both have."""
    standard_error: float | None
    """Of that mean over seeds; None for fewer than two."""
    seeds: int
    verdict: Verdict


def mean_and_error(values: list[float]) -> tuple[float | None, float | None]:
    """The mean and its standard error over seeds; None where there are too few."""
    if not values:
        return None, None
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def outcome(better: Mapping[int, float], worse: Mapping[int, float]) -> Outcome:
    """Judge that one row has fewer bits/dim than another.

    With ``d_i = worse_i - better_i`` for every seed i that both rows have, the claim holds where
    ``mean(d) > 2 s.e.``, fails where ``mean(d) < -2 s.e.``, and is undecided in between and with
    fewer than two seeds.

    Args:
        better: seed -> bits/dim of the row that is said to be better.
        worse: the same of the other.
    """
    seeds = sorted(better.keys() & worse.keys())
    mean, error = mean_and_error([worse[seed] - better[seed] for seed in seeds])
    verdict: Verdict = "undecided"
    if mean is not None and error is not None and abs(mean) > 2 * error:
        verdict = "holds" if mean > 0 else "fails"
    return Outcome(mean, error, len(seeds), verdict)
