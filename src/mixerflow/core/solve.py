"""Inverses by iteration: each row stops by itself, and one that does not converge is reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from mixerflow.core.transform import Shape


class ConvergenceWarning(UserWarning):
    """Rows of an iterative inverse that are not as exact as they should be."""


def fixed_point(
    step: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """``x = step(x)`` by iteration from `start` ``(B, *event)``, for a contraction `step`.

    A row stays as it is once no value of it moves by more than ``tolerance (1 + |value|)``: what
    becomes of it does not depend on the other rows.

    Returns:
        x, and each row's last relative move ``(B,)``; NaN or more than `tolerance` where it had not
        converged after `most` steps.
    """
    x, error = start, start.new_full((start.shape[0],), torch.inf)
    for _ in range(most):
        moving = ~(error <= tolerance)
        if not moving.any():
            break
        new = step(x)
        move = ((new - x).abs() / (1 + new.abs())).flatten(1).amax(1)
        error = torch.where(moving, move, error)
        x = torch.where(moving.view(-1, *[1] * (x.dim() - 1)), new, x)
    return x, error


def monotone_root(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    target: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    tolerance: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """``function(x) = target`` for an increasing elementwise function, between `low` and `high`.

    Newton's steps, each kept inside the bracket, which shrinks; halving it where they leave it. An
    element stays as it is once it moves by at most ``tolerance (1 + |x|)``.

    Args:
        function: x to its value and log-derivative, elementwise.
        target: any shape.
        low: of target's shape, with ``function(low) <= target``.
        high: of target's shape, with ``function(high) >= target``.
        tolerance: of x.
        most: steps; 200 halvings exhaust a float64.

    Returns:
        x, and each element's last relative move; more than `tolerance` where it had not converged.
    """
    x, error = (low + high) / 2, torch.full_like(target, torch.inf)
    for _ in range(most):
        moving = ~(error <= tolerance)
        if not moving.any():
            break
        value, log_slope = function(x)
        above = value > target
        low, high = torch.where(above, low, x), torch.where(above, x, high)
        newton = x - (value - target) * (-log_slope).exp()
        inside = (newton > low) & (newton < high)
        new = torch.where(value == target, x, torch.where(inside, newton, (low + high) / 2))
        move = (new - x).abs() / (1 + new.abs())
        error, x = torch.where(moving, move, error), torch.where(moving, new, x)
    return x, error


def report(what: object, error: Tensor, tolerance: float, remedy: str) -> None:
    """Warn of the rows whose `error` ``(B, ...)`` is not within `tolerance`, if there are any.

    Warns:
        ConvergenceWarning: says how many rows, which, how far off, and the remedy.
    """
    if not error.numel():
        return
    worst = error.flatten(1).amax(1) if error.dim() > 1 else error
    wrong = torch.nonzero(~(worst <= tolerance)).flatten()
    if not len(wrong):
        return
    rows: Shape = tuple(wrong[:8].tolist())
    named = ", ".join(map(str, rows)) + (", ..." if len(wrong) > len(rows) else "")
    warnings.warn(
        f"{type(what).__name__}: {len(wrong)} of {len(worst)} rows did not converge (rows {named}; "
        f"error {worst[wrong].max().item():.1e}, wanted {tolerance:.0e}): {remedy}",
        ConvergenceWarning,
        stacklevel=3,
    )
