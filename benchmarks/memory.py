"""Memory of a training step beyond parameters, gradients and optimiser state, by depth and mode.

    python benchmarks/memory.py [--layers 15 30 60 120] [--data SPEC] [--device cuda] [--plot FILE]
    python benchmarks/memory.py --parts seconds --layers 30 --add EARLIER.json
    python benchmarks/memory.py --quick             # a small model, to see that it runs

The model is the paper's (hidden width 128, 32x32x3 noise) at batch 32. Parameters, gradients and
Adam's state exist before the step that is measured, so what it allocates on top is what the table
shows. On a CPU torch's profiler reports every byte that torch's allocator gives and takes back, and
the largest sum counts: exact, without what matrix libraries hold for themselves. On a GPU it is
``torch.cuda.max_memory_allocated``. Then a model of each depth trains for some steps on `--data`,
and its gradients in each mode are compared with those of "store", in float32 and with bfloat16
conditioners. Then training steps are timed, the modes in turn, so that a noisy machine slows all
alike. JSON goes to standard output, a table to standard error; `--parts` and `--add` spread a long
measurement over several commands.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mixerflow.core import Flow, Memory
from mixerflow.data import Images, load, make_images
from mixerflow.models import MixerFlowConfig, build
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches

MODES: tuple[Memory, ...] = get_args(Memory)


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    layers: tuple[int, ...] = (15, 30, 60, 120)
    batch: int = 32
    hidden: int = 128
    data: str = "fashion-mini"
    """Images to train on before gradients are compared."""
    steps: int = 20
    """Of that training."""
    train_batch: int = 8
    lr: float = 1e-3
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    rounds: int = 7
    """Of timed steps."""
    parts: tuple[Literal["peak_bytes", "gradients", "seconds"], ...] = (
        "peak_bytes",
        "gradients",
        "seconds",
    )
    add: Path | None = None
    """An earlier output with the same settings, whose figures are taken over."""
    plot: Path | None = None
    quick: bool = False


def prepare(given: Arguments, layers: int, images: Images, batch: int) -> Trainer:
    """A trainer of a model of that depth, before its first step."""
    torch.manual_seed(given.seed)
    model = MixerFlowConfig(layers=layers, hidden=given.hidden)
    flow = build(model, images.shape).to(given.device)
    batches = Batches(images, batch, seed=given.seed, device=flow.device, conditional=False)
    flow.initialize(*batches.first(64))
    config = TrainConfig(batch=batch, lr=given.lr, warmup=10, ema=0.0, seed=given.seed)
    return Trainer(flow, batches, config, steps=10**6)


def backward(flow: Flow, x: Tensor) -> None:
    """Add a batch's gradients to those that are there."""
    (-flow(x).log_prob.mean() / flow.dims).backward()


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
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
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


def peaks(given: Arguments, layers: int) -> dict[str, int]:
    """Bytes of a step beyond parameters, gradients and Adam's state, by mode."""
    trainer = prepare(given, layers, noise(given), given.batch)
    flow, (x, _) = trainer.flow, trainer.batches.at(0)
    trainer.advance()  # after it, gradients and Adam's state are there
    result = {}
    for mode in MODES:
        flow.memory = mode
        with peak_of(flow.device) as peak:
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
    result["bfloat16"]["store, against float32"] = compared(stored["bfloat16"], stored["float32"])
    return {"objective": taken[-1].objective, "skipped": trainer.skipped, **result}


def times(given: Arguments, layers: int) -> dict[str, dict[str, float]]:
    """Seconds of a training step by mode, and the median of its ratios to "store"'s beside it."""
    trainer = prepare(given, layers, noise(given), given.batch)
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(given.rounds + 1):
        for mode in MODES:
            trainer.flow.memory = mode
            begun = time.perf_counter()
            trainer.advance()  # ends with the step's figures on the host
            if number:  # the first round warms up
                seconds[mode].append(time.perf_counter() - begun)
    stored = seconds["store"]
    return {
        mode: {
            "median": statistics.median(each),
            "least": min(each),
            "most": max(each),
            "ratio": statistics.median(a / b for a, b in zip(each, stored, strict=True)),
        }
        for mode, each in seconds.items()
    }


def table(depths: dict[int, dict[str, Any]], given: Arguments) -> Table:
    """The figures, for people."""
    title = f"MB, batch {given.batch}, width {given.hidden}; gradients and times of invert"
    headings = ("layers", *MODES, "error", "1 - cosine", "bf16 error", "times checkpoint", "invert")
    result = Table(*headings, title=title)
    for layers, row in sorted(depths.items()):
        cells = [str(layers)]
        peak = row.get("peak_bytes")
        cells += [f"{peak[mode] / 1e6:.1f}" for mode in MODES] if peak else [""] * 3
        if found := row.get("gradients"):
            single, half = (found[precision]["invert"] for precision in ("float32", "bfloat16"))
            errors = (single["relative_error"], 1 - single["cosine"], half["relative_error"])
            cells += [f"{error:.1e}" for error in errors]
        else:
            cells += [""] * 3
        if seconds := row.get("seconds"):
            cells += [f"{seconds[mode]['ratio']:.2f}" for mode in MODES[1:]]
        result.add_row(*cells)
    return result


def draw(depths: dict[int, dict[str, Any]], path: Path) -> None:
    """Peak memory against depth, a line a mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    measured = {n: row["peak_bytes"] for n, row in sorted(depths.items()) if "peak_bytes" in row}
    for mode in MODES:
        peak = [row[mode] / 1e6 for row in measured.values()]
        axes.plot(list(measured), peak, "o-", label=mode)
    axes.set(xlabel="mixer layers", yscale="log")
    axes.set_ylabel("MB beyond parameters, gradients, optimiser state")
    axes.set_xticks(list(measured), [str(n) for n in measured])
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure and print."""
    given = tyro.cli(Arguments)
    if given.quick:
        given = replace(given, layers=(2, 4), hidden=8, batch=8, train_batch=4, steps=2, rounds=1)
    torch.set_num_threads(given.threads)
    once = ("layers", "parts", "add", "plot")
    settings = {k: v for k, v in vars(given).items() if k not in once}
    depths: dict[int, dict[str, Any]] = {}
    commands = [" ".join(["python", *sys.argv])]
    if given.add is not None:
        earlier = json.loads(given.add.read_text())
        if earlier["settings"] != settings:
            sys.exit(f"{given.add}: other settings: {earlier['settings']}")
        depths = {int(layers): row for layers, row in earlier["by_layers"].items()}
        commands = [*earlier["commands"], *commands]
    images = load(given.data).train if "gradients" in given.parts else noise(given)
    for layers in given.layers:
        row = depths.setdefault(layers, {})
        if "peak_bytes" in given.parts:
            row["peak_bytes"] = peaks(given, layers)
        if "gradients" in given.parts:
            row["gradients"] = agreement(given, layers, images)
        if "seconds" in given.parts:
            row["seconds"] = times(given, layers)
    machine = {
        "commands": commands,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    print(json.dumps({"by_layers": depths, "settings": settings, **machine}, indent=2))
    Console(stderr=True, width=100).print(table(depths, given))
    if given.plot is not None:
        draw(depths, given.plot)


if __name__ == "__main__":
    main()
