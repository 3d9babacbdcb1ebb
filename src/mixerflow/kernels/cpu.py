"""A row flow on the CPU in one call: forward, inverse, and a backward pass written by hand.

Run operator by operator a row flow's activations pass through memory some thirty times a step;
here a tile of rows stays in cache.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixerflow.kernels.library import library
from mixerflow.kernels.plan import DENSE, MAPS, PARAMETERS, STATISTICS, Plan, Step
from mixerflow.moments import Saved
from mixerflow.processes import Processes
from mixerflow.waits import adapt_waits

_TILE = 64
_NORMS = ("none", "batch", "layer", "rms")
"""Norms in the order of the numbers that the kernels give them."""
_POINTERS = len(PARAMETERS) + len(STATISTICS) + len(DENSE) + 1
"""Of a step; the last is that of the map of contexts."""
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_double), ctypes.c_long, ctypes.c_long)
_MOMENTS = 0
"""Kind of the numbers that a kernel shares: counts, means and squares; all others are sums."""

_spare: defaultdict[tuple[int, np.dtype], list[np.ndarray]] = defaultdict(list)
"""Free buffers by size and dtype: fresh pages from the system cost a tenth of a training step."""


class _ReusedBuffer(np.ndarray):
    """A view of a buffer, which becomes free when the last tensor that uses it is deleted."""

    def __del__(self) -> None:
        if self.base is not None:
            _spare[self.base.size, self.base.dtype].append(self.base)


def empty_reused(numbers: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor ``(numbers,)`` in memory that is reused after its deletion.

    If no free buffer has the right size, the others go back to the system: a batch size that is not
    used any more keeps no memory.
    """
    kind = np.dtype({torch.float32: np.float32, torch.float64: np.float64}[dtype])
    spare = _spare.get((numbers, kind))
    if not spare:
        release()
    try:
        buffer = spare.pop() if spare else np.empty(numbers, kind)
    except IndexError:  # another thread took it
        buffer = np.empty(numbers, kind)
    return torch.from_numpy(buffer.view(_ReusedBuffer))


def release() -> None:
    """Return spare buffers to the system."""
    _spare.clear()


class Unsolved(Exception):
    """A search inside a kernel has not converged."""


class _Sharing:
    """Batch norm's sums over the rows of several processes, for a kernel to call.

    C cannot pass on an exception. It is kept, nothing is sent after it, and `_call` raises it when
    the kernel has returned.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.error: BaseException | None = None
        self.callback = _CALLBACK(self._share)

    def _share(self, numbers: Any, count: int, kind: int) -> None:  # noqa: ANN401
        """Replace this process's numbers by those of the rows of all processes."""
        if self.error is not None:
            return
        try:
            address = ctypes.addressof(numbers.contents)
            buffer = (ctypes.c_double * count).from_address(address)
            own = torch.frombuffer(buffer, dtype=torch.float64)
            if kind == _MOMENTS:
                own.copy_(_pooled_moments(self.processes.gather(own)))
            else:
                own.copy_(self.processes.sum(own))
        except BaseException as error:
            self.error = error


def _pooled_moments(parts: Tensor) -> Tensor:
    """Pool count, means and summed squares of the parts' rows ``(W, 1 + 2 H)``."""
    counts, means, squares = parts[:, :1], *parts[:, 1:].chunk(2, 1)
    rows = counts.sum(0)
    mean = (counts * means).sum(0) / rows
    return torch.cat((rows, mean, (squares + counts * (means - mean).square()).sum(0)))


class _Flow(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in (
            "rows", "n", "hidden", "steps", "norm", "batch", "update", "squash", "squares",
            "reverse",
            "threads", "map", "params", "kept", "count",
        )),
        *((name, ctypes.c_double) for name in ("eps", "momentum", "limit")),
        *((name, ctypes.c_long) for name in ("context", "within")),
        *((name, ctypes.c_void_p) for name in ("contexts", "unsolved", "share")),
    ]  # fmt: skip
    sharing: _Sharing | None = None


class _Step(ctypes.Structure):
    _fields_ = [("p", ctypes.c_void_p * _POINTERS), ("flip", ctypes.c_long)]


class _Kept(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("x", "y", "h", "i", "h2", "s", "stats")]


def _flow(plan: Plan, count: int, context: Tensor | None) -> _Flow:
    """Return the flow's settings for a call on `count` rows; batch norm counts a batch.

    The settings have the address of the contexts, which must outlive them.
    """
    norm = plan.norm or plan.by_row
    kind = "batch" if plan.norm else plan.by_row.kind if plan.by_row else "none"
    momentum = plan.moved()
    flow = _Flow(
        rows=count,
        n=plan.n,
        hidden=plan.hidden,
        steps=len(plan.steps) - 1,
        norm=_NORMS.index(kind),
        batch=plan.batch,
        update=momentum is not None,
        squash=plan.squash,
        squares=plan.squares,
        reverse=plan.reverse,
        threads=max(1, min(torch.get_num_threads(), -(-count // _TILE))),
        eps=norm.eps if norm else 0.0,
        momentum=momentum or 0.0,
        map=MAPS.index(plan.elementwise.kind),
        params=plan.elementwise.params,
        kept=plan.elementwise.kept,
        count=plan.elementwise.parts,
        limit=plan.elementwise.limit,
        context=plan.context,
        within=1 if context is None else max(1, count // max(1, len(context))),
        contexts=None if context is None else context.data_ptr(),
    )
    if plan.batch and plan.norm is not None and plan.norm.processes.together:
        flow.sharing = _Sharing(plan.norm.processes)
        flow.share = ctypes.cast(flow.sharing.callback, ctypes.c_void_p)
    return flow


def _steps(steps: Iterable[Step]) -> ctypes.Array[_Step]:
    steps = list(steps)
    structures = (_Step * len(steps))()
    for structure, step in zip(structures, steps, strict=True):
        statistics = step.statistics or (None,) * len(STATISTICS)
        for k, tensor in enumerate((*step.parameters, *statistics, *step.dense)):
            structure.p[k] = None if tensor is None else tensor.data_ptr()
        structure.p[_POINTERS - 1] = None if step.context is None else step.context.data_ptr()
        structure.flip = step.flip
    return structures


def _kept_sizes(plan: Plan, x: Tensor) -> list[list[int]]:
    """Count the numbers that each step stores, field by field."""
    flips = tuple(step.flip for step in plan.steps[:-1])
    return _sizes(plan.n, plan.hidden, plan.elementwise.kept, flips, len(x), x.dtype)


@functools.lru_cache(64)
def _sizes(
    n: int, width: int, kept: int, flips: tuple[bool, ...], rows: int, dtype: torch.dtype
) -> list[list[int]]:
    lanes = library(dtype).lanes()

    def padded(n: int) -> int:
        return (n + lanes - 1) // lanes * lanes

    wide, hidden = padded(n), padded(width)
    sizes = []
    for flip in flips:
        changed = (n + 1) // 2 if flip else n // 2
        each = [wide, wide, hidden, hidden, hidden, padded(changed) * kept]
        sizes.append([numbers * rows for numbers in each] + [4 * hidden])
    return [*sizes, [wide * rows]]  # and the rows after the last step


def _kept(plan: Plan, x: Tensor, buffer: Tensor) -> tuple[ctypes.Array[_Kept], int]:
    """Return pointers into `buffer`: a structure for each step, and the rows after the last."""
    *steps, _ = _kept_sizes(plan, x)
    *starts, last = itertools.accumulate(itertools.chain(*steps), initial=0)
    at, size = buffer.data_ptr(), buffer.element_size()
    fields = len(_Kept._fields_)
    kept = (_Kept * len(steps))(
        *(
            _Kept(*(at + size * start for start in starts[k : k + fields]))
            for k in range(0, len(starts), fields)
        )
    )
    return kept, at + size * last


def _forward(
    plan: Plan, x: Tensor, context: Tensor | None, *, store: bool
) -> tuple[Tensor, Tensor, _Flow, Tensor | None]:
    """Run the kernel and return its results, and the buffer that it stores activations in."""
    z, log_det = torch.empty_like(x), x.new_empty(len(x))
    flow = _flow(plan, len(x), context)
    buffer = empty_reused(sum(map(sum, _kept_sizes(plan, x))), x.dtype) if store else None
    kept = (None, None) if buffer is None else _kept(plan, x, buffer)
    _call(x, "rows_forward", flow, _steps(plan.steps), x, z, log_det, *kept)
    return z, log_det, flow, buffer


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Saved, plan: Plan, x: Tensor, context: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        z, log_det, flow, buffer = _forward(plan, x, context, store=True)
        ctx.plan, ctx.flow, ctx.kinds = plan, flow, plan.kinds()
        ctx.save_for_backward(buffer, context, *parameters)
        return z, log_det

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Saved, dz: Tensor, dlog_det: Tensor
    ) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        plan.check(ctx.kinds)
        buffer, context, *_ = ctx.saved_tensors  # raises where a parameter was changed in between
        grads = [
            Step(tuple(map(_empty, s.parameters)), (), False, context=_empty(s.context))
            for s in plan.steps
        ]
        if context is not None:
            ctx.flow.contexts = context.data_ptr()  # it may have been stored elsewhere meanwhile
        dcontext = _empty(context) if ctx.needs_input_grad[2] else None
        dx = torch.empty_like(dz, memory_format=torch.contiguous_format)
        _call(
            dz, "rows_backward", ctx.flow, _steps(plan.steps), *_kept(plan, dz, buffer),
            dz.contiguous(), dlog_det.contiguous(), dx, dcontext, _steps(grads),
        )  # fmt: skip
        found = (g for each in grads for g in (*each.parameters, each.context))
        return None, dx, dcontext, *(g for g in found if g is not None)


def _empty(like: Tensor | None) -> Tensor | None:
    return None if like is None else torch.empty_like(like)


def _call(like: Tensor, name: str, flow: _Flow, *arguments: Any) -> None:  # noqa: ANN401
    """Call a kernel; tensors become pointers."""
    adapt_waits()
    pointers = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            argument = argument.data_ptr()
        plain = isinstance(argument, int) or argument is None
        pointers.append(ctypes.c_void_p(argument) if plain else argument)
    if getattr(library(like.dtype), name)(ctypes.byref(flow), *pointers):
        raise MemoryError(f"no memory for {flow.rows} rows of {flow.n}")
    if flow.sharing is not None and flow.sharing.error is not None:
        raise flow.sharing.error


def rows_forward(plan: Plan, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Map rows ``(R, n)``, float32 or float64, to z ``(R, n)`` and ``log|det dz/dx|`` ``(R,)``.

    Contexts are ``(G, K)``, each of ``R / G`` rows that follow each other, where the plan has any.
    """
    x, context = x.contiguous(), _read(plan, context)
    parameters = plan.parameters()
    given = (x, *parameters) if context is None else (x, context, *parameters)
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return _Apply.apply(plan, x, context, *parameters)  # pyright: ignore[reportReturnType]
    return _forward(plan, x, context, store=plan.batch)[:2]  # batch statistics need all rows


def _read(plan: Plan, context: Tensor | None) -> Tensor | None:
    """Return the contexts as the kernels read them; None where the nets read none."""
    if not plan.context or context is None:
        return None
    return context.contiguous()


@torch.no_grad()
def rows_inverse(plan: Plan, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Invert `rows_forward`, without gradients; of the same rows in training mode.

    Raises:
        Unsolved: an elementwise map whose inverse is a search has not found it to rounding.
    """
    z, context = z.contiguous(), _read(plan, context)
    x, log_det = torch.empty_like(z), z.new_empty(len(z))
    flow, unsolved = _flow(plan, len(z), context), ctypes.c_long(0)
    flow.unsolved = ctypes.addressof(unsolved)
    _call(z, "rows_inverse", flow, _steps(plan.steps), z, x, log_det)
    if unsolved.value:
        raise Unsolved(f"{unsolved.value} numbers have no inverse to rounding")
    return x, log_det
