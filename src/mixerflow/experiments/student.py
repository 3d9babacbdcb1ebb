"""Student's t distribution: how far a mean of few numbers may lie from the truth."""

from __future__ import annotations

import math


def quantile(freedom: int, confidence: float = 0.95) -> float:
    """Return q with ``P(|t| < q) = confidence`` for t of `freedom` degrees of freedom.

    A mean of n numbers and its standard error s give the interval ``mean ± q(n - 1) s``. For two
    standard errors in place of q(2) = 4.30, three equal pairs get a verdict in 18 % of cases.

    Raises:
        ValueError: no degrees of freedom, or a confidence that is not between 0 and 1.
    """
    if freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"quantile: {freedom} degrees of freedom, confidence {confidence}")
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Return ``P(|T| < t)``, the finite sum for whole degrees of freedom.

    References:
        Abramowitz, Stegun: Handbook of mathematical functions (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    square, odd = math.cos(angle) ** 2, freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= square * (k + 1) / (k + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
