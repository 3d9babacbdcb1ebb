"""Input of the kernels: a row flow's tensors and settings, for the CPU and for GPUs.

A row flow is (ActNorm, linear map, affine coupling with a residual MLP) a few times over, then an
ActNorm, for vectors ``(rows, n)``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mixerflow.processes import Processes

PARAMETERS = (
    "log_scale", "shift", "packed", "offset",
    "enter", "enter_bias", "gamma1", "beta1", "linear1", "linear1_bias",
    "gamma2", "beta2", "linear2", "linear2_bias", "leave", "leave_bias",
)  # fmt: skip
STATISTICS = ("mean1", "var1", "mean2", "var2")
DENSE = ("weight", "inverse", "log_det")

Where = Literal["cpu", "gpu"]
Keep = Literal["inputs", "output"]
"""Rows stored for a GPU's backward pass: those that enter each step, or the last ones."""
GPU_LONGEST = 64
GPU_WIDTHS = (16, 32, 64, 128)
"""Widths that fit a multiprocessor's shared memory and are powers of two, as Triton needs."""


class Norm(NamedTuple):
    """State of batch norm, the same in all nets of a row flow.

    Each batch in training mode changes the running values if `update`; `processes` share it.
    """

    training: bool
    update: bool
    momentum: float | None
    eps: float
    processes: Processes


class RowNorm(NamedTuple):
    """A norm of each hidden row by itself, the same in all nets of a row flow."""

    kind: Literal["layer", "rms"]
    eps: float


MAPS = ("affine", "floored", "logistic", "spline")
"""The elementwise maps that the kernels know, in the order of the numbers that they give them."""


class Map(NamedTuple):
    """The elementwise map of the couplings, the same in all steps.

    Attributes:
        kind: one of `MAPS`.
        params: raw numbers of an entry.
        kept: numbers of an entry that the CPU's forward pass stores for the backward pass; 0 where
            that computes the raw numbers anew.
        limit: the map's own number: the bound of affine log-scales (0 for none), the least scale of
            floored ones, the least log-scale of a mixture, or half the length of a spline.
        parts: number of bins or components.
    """

    kind: str
    params: int
    kept: int
    limit: float = 0.0
    parts: int = 0


@dataclass(frozen=True)
class Net:
    """A residual MLP that maps `given` numbers to `out`; other attributes as in `Plan`.

    `parameters` begin at "enter" in the order of `PARAMETERS`, `statistics` and `context` are as in
    `Step`.
    """

    given: int
    out: int
    hidden: int
    squash: bool
    squares: bool
    parameters: tuple[Tensor | None, ...]
    statistics: tuple[Tensor | None, ...]
    norm: Norm | None
    counts: tuple[Tensor, ...]
    by_row: RowNorm | None = None
    context: Tensor | None = None


@dataclass(frozen=True)
class Step:
    """Tensors of one step; None for a part that the step lacks.

    Attributes:
        parameters: in the order of `PARAMETERS`.
        statistics: batch norm's running values, in the order of `STATISTICS`.
        flip: whether the coupling changes the first half of the row.
        dense: the linear map, its inverse and log-det, as in `DENSE`, instead of "packed".
        context: the net's map C of contexts, ``(hidden, K)``.
    """

    parameters: tuple[Tensor | None, ...]
    statistics: tuple[Tensor | None, ...]
    flip: bool
    dense: tuple[Tensor, ...] = ()
    context: Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """A row flow's tensors and settings.

    Attributes:
        n: length of the rows.
        hidden: width of the MLPs.
        steps: the steps; the last has an ActNorm at most.
        norm: batch norm's state in the MLPs; None without.
        counts: numbers of batches in its running values.
        squash: whether the MLPs read sign(x) log(1 + |x|).
        squares: whether they read the squares of that too.
        reverse: whether the linear maps reverse the order of the dimensions.
        elementwise: the couplings' elementwise map.
        by_row: the MLPs' norm of each row by itself; None without.
        context: length K of the contexts ``(G, K)`` that the MLPs read; 0 for none. Rows are in G
            parts of equal length, each with one context.
    """

    n: int
    hidden: int
    steps: tuple[Step, ...]
    norm: Norm | None
    counts: tuple[Tensor, ...]
    squash: bool
    squares: bool
    reverse: bool
    elementwise: Map
    by_row: RowNorm | None = None
    context: int = 0

    @property
    def bound(self) -> float:
        """Bound of affine log-scales; 0 for none."""
        return self.elementwise.limit if self.elementwise.kind == "affine" else 0.0

    @property
    def batch(self) -> bool:
        """Whether batch norm uses the statistics of the batch: training mode."""
        return self.norm is not None and self.norm.training

    def moved(self) -> float | None:
        """Count a batch and return its weight in the running values, None for no change."""
        if self.norm is None or not self.batch or not self.norm.update:
            return None
        for count in self.counts:
            count += 1
        momentum = self.norm.momentum
        return 1 / int(self.counts[0]) if momentum is None else momentum

    @property
    def kind(self) -> tuple[torch.dtype, torch.device]:
        """Dtype and device of all tensors."""
        first = self._parameters[0] if self._parameters else self._tensors()[0]
        return first.dtype, first.device

    def _tensors(self) -> list[Tensor]:
        steps = ((*s.parameters, *s.statistics, *s.dense, s.context) for s in self.steps)
        return [tensor for some in steps for tensor in some if tensor is not None]

    def refused(self, where: Where, *, differentiated: bool) -> str | None:
        """Return the reason why the device's kernels cannot run this flow, or None if they can."""
        if where == "cpu":
            return None
        if self.norm is not None:
            return "batch norm needs statistics over all rows: use norm rms, layer or none on a GPU"
        if self.context:
            return "the GPU's kernels take no context"
        if self.squares:
            return "the GPU's kernels know nets that read no squares"
        if self.elementwise.kind != "affine":
            return "the GPU's kernels know affine couplings only"
        if self.n > GPU_LONGEST or self.hidden not in GPU_WIDTHS:
            widths = ", ".join(map(str, GPU_WIDTHS))
            return f"the GPU's kernels take rows up to {GPU_LONGEST}, nets of width {widths}"
        scaled = self.steps[0].parameters[PARAMETERS.index("gamma1")] is not None
        if differentiated and scaled and self.by_row is None:
            return "the GPU's kernels differentiate no fixed scales"
        return None

    def shape_error(self) -> str | None:
        """Return the tensor property that would make a kernel read wrongly, or None."""
        n, hidden = self.n, self.hidden
        for step in self.steps[:-1]:
            given = n // 2 if step.flip else (n + 1) // 2
            out = self.elementwise.params * (n - given)
            h, square = (hidden,), (hidden, hidden)
            read = 2 * given if self.squares else given
            shapes = ((n,), (n,), (n, n), (n,), (hidden, read), h, h, h, square, h, h, h, square,
                      h, (out, hidden), (out,), h, h, h, h)  # fmt: skip
            tensors = (*step.parameters, *step.statistics)
            for tensor, shape in zip(tensors, shapes, strict=False):
                if tensor is not None and tensor.shape != shape:
                    return f"a parameter of shape {tuple(tensor.shape)}, not {shape}"
            if step.context is not None and step.context.shape != (hidden, self.context):
                return f"a map of contexts of shape {tuple(step.context.shape)}"
        tensors = self._tensors()
        kinds = {(t.dtype, t.device) for t in tensors}
        if len(kinds) > 1:
            return "its parameters are of several dtypes, or on several devices"
        return None if all(t.is_contiguous() for t in tensors) else "strided parameters"

    def parameters(self) -> list[Tensor]:
        """Return the parameters that exist, step by step."""
        return self._parameters

    @functools.cached_property
    def _parameters(self) -> list[Tensor]:
        found = (p for step in self.steps for p in (*step.parameters, step.context))
        return [p for p in found if p is not None]

    def kinds(self) -> list[tuple[torch.dtype, torch.device]]:
        """Return dtype and device of each parameter, for `check` in the backward pass.

        Addresses in memory are left out: FSDP2 gathers parameters anew for the backward pass.
        """
        return [(p.dtype, p.device) for p in self.parameters()]

    def check(self, kinds: list[tuple[torch.dtype, torch.device]]) -> None:
        """Raise a RuntimeError for a backward pass that kernels cannot compute."""
        if torch.is_grad_enabled():
            remedy = "wrap the forward pass in mixerflow.kernels.disabled() to differentiate twice"
            raise RuntimeError(f"kernels have first derivatives only: {remedy}")
        if kinds != self.kinds():
            raise RuntimeError("parameters were moved or converted between forward and backward")


class Place(NamedTuple):
    """Position of rows in a tensor.

    Number i of row j of image k is at ``k stride + row_table[j] + column_table[i]``.

    Attributes:
        rows: number of rows of all images.
        within: rows in one image.
        stride: numbers from one image to the next.
        row_table: ``(within,)``, int32.
        column_table: ``(n,)``, int32.
    """

    rows: int
    within: int
    stride: int
    row_table: Tensor
    column_table: Tensor
