"""Convolutional baselines beside other libraries: Glow, Neural Spline Flow, RealNVP.

    python -m benchmarks.baselines [--models NAME ...] [--tasks train log_prob sample] [--out FILE]

Each model is a recipe of the package; its rivals are models of the same sizes in nflows, normflows
and FrEIA (`rivals`, `rival_realnvp`). A recipe of another model has no rival, and a row of its own
figures.

Jobs are those of `benchmarks.speed`. Ours takes integer images, dequantises them, and trains by
the package's trainer, with gradient clipping and the check for NaN; it scores and samples with
``flow.fused()``. Rivals take dequantised images.

A round does each job for `seconds` or once, in turns, every second round in the opposite order. A
ratio is ours over the rival's images a second, of the same round. Its figure is the median of the
rounds, with a distribution-free interval of at least 95 %: two order statistics. With one thread,
time is the process's own processor time, which neighbours on the machine change little.

The share of convolutions is that of their time in a profile of torch, of one call.

JSON goes to standard output, a table in Markdown to standard error.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import Contender, emit, facts, figure, keep, pin, spread
from benchmarks.ours import Ours
from benchmarks.rival_realnvp import RealNVP as RivalRealNVP
from benchmarks.rivals import LIBRARIES, Glow, installed
from mixerflow.markdown import table
from mixerflow.models import NSF, RealNVP
from mixerflow.models import Glow as OurGlow
from mixerflow.parts.image_nets import GlowConv, PlainConv
from mixerflow.recipes import recipe
from mixerflow.transforms import RationalQuadratic

Task = Literal["train", "log_prob", "sample"]
_MODELS = tuple(f"{n}-cifar10{twin}" for n in ("glow", "nsf", "realnvp") for twin in ("", "-tiny"))


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    models: tuple[str, ...] = _MODELS
    tasks: tuple[Task, ...] = ("train", "log_prob", "sample")
    rounds: int = 11
    """At least 6: fewer have no interval of 95 %."""
    batch: int = 32
    threads: int = 1
    seconds: float = 0.3
    """Shortest time of a job in a round."""
    seed: int = 0
    out: Path | None = None
    """Where to write the JSON too."""


def entrants(name: str) -> list[Contender]:
    """Our model, and its rivals that are installed."""
    named = recipe(name)
    shape, model = (named.shape[0], named.shape[1], named.shape[2]), named.model
    rivals: list[Contender] = []
    if isinstance(model, NSF) and isinstance(model.net, PlainConv):
        bins = model.elementwise.bins if isinstance(model.elementwise, RationalQuadratic) else 0
        rivals = [Glow("nflows", shape, model.scales, model.steps, model.net.width, bins)]
    elif type(model) is OurGlow and isinstance(model.net, GlowConv):
        sizes = (shape, model.scales, model.steps, model.net.width)
        rivals = [Glow(library, *sizes) for library in LIBRARIES]
    elif isinstance(model, RealNVP) and model.scales == 2:
        rivals = [RivalRealNVP(shape, model.net.width, model.net.depth)]
    return [Ours(name, model, shape), *(rival for rival in rivals if installed(rival.package))]


def interval(values: Sequence[float]) -> dict[str, float]:
    """The median, and the narrowest two order statistics that hold it in 95 % of all samples."""
    n, ordered = len(values), sorted(values)
    below = [sum(math.comb(n, i) for i in range(k + 1)) / 2 ** (n - 1) for k in range(n // 2)]
    place = max(k for k, outside in enumerate(below) if outside <= 0.05)
    held = {"median": statistics.median(values), "low": ordered[place], "high": ordered[-1 - place]}
    return {name: float(f"{value:.4g}") for name, value in held.items()}


def seconds_of(run: Callable[[], object], least: float, clock: Callable[[], float]) -> float:
    """Seconds of one call of `run`, which is called until `least` seconds have passed."""
    begun, calls = clock(), 0
    while True:
        run()
        calls += 1
        taken = clock() - begun
        if taken >= least:
            return taken / calls


def convolution_share(run: Callable[[], object]) -> float:
    """Part of a call's time that torch's convolutions take, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        run()
    events = profiled.key_averages()
    times = [(event.key, event.self_cpu_time_total) for event in events]
    inside = sum(t for key, t in times if key.startswith("aten::") and "convolution" in key)
    return round(inside / sum(t for _, t in times), 3)


def measure(name: str, given: Arguments) -> list[dict[str, Any]]:
    """A row for each task of a model: images a second of all, and the ratios to each rival."""
    named = entrants(name)
    works = [entrant.work(given.batch) for entrant in named]
    clock = time.process_time if given.threads == 1 else time.perf_counter
    rows = []
    for task in given.tasks:
        runs = [getattr(work, task) for work in works]
        for run in runs:
            run()
        taken: list[list[float]] = [[] for _ in runs]
        for number in range(given.rounds):
            for which in range(len(runs))[:: -1 if number % 2 else 1]:
                taken[which].append(seconds_of(runs[which], given.seconds, clock))
        speeds = [[given.batch / s for s in seconds] for seconds in taken]
        entries = [
            {
                "name": entrant.name,
                "images_per_second": spread(speed),
                "convolutions": convolution_share(run),
                "ratio": interval([a / b for a, b in zip(speeds[0], speed, strict=True)]),
            }
            for entrant, speed, run in zip(named, speeds, runs, strict=True)
        ]
        rows.append({"task": task, "ours": entries[0], "rivals": entries[1:]})
    return rows


def fastest(row: dict[str, Any]) -> dict[str, Any] | None:
    """The rival with the most images a second in the median; None if there is no rival."""
    speed = {rival["name"]: rival["images_per_second"]["median"] for rival in row["rivals"]}
    return max(row["rivals"], key=lambda rival: speed[rival["name"]], default=None)


def rows_of(name: str, measured: list[dict[str, Any]]) -> list[list[str]]:
    """Lines of the table: ours beside the fastest rival."""
    lines = []
    for row in measured:
        ours, rival = row["ours"], fastest(row)
        cells = [name, row["task"], figure(ours["images_per_second"]["median"])]
        share = f"{ours['convolutions']:.0%}"
        if rival is None:
            lines.append([*cells, "", "", "", share])
            continue
        held = rival["ratio"]
        ratio = f"**{held['median']:.2f}** ({held['low']:.2f}-{held['high']:.2f})"
        speed = figure(rival["images_per_second"]["median"])
        both = f"{share}, {rival['convolutions']:.0%}"
        lines.append([*cells, rival["name"].split(", ")[-1], speed, ratio, both])
    return lines


def main() -> None:
    """Time every model and print."""
    given = tyro.cli(Arguments)
    if given.rounds < 6:
        sys.exit(f"benchmarks.baselines: --rounds must be at least 6; got {given.rounds}")
    pin(given.threads, given.seed)
    result: dict[str, Any] = {**facts(given.seed, LIBRARIES), "batch": given.batch}
    result |= {"rounds": given.rounds, "models": {}}
    lines: list[list[str]] = []
    for name in given.models:
        result["models"][name] = measure(name, given)
        lines += rows_of(name, result["models"][name])
        keep(result, given.out)
    heads = ["model", "task", "images/s", "fastest rival", "its images/s", "ratio", "convolutions"]
    print(table(heads, lines), file=sys.stderr)
    emit(result, given.out)


if __name__ == "__main__":
    main()
