"""Parts of `benchmarks.gpu` that train: how fast, where the time goes, how much memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_flow import Way, let_go, paths_of, trainer_of
from benchmarks.gpu_process import Row, attempted
from benchmarks.gpu_timing import figures, finish, forget_peak, here, least, paced, peak
from mixerflow.training import Trainer

_WARM = 3
"""Steps before any that is timed: what is compiled or captured is so in the first."""
_SELDOM = 10**9
_TOP = 25


def training(given: dict[str, Any]) -> Iterator[Row]:
    """Training steps on one way, a row a batch: small ones first, as large ones may not fit."""
    way = Way(**given["way"])
    for batch in sorted(given["batches"]):
        with way.holds():
            yield attempted({"batch": batch}, lambda batch=batch: _trained(given, way, batch))
        let_go()


def _warmed(given: dict[str, Any], trainer: Trainer) -> float:
    """Take the first steps; seconds that they took."""
    begun = time.perf_counter()
    for _ in range(1 if given["tiny"] else _WARM):
        trainer.advance()
    finish(trainer.flow.device)
    return time.perf_counter() - begun


def _trained(given: dict[str, Any], way: Way, batch: int) -> Row:
    device = here()
    forget_peak(device)
    trainer = trainer_of(given, way, batch)
    first = _warmed(given, trainer)
    with way.autocast():
        paths = paths_of(trainer.flow)
    trainer.read_every = _SELDOM  # a graph's steps follow each other without a look
    seconds = paced(trainer.advance, device, seconds=given["seconds"], least=least(given))
    taken = figures(seconds)
    trainer.read_every = 1
    step = trainer.advance()
    return {
        "images_per_second": float(f"{1e3 * batch / taken['median']:.4g}"),
        "ms": taken,
        "steps": len(seconds),
        **peak(device),
        "finite": math.isfinite(step.objective) and trainer.skipped == 0,
        "objective": step.objective,
        "paths": paths,
        "first_seconds": round(first, 2),
    }


def profiled(given: dict[str, Any]) -> Iterator[Row]:
    """What the device is busy with in a few training steps, and for how much of them."""
    way, device, steps = Way(**given["way"]), here(), 1 if given["tiny"] else 5
    batch = given["batches"][0]
    with way.holds():
        trainer = trainer_of(given, way, batch)
        _warmed(given, trainer)
        trainer.read_every = _SELDOM
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities = [ProfilerActivity.CUDA]
        with profile(activities=activities) as found:
            begun = time.perf_counter()
            for _ in range(steps):
                trainer.advance()
            finish(device)
            wall = 1e6 * (time.perf_counter() - begun)
    wanted = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
    each = [event for event in found.key_averages() if event.device_type == wanted]
    on_gpu = device.type == "cuda"
    names = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in each}
    calls = {e.key: e.count for e in each}
    whole = sum(names.values())
    yield {
        "batch": batch,
        "steps": steps,
        "busy_us": round(whole / steps),
        "wall_us": round(wall / steps),
        "kernels": sum(calls.values()) / steps,
    }
    for name, us in sorted(names.items(), key=lambda pair: -pair[1])[:_TOP]:
        share = {"us": round(us / steps, 1), "share": round(us / whole, 4) if whole else 0.0}
        yield {"kernel": name, "calls": calls[name] / steps, **share}


def depths(given: dict[str, Any]) -> Iterator[Row]:
    """Peak memory of a training step by depth, and by what the backward pass is left."""
    way, device, batch = Way(**given["way"]), here(), given["batch"]
    for layers in given["layers"]:

        def measure(layers: int = layers) -> Row:
            trainer = trainer_of(given, way, batch, layers=layers)
            trainer.advance()  # after it, gradients and Adam's state are there
            finish(device)
            forget_peak(device)
            held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            step = trainer.advance()
            found = peak(device)
            beyond = found.get("peak_gib", math.nan) - held / 2**30
            if found:
                found["beyond_gib"] = round(beyond, 3)
            return {**found, "finite": math.isfinite(step.objective)}

        about = {"layers": layers, "batch": batch, "keep": way.keep, "memory": way.memory}
        with way.holds():
            yield attempted(about, measure)
        let_go()
