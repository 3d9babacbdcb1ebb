"""Inverses by iteration: each row stops by itself, and a warning names rows that fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_values_alone: ContextVar[bool] = ContextVar("values_alone", default=False)


@contextmanager
def values_alone() -> Iterator[None]:
    """In a ``with``, let inverses give log-dets of 0 where the right ones would cost much."""
    token = _values_alone.set(True)
    try:
        yield
    finally:
        _values_alone.reset(token)


def log_det_wanted() -> bool:
    """Whether an inverse must compute its log-det: not within `values_alone`."""
    return not _values_alone.get()


class ConvergenceWarning(UserWarning):
    """Some rows of an iterative inverse did not converge."""


def fixed_point(
    step: Callable[[Tensor], Tensor], start: Tensor, *, tolerance: float, most: int
) -> tuple[Tensor, Tensor]:
    """Solve ``x = step(x)`` for a contraction `step` by iteration from `start` ``(B, *event)``.

    A row is final once none of its values moves by more than ``tolerance (1 + |value|)``, so that
    it does not depend on the other rows.

    Returns:
        x, and each row's last relative move ``(B,)``; NaN or more than `tolerance` for a row that
        has not converged after `most` steps.
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
    """Solve ``function(x) = target`` for an increasing elementwise function in a bracket.

    `function` returns value and log-derivative; ``function(low) <= target <= function(high)``, all
    of one shape. The bracket shrinks with each step. A Newton step that leaves it is replaced by
    its middle. An element is final once it moves by at most ``tolerance (1 + |x|)``. There are at
    most `most` steps; 200 halvings exhaust a float64.

    Returns:
        x, and each element's last relative move; more than `tolerance` if it has not converged.
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


def report(module: object, error: Tensor, tolerance: float, remedy: str) -> None:
    """Warn (`ConvergenceWarning`) of rows whose `error` ``(B, ...)`` exceeds `tolerance`."""
    worst = error.flatten(1).amax(1) if error.dim() > 1 and error.numel() else error
    wrong = torch.nonzero(~(worst <= tolerance)).flatten()
    if not error.numel() or not len(wrong):
        return
    rows = ", ".join(map(str, wrong[:8].tolist())) + (", ..." if len(wrong) > 8 else "")
    warnings.warn(
        f"{type(module).__name__}: {len(wrong)} of {len(worst)} rows did not converge "
        f"(rows {rows}; error {worst[wrong].max().item():.1e}, wanted {tolerance:.0e}): {remedy}",
        ConvergenceWarning,
        stacklevel=3,
    )
