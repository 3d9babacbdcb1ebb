"""A row flow in one call: forward, inverse, and a backward pass written by hand.

Run operator by operator a row flow's activations pass through memory some thirty times a step;
here a tile of rows stays in cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mixerflow.kernels.buffers import empty_reused
from mixerflow.kernels.library import library
from mixerflow.kernels.plan import DENSE, PARAMETERS, STATISTICS, Plan, Step
from mixerflow.kernels.sharing import Sharing

_TILE = 64
_NORMS = ("none", "batch", "layer", "rms")
"""Their numbers in the kernels are their places."""
_POINTERS = len(PARAMETERS) + len(STATISTICS) + len(DENSE)


class _Flow(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in (
            "rows", "n", "hidden", "steps", "norm", "batch", "update", "squash", "reverse",
            "threads", "tail",
        )),
        *((name, ctypes.c_double) for name in ("eps", "momentum", "bound")),
        ("share", ctypes.c_void_p),
    ]  # fmt: skip
    sharing: Sharing | None = None


class _Step(ctypes.Structure):
    _fields_ = [("p", ctypes.c_void_p * _POINTERS), ("flip", ctypes.c_long)]


class _Kept(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "y", "h", "i", "h2", "s", "stats")]


def _flow(plan: Plan, count: int, *, batch: bool, momentum: float | None = None) -> _Flow:
    norm = plan.norm or plan.by_row
    kind = "batch" if plan.norm else plan.by_row.kind if plan.by_row else "none"
    flow = _Flow(
        rows=count,
        n=plan.n,
        hidden=plan.hidden,
        steps=len(plan.steps) - 1,
        norm=_NORMS.index(kind),
        batch=batch,
        update=momentum is not None,
        squash=plan.squash,
        reverse=plan.reverse,
        threads=max(1, min(torch.get_num_threads(), -(-count // _TILE))),
        eps=norm.eps if norm else 0.0,
        momentum=momentum or 0.0,
        bound=plan.bound,
    )
    if batch and plan.norm is not None and plan.norm.processes.together:
        flow.sharing = Sharing(plan.norm.processes)
        flow.share = ctypes.cast(flow.sharing.callback, ctypes.c_void_p)
    return flow


def _steps(steps: Iterable[Step]) -> ctypes.Array[_Step]:
    given = list(steps)
    made = (_Step * len(given))()
    for to, step in zip(made, given, strict=True):
        for k, tensor in enumerate(step.parameters):
            to.p[k] = None if tensor is None else tensor.data_ptr()
        fixed = (*(step.statistics or (None,) * len(STATISTICS)), *step.dense)
        for k, tensor in enumerate(fixed, len(PARAMETERS)):
            to.p[k] = None if tensor is None else tensor.data_ptr()
        to.flip = step.flip
    return made


def _room(plan: Plan, x: Tensor) -> Tensor:
    """Memory for what backward needs of rows like `x`."""
    numbers = sum(map(sum, _widths(plan, x))) + _padded(plan.n, x.dtype) * len(x)
    return empty_reused(numbers, x.dtype)


def _widths(plan: Plan, x: Tensor) -> list[list[int]]:
    """The numbers that each step keeps, field by field."""
    wide, hidden = _padded(plan.n, x.dtype), _padded(plan.hidden, x.dtype)
    sizes = []
    for step in plan.steps[:-1]:
        changed = (plan.n + 1) // 2 if step.flip else plan.n // 2
        each = [wide, wide, hidden, hidden, hidden, _padded(changed, x.dtype)]
        sizes.append([width * len(x) for width in each] + [4 * hidden])
    return sizes


def _padded(n: int, dtype: torch.dtype) -> int:
    lanes = library(dtype).lanes()
    return (n + lanes - 1) // lanes * lanes


def _kept(plan: Plan, x: Tensor, room: Tensor) -> tuple[ctypes.Array[_Kept], int]:
    """Pointers into `room`: a structure a step, and where the rows after the last step lie."""
    kept = (_Kept * (len(plan.steps) - 1))()
    at = room.data_ptr()
    for step, sizes in zip(kept, _widths(plan, x), strict=True):
        for (name, *_), size in zip(_Kept._fields_, sizes, strict=True):
            setattr(step, name, at)
            at += size * room.element_size()
    return kept, at


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        plan: Plan,
        x: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        z, log_det = torch.empty_like(x), x.new_empty(len(x))
        flow = _flow(plan, len(x), batch=plan.batch, momentum=plan.moved())
        room = _room(plan, x)
        kept = _kept(plan, x, room)
        _call(x, "rows_forward", flow, _steps(plan.steps), x, z, log_det, *kept)
        ctx.plan, ctx.flow = plan, flow
        ctx.kinds = plan.kinds()
        ctx.save_for_backward(room, *parameters)
        return z, log_det

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        dz: Tensor,
        dlog_det: Tensor,
    ) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        plan.check(ctx.kinds)
        room, *_ = ctx.saved_tensors  # raises where a parameter was changed in between
        grads = [
            Step(tuple(None if p is None else torch.empty_like(p) for p in s.parameters), (), False)
            for s in plan.steps
        ]
        dx = torch.empty_like(dz, memory_format=torch.contiguous_format)
        _call(
            dz, "rows_backward", ctx.flow, _steps(plan.steps), *_kept(plan, dz, room),
            dz.contiguous(), dlog_det.contiguous(), dx, _steps(grads),
        )  # fmt: skip
        return None, dx, *(g for each in grads for g in each.parameters if g is not None)


def _call(like: Tensor, name: str, flow: _Flow, *arguments: Any) -> None:  # noqa: ANN401
    """Call a kernel; tensors become pointers."""
    given = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            given.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, int) or argument is None:
            given.append(ctypes.c_void_p(argument))
        else:
            given.append(argument)
    if getattr(library(like.dtype), name)(ctypes.byref(flow), *given):
        raise MemoryError(f"no memory for {flow.rows} rows of {flow.n}")
    if flow.sharing is not None:
        flow.sharing.check()


def rows_forward(plan: Plan, x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows ``(R, n)`` to z ``(R, n)`` and ``log|det dz/dx|`` ``(R,)``, differentiable once.

    Args:
        plan: the flow.
        x: float32 (or float64) on the CPU.
    """
    x = x.contiguous()
    parameters = plan.parameters()
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters)):
        return _Apply.apply(plan, x, *parameters)  # pyright: ignore[reportReturnType]
    z, log_det = torch.empty_like(x), x.new_empty(len(x))
    flow = _flow(plan, len(x), batch=plan.batch, momentum=plan.moved())
    room = _room(plan, x) if plan.batch else None  # statistics over rows need them all
    kept = (None, None) if room is None else _kept(plan, x, room)
    _call(x, "rows_forward", flow, _steps(plan.steps), x, z, log_det, *kept)
    return z, log_det


@torch.no_grad()
def rows_inverse(plan: Plan, z: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `rows_forward`, without gradients; of the same rows in training mode."""
    z = z.contiguous()
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    flow = _flow(plan, len(z), batch=plan.batch, momentum=plan.moved())
    _call(z, "rows_inverse", flow, _steps(plan.steps), z, x, log_det)
    return x, log_det
