"""A row flow in one call: forward, inverse, and a backward pass written by hand.

A row flow is (ActNorm, linear map, affine coupling with a residual MLP) a few times over, then an
ActNorm, for vectors ``(rows, n)``. Run operator by operator its activations pass through memory
some thirty times a step; here a tile of rows stays in cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixerflow.kernels.lease import lease
from mixerflow.kernels.library import library
from mixerflow.kernels.sharing import Sharing
from mixerflow.processes import Processes

PARAMETERS = (
    "log_scale", "shift", "packed", "offset",
    "enter", "enter_bias", "gamma1", "beta1", "linear1", "linear1_bias",
    "gamma2", "beta2", "linear2", "linear2_bias", "leave", "leave_bias",
)  # fmt: skip
STATISTICS = ("mean1", "var1", "mean2", "var2")
DENSE = ("weight", "inverse", "log_det")
_TILE = 64
_POINTERS = len(PARAMETERS) + len(STATISTICS) + len(DENSE)


class Norm(NamedTuple):
    """The state of batch norm, alike in all of a row flow's nets."""

    training: bool
    update: bool
    """Whether a batch in training mode moves the running values."""
    momentum: float | None
    eps: float
    processes: Processes
    """Between which a batch is shared."""


@dataclass(frozen=True)
class Net:
    """A residual MLP's tensors and settings, as the kernels take them.

    Attributes:
        given: length of what it reads.
        out: how many numbers it gives.
        hidden: its width.
        squash: whether it reads sign(x) log(1 + |x|).
        parameters: in the order of `PARAMETERS`, from "enter" on.
        statistics: batch norm's running values, in the order of `STATISTICS`.
        norm: batch norm's state; None without.
        counts: batches that the running values have seen.
    """

    given: int
    out: int
    hidden: int
    squash: bool
    parameters: tuple[Tensor | None, ...]
    statistics: tuple[Tensor | None, ...]
    norm: Norm | None
    counts: tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """One step's tensors, None where it has no such part."""

    parameters: tuple[Tensor | None, ...]
    """In the order of `PARAMETERS`."""
    statistics: tuple[Tensor | None, ...]
    """Batch norm's running values, in the order of `STATISTICS`."""
    flip: bool
    dense: tuple[Tensor, ...] = ()
    """The linear map, its inverse and log-det, in the order of `DENSE`, instead of "packed"."""


@dataclass(frozen=True)
class Plan:
    """A row flow's tensors and settings.

    Attributes:
        n: length of the rows.
        hidden: width of the MLPs.
        steps: the steps; the last has nothing but an ActNorm, or nothing at all.
        norm: batch norm's state, alike in all MLPs; None without.
        counts: batches that its running values have seen.
        squash: whether they read sign(x) log(1 + |x|).
        reverse: whether the linear maps reverse the order of the dimensions.
        bound: of the log-scales; 0 for none.
    """

    n: int
    hidden: int
    steps: tuple[Step, ...]
    norm: Norm | None
    counts: tuple[Tensor, ...]
    squash: bool
    reverse: bool
    bound: float

    @property
    def batch(self) -> bool:
        """Whether batch norm takes the rows' own statistics: training mode."""
        return self.norm is not None and self.norm.training

    def moved(self) -> float | None:
        """How far a batch moves the running values, None for not at all; counts the batch."""
        if self.norm is None or not self.norm.training or not self.norm.update:
            return None
        for count in self.counts:
            count += 1
        momentum = self.norm.momentum
        return 1 / int(self.counts[0]) if momentum is None else momentum

    @property
    def dtype(self) -> torch.dtype:
        """That of all its tensors."""
        return self._tensors()[0].dtype

    def _tensors(self) -> list[Tensor]:
        steps = (s for step in self.steps for s in (step.parameters, step.statistics, step.dense))
        return [tensor for some in steps for tensor in some if tensor is not None]

    def misfit(self) -> str | None:
        """What would make a kernel read past a tensor, or read it wrongly."""
        n, hidden = self.n, self.hidden
        for step in self.steps[:-1]:
            given = n // 2 if step.flip else (n + 1) // 2
            out = 2 * (n - given)
            h, square = (hidden,), (hidden, hidden)
            shapes = ((n,), (n,), (n, n), (n,), (hidden, given), h, h, h, square, h, h, h, square,
                      h, (out, hidden), (out,), h, h, h, h)  # fmt: skip
            tensors = (*step.parameters, *step.statistics)
            for tensor, shape in zip(tensors, shapes, strict=False):
                if tensor is not None and tensor.shape != shape:
                    return f"a parameter of shape {tuple(tensor.shape)}, not {shape}"
        tensors = self._tensors()
        kinds = {(t.dtype, t.device.type) for t in tensors}
        if len(kinds) > 1 or tensors[0].device.type != "cpu":
            return "its parameters are of several dtypes, or not on the CPU"
        return None if all(t.is_contiguous() for t in tensors) else "strided parameters"

    def parameters(self) -> list[Tensor]:
        """Those there are, step by step."""
        return [p for step in self.steps for p in step.parameters if p is not None]


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
    flow = _Flow(
        rows=count,
        n=plan.n,
        hidden=plan.hidden,
        steps=len(plan.steps) - 1,
        norm=plan.norm is not None,
        batch=batch,
        update=momentum is not None,
        squash=plan.squash,
        reverse=plan.reverse,
        threads=max(1, min(torch.get_num_threads(), -(-count // _TILE))),
        eps=plan.norm.eps if plan.norm else 0.0,
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
    return lease(numbers, x.dtype)


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
        ctx.kinds = [(p.dtype, p.device) for p in parameters]
        ctx.save_for_backward(room, *parameters)
        return z, log_det

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        dz: Tensor,
        dlog_det: Tensor,
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "kernels have first derivatives only: wrap the forward pass in "
                "mixerflow.kernels.disabled() to differentiate twice"
            )
        room, *_ = ctx.saved_tensors  # raises where a parameter was changed in between
        plan: Plan = ctx.plan
        # not by their places in memory: FSDP2 gathers them anew for the backward pass
        if ctx.kinds != [(p.dtype, p.device) for p in plan.parameters()]:
            raise RuntimeError("parameters were moved or converted between forward and backward")
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
