"""Passes through nets: how often a flow evaluates them in training, in scoring and in sampling.

A pass takes a batch through the net of one block once: for its value, or for a product with its
Jacobian. Passes of a residual or monotone block are counted where the block reads its net, those of
a continuous one where its solver calls the velocity, those of all other nets by forward hooks. What
autograd does with what a pass has recorded is no pass, but the iterations of an implicit derivative
are.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor, nn

from mixerflow import kernels
from mixerflow.core import Flow, Solve, counting
from mixerflow.nets.base import Conditioner
from mixerflow.transforms import Continuous, residual

BLOCKS = (residual._ContractionMap, Continuous)
"""Transforms whose cost is a number of passes through one net."""


@dataclass
class Counts:
    """Passes of all blocks."""

    values: int = 0
    products: int = 0


class Counted:
    """A contraction as a function of x, which counts its passes."""

    def __init__(self, net: residual.Function, counts: Counts) -> None:
        self.net, self.counts = net, counts

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``g(x)``."""
        self.counts.values += 1
        return self.net(x)

    def linearise(self, x: Tensor) -> tuple[Tensor, residual.Function]:
        """Return ``g(x)``, and products with its Jacobian, which count as well."""
        self.counts.values += 1
        value, product = residual._linearised(self.net, x)

        def counted(t: Tensor) -> Tensor:
            self.counts.products += 1
            return product(t)

        return value, counted


def nets(flow: nn.Module) -> list[nn.Module]:
    """The blocks of a flow, and its nets outside of blocks; not the nets inside of nets."""
    found: list[nn.Module] = []

    def search(module: nn.Module) -> None:
        if isinstance(module, (*BLOCKS, Conditioner)):
            found.append(module)
            return
        for part in module.children():
            search(part)

    search(flow)
    return found


@contextlib.contextmanager
def watched(flow: Flow) -> Iterator[tuple[Counts, list[Solve]]]:
    """In a ``with``, count the passes of a flow, and note what its solves take; kernels are off."""
    counts, prepared = Counts(), residual._ContractionMap._prepared

    def counting_net(block: Any, context: Tensor | None) -> Counted:  # noqa: ANN401
        return Counted(prepared(block, context), counts)

    def called(*_: object) -> None:
        counts.values += 1

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(residual._ContractionMap, "_prepared", counting_net))
        stack.enter_context(kernels.disabled())
        for net in nets(flow):
            if not isinstance(net, BLOCKS):
                stack.callback(net.register_forward_hook(called).remove)
        yield counts, stack.enter_context(counting())


def passes(flow: Flow, run: Callable[[], object], draws: int) -> dict[str, Any]:
    """Return the passes of `run`, means of a net of `flow` over `draws` calls.

    If `run` returns a tensor that autograd has recorded, its backward pass counts too.

    Returns:
        "values" and "products"; "backward", the iterations of implicit derivatives; "total", their
        sum; and what the solves took, "solves", where there are any.
    """
    nets_of, totals = len(nets(flow)), Counts()
    forward: list[Solve] = []
    backward: list[Solve] = []
    for _ in range(draws):
        with watched(flow) as (counts, solves):
            result = run()
            ended = len(solves)
            if isinstance(result, Tensor) and result.requires_grad:
                result.backward()
        totals.values += counts.values
        totals.products += counts.products
        forward, backward = forward + solves[:ended], backward + solves[ended:]
    # a fixed point's calls are among the block's values already
    velocities = sum(each.rows / each.batch for each in forward if not len(each.steps))
    sums = {
        "values": totals.values + velocities,
        "products": totals.products,
        "backward": sum(each.calls for each in backward),
    }
    sums["total"] = sum(sums.values())
    found: dict[str, Any] = {name: rounded(n / draws / nets_of) for name, n in sums.items()}
    return found | ({"solves": taken(forward)} if forward else {})


def taken(solves: list[Solve]) -> dict[str, float]:
    """What solves take: evaluations of a row, and calls for a batch, which waits for its slowest.

    Returns:
        "row", the mean over rows and solves; "batch", the mean over solves, and "most", the most
        calls of one; "factor", the largest contraction factor seen, 0 where there is none.
    """
    rows = [
        each.steps.double().mean().item() if len(each.steps) else each.rows / each.batch
        for each in solves
    ]
    calls = [each.calls for each in solves]
    return {
        "row": rounded(statistics.mean(rows)),
        "batch": rounded(statistics.mean(calls)),
        "most": max(calls),
        "factor": rounded(max(each.factor for each in solves)),
    }


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")
