"""The share of a step that its convolutions and matrix products alone would take.

    python -m benchmarks.share [--out FILE] [--rounds 7] [--threads 1]
    python -m benchmarks.share --quick           # a small model, to see that it runs

One training step (forward, backward, Adamax) and one scoring pass of a model are recorded: every
convolution and product that they call, with the shapes and the memory layout of its operands. The
floor calls these again, in order, on operands that are at hand, and nothing else. Steps, passes and
floors run in turns. JSON goes to standard output, a table to standard error.

Measured are a DenseFlow's small twin, with kernels in either memory layout, and the first block of
the published model (6 units of 5 modules, 48 million parameters) alone. Then the peak memory of a
training step by depth, in each memory mode, as `benchmarks.memory` counts it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.common import emit, facts, figure, interleaved, keep, pin, ratio, spread
from benchmarks.memory import MODES, backward, peak_of
from mixerflow.core import Flow
from mixerflow.models import DenseFlow
from mixerflow.recipes import build, recipe
from mixerflow.registry import evolve

_PRODUCTS = frozenset(
    ("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm", "matmul")
)


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    out: Path | None = None
    """File for the JSON."""
    rounds: int = 7
    """Turns that count."""
    threads: int = 1
    """Threads of torch; 0 for one a core."""
    batch: int = 32
    """Images of a step of the twin."""
    block_batch: int = 8
    """Images of a step of the full-size block."""
    depths: tuple[int, ...] = (1, 2, 4, 8)
    """Modules of a unit at which memory is measured."""
    seed: int = 0
    """Of the weights and images."""
    quick: bool = False
    """Measure a small model in one round."""


class Products(TorchDispatchMode):
    """Records the convolutions and products that are called, and calls them again.

    Operands of the same shape and layout share one buffer, so that the floor needs little memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = []
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in _PRODUCTS:
            made = tree_map(self._buffer, (args, kwargs))
            self.calls.append((func, *made))
        return func(*args, **kwargs)

    def _buffer(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        key = (value.shape, value.stride(), value.dtype)
        if key not in self._buffers:
            pairs = zip(value.shape, value.stride(), strict=True)
            numbers = torch.randn(1 + sum((n - 1) * step for n, step in pairs), dtype=value.dtype)
            self._buffers[key] = numbers.as_strided(value.shape, value.stride())  # may repeat some
        return self._buffers[key]

    @torch.no_grad()
    def again(self) -> None:
        """Call all of them on the buffers."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def recorded(run: Callable[[], object]) -> Callable[[], None]:
    """The floor of what `run` does."""
    products = Products()
    with products:
        run()
    return products.again


def jobs_of(flow: Flow, x: Tensor) -> dict[str, Callable[[], object]]:
    """A training step and a scoring pass of a batch."""
    flow.initialize(x)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-4, foreach=True)

    def train() -> None:
        flow.train()
        optimizer.zero_grad()
        (-flow(x).log_prob.mean() / flow.dims).backward()
        optimizer.step()

    @torch.no_grad()
    def score() -> None:
        flow.eval()
        flow(x)

    return {"train": train, "score": score}


def shares(flow: Flow, x: Tensor, rounds: int) -> dict[str, object]:
    """Images a second of each job and of its floor, and the floor's share of the time."""
    jobs = jobs_of(flow, x)
    floors = {f"{name} floor": recorded(run) for name, run in jobs.items()}
    seconds = interleaved(jobs | floors, rounds)
    found: dict[str, object] = {
        "batch": len(x),
        "parameters": sum(p.numel() for p in flow.parameters()),
    }
    for name in jobs:
        mine, floor = seconds[name], seconds[f"{name} floor"]
        found[name] = {
            "images_per_second": spread([len(x) / s for s in mine]),
            "floor_images_per_second": spread([len(x) / s for s in floor]),
            "share_of_floor": ratio(floor, mine),
        }
    return found


def peaks(model: DenseFlow, shape: tuple[int, ...], batch: int) -> dict[str, int]:
    """Peak bytes of a training step in each memory mode, without parameters and gradients."""
    flow = model.build(shape)
    x = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
    flow.initialize(x)
    backward(flow, x)  # gradients are there before the step that is measured
    found = {}
    for mode in MODES:
        flow.memory = mode
        with peak_of(torch.device("cpu")) as peak:
            backward(flow, x)
        found[mode] = peak[0]
    return found


def subjects(given: Arguments) -> dict[str, tuple[Flow, Tensor]]:
    """The models, and a batch of each."""
    named = recipe("denseflow-cifar10-tiny")
    pixels = torch.randint(0, 256, (given.batch, *named.shape), dtype=torch.uint8)
    if given.quick:
        small = evolve(named.model, {"units": (2, 1), "modules": (1, 1), "net.width": 4})
        return {"small": (small.build(named.shape), pixels[:4])}
    shape = (12, 16, 16)
    block = Flow(DenseFlow().block(shape, 0), shape)
    twin = build("denseflow-cifar10-tiny")
    return {
        "twin": (twin, pixels),
        "twin, channels last": (copy.deepcopy(twin).to(memory_format=torch.channels_last), pixels),
        "first block, full size": (block, torch.randn(given.block_batch, *shape)),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures as tables."""
    speed = Table("", "job", "images/s", "floor, images/s", "share of the floor", title="Speed")
    for name, found in result["shares"].items():
        for job in ("train", "score"):
            row = found[job]
            own, floor = row["images_per_second"], row["floor_images_per_second"]
            share = row["share_of_floor"]
            cells = (figure(own["median"]), figure(floor["median"]))
            low, high = share["least"], share["most"]
            speed.add_row(name, job, *cells, f"{share['median']:.2f} ({low:.2f}-{high:.2f})")
    memory = Table("modules a unit", *MODES, title="Peak memory of a training step, MiB")
    for depth, found in result["peak_bytes"].items():
        memory.add_row(str(depth), *(figure(found[mode] / 2**20) for mode in MODES))
    return [speed, memory]


def main() -> None:
    """Measure, and print."""
    given = tyro.cli(Arguments, description=__doc__)
    pin(given.threads, given.seed)
    result: dict[str, Any] = facts(given.seed) | {"shares": {}, "peak_bytes": {}}
    for name, (flow, x) in subjects(given).items():
        result["shares"][name] = shares(flow, x, 1 if given.quick else given.rounds)
        keep(result, given.out)
    named = recipe("denseflow-cifar10-tiny")
    for depth in (1,) if given.quick else given.depths:
        model = evolve(named.model, {"modules": (depth, depth)})
        assert isinstance(model, DenseFlow)
        result["peak_bytes"][depth] = peaks(model, named.shape, 2 if given.quick else given.batch)
    for table in tables(result):
        Console(stderr=True).print(table)
    emit(result, given.out)


if __name__ == "__main__":
    main()
