"""Parts of `benchmarks.gpu` that time kernels one by one, beside `benchmarks.count`'s floors."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.count import count
from benchmarks.count_parts import Arguments, Count, Kernel
from benchmarks.gpu_flow import Way, model_of, shallow
from benchmarks.gpu_kernels import FEW, Launch, compiled, recorded, step_of, unlike, unproved
from benchmarks.gpu_process import Row, attempted
from benchmarks.gpu_timing import Run, figures, here, least, paced, replayed
from mixerflow.core import Flow

STEP, GRADIENT = "step_kernel", "gradient_kernel"
SWEPT = (STEP, GRADIENT, "hidden_kernel")
_SIZES = [(128, 8), (64, 4), (64, 8), (128, 4), (128, 16), (32, 4), (256, 8), (256, 16)]
"""Rows a tile, and warps; likely ones first."""
_LINEAR = ("tf32x3", "tf32", "bf16x3", "bf16x6")


def counted(given: dict[str, Any], batch: int, precision: str = "bfloat16") -> Count:
    """Floors at the rates that were measured here, as far as they were."""
    path = Path(given["results"])
    parts = json.loads(path.read_text())["parts"] if path.exists() else []
    found = {row["what"]: row for part in parts for row in part["rows"] if "what" in row}
    rates = Arguments(recipe=given["recipe"], batch=batch)
    if found.get("copy", {}).get("tbs"):
        rates = replace(rates, memory_tbs=found["copy"]["tbs"])
    if found.get("chip", {}).get("sms"):
        clock = found["chip"]["clock_khz"]
        rates = replace(rates, sms=found["chip"]["sms"])
        rates = replace(rates, clock_ghz=clock / 1e6) if clock else rates
    if found.get("bfloat16", {}).get("tflops"):
        rates = replace(rates, matrix_tflops=found["bfloat16"]["tflops"])
    if precision == "float32":  # three products of tf32, which is half as fast, for each
        tf32 = found.get("tf32", {}).get("tflops") or rates.matrix_tflops / 2
        rates = replace(rates, matrix_tflops=tf32 / 3)
    model, shape = model_of(given)
    with torch.device("meta"):
        flow = model.build(shape)
    return count(flow, rates)


def floors(given: dict[str, Any]) -> Iterator[Row]:
    """What a training step takes at the rates that were measured, by count."""
    for precision in ("bfloat16", "float32"):
        for batch in given["batches"]:
            for total in counted(given, batch, precision).totals:
                about = {"precision": precision, "batch": batch, "how": total.how}
                yield about | {"ms": total.step_ms, "images_per_second": total.images_per_second}


def timed(given: dict[str, Any], runs: list[Run]) -> dict[str, float]:
    """Microseconds of one of several runs that are alike, over replays of many."""
    device, times = here(), 1 if given["tiny"] else 8
    whole = replayed(runs, device, times=times)
    taken = paced(whole, device, seconds=given["seconds"] / 100, least=least(given), most=30)
    return figures(taken, 1e6 / (times * len(runs)))


def _sets(given: dict[str, Any]) -> range:
    """Large tensors are used in turn: more than the L2 cache holds."""
    return range(1 if given["tiny"] else 4)


class Where(NamedTuple):
    """The kind of row flow that a launch is of."""

    rows: int
    length: int


def _where(launch: Launch) -> Where | None:
    """None of what is not of rows."""
    named = launch.named()
    table = named.get("column_table")
    return None if table is None else Where(named["rows"], len(table))


def kernels(given: dict[str, Any]) -> Iterator[Row]:
    """Each kernel of a layer's training step: microseconds, its floor, its share of the peak."""
    way, batch = Way(**given["way"]), given["batches"][0]
    flow = shallow(given)
    known = counted(given, batch, way.precision)
    kinds = {Where(kind.rows * batch, kind.length): kind for kind in known.kinds}
    taken: dict[tuple[Where | None, str], list[float]] = {}
    with way.holds(), unproved():
        step_of(flow, way, batch)  # everything is compiled and allocated
        with recorded(lambda name: True) as found:
            step_of(flow, way, batch)
        for launch in found:
            for name, row in _each(given, launch):
                if "error" in row:
                    yield {"kernel": name} | row
                else:
                    taken.setdefault((_where(launch), name), []).append(row["us"]["median"])
    about = {"precision": way.precision, "batch": batch}
    for (where, name), us in taken.items():
        kind = kinds.get(where) if where else None
        named = {"kind": kind.name if kind else "", "kernel": name} | about
        yield named | {"launches": len(us), "us": figures(us, 1.0)}
    for where, kind in kinds.items():
        mine = {name: us for (place, name), us in taken.items() if place == where}
        for floor in kind.kernels:
            yield {"kind": kind.name} | about | _beside(mine, floor) | {"steps": kind.steps}


def _each(given: dict[str, Any], launch: Launch) -> Iterator[tuple[str, Row]]:
    """A launch by itself, and torch's sum over what its programs found."""
    yield launch.name, attempted({}, lambda: {"us": _launch(given, launch)})
    grads = launch.named().get("grads")
    if launch.name == GRADIENT and grads is not None:
        yield "sum", attempted({}, lambda: {"us": _sum(given, grads)})


def _beside(taken: dict[str, list[float]], floor: Kernel) -> Row:
    """What the kernels of a part took in a step, and its floor."""
    us = sum(statistics.mean(each) for name, each in taken.items() if _part(name) == floor.name)
    return {
        "part": floor.name,
        "us": round(us, 2),
        "floor_us": floor.us,
        "bound": floor.bound,
        "of_floor": floor.us["overlap"] / us if us else None,
        "of_matrix_peak": floor.us["matrix"] / us if us else None,
    }


def _part(name: str) -> str:
    """Of the three that `benchmarks.count` knows, the one that a kernel belongs to."""
    return {STEP: "forward", "sum": "sum"}.get(name, "backward")


def _launch(given: dict[str, Any], launch: Launch) -> dict[str, float]:
    return timed(given, [launch.afresh().run for _ in _sets(given)])


def _sum(given: dict[str, Any], grads: Tensor) -> dict[str, float]:
    """Of torch's sum over what each program found."""
    out = torch.empty_like(grads[0])
    several = [torch.randn_like(grads) for _ in _sets(given)]
    return timed(given, [functools.partial(torch.sum, each, 0, out=out) for each in several])


class Setup(NamedTuple):
    """How kernels are launched in one line of a sweep."""

    name: str
    place: str
    """What is replaced, by its full name."""
    value: Any


def setups(given: dict[str, Any]) -> list[Setup]:
    """Precisions of the state's products, then sizes of tiles."""
    from mixerflow.kernels.gpu import launch

    sizes = [(16, 4)] if given["tiny"] else _SIZES
    linear = _LINEAR[:1] if given["tiny"] else _LINEAR
    root = "mixerflow.kernels.gpu"
    found = []
    for name in linear:
        setting = functools.partial(launch.Setting, linear=name)
        found.append(Setup(f"state by {name}", f"{root}.weights.Setting", setting))
    for block, warps in sizes:
        same = launch.Sizes(*[launch.Size(block, warps)] * len(launch.Sizes._fields))
        found.append(Setup(f"{block} rows, {warps} warps", f"{root}.launch.LOW", same))
    return found


def caught(flow: Flow, way: Way, batch: int, setup: Setup, *, ready: bool) -> list[Launch]:
    """Under a setup, a launch of each swept kernel for each row flow of a layer; none has run.

    It is the second's of the row flow's steps: neither the first nor the last. Unless `ready`,
    nothing else has run either, and weights are not what they should be.
    """
    with unproved(), patch(setup.place, setup.value):
        with recorded(lambda name: ready and name not in SWEPT) as found:
            step_of(flow, way, batch, layers=1)
    each: dict[tuple[Where | None, str], list[Launch]] = {}
    for launch in found:
        if launch.name in SWEPT:
            each.setdefault((_where(launch), launch.name), []).append(launch)
    return [launches[min(1, len(launches) - 1)] for launches in each.values()]


def sweep_compiling(given: dict[str, Any]) -> Iterator[Row]:
    """Compile this process's share of what the sweep launches."""
    way, flow = Way(**given["way"]), shallow(given)
    found: list[Launch] = []
    with way.holds():
        for setup in setups(given):
            found += caught(flow, way, FEW, setup, ready=False)
    yield compiled(unlike(found)[given["share"] :: given["of"]])


def sweep(given: dict[str, Any]) -> Iterator[Row]:
    """A step's kernels by precision of the state's products, then by tile size and warps."""
    way, flow, batch = Way(**given["way"]), shallow(given), given["batches"][0]
    names = {Where(k.rows * batch, k.length): k.name for k in counted(given, batch).kinds}
    with way.holds():
        for setup in setups(given):
            for launch in caught(flow, way, batch, setup, ready=True):
                where = _where(launch)
                about = {"setup": setup.name, "kind": names.get(where) if where else ""}
                about |= {"kernel": launch.name, "batch": batch}
                yield attempted(about, lambda launch=launch: {"us": _launch(given, launch)})
