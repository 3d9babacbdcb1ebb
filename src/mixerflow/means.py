"""The mean of figures, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor


def mean_and_error(
    values: Sequence[float] | np.ndarray | Tensor,
) -> tuple[float | None, float | None]:
    """Return the mean of n values and its standard error; None where there are too few values.

    The error is ``s / sqrt(n)``, where ``s^2 = sum (v - mean)^2 / (n - 1)``, in float64. Equal
    values have the error 0. Where a value is not finite, neither is the mean, and the error is NaN.

    Args:
        values: ``(n,)``, independent, of images or of seeds.
    """
    given = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(given, np.float64)
    if not len(array):
        return None, None
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        spread = (array - array[0]).std(ddof=1) if len(array) > 1 else None
    return float(array.mean()), None if spread is None else float(spread) / math.sqrt(len(array))
