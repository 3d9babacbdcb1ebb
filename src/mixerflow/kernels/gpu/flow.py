"""A row flow by the GPU kernels: forward with gradients, and inverse."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mixerflow.kernels.gpu.launch import run_gradient, run_step
from mixerflow.kernels.gpu.weights import assemble, disassemble, inverse_maps, setting_of, totals
from mixerflow.kernels.plan import Keep, Place, Plan
from mixerflow.moments import Saved
from mixerflow.precision import without_autocast


@functools.cache  # never freed: a captured graph keeps the address only
def _tables(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    start = torch.zeros(1, dtype=torch.int32, device=device)
    return start, torch.arange(n, dtype=torch.int32, device=device)


def plain(x: Tensor) -> Place:
    """Return the place of rows ``(R, n)`` one after another."""
    return Place(len(x), 1, x.shape[1], *_tables(x.shape[1], x.device))


def _image_log_dets(log_det: Tensor, place: Place) -> Tensor:
    """Return the log-dets of images from those of their rows."""
    return log_det if place.within == 1 else log_det.view(-1, place.within).sum(1)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Saved, plan: Plan, low: bool, keep: Keep, place: Place, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        setting = setting_of(plan, low=low)
        weights = assemble(plan, setting, x.device)
        log_det, rows = x.new_empty(place.rows), [x]
        for k in range(len(setting.flips)):
            fresh = k == 0 or keep == "inputs"  # the caller keeps x
            z = torch.empty_like(x) if fresh else rows[-1]
            run_step(setting, place, weights, k, rows[-1], z, log_det, add=k > 0)
            rows.append(z)
        ctx.plan, ctx.setting, ctx.weights = plan, setting, weights
        ctx.place, ctx.keep, ctx.kinds = place, keep, plan.kinds()
        held = rows[-1:] if keep == "output" else rows
        ctx.count = len(held)
        ctx.save_for_backward(*held, *parameters)  # a parameter changed meanwhile is an error
        return rows[-1], _image_log_dets(log_det, place)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Saved, dz: Tensor, d_log_det: Tensor
    ) -> tuple[Tensor | None, ...]:
        plan, setting, weights, place = ctx.plan, ctx.setting, ctx.weights, ctx.place
        plan.check(ctx.kinds)
        rows = list(ctx.saved_tensors[: ctx.count])
        dz, d_log_det = dz.contiguous(), d_log_det.contiguous()
        device = dz.device
        kind = torch.bfloat16 if setting.low else torch.float32
        wide = torch.empty(2, place.rows, setting.hidden, dtype=kind, device=device)
        spills, found = (wide[0], wide[1]), totals(setting, weights, device)
        inverse = inverse_maps(plan, weights) if ctx.keep == "output" else None
        dx, z = torch.empty_like(dz), rows.pop()
        for k in reversed(range(len(setting.flips))):
            x = torch.empty_like(z) if inverse is not None else rows.pop()
            total = found.sums[k, : found.counts[k]]
            run_gradient(
                setting, place, weights, k, z, dz, d_log_det, x, dx, spills, total, inverse=inverse
            )
            z, dz = x, dx
        grads = disassemble(plan, setting, weights, found, d_log_det, place.within)
        return None, None, None, None, dx, *grads


def rows_forward(
    plan: Plan, x: Tensor, *, low: bool = False, keep: Keep = "inputs", place: Place | None = None
) -> tuple[Tensor, Tensor]:
    """Map rows ``(R, n)`` to z ``(R, n)`` and ``log|det dz/dx|`` ``(R,)``, differentiable once.

    `low`: nets compute in bfloat16; rows, linear maps and log-dets stay float32. `keep`: rows kept
    for the backward pass. `place`: where the rows lie in x, of any shape; each number of x must be
    in a row, and log-dets are then those of images, ``(B,)``.
    """
    with without_autocast(x):
        x = x.contiguous()
        place = plain(x) if place is None else place
        return _Apply.apply(plan, low, keep, place, x, *plan.parameters())  # pyright: ignore[reportReturnType]


@torch.no_grad()
def rows_inverse(
    plan: Plan, z: Tensor, *, low: bool = False, place: Place | None = None
) -> tuple[Tensor, Tensor]:
    """Invert `rows_forward`, without gradients."""
    with without_autocast(z):
        setting = setting_of(plan, low=low)
        weights = assemble(plan, setting, z.device)
        inverse, z = inverse_maps(plan, weights), z.contiguous()
        place = plain(z) if place is None else place
        x, log_det = torch.empty_like(z), z.new_empty(place.rows)
        last = len(setting.flips) - 1
        for k in range(last, -1, -1):
            source, add = (z, False) if k == last else (x, True)
            run_step(setting, place, weights, k, source, x, log_det, add=add, inverse=inverse)
        return x, _image_log_dets(log_det, place)
