"""Chains that hand-written kernels run: of vector transforms, and mixer layers on a GPU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixerflow import kernels
from mixerflow.core import (
    Along,
    Chain,
    Context,
    Inverse,
    Layer,
    Mapped,
    Noise,
    Runner,
    Shape,
    Transform,
    constant,
)
from mixerflow.registry import register
from mixerflow.transforms.kernel_check import failed_check
from mixerflow.transforms.layout import _Rearrangement
from mixerflow.transforms.plans import hooked, plan_of


@register
class KernelChain(Layer):
    """Transforms of vectors one after another, as `Chain`, run by one kernel where one fits.

    A kernel fits the mixer's own pattern: (ActNorm, LU or RLU, affine coupling with a residual MLP)
    once or more, then an ActNorm, where any ActNorm or linear map may be missing; and the folded
    form of this pattern. The kernel gives the chain's results, to rounding, in a third of the time;
    `path` says whether it runs. On a GPU, ``keep`` names the vectors kept for the backward pass:
    each step's inputs, or with ``"output"`` the last step's, from which the others are rebuilt.

    Contexts are ``(B, K)``, or ``(G, K)``, each of ``B / G`` vectors that follow each other.
    """

    shares_contexts = True
    _is_folded: bool = False
    _folded_plan: kernels.Plan | None = None
    """The plan of a folded chain, which can be kept because its tensors stay the same."""
    keep: kernels.Keep = "inputs"

    def folded(self) -> Transform:
        chain = super().folded()
        if isinstance(chain, KernelChain):
            chain._is_folded = True
        return chain

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KernelChain:
        self._folded_plan = None  # another dtype or device: other tensors
        return super()._apply(fn, recurse)

    def path(self, x: Tensor, context: Context = None) -> str:
        """``"kernel"``, or why vectors like `x` are transformed operator by operator."""
        plan = self._plan_for_vectors(x.detach(), context)
        return plan if isinstance(plan, str) else "kernel"

    def _plan_for_vectors(self, x: Tensor, context: Context) -> kernels.Plan | str:
        """The plan for a batch ``(B, n)`` with vectors one after another in memory, or why none."""
        plan = kernels.unsupported_reason(x) or self.plan(x)
        if isinstance(plan, str):
            return plan
        if x.shape[1:] != (plan.n,) or len(x) < 1 + plan.batch:
            return "rows of another length, or too few of them"
        return _misfit(plan.context, context, x) or plan

    def plan(self, x: Tensor, place: kernels.Place | None = None) -> kernels.Plan | str:
        """The kernels' plan for tensors of x's dtype and device, or why they cannot run the chain.

        `place` says where the vectors lie in x, if not one after another.
        """
        plan = None if self._folded_plan is None or hooked(self) else self._folded_plan
        if plan is None:
            plan = plan_of(self)
            self._folded_plan = plan if self._is_folded and isinstance(plan, kernels.Plan) else None
        if isinstance(plan, str):
            return plan
        if plan.kind != (x.dtype, x.device):
            return "its parameters are of another dtype than the rows, or on another device"
        if plan.steps[0].dense and _differentiated(x):
            return "the kernel differentiates triangles only"
        where = kernels.where(x)
        live = where == "gpu" and _differentiated(x, *plan.parameters())
        return (
            plan.refused(where, differentiated=live) or failed_check(self, plan, x, place) or plan
        )

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        plan = self._plan_for_vectors(x, context)
        if isinstance(plan, str):
            return super().forward(x, context, noise)
        return kernels.rows_forward(plan, x, context, keep=self.keep)

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        return super().compose(run, x, _for_each(context, x), noise)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        # the kernel's inverse has no gradients
        given = () if context is None else (context,)
        live = _differentiated(z, *given, *self.parameters())
        plan = "gradients" if live else self._plan_for_vectors(z, context)
        if not isinstance(plan, str):
            with contextlib.suppress(kernels.Unsolved):  # the operators warn of which rows
                return kernels.rows_inverse(plan, z, context)
        return super().inverse(z, _for_each(context, z), noise)


def _for_each(context: Context, x: Tensor) -> Context:
    """The context of each vector, of contexts ``(G, K)`` of ``B / G`` vectors each."""
    if context is None or context.shape[0] == x.shape[0] or context.shape[0] == 0:
        return context  # not by len(), which would fix an exported batch
    return context.repeat_interleave(x.shape[0] // context.shape[0], 0)


def _misfit(length: int, context: Context, x: Tensor) -> str | None:
    """Why the kernels cannot read the contexts of vectors `x`; None if they can, or need not."""
    if not length:
        return None
    if context is None:
        return "its nets read a context"
    plain = type(context) in (Tensor, nn.Parameter) and context.dtype == x.dtype
    if not plain or context.dim() != 2 or context.shape[1] != length or not len(context):
        return f"contexts are plain vectors of {length} numbers of the rows' dtype"
    return "the rows are not in parts of equal length" if len(x) % len(context) else None


def _differentiated(*tensors: Tensor) -> bool:
    """Whether autograd records operations on any of the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


_Call = tuple[KernelChain, kernels.Plan, kernels.Place]


class _Mixing(NamedTuple):
    """Index of a row flow, number of rows in an image, and where they lie: see `kernels.Place`."""

    step: int
    rows: int
    row_table: Tensor
    column_table: Tensor


_Cache = dict[tuple[Shape, torch.device], tuple[list[object], list[_Mixing] | str]]
"""For images of a shape on a device: the steps' `_identity`, and the result of `_find_mixings`."""


@register
class MixerLayer(Layer):
    """Patchify, row flows along either axis of the patch matrix, and patchify undone, as `Chain`.

    On a GPU the patchify steps cost nothing: kernels are told where the numbers of a row lie in the
    image, and no patch matrix or transpose of one is ever made. This needs each step to be a
    patchify step, the inverse of one, or a row flow that the kernels take, and the image to come
    out in its own order; otherwise, and on the CPU, the steps run one by one. `path` says which.
    """

    _mixings: _Cache | None = None

    def __getstate__(self) -> dict[str, object]:
        """The state without the cache: a copy, or a file, may be for another device."""
        return {name: value for name, value in self.__dict__.items() if name != "_mixings"}

    def path(self, x: Tensor) -> str:
        """``"kernel"``, or why images like `x` are transformed step by step."""
        calls = self._kernel_calls(x)
        return calls if isinstance(calls, str) else "kernel"

    def _kernel_calls(self, x: Tensor) -> list[_Call] | str:
        """The row flows with what the kernels take to run them on images like `x`, or why none."""
        if kernels.where(x) != "gpu":
            return "only a GPU's kernels take images"
        reason = kernels.unsupported_reason(x)
        if reason is not None:
            return reason
        mixings = self._mixings_of(tuple(x.shape[1:]), x.device)
        if isinstance(mixings, str):
            return mixings
        if hooked(self.steps):
            return "hooks look inside"
        calls = []
        for step, rows, row_table, column_table in mixings:
            chain = self.steps[step].transform
            assert isinstance(chain, KernelChain)
            size = math.prod(x.shape[1:])
            place = kernels.Place(len(x) * rows, rows, size, row_table, column_table)
            plan = chain.plan(x, place)
            if isinstance(plan, str):
                return plan
            if plan.n != len(column_table):
                return "rows of another length"
            calls.append((chain, plan, place))
        return calls

    def _mixings_of(self, shape: Shape, device: torch.device) -> list[_Mixing] | str:
        """`_find_mixings`, computed again only when the steps have changed."""
        if self._mixings is None:
            self._mixings = {}
        now = [part for step in self for part in _identity(step)]
        before, found = self._mixings.get((shape, device), ([], ""))
        if len(before) != len(now) or any(a is not b for a, b in zip(before, now, strict=True)):
            found = _find_mixings(self, shape, device)
            self._mixings[shape, device] = now, found
        return found

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        calls = "context" if context is not None else self._kernel_calls(x)
        if isinstance(calls, str) or not len(x):
            return super().forward(x, context, noise)
        log_det = constant(0.0, x)
        for chain, plan, place in calls:
            x, step_log_det = kernels.rows_forward(plan, x, keep=chain.keep, place=place)
            log_det = log_det + step_log_det
        return x, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        live = _differentiated(z, *self.parameters())
        calls = "context or gradients" if live or context is not None else self._kernel_calls(z)
        if isinstance(calls, str) or not len(z):
            return super().inverse(z, context, noise)
        log_det = constant(0.0, z)
        for _, plan, place in reversed(calls):
            z, step_log_det = kernels.rows_inverse(plan, z, place=place)
            log_det = log_det + step_log_det
        return z, log_det


def _find_mixings(chain: Chain, shape: Shape, device: torch.device) -> list[_Mixing] | str:
    """Find where each row flow's rows lie, or why kernels cannot run the chain on images."""
    image = torch.arange(math.prod(shape)).reshape(1, *shape)  # each number is its own index
    indices, found = image, []
    for number, step in enumerate(chain):
        if isinstance(step.transform if isinstance(step, Inverse) else step, _Rearrangement):
            indices = step(indices)[0]
        elif type(step) is Along and type(step.transform) is KernelChain and step.rows is None:
            axis = step.dim + 1 if step.dim >= 0 else step.dim
            table = indices.movedim(axis, -1).flatten(1, -2)[0]
            first, inner = table[:, 0], table[0] - table[0, 0]
            if not torch.equal(table, first[:, None] + inner):
                return "rows that do not lie alike"
            tables = (each.to(device, torch.int32).contiguous() for each in (first, inner))
            found.append(_Mixing(number, len(table), *tables))
        else:
            return f"{type(step).__name__} is neither a patchify step nor a row flow"
    if not torch.equal(indices, image):
        return "images come out in another order"
    return found


def _identity(step: Transform) -> tuple[object, ...]:
    """The objects that determine how a step rearranges an image."""
    return step, getattr(step, "transform", None), getattr(step, "dim", None)
