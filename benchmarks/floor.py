"""The matrix products of a MixerFlow and nothing else: what no implementation in float32 undercuts.

One product ``y = x w^T`` for each linear layer and each linear block, with LU's matrix at hand;
training adds ``dx = dy w`` and ``dw = dy^T x``. They run in the model's order, into buffers that
are there beforehand: in training every y has its own, as activations are kept; what a model frees
is taken again. Sampling multiplies by inverses, which is as much work as the forward pass.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import Work
from mixerflow.core import Shape
from mixerflow.models import MixerFlow
from mixerflow.parts import MLP, LUMap, NoMap, RLUMap, RowCoupling, SameMap
from mixerflow.parts.patching import CUTS, window_of
from mixerflow.registry import word_of
from mixerflow.transforms import halves


class Product(NamedTuple):
    """``(rows, inputs) x (inputs, outputs)``; rows are of one image."""

    rows: int
    inputs: int
    outputs: int
    kind: Literal["linear", "enter", "inner"]
    """A linear block's; the first of a conditioner, which reads a half; one of its others."""

    @property
    def flop(self) -> int:
        """A multiplication and an addition each."""
        return 2 * self.rows * self.inputs * self.outputs


def products(model: MixerFlow, shape: Shape) -> list[Product]:
    """Of a forward pass, in order.

    Raises:
        ValueError: a linear block that is not a product with one matrix, or other flows than
            couplings with MLPs.
    """
    same = isinstance(model.patch_linear, SameMap)
    linears = (model.linear, model.linear if same else model.patch_linear)
    for linear in linears:
        if not isinstance(linear, (LUMap, RLUMap, NoMap)):
            word = word_of(type(linear))
            raise ValueError(f"floor: a {word} block is not a product with one matrix")
    match model.flow:
        case RowCoupling(elementwise=elementwise, net=MLP(width=width)):
            params = elementwise.params
        case _:
            raise ValueError("floor: counts couplings with MLPs only")
    pixels = math.prod(shape[1:])
    found = [Product(pixels, shape[0], shape[0], "linear")] if model.colour else []
    for number in range(1, model.layers + 1):
        cut, size, shift = model.patching.of(shape, number, model.layers)
        box = window_of(shape, cut, size, shift)
        inner = shape if box is None else (shape[0], *box[1])
        patches, channels = CUTS[cut](inner, size).matrix
        sizes = ((channels, patches), (patches, channels))
        for linear, (n, rows) in zip(linears, sizes, strict=True):
            for i in range(model.flow_layers):
                if not isinstance(linear, NoMap):
                    found.append(Product(rows, n, n, "linear"))
                found += _conditioner(width, params, n, rows, flip=i % 2 == 1)
    return found


def _conditioner(width: int, params: int, n: int, rows: int, *, flip: bool) -> list[Product]:
    if n < 2:
        return []
    given, changed = halves(n, flip=flip)
    inner = [Product(rows, width, out, "inner") for out in (width, width, params * changed)]
    return [Product(rows, given, width, "enter"), *inner]


def terms(model: MixerFlow, shape: Shape) -> dict[str, float]:
    """Operations of a forward pass by term.

    "conditioners" and "linear" are for one image; "assembly" is what making W from L and U costs,
    once a batch: n^3 for vectors of length n.
    """
    found = products(model, shape)
    linear = [p for p in found if p.kind == "linear"]
    return {
        "conditioners": sum(p.flop for p in found if p.kind != "linear"),
        "linear": sum(p.flop for p in linear),
        "assembly": sum(2 * p.inputs**3 for p in linear),
    }


class Step(NamedTuple):
    """A product's operands at a batch."""

    x: Tensor
    w: Tensor
    y: Tensor
    dy: Tensor
    dx: Tensor
    dw: Tensor


@dataclass(frozen=True)
class Floor:
    """The products of a MixerFlow."""

    name: str
    model: MixerFlow
    shape: Shape
    package: str = "mixerflow"

    def work(self, batch: int) -> Work:
        """Buffers for a batch, and the products."""
        kept, freed = self.steps(batch, keep=True), self.steps(batch, keep=False)
        weights = nn.ParameterList(nn.Parameter(step.w) for step in kept)
        return Work(weights, lambda: _train(kept), lambda: _forward(freed), lambda: _forward(freed))

    def path(self) -> contextlib.AbstractContextManager[object]:
        """Nothing to switch."""
        return contextlib.nullcontext()

    def steps(self, batch: int, *, keep: bool) -> list[Step]:
        """Operands of the products; each y has a buffer of its own where it is to be kept."""
        pool: dict[tuple[str, int, int], Tensor] = {}

        def buffer(use: str, rows: int, columns: int) -> Tensor:
            if (use, rows, columns) not in pool:
                pool[use, rows, columns] = torch.randn(rows, columns)
            return pool[use, rows, columns]

        steps: list[Step] = []
        state = last = torch.empty(0, 0)  # what the flow carries; what the conditioner came to
        for i, (rows_each, inputs, outputs, kind) in enumerate(products(self.model, self.shape)):
            rows = rows_each * batch
            fits = state.shape[1] == inputs if kind == "linear" else state.shape[1] >= inputs
            if kind != "inner" and not (fits and state.shape[0] == rows):
                state = buffer("x", rows, inputs)  # a mixing begins: the matrix comes transposed
            x = last if kind == "inner" else state[:, :inputs]
            y = torch.randn(rows, outputs) if keep else buffer(f"y{i % 2}", rows, outputs)
            w = torch.randn(outputs, inputs) / math.sqrt(inputs)
            dy, dx = buffer("dy", rows, outputs), buffer("dx", rows, inputs)
            steps.append(Step(x, w, y, dy, dx, torch.empty_like(w)))
            last, state = y, y if kind == "linear" else state
        return steps


@torch.no_grad()
def _forward(steps: list[Step]) -> None:
    for step in steps:
        torch.mm(step.x, step.w.t(), out=step.y)


@torch.no_grad()
def _train(steps: list[Step]) -> None:
    _forward(steps)
    for step in reversed(steps):
        torch.mm(step.dy, step.w, out=step.dx)
        torch.mm(step.dy.t(), step.x, out=step.dw)
