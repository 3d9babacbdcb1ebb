"""Initial value problems over a batch in which every row takes the steps that it needs.

The state is a pair: events ``(B, *event)``, and one number a row ``(B,)`` that the equation adds up
(a log-det). Events move by ``dx/dt = f(t, x)``; the number's rate depends on t and x alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mixerflow.core import noted

State = tuple[Tensor, Tensor]
Given = tuple[Tensor | None, ...]
"""What the equation reads besides t and x: tensors ``(B, ...)``, whose rows go with those of x."""
Field = Callable[[Tensor | float, Tensor, Given], State]
"""The rates of the pair at time t, a number or ``(B, 1, ...)``, and events ``(B, *event)``."""


def counted(field: Field, direction: str, batch: int) -> Field:
    """Return the field of one solve, which counts its calls within `mixerflow.core.counting`."""
    solve = noted(direction, batch)
    if solve is None:
        return field

    def count(t: Tensor | float, x: Tensor, given: Given) -> State:
        solve.calls += 1
        solve.rows += len(x)
        return field(t, x, given)

    return count


def of_rows(given: Given, rows: Tensor) -> Given:
    """Return the rows of what the equation reads."""
    return tuple(None if each is None else each[rows] for each in given)


def _as_rows(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers ``(B,)`` as ``(B, 1, ...)``, which multiply events."""
    return numbers.view(-1, *[1] * (x.dim() - 1))


# --- equal steps ---

BLOCK = 2**16
"""Numbers of the events in a call for rows that need shorter steps than the rest of the batch."""


def to_tolerance(
    field: Field,
    start: State,
    given: Given,
    times: tuple[float, float],
    *,
    steps: int,
    most: int,
    tolerance: float,
) -> tuple[State, Tensor]:
    """Solve by equal steps, halved until each row is within tolerance.

    A row is final once two solutions, the second with steps half as long, differ by no more than
    `tolerance`, see `difference`. Only rows that are not final are solved again. They are in calls
    of one size, the batch's or that of `BLOCK` numbers; so what a row becomes, to the bit, does
    not depend on how many others go on.

    Returns:
        The state, and each row's last difference ``(B,)``.
    """
    coarse = equal_steps(field, start, given, times, steps)
    state = equal_steps(field, start, given, times, 2 * steps)
    error = difference(state, coarse)
    size = max(1, min(len(error), BLOCK // max(1, math.prod(start[0].shape[1:]))))
    for halvings in range(2, most + 1):
        moving = (~(error <= tolerance)).nonzero().flatten()
        if not len(moving):
            break
        padding = moving[-1:].expand(-len(moving) % size)
        solved = [
            equal_steps(
                field,
                (start[0][rows], start[1][rows]),
                of_rows(given, rows),
                times,
                steps * 2**halvings,
            )
            for rows in torch.cat([moving, padding]).split(size)
        ]
        x, number = (torch.cat(parts)[: len(moving)] for parts in zip(*solved, strict=True))
        before = state[0][moving], state[1][moving]
        error = error.index_copy(0, moving, difference((x, number), before))
        state = state[0].index_copy(0, moving, x), state[1].index_copy(0, moving, number)
    return state, error


@torch.no_grad()
def difference(new: State, old: State) -> Tensor:
    """Each row's largest ``|difference| / (1 + |value|)``, with the number per number of the event.

    For an event of n numbers that is ``|difference| / (n + |value|)`` of the row's own number.
    """
    if not new[0].numel():
        return torch.zeros_like(new[1])
    of_event = ((new[0] - old[0]).abs() / (1 + new[0].abs())).flatten(1).amax(1)
    size = math.prod(new[0].shape[1:])
    return torch.maximum(of_event, (new[1] - old[1]).abs() / (size + new[1].abs()))


def equal_steps(
    field: Field, state: State, given: Given, times: tuple[float, float], number: int
) -> State:
    """Solve by `number` steps of the classical Runge-Kutta method of order 4."""
    h = (times[1] - times[0]) / number
    x, total = state
    for k in range(number):
        t = times[0] + k * h
        slope_a, rate_a = field(t, x, given)
        slope_b, rate_b = field(t + h / 2, x + h / 2 * slope_a, given)
        slope_c, rate_c = field(t + h / 2, x + h / 2 * slope_b, given)
        slope_d, rate_d = field(t + h, x + h * slope_c, given)
        x = x + h / 6 * (slope_a + 2 * (slope_b + slope_c) + slope_d)
        total = total + h / 6 * (rate_a + 2 * (rate_b + rate_c) + rate_d)
    return x, total


# --- adapted steps ---

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERRORS = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Weights of order 5 less those of order 4."""
LEAST = 2.0**-12
"""The shortest step of an interval of length 1."""


def adapted_steps(
    field: Field, start: State, given: Given, *, tolerance: float
) -> tuple[State, Tensor]:
    """Solve from t = 0 to 1 by Dormand and Prince's method of order 5, each row by its own steps.

    Of a step, the error is the root of the mean square of the event's, relative to ``1 + |value|``,
    or the own number's, whichever is more, see `difference`. A row repeats a step with more error
    than `tolerance`, unless it is the shortest. Rows at the end leave the batch. Derivatives go
    through the steps, not through their lengths.

    Returns:
        The state, and the largest error of each row's steps ``(B,)``. A row that is not finite
        after a shortest step ends there.

    Reference: Dormand, Prince, A family of embedded Runge-Kutta formulae (1980),
        doi:10.1016/0771-050X(80)90013-3.
    """
    x, total = start
    rows, t = torch.arange(len(x), device=x.device), torch.zeros_like(total)
    first = min(1.0, 2.5 * tolerance**0.2)  # tried, and repeated if it is too long
    h, worst = torch.full_like(t, first), torch.zeros_like(t)
    ended: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    slope, rate = field(_as_rows(t, x), x, given)
    while len(rows):
        slopes, rates, stage = [slope], [rate], x
        of_event, at = _as_rows(h, x), _as_rows(t, x)
        for node, weights in zip(_NODES, _STAGES, strict=True):
            stage = x + of_event * _weighted(weights, slopes)
            found = field(at + node * of_event, stage, given)
            slopes.append(found[0])
            rates.append(found[1])
        new = stage, total + h * _weighted(_STAGES[-1], rates)
        with torch.no_grad():
            wrong = h * _weighted(_ERRORS, rates)
            error = _error(of_event * _weighted(_ERRORS, slopes), wrong, (x, total), new)
            finite = error.isfinite()
            taken = (error <= tolerance) | (h <= LEAST)
            worst = torch.where(taken & finite, torch.maximum(worst, error), worst)
            t = torch.where(taken, t + h, t)
            done = (t >= 1 - LEAST / 2) | (taken & ~finite)
            factor = (0.9 * (tolerance / error) ** 0.2).nan_to_num(0.2, 10.0).clamp(0.2, 10.0)
            h = torch.minimum((h * factor).clamp(min=LEAST), 1 - t)
        wide = _as_rows(taken, x)
        x, total = torch.where(wide, new[0], x), torch.where(taken, new[1], total)
        slope, rate = torch.where(wide, slopes[-1], slope), torch.where(taken, rates[-1], rate)
        if done.any():
            ended.append((rows[done], x[done], total[done], worst[done]))
            on = (~done).nonzero().flatten()
            rows, t, h, worst, x, total, slope, rate = (
                each[on] for each in (rows, t, h, worst, x, total, slope, rate)
            )
            given = of_rows(given, on)
    if not ended:
        return start, worst
    numbers, *results = (torch.cat(parts) for parts in zip(*ended, strict=True))
    order = numbers.argsort()
    x, total, worst = (each[order] for each in results)
    return (x, total), worst


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    pairs = zip(weights, slopes, strict=False)
    first, *others = ((weight, slope) for weight, slope in pairs if weight)
    result = first[0] * first[1]
    for weight, slope in others:
        result = torch.add(result, slope, alpha=weight)
    return result


def _error(event: Tensor, number: Tensor, old: State, new: State) -> Tensor:
    """Each row's error ``(B,)`` of a step, relative to one plus the values before and after."""
    relative = event / (1 + torch.maximum(old[0].abs(), new[0].abs()))
    of_event = relative.flatten(1).square().mean(1).sqrt()
    size = math.prod(event.shape[1:])
    value = torch.maximum(old[1].abs(), new[1].abs())
    return torch.maximum(of_event, number.abs() / (size + value))
