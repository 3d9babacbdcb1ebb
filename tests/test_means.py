"""A mean and its standard error, against the standard library's exact sums."""

import math
import statistics

import numpy as np
import pytest
import torch

from mixerflow.means import mean_and_error

VALUES = np.random.default_rng(0).normal(3, 1e-3, 50).tolist()


@pytest.mark.parametrize("kind", [list, np.array, lambda v: torch.tensor(v, dtype=torch.float64)])
def test_the_mean_and_the_error_are_those_of_exact_sums(kind):
    for n in (2, 3, 50):
        mean, error = mean_and_error(kind(VALUES[:n]))
        assert mean == pytest.approx(statistics.fmean(VALUES[:n]), rel=1e-15)
        exact = statistics.stdev(VALUES[:n]) / math.sqrt(n)
        assert error == pytest.approx(exact, rel=1e-12)


def test_too_few_equal_and_infinite_values():
    assert mean_and_error([]) == (None, None)
    assert mean_and_error([2.5]) == (2.5, None)
    assert mean_and_error([0.1, 0.1, 0.1])[1] == 0, "not what rounding leaves"
    for wrong in (math.inf, math.nan):
        for values in ([wrong, 1.0], [1.0, wrong]):
            mean, error = mean_and_error(values)
            assert math.isnan(error) and not math.isfinite(mean)
    single = torch.tensor([1.0, 2.0], requires_grad=True)
    assert mean_and_error(single) == (1.5, 0.5)
