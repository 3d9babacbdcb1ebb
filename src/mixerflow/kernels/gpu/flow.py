"""A row flow by the GPU kernels, with gradients."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

from mixerflow.kernels.gpu.dense import dense_maps, inverse_maps
from mixerflow.kernels.gpu.launch import NET, Place, Setting, Weights, run_gradient, run_step
from mixerflow.kernels.plan import Plan

Keep = Literal["output", "inputs"]
"""What the backward pass is left: the last rows, from which it rebuilds the others, or all."""


def setting_of(plan: Plan, *, low: bool) -> Setting:
    """What the kernels need to know of a plan."""
    scaled = plan.steps[0].parameters[6] is not None
    return Setting(
        n=plan.n,
        hidden=plan.hidden,
        flips=tuple(step.flip for step in plan.steps[:-1]),
        norm=1 if plan.layer is not None else 2 if scaled else 0,
        eps=plan.layer or 0.0,
        squash=plan.squash,
        bound=plan.bound,
        low=low,
    )


@functools.lru_cache(maxsize=256)
def _tables(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    start = torch.zeros(1, dtype=torch.int32, device=device)
    return start, torch.arange(n, dtype=torch.int32, device=device)


def plain(x: Tensor) -> Place:
    """Of rows ``(R, n)`` one after another."""
    return Place(len(x), 1, x.shape[1], *_tables(x.shape[1], x.device))


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        setting: Setting,
        inverse: Tensor | None,
        x: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        weights, place = _weights(setting, tensors), plain(x)
        steps = len(setting.flips)
        log_det = x.new_empty(len(x))
        kept = [x]
        for k in range(steps):
            fresh = k == 0 or inverse is None  # x is the caller's
            z = torch.empty_like(x) if fresh else kept[-1]
            run_step(setting, place, weights, k, kept[-1], z, log_det, add=k > 0)
            kept.append(z)
        ctx.setting = setting
        ctx.rebuilds = inverse is not None
        held = kept[-1:] if inverse is not None else kept
        ctx.save_for_backward(inverse, *held, *tensors)
        ctx.held = len(held)
        return kept[-1], log_det

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        dz: Tensor,
        d_log_det: Tensor,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "kernels have first derivatives only: wrap the forward pass in "
                "mixerflow.kernels.disabled() to differentiate twice"
            )
        setting: Setting = ctx.setting
        inverse, *saved = ctx.saved_tensors
        kept, tensors = saved[: ctx.held], saved[ctx.held :]
        weights, place = _weights(setting, tensors), plain(dz)
        dz, d_log_det = dz.contiguous(), d_log_det.contiguous()
        kind = torch.bfloat16 if setting.low else torch.float32
        spill = torch.empty(len(dz), setting.hidden, dtype=kind, device=dz.device)
        x, dx, found = torch.empty_like(dz), torch.empty_like(dz), []
        z = kept[-1]
        for k in reversed(range(len(setting.flips))):
            before = x if ctx.rebuilds else kept[k]
            sums = run_gradient(
                setting, place, weights, k, z, dz, d_log_det, before, dx, spill, inverse=inverse
            )
            found.insert(0, sums)
            dz = dx
            z, x = before, z if k < len(setting.flips) - 1 else torch.empty_like(dz)
        nets = [grad for sums in found for grad in sums.net]
        constants = d_log_det.sum().expand(len(found))
        dense, offset = (torch.stack([s[i] for s in found]) for i in (1, 2))
        tail = found[-1].tail or (None, None)
        return None, None, dx, dense, offset, constants, *tail, *nets


def _weights(setting: Setting, tensors: Any) -> Weights:  # noqa: ANN401
    dense, offset, log_det, tail_scale, tail_shift, *nets = tensors
    each = [tuple(nets[k : k + NET]) for k in range(0, len(nets), NET)]
    tail = None if tail_scale is None else (tail_scale, tail_shift)
    return Weights(dense, offset, log_det, tuple(each), tail)


def _tensors(plan: Plan) -> list[Tensor | None]:
    """As `_Apply` takes them."""
    maps = dense_maps(plan)
    tail = plan.steps[-1].parameters or (None, None)
    nets = [tensor for step in plan.steps[:-1] for tensor in step.parameters[4:]]
    return [*maps, *tail, *nets]


def rows_forward(
    plan: Plan, x: Tensor, *, low: bool = False, keep: Keep = "inputs"
) -> tuple[Tensor, Tensor]:
    """Rows ``(R, n)`` to z ``(R, n)`` and ``log|det dz/dx|`` ``(R,)``, differentiable once.

    Args:
        plan: the flow.
        x: float32.
        low: whether nets compute in bfloat16; rows, linear maps and log-dets stay float32.
        keep: what the backward pass is left.
    """
    with torch.autocast(x.device.type, enabled=False):
        tensors = _tensors(plan)
        inverse = inverse_maps(plan) if keep == "output" else None
        return _Apply.apply(setting_of(plan, low=low), inverse, x.contiguous(), *tensors)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def rows_inverse(plan: Plan, z: Tensor, *, low: bool = False) -> tuple[Tensor, Tensor]:
    """The inverse of `rows_forward`, without gradients."""
    with torch.autocast(z.device.type, enabled=False):
        setting, dense = setting_of(plan, low=low), inverse_maps(plan)
        weights = _weights(setting, _tensors(plan))
        z = z.contiguous()
        x, log_det, place = torch.empty_like(z), z.new_empty(len(z)), plain(z)
        for k in reversed(range(len(setting.flips))):
            last = k == len(setting.flips) - 1
            source = z if last else x
            run_step(
                setting, place, weights, k, source, x, log_det, dense=dense, add=not last
            )
        return x, log_det
