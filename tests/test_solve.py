"""Iterative inverses: solutions, rows that stop by themselves, what is said of failures."""

import warnings

import pytest
import torch

from mixerflow.core import ConvergenceWarning, counting, fixed_point, monotone_root, report


def cubic(x):
    return x + x**3, (1 + 3 * x**2).log()


def test_a_contraction_is_solved_and_each_row_stops_by_itself():
    z = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = 0.3 * torch.randn(3, 3, dtype=torch.float64)
    weight = 0.8 * weight / torch.linalg.matrix_norm(weight, 2)

    def solve(z):
        return fixed_point(lambda x: z - (x @ weight).tanh(), z, tolerance=1e-12, most=500)

    x, error = solve(z)
    assert (error <= 1e-12).all()
    assert (x + (x @ weight).tanh() - z).abs().max() < 1e-11
    others = torch.cat([z[:1], 1e6 * z[1:]])  # other rows take other numbers of steps
    assert torch.equal(solve(others)[0][0], x[0])


def test_steps_of_a_fixed_point_are_counted_for_each_row():
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0**-10, 0.0]], dtype=torch.float64)

    def step(x):  # halves what is there; nothing to do for the first row
        return x / 2

    fixed_point(step, start, tolerance=2.0**-30, most=100)  # nothing is counted outside
    with counting() as solves:
        x, _ = fixed_point(step, start, tolerance=2.0**-30, most=100)
        fixed_point(step, start[1:], tolerance=0.0, most=7)
    # a row is final after its first move of at most 2^-30: from 1 these are 2^-1, 2^-2, ...
    assert solves[0].steps.tolist() == [1, 30, 20] and x[1, 0] == 2.0**-30
    assert (solves[0].calls, solves[0].rows, solves[0].batch) == (30, 90, 3)
    assert solves[0].factor == 0.5 and solves[0].direction == "fixed point"
    assert solves[1].steps.tolist() == [7, 7] and solves[1].calls == 7
    assert len(solves) == 2


def test_a_factor_is_below_the_constant_and_above_roundings():
    weight = torch.tensor([[0.9, 0.0], [0.0, 0.1]])
    with counting() as solves:
        fixed_point(lambda x: 1 + x @ weight, torch.zeros(4, 2), tolerance=1e-6, most=500)
        fixed_point(lambda x: x + 0 * x, torch.ones(4, 2), tolerance=1e-6, most=500)
    assert 0.85 < solves[0].factor <= 0.9001
    assert solves[1].factor == 0 and solves[1].steps.tolist() == [1] * 4


def test_what_does_not_contract_is_told_by_row():
    z = torch.tensor([[0.0], [1.0], [2.0]])
    _, error = fixed_point(lambda x: 2 * x, z, tolerance=1e-6, most=20)
    assert error[0] == 0 and (error[1:] > 0.1).all()
    with pytest.warns(ConvergenceWarning, match=r"2 of 3 rows .*\(rows 1, 2;.*wanted 1e-06\): do"):
        report(z, error, 1e-6, "do this")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_finite_is_no_convergence(bad):
    _, error = fixed_point(lambda x: x + bad, torch.zeros(2, 1), tolerance=1e-6, most=5)
    with pytest.warns(ConvergenceWarning, match="2 of 2"):
        report("x", error, 1e-6, "")


def test_roots_of_a_monotone_function():
    target = torch.linspace(-1e6, 1e6, 101, dtype=torch.float64)
    x, error = monotone_root(
        cubic, target, target.clamp(max=0) - 1, target.clamp(min=0) + 1, tolerance=1e-14, most=200
    )
    assert (error <= 1e-14).all()
    assert ((cubic(x)[0] - target).abs() <= 1e-12 * (1 + target.abs())).all()


def test_a_bracket_holds_newton_where_the_slope_misleads():
    def steep(x):  # a logistic so flat in its tails that Newton's step leaves the line
        return (8 * x).sigmoid(), (8 * x).sigmoid().log() + (-8 * x).sigmoid().log() + 8.0**0.5

    target = torch.tensor([1e-12, 0.5, 1 - 1e-12], dtype=torch.float64)
    low, high = torch.full_like(target, -1000), torch.full_like(target, 1000)
    x, error = monotone_root(steep, target, low, high, tolerance=1e-12, most=200)
    assert (error <= 1e-12).all()
    torch.testing.assert_close((8 * x).sigmoid(), target, rtol=1e-3, atol=0)


def test_silence_where_all_converged_or_nothing_was_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report("x", torch.zeros(3), 1e-6, "")
        report("x", torch.zeros(0), 1e-6, "")
