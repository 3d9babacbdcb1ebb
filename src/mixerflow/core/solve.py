"""Inverses by iteration: each row stops by itself, and a warning names rows that fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

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


@dataclass(eq=False)
class Solve:
    """What one solve took, see `counting`.

    Attributes:
        direction: "forward" or "inverse" of a continuous flow; "fixed point".
        batch: rows of the batch.
        calls: calls of the function, of the whole batch or a part.
        rows: rows in all of these calls; over `batch`, they are the evaluations for a row.
        steps: of a fixed point, the calls after which each row was final ``(B,)``; all of them for
            a row that never was.
        factor: of a fixed point, the largest ratio of a row's successive moves in the 2-norm, a
            lower bound of the Lipschitz constant. Moves as short as roundings do not count; 0 if no
            two moves are longer.
    """

    direction: str
    batch: int
    calls: int = 0
    rows: int = 0
    steps: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    factor: float = 0.0
    _length: Tensor | None = None

    def moved(self, old: Tensor, new: Tensor, moving: Tensor) -> None:
        """Count one step of a fixed point, whose rows `moving` ``(B,)`` were not final before."""
        if not self.calls:
            self.steps = torch.zeros(self.batch, dtype=torch.int64, device=old.device)
        self.calls, self.rows = self.calls + 1, self.rows + self.batch
        self.steps += moving
        length, size = (each.flatten(1).norm(dim=1) for each in (new - old, new))
        if self._length is not None:
            long = moving & (length > torch.finfo(new.dtype).eps ** 0.5 * (1 + size))
            ratios = (length / self._length)[long]
            self.factor = max([self.factor, *ratios.tolist()])
        self._length = length


_solves: ContextVar[list[Solve] | None] = ContextVar("solves", default=None)


@contextmanager
def counting() -> Iterator[list[Solve]]:
    """In a ``with``, note what each solve takes, in a list that grows.

    Solves are the fixed points of residual and monotone maps, of their implicit derivatives too,
    and the integrations of continuous flows.
    """
    found: list[Solve] = []
    token = _solves.set(found)
    try:
        yield found
    finally:
        _solves.reset(token)


def noted(direction: str, batch: int) -> Solve | None:
    """Return a new entry in the list of `counting`; None outside of it."""
    solves = _solves.get()
    if solves is None:
        return None
    solves.append(Solve(direction, batch))
    return solves[-1]


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
    solve = noted("fixed point", start.shape[0])
    for _ in range(most):
        moving = ~(error <= tolerance)
        if not moving.any():
            break
        new = step(x)
        if solve is not None:
            solve.moved(x, new, moving)
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
    of one shape. The bracket shrinks with each step. A Newton step that leaves it, or that is more
    than half as long as the step before, is replaced by one to its middle: steps that go to and fro
    come to an end. An element is final once it moves by at most ``tolerance (1 + |x|)``. There are
    at most `most` steps; 200 halvings exhaust a float64.

    Returns:
        x, and each element's last relative move; more than `tolerance` if it has not converged.
    """
    x, error = (low + high) / 2, torch.full_like(target, torch.inf)
    before = error
    for _ in range(most):
        moving = ~(error <= tolerance)
        if not moving.any():
            break
        value, log_slope = function(x)
        above = value > target
        low, high = torch.where(above, low, x), torch.where(above, x, high)
        step = (value - target) * (-log_slope).exp()
        newton = x - step
        fit = (newton > low) & (newton < high) & (step.abs() <= before / 2)
        before = torch.where(fit, step.abs(), (high - low) / 2)
        new = torch.where(value == target, x, torch.where(fit, newton, (low + high) / 2))
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
