"""How time and memory of a training step grow with layers, width, image size and batch.

    python -m benchmarks.growth [--axes size ...] [--out FILE] [--plot FILE] [--rounds N]
    python -m benchmarks.growth --terms --out FILE      # operations only: seconds, not minutes

One thing is varied at a time, from 4 layers of width 128 on 16 images of 32x32 with 4x4 patches.
A line is a MixerFlow with each of its linear blocks, and without; one whose patches grow with the
image, so that there are always 64; and Glow, with as many operations as the first at the starting
point, growing in its own steps and widths. All points of an axis are timed in one interleaved run;
memory is the peak of a fresh process. `growth.exponent` is the slope between neighbours in log-log.
The number of patches grows as the square of the size: there an exponent of 2 is linear in patches.

`terms` counts operations of a forward pass by term against the number of patches, at that fixed
patch size: conditioners (linear in it), linear blocks (quadratic, for LU), and the assembly of LU's
matrix (cubic, but once a batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.common import Clock, Contender, emit, facts, interleaved, keep, pin, spread
from benchmarks.costs import flop, peak_memory
from benchmarks.floor import terms
from benchmarks.growth_plot import draw
from benchmarks.ours import Ours, kernels_here, variants
from benchmarks.rivals import LIBRARIES, Library, base, installed
from mixerflow.models import MixerFlow
from mixerflow.parts import MLP, ButterflyMap, LinearMap, LUMap, NoMap, RowCoupling, WoodburyMap
from mixerflow.registry import evolve

Axis = Literal["layers", "width", "size", "batch"]
AXES: dict[Axis, tuple[int, ...]] = {
    "layers": (2, 4, 8, 16),
    "width": (32, 64, 128, 256),
    "size": (16, 32, 64, 128),
    "batch": (1, 4, 16, 64),
}
START: dict[Axis, int] = {"layers": 4, "width": 128, "size": 32, "batch": 16}
LINEAR: dict[str, LinearMap] = {
    "LU": LUMap(),
    "Woodbury": WoodburyMap(),
    "Butterfly": ButterflyMap(),
    "none": NoMap(),
}
GROWING = "LU, 64 patches"


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    axes: tuple[Axis, ...] = tuple(AXES)
    rounds: int = 3
    threads: int = 0
    """0: one for each core."""
    clock: Clock = "wall"
    """What seconds are: with one thread, "cpu" does not count the time of other programs."""
    rival: Library = "nflows"
    """Whose Glow."""
    terms: bool = False
    """Only count operations."""
    seed: int = 0
    out: Path | None = None
    """Where to write the JSON too."""
    plot: Path | None = None
    """Where to draw it: a PNG file."""


@dataclass(frozen=True)
class Point:
    """Who, at which value of which axis, on which batch."""

    axis: Axis
    value: int
    line: str
    contender: Contender
    batch: int


def model_at(at: dict[Axis, int], linear: str = "LU") -> MixerFlow:
    """A MixerFlow at a point; patches of 4 pixels, every fourth layer shifted."""
    flow = RowCoupling(net=MLP(at["width"]))
    return MixerFlow(layers=at["layers"], flow=flow, linear=LINEAR[linear])


def points(axis: Axis, rival: Library) -> list[Point]:
    """Every line at every value of an axis."""
    target = sum(terms(model_at(START), (3, START["size"], START["size"])).values())
    glow = replace(base(rival, (3, START["size"], START["size"])), steps=START["layers"])
    glow = glow.like(target, by="flop")
    found: list[Point] = []
    for value in AXES[axis]:
        at: dict[Axis, int] = {**START, axis: value}
        shape = (3, at["size"], at["size"])
        entrants: dict[str, Contender] = {}
        for linear in LINEAR:
            for ours in variants(linear, model_at(at, linear), shape):
                entrants[f"MixerFlow {ours.name}"] = ours
        if axis == "size":
            grown = evolve(model_at(at), {"patching.size": at["size"] // 8})
            entrants[f"MixerFlow {GROWING}"] = Ours(GROWING, grown, shape)
        hidden = glow.hidden * at["width"] // START["width"]
        entrants[f"Glow {rival}"] = replace(glow, shape=shape, steps=at["layers"], hidden=hidden)
        found += [Point(axis, value, name, who, at["batch"]) for name, who in entrants.items()]
    return [point for point in found if installed(point.contender.package)]


def measure(axis: Axis, rounds: int, rival: Library, clock: Clock = "wall") -> list[dict[str, Any]]:
    """Seconds an image and peak MiB of a training step at every point of an axis."""
    todo = points(axis, rival)

    def step(point: Point) -> Callable[[], None]:
        work = point.contender.work(point.batch)

        def run() -> None:
            with point.contender.path():
                work.train()

        return run

    seconds = interleaved({point: step(point) for point in todo}, rounds, clock)
    rows = []
    for point in todo:
        each = [s / point.batch for s in seconds[point]]
        row = {"axis": axis, "value": point.value, "line": point.line, "batch": point.batch}
        peak = peak_memory(point.contender, point.batch)
        rows.append(row | {"seconds_per_image": spread(each), "peak_mib": peak})
    return with_exponents(rows)


def with_exponents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add each point's log-log slope of time and memory from the point before it on its line."""
    for line in {row["line"] for row in rows}:
        mine = [row for row in rows if row["line"] == line]
        for last, row in pairwise(mine):
            step = math.log(row["value"] / last["value"])
            time = row["seconds_per_image"]["median"] / last["seconds_per_image"]["median"]
            row["exponent"] = {"time": round(math.log(time) / step, 2)}
            if row["peak_mib"] and last["peak_mib"]:
                memory = math.log(row["peak_mib"] / last["peak_mib"])
                row["exponent"]["memory"] = round(memory / step, 2)
    return rows


def count_terms(linear: str, size: int, batch: int) -> dict[str, Any]:
    """Operations of one image's forward pass, counted on tensors without data.

    The conditioners' are the same for every linear block; what is more is the linear blocks'. Only
    products count, so a block of elementwise work shows as nothing.
    """
    at: dict[Axis, int] = {**START, "size": size}
    shape = (3, size, size)
    with FakeTensorMode():
        flow = evolve(model_at(at, linear), {"pixels.levels": None}).build(shape).eval()
        x = torch.empty(batch, *shape)
        total = flop(lambda: flow.log_prob(x)) / batch
    split = terms(model_at(at), shape)
    assembly = split["assembly"] / batch if linear == "LU" else 0.0
    return {
        "line": linear,
        "size": size,
        "patches": (size // 4) ** 2,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "conditioners": split["conditioners"],
        "linear": total - split["conditioners"] - assembly,
        "assembly": assembly,
    }


def takeover(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """For each line, the patches at which linear blocks pass the conditioners; None if never.

    Between the two counted sizes around it, a straight line in log-log.
    """
    found: dict[str, float | None] = {}
    for row in rows:
        found.setdefault(row["line"], None)
    for a, b in pairwise(rows):
        if a["line"] == b["line"] and _excess(a) < 0 <= _excess(b):
            part = _excess(a) / (_excess(a) - _excess(b))
            found[a["line"]] = round(a["patches"] * (b["patches"] / a["patches"]) ** part)
    return found


def _excess(row: dict[str, Any]) -> float:
    """The logarithm of linear blocks' operations over the conditioners'."""
    ours = row["linear"] + row["assembly"]
    return math.log(ours / row["conditioners"]) if ours > 0 else -math.inf


def table(rows: list[dict[str, Any]], axis: Axis) -> Table:
    """Milliseconds an image and MiB of every line against one axis."""
    mine = [row for row in rows if row["axis"] == axis]
    values = AXES[axis]
    title = f"training step against {axis}: ms an image, peak MiB (their exponents)"
    show = Table("line", *map(str, values), title=title)
    for line in dict.fromkeys(row["line"] for row in mine):
        cells = []
        for row in (row for row in mine if row["line"] == line):
            exponent = row.get("exponent", {})
            time, slopes = row["seconds_per_image"]["median"], "/".join(map(str, exponent.values()))
            memory = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
            cells.append(f"{1e3 * time:.3g}, {memory}" + (f" ({slopes})" if slopes else ""))
        show.add_row(line, *cells)
    return show


def main() -> None:
    """Measure, print, draw."""
    given = tyro.cli(Arguments)
    pin(given.threads, given.seed, given.clock)
    console = Console(stderr=True, width=140)
    result: dict[str, Any] = {
        **facts(given.seed, LIBRARIES),
        "kernels": kernels_here(),
        "clock": given.clock,
        "start": START,
        "patch": 4,
    }
    sizes = (*range(16, 129, 16), *range(160, 257, 32))
    counted = [count_terms(linear, size, START["batch"]) for linear in LINEAR for size in sizes]
    result |= {"terms": counted, "takeover": takeover(counted), "growth": []}
    console.print(f"linear blocks pass the conditioners at so many patches: {result['takeover']}")
    for axis in () if given.terms else given.axes:
        result["growth"] += measure(axis, given.rounds, given.rival, given.clock)
        console.print(table(result["growth"], axis))
        keep(result, given.out)
    if not installed(given.rival):
        console.print(f"Glow: {given.rival} is not installed")
        result["not_installed"] = given.rival
    if given.plot is not None:
        draw(result, given.plot)
    emit(result, given.out)


if __name__ == "__main__":
    main()
