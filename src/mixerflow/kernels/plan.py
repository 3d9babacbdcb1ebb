"""What the kernels are given: a row flow's tensors and settings, wherever it runs.

A row flow is (ActNorm, linear map, affine coupling with a residual MLP) a few times over, then an
ActNorm, for vectors ``(rows, n)``.
"""

from __future__ import annotations

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
"""What a GPU's backward pass is left: each step's rows, or the last ones, to rebuild the others."""
GPU_LONGEST = 64
GPU_WIDTHS = (16, 32, 64, 128)
"""What fits a multiprocessor's shared memory, and what Triton counts in."""


class Norm(NamedTuple):
    """The state of batch norm, alike in all of a row flow's nets."""

    training: bool
    update: bool
    """Whether a batch in training mode moves the running values."""
    momentum: float | None
    eps: float
    processes: Processes
    """Between which a batch is shared."""


class RowNorm(NamedTuple):
    """A norm of each hidden row by itself, alike in all of a row flow's nets."""

    kind: Literal["layer", "rms"]
    eps: float


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
        by_row: the norm of each row by itself; None without.
    """

    given: int
    out: int
    hidden: int
    squash: bool
    parameters: tuple[Tensor | None, ...]
    statistics: tuple[Tensor | None, ...]
    norm: Norm | None
    counts: tuple[Tensor, ...]
    by_row: RowNorm | None = None


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
        by_row: the norm that the MLPs take of each row by itself; None without.
    """

    n: int
    hidden: int
    steps: tuple[Step, ...]
    norm: Norm | None
    counts: tuple[Tensor, ...]
    squash: bool
    reverse: bool
    bound: float
    by_row: RowNorm | None = None

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
    def kind(self) -> tuple[torch.dtype, torch.device]:
        """The dtype and the device of all its tensors."""
        first = self._tensors()[0]
        return first.dtype, first.device

    def _tensors(self) -> list[Tensor]:
        steps = (s for step in self.steps for s in (step.parameters, step.statistics, step.dense))
        return [tensor for some in steps for tensor in some if tensor is not None]

    def refused(self, where: Where, *, differentiated: bool) -> str | None:
        """Why the kernels there do not know such a flow, or None if they do."""
        if where == "cpu":
            return None
        if self.norm is not None:
            return "batch norm needs statistics over all rows: use norm rms, layer or none on a GPU"
        if self.n > GPU_LONGEST or self.hidden not in GPU_WIDTHS:
            widths = ", ".join(map(str, GPU_WIDTHS))
            return f"the GPU's kernels take rows up to {GPU_LONGEST}, nets of width {widths}"
        scaled = self.steps[0].parameters[PARAMETERS.index("gamma1")] is not None
        if differentiated and scaled and self.by_row is None:
            return "the GPU's kernels differentiate no fixed scales"
        return None

    def shape_error(self) -> str | None:
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
        kinds = {(t.dtype, t.device) for t in tensors}
        if len(kinds) > 1:
            return "its parameters are of several dtypes, or on several devices"
        return None if all(t.is_contiguous() for t in tensors) else "strided parameters"

    def parameters(self) -> list[Tensor]:
        """Those there are, step by step."""
        return [p for step in self.steps for p in step.parameters if p is not None]

    def kinds(self) -> list[tuple[torch.dtype, torch.device]]:
        """What the parameters are, for `check` in the backward pass.

        Not their places in memory: FSDP2 gathers them anew for it.
        """
        return [(p.dtype, p.device) for p in self.parameters()]

    def check(self, kinds: list[tuple[torch.dtype, torch.device]]) -> None:
        """Raise a RuntimeError for a backward pass that kernels cannot make."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "kernels have first derivatives only: wrap the forward pass in "
                "mixerflow.kernels.disabled() to differentiate twice"
            )
        if kinds != self.kinds():
            raise RuntimeError("parameters were moved or converted between forward and backward")


class Place(NamedTuple):
    """Where rows lie in a tensor.

    Number i of row j of image k is at ``k stride + row_table[j] + column_table[i]``.
    """

    rows: int
    """Of all images."""
    within: int
    """Rows an image."""
    stride: int
    """From one image to the next, in numbers."""
    row_table: Tensor
    """``(within,)``, int32."""
    column_table: Tensor
    """``(n,)``, int32."""
