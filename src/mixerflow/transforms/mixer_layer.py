"""A chain of cuts and row flows that a GPU's kernels run where the image lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow import kernels
from mixerflow.core import (
    Along,
    Chain,
    Context,
    Inverse,
    Layer,
    Mapped,
    Noise,
    Shape,
    Transform,
    constant,
)
from mixerflow.registry import register
from mixerflow.transforms.kernel_chain import KernelChain, differentiated
from mixerflow.transforms.layout import _Rearrangement
from mixerflow.transforms.plans import hooked


@register
class MixerLayer(Layer):
    """Cuts, row flows along one axis or another, and the way back, as `Chain`.

    On a GPU a cut then costs nothing: kernels are told where the numbers of a row lie in the image,
    and neither patch matrices nor their transposes are ever made. That is so where each step is a
    cut, a cut's inverse, or a row flow that the kernels take, and the image comes out as it went
    in; else, and on the CPU, the steps run one by one. `path` says which.
    """

    _traced: _Traced | None = None
    """What was found for images of a shape, and the steps as they were then."""

    def __getstate__(self) -> dict[str, object]:
        """Without what was traced: a copy, or a file, may be for another device."""
        return {name: value for name, value in self.__dict__.items() if name != "_traced"}

    def path(self, x: Tensor) -> str:
        """``"kernel"``, or why images like `x` go through step by step."""
        found = self._mixings(x)
        return found if isinstance(found, str) else "kernel"

    def _mixings(self, x: Tensor) -> list[tuple[KernelChain, kernels.Plan, kernels.Place]] | str:
        """The row flows, what the kernels are to run for each, and where its rows lie."""
        if kernels.where(x) != "gpu":
            return "only a GPU's kernels take images"
        unable = kernels.unsupported_reason(x)
        if unable is not None:
            return unable
        found = self._trace(tuple(x.shape[1:]), x.device)
        if isinstance(found, str):
            return found
        if hooked(self.steps):
            return "hooks look inside"
        made = []
        for number, within, row_table, column_table in found:
            rows = self.steps[number].transform
            assert isinstance(rows, KernelChain)
            size = math.prod(x.shape[1:])
            place = kernels.Place(len(x) * within, within, size, row_table, column_table)
            plan = rows.plan(x, place)
            if isinstance(plan, str):
                return plan
            if plan.n != len(column_table):
                return "rows of another length"
            made.append((rows, plan, place))
        return made

    def _trace(self, shape: Shape, device: torch.device) -> list[_Mixing] | str:
        """As `_trace`, once for the steps as they are."""
        if self._traced is None:
            self._traced = {}
        now = [part for step in self for part in _parts(step)]
        before, found = self._traced.get((shape, device), ([], ""))
        if len(before) != len(now) or any(a is not b for a, b in zip(before, now, strict=True)):
            found = _trace(self, shape, device)
            self._traced[shape, device] = now, found
        return found

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        mixings = "context" if context is not None else self._mixings(x)
        if isinstance(mixings, str) or not len(x):
            return super().forward(x, context, noise)
        log_det = constant(0.0, x)
        for rows, plan, place in mixings:
            x, each = kernels.rows_forward(plan, x, keep=rows.keep, place=place)
            log_det = log_det + each
        return x, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        live = differentiated(z, *self.parameters())
        mixings = "context or gradients" if live or context is not None else self._mixings(z)
        if isinstance(mixings, str) or not len(z):
            return super().inverse(z, context, noise)
        log_det = constant(0.0, z)
        for _, plan, place in reversed(mixings):
            z, each = kernels.rows_inverse(plan, z, place=place)
            log_det = log_det + each
        return z, log_det


_Mixing = tuple[int, int, Tensor, Tensor]
"""Number of the step, how many rows an image has, and where they lie: see `Place`."""
_Traced = dict[tuple[Shape, torch.device], tuple[list[object], list[_Mixing] | str]]


def _trace(chain: Chain, shape: Shape, device: torch.device) -> list[_Mixing] | str:
    """Follow the numbers of an image through the steps that only move them about."""
    image = torch.arange(math.prod(shape)).reshape(1, *shape)
    numbers, found = image, []
    for number, step in enumerate(chain):
        if _moves(step):
            numbers = step(numbers)[0]
        elif type(step) is Along and type(step.transform) is KernelChain and step.rows is None:
            axis = step.dim + 1 if step.dim >= 0 else step.dim
            table = numbers.movedim(axis, -1).flatten(1, -2)[0]
            first, inner = table[:, 0], table[0] - table[0, 0]
            if not torch.equal(table, first[:, None] + inner):
                return "rows that do not lie alike"
            tables = (each.to(device, torch.int32).contiguous() for each in (first, inner))
            found.append((number, len(table), *tables))
        else:
            return f"{type(step).__name__} is neither a cut nor a row flow"
    if not torch.equal(numbers, image):
        return "images come out in another order"
    return found


def _parts(step: Transform) -> tuple[object, ...]:
    """What a step must be the same in to move numbers as it did."""
    return step, getattr(step, "transform", None), getattr(step, "dim", None)


def _moves(step: Transform) -> bool:
    """Whether a step only puts numbers elsewhere."""
    inner = step.transform if isinstance(step, Inverse) else step
    return isinstance(inner, _Rearrangement)
