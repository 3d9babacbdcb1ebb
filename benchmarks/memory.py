"""Memory of a training step beyond parameters, gradients and optimiser state, by depth and mode.

    python -m benchmarks.memory [--out FILE] [--layers 15 30 60 120] [--data SPEC] [--device cuda]
    python -m benchmarks.memory --quick             # a small model, to see that it runs

The model is the paper's (hidden width 128, 32x32x3 noise) at batch 32. Parameters, gradients and
Adam's state exist before the step that is measured, so what it allocates on top is what the table
shows. On a CPU torch's profiler reports every byte that torch's allocator gives and takes back, and
the largest sum counts; the kernels' buffers are taken from that allocator meanwhile, and count even
while they wait to be used again. Exact, but for what libraries hold while a product is computed. On
a GPU it is ``torch.cuda.max_memory_allocated``.

Then a model of each depth trains for some steps on `--data`, and its gradients in each mode are
compared with those of "store", in float32 and with bfloat16 conditioners; and those of "invert"
with fewer inputs kept. Last, training steps are
timed, the modes in turn. JSON goes to standard output, tables to standard error. Several commands
can share a long measurement: with `--parts` and one `--out`, which keeps what earlier ones with the
same settings found.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args
from unittest.mock import patch

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mixerflow.core.memory
from benchmarks.common import emit, facts, interleaved, keep, pin, ratio, spread
from mixerflow import kernels
from mixerflow.core import Flow, Memory
from mixerflow.data import Images, load, make_images
from mixerflow.models import MixerFlow
from mixerflow.parts import MLP, RowCoupling
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches

MODES: tuple[Memory, ...] = get_args(Memory)
PATHS = {"kernels": contextlib.nullcontext, "operators": kernels.disabled}
"""On a CPU; elsewhere only operators."""
Part = Literal["peak_bytes", "gradients", "seconds"]


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    layers: tuple[int, ...] = (15, 30, 60, 120)
    batch: int = 32
    hidden: int = 128
    data: str = "fashion-mini"
    """Images to train on before gradients are compared."""
    steps: int = 40
    """Of that training, the first ten a warm-up."""
    train_batch: int = 8
    lr: float = 3e-4
    """At 1e-3 and batch 8, 120 layers reach NaN in a few steps."""
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    rounds: int = 7
    """Of timed steps."""
    parts: tuple[Part, ...] = get_args(Part)
    out: Path | None = None
    plot: Path | None = None
    quick: bool = False

    def paths(self) -> list[str]:
        """How layers can run on the device."""
        return list(PATHS) if self.device == "cpu" else ["operators"]


def prepare(given: Arguments, layers: int, images: Images, batch: int) -> Trainer:
    """A trainer of a model of that depth, before its first step."""
    torch.manual_seed(given.seed)
    model = MixerFlow(layers=layers, flow=RowCoupling(net=MLP(given.hidden)))
    flow = model.build(images.shape).to(given.device)
    batches = Batches(images, batch, seed=given.seed, device=flow.device, conditional=False)
    flow.initialize(batches.first(64)[0])
    config = TrainConfig(batch=batch, lr=given.lr, warmup=10, ema=0.0, seed=given.seed)
    return Trainer(flow, batches, config, steps=10**6)


def backward(flow: Flow, x: Tensor) -> None:
    """Add a batch's gradients to those that are there."""
    (-flow(x).log_prob.mean() / flow.dims).backward()


@contextlib.contextmanager
def buffers_counted() -> Iterator[None]:
    """The kernels' buffers from torch's allocator, not from numpy's, and none left over."""
    buffers = sys.modules["mixerflow.kernels.cpu"]

    def empty(numbers: int, kind: np.dtype) -> np.ndarray:
        return torch.empty(numbers * kind.itemsize, dtype=torch.uint8).numpy().view(kind)

    kernels.release()
    before = buffers.np
    buffers.np = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        dtype=np.dtype, float32=np.float32, float64=np.float64, empty=empty
    )
    try:
        yield
    finally:
        buffers.np = before  # pyright: ignore[reportAttributeAccessIssue]
        kernels.release()


@contextlib.contextmanager
def peak_of(device: torch.device) -> Iterator[list[int]]:
    """The most bytes allocated on top of what was, into the list that it gives."""
    result: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result.append(torch.cuda.max_memory_allocated(device) - before)
        return
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with (
        buffers_counted(),
        torch.profiler.profile(activities=cpu, profile_memory=True) as profiler,
    ):
        yield result
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = []
    stack = profiler.profiler.kineto_results.experimental_event_tree()
    while stack:
        event = stack.pop()
        stack += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    sizes = (size for _, size in sorted(events, key=lambda event: event[0]))
    result.append(max(itertools.accumulate(sizes)))


def noise(given: Arguments) -> Images:
    """Images of the paper's shape that nothing can be learned from."""
    rng = np.random.default_rng(given.seed)
    shape = (1, 8, 8) if given.quick else (3, 32, 32)
    pixels = rng.integers(0, 256, (max(64, given.batch), *shape), dtype=np.uint8)
    return make_images(pixels, None, dataset_id="noise")


def peaks(given: Arguments, layers: int) -> dict[str, dict[str, int]]:
    """Bytes of a step beyond parameters, gradients and Adam's state, by path and mode."""
    trainer = prepare(given, layers, noise(given), given.batch)
    trainer.advance()  # after it, gradients and Adam's state are there
    return {path: peaks_of(trainer, path) for path in given.paths()}


def peaks_of(trainer: Trainer, path: str) -> dict[str, int]:
    """The same of one path, for a trainer that has taken a step; all modes draw alike."""
    flow, (x, _) = trainer.flow, trainer.batches.at(0)
    result: dict[str, int] = {}
    for mode in MODES:
        flow.memory = mode
        torch.manual_seed(0)
        with PATHS[path](), peak_of(flow.device) as peak:
            backward(flow, x)
        result[mode] = peak[0]
    return result


def gradients(trainer: Trainer, mode: Memory, x: Tensor, precision: str) -> Tensor:
    """All gradients of one batch as one vector."""
    flow = copy.deepcopy(trainer.flow)
    flow.memory = mode
    flow.zero_grad()
    torch.manual_seed(0)
    bfloat16 = precision == "bfloat16"
    with torch.autocast(flow.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        objective = -flow(x).log_prob.mean() / flow.dims
    objective.backward()
    found = [p.grad for p in flow.parameters() if p.grad is not None]
    return torch.cat([g.double().flatten() for g in found])


def compared(mine: Tensor, other: Tensor) -> dict[str, float]:
    """Relative error of the norm, and one less the cosine."""
    cosine = float(mine @ other / (mine.norm() * other.norm()))
    return {"relative_error": float((mine - other).norm() / other.norm()), "cosine": cosine}


def agreement(given: Arguments, layers: int, images: Images) -> dict[str, Any]:
    """How gradients of each mode, after some training, compare with stored ones."""
    trainer = prepare(given, layers, images, given.train_batch)
    taken = [trainer.advance() for _ in range(given.steps)]
    x, _ = trainer.batches.at(given.steps)
    stored = {p: gradients(trainer, "store", x, p) for p in ("float32", "bfloat16")}
    result: dict[str, Any] = {
        precision: {
            mode: compared(gradients(trainer, mode, x, precision), stored[precision])
            for mode in MODES[1:]
        }
        for precision in stored
    }
    for name, every in (("40", 40), ("none", 10**6)):
        with patch.object(mixerflow.core.memory, "ANCHOR_EVERY", every):
            found = gradients(trainer, "invert", x, "float32")
        result["float32"][f"invert, an input kept in {name}"] = compared(found, stored["float32"])
    result["bfloat16"]["store, against float32"] = compared(stored["bfloat16"], stored["float32"])
    about = {"steps": given.steps, "objective": taken[-1].objective, "skipped": trainer.skipped}
    return about | result


def times(given: Arguments, layers: int) -> dict[str, Any]:
    """Seconds of a training step by path and mode, and how many times those of "store"."""
    trainer = prepare(given, layers, noise(given), given.batch)

    def step(path: str, mode: Memory) -> None:
        trainer.flow.memory = mode
        with PATHS[path]():
            trainer.advance()  # ends with the step's figures on the host

    def job(path: str, mode: Memory) -> Callable[[], None]:
        return lambda: step(path, mode)

    jobs = {(path, mode): job(path, mode) for path in given.paths() for mode in MODES}
    seconds = interleaved(jobs, given.rounds)
    return {
        path: {
            mode: spread(seconds[path, mode])
            | {"ratio": ratio(seconds[path, mode], seconds[path, "store"])["median"]}
            for mode in MODES
        }
        for path in given.paths()
    }


def tables(depths: dict[int, dict[str, Any]]) -> Iterator[Table]:
    """The figures, for people."""
    for path in PATHS:
        rows = {n: row["peak_bytes"] for n, row in depths.items() if "peak_bytes" in row}
        if any(path in row for row in rows.values()):
            table = Table("layers", *MODES, title=f"{path}: MB beyond weights and their like")
            for layers, row in rows.items():
                table.add_row(str(layers), *(f"{row[path][mode] / 1e6:.1f}" for mode in MODES))
            yield table
    headings = ("invert", "1 - cosine", "one in 40", "none kept", "bfloat16", "its own")
    table = Table("layers", *headings, title="gradient errors")
    for layers, row in depths.items():
        if "gradients" in row:
            single, half = row["gradients"]["float32"], row["gradients"]["bfloat16"]
            names = [f"invert, an input kept in {name}" for name in ("40", "none")]
            others = [single[name] for name in names] + list(half.values())[1:]
            errors = [found["relative_error"] for found in others]
            figures = [single["invert"]["relative_error"], 1 - single["invert"]["cosine"], *errors]
            table.add_row(str(layers), *(f"{value:.1e}" for value in figures))
    yield table
    table = Table("layers", "path", *MODES, title="seconds a step, and times store's")
    for layers, row in depths.items():
        for path, found in row.get("seconds", {}).items():
            cells = [f"{found[mode]['median']:.2f} ({found[mode]['ratio']:.2f})" for mode in MODES]
            table.add_row(str(layers), path, *cells)
    yield table


def draw(depths: dict[int, dict[str, Any]], path: Path) -> None:
    """Peak memory against depth, a line a mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    measured = {n: row["peak_bytes"] for n, row in depths.items() if "peak_bytes" in row}
    for way, style in zip(PATHS, ("o-", "s--"), strict=True):
        for k, mode in enumerate(MODES):
            points = [(n, row[way][mode] / 1e6) for n, row in measured.items() if way in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=f"C{k}", label=f"{mode}, {way}")
    axes.set(xlabel="mixer layers", yscale="log")
    axes.set_ylabel("MB beyond parameters, gradients, optimiser state")
    axes.set_xticks(list(measured), [str(n) for n in measured])
    axes.legend()
    figure.savefig(path, dpi=120)


def earlier(out: Path | None, settings: dict[str, Any]) -> tuple[dict[int, Any], list[object]]:
    """Figures that an earlier command left in `out`, and which command that was."""
    if out is None or not out.exists():
        return {}, []
    found = json.loads(out.read_text())
    if found["settings"] != settings:
        sys.exit(f"{out}: has figures of other settings: {found['settings']}")
    return {int(layers): row for layers, row in found["by_layers"].items()}, found["runs"]


def main() -> None:
    """Measure and print."""
    given = tyro.cli(Arguments)
    if given.quick:
        given = replace(given, layers=(2, 4), hidden=8, batch=8, train_batch=4, steps=2, rounds=1)
    pin(given.threads, given.seed)
    once = ("layers", "parts", "out", "plot", "steps")
    settings = {k: v for k, v in vars(given).items() if k not in once}
    depths, runs = earlier(given.out, settings)
    result: dict[str, object] = {
        "settings": settings,
        "by_layers": depths,
        "runs": [*runs, facts(given.seed)],
    }
    images = load(given.data).train if "gradients" in given.parts else noise(given)
    for layers in given.layers:
        row = depths.setdefault(layers, {})
        if "peak_bytes" in given.parts:
            row["peak_bytes"] = peaks(given, layers)
        if "gradients" in given.parts:
            row["gradients"] = agreement(given, layers, images)
        if "seconds" in given.parts:
            row["seconds"] = times(given, layers)
        keep(result, given.out)
    result["by_layers"] = depths = dict(sorted(depths.items()))
    emit(result, given.out)
    for table in tables(depths):
        Console(stderr=True).print(table)
    if given.plot is not None:
        draw(depths, given.plot)


if __name__ == "__main__":
    main()
