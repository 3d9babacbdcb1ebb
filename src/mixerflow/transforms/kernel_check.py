"""GPU kernels run only after a check on the machine itself.

No test of this package has seen that GPU, its driver or its compiler.
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor

from mixerflow import kernels
from mixerflow.core import Chain
from mixerflow.transforms.plans import plan_of

_TOLERANCE = {False: 1e-4, True: 1e-2}
"""Relative error of values, log-dets and inverses, in float32 and with bfloat16 nets; of gradients
five times as much. Right kernels stay well below: 4e-6 and 4e-3, of gradients 2e-6 and 3e-2."""
_GRADIENT_FACTOR = 5
_ROWS = 300

_reasons: dict[tuple[object, ...], str | None] = {}


def failed_check(
    chain: Chain, plan: kernels.Plan, x: Tensor, place: kernels.Place | None = None
) -> str | None:
    """Return why the GPU's kernels must not run such a chain, or None if they passed the check.

    The check runs once a process for each kind of row flow, with random weights and rows, against
    the same chain operator by operator in float64: values, log-dets, every gradient, the inverse.
    `place` says where the rows lie in x, if not one after another.
    """
    if not x.is_cuda:
        return None
    low = kernels.is_low(x)
    flips = tuple(step.flip for step in plan.steps)
    dense = bool(plan.steps[0].dense)
    settings = (plan.n, plan.hidden, plan.squash, plan.reverse, plan.bound, plan.by_row)
    layout = None if place is None else (place.within, place.stride)
    key = (x.device, layout, low, flips, dense, len(plan.parameters()), *settings)
    if key not in _reasons:
        if torch.cuda.is_current_stream_capturing():
            return "a kernel is checked before a graph is captured, not in the graph"
        worst = worst_error(chain, x.device, low=low, place=place)
        wrong = not worst < 1  # or NaN
        _reasons[key] = f"their error is {worst:.1e} times the allowed one" if wrong else None
        if wrong:
            which = f"the GPU's kernels for rows of {plan.n} and nets of width {plan.hidden}"
            message = f"{which} are not used: {_reasons[key]}"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
    return _reasons[key]


def worst_error(
    chain: Chain, device: torch.device, *, low: bool, place: kernels.Place | None = None
) -> float:
    """Return the largest error of the kernels for such a chain over the allowed one."""
    generator = torch.Generator().manual_seed(0)
    mine = copy.deepcopy(chain)
    with torch.no_grad():
        for parameter in mine.parameters():
            drawn = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            parameter.copy_(0.3 * drawn)  # a new flow is the identity, which hides faults
    exact = copy.deepcopy(mine).double()
    plan = plan_of(mine)
    assert isinstance(plan, kernels.Plan)
    place, numbers = _test_place(plan.n, place, device)
    x = torch.randn(place.rows // place.within, place.stride, generator=generator).to(device)
    dz = torch.randn(place.rows, plan.n, generator=generator).to(device)
    weight = torch.randn(len(x), generator=generator).to(device)
    live = not plan.refused("gpu", differentiated=True) and not plan.steps[0].dense
    with torch.enable_grad():
        given, given2 = (t.requires_grad_(live) for t in (x.clone(), x.double()))
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            z, log_det = kernels.rows_forward(plan, given, place=place)
            back = kernels.rows_inverse(plan, z.detach(), place=place)[0]
        z = z[:, numbers].flatten(0, 1)
        with kernels.disabled(), torch.autocast(device.type, enabled=False):
            z2, log_det2 = exact(given2[:, numbers].flatten(0, 1))
        log_det2 = log_det2.view(-1, place.within).sum(1)
        values, gradients = [(z, z2), (log_det, log_det2), (back, given2)], []
        if live:
            ((z * dz).sum() + (log_det * weight).sum()).backward()
            ((z2 * dz).sum() + (log_det2 * weight).sum()).backward()
            both = zip(mine.parameters(), exact.parameters(), strict=True)
            gradients = [(a.grad, b.grad) for a, b in [(given, given2), *both]]
    ratios = [_relative(a, b) / _TOLERANCE[low] for a, b in values]
    ratios += [_relative(a, b) / (_GRADIENT_FACTOR * _TOLERANCE[low]) for a, b in gradients]
    return max(ratios)


def _test_place(
    n: int, place: kernels.Place | None, device: torch.device
) -> tuple[kernels.Place, Tensor]:
    """Return few rows' place, like `place` or plain, and the numbers' positions ``(within, n)``."""
    if place is None:
        tables = (torch.zeros(1, dtype=torch.int32), torch.arange(n, dtype=torch.int32))
        place = kernels.Place(_ROWS, 1, n, *(table.to(device) for table in tables))
    else:
        place = place._replace(rows=-(-_ROWS // place.within) * place.within)
    return place, place.row_table.long()[:, None] + place.column_table.long()


def _relative(found: Tensor | None, exact: Tensor | None) -> float:
    """Return the relative error; infinite for NaN, and for a missing gradient."""
    if found is None or exact is None:
        return math.inf
    error = ((found.double() - exact).norm() / exact.norm()).item()
    return error if math.isfinite(error) else math.inf
