"""Timing work on a device, and what the device can do at best."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.common import spread
from benchmarks.gpu_process import Row, attempted

Run = Callable[[], object]


def here() -> torch.device:
    """A GPU if there is one, else the CPU, where kernels are interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def least(given: dict[str, Any]) -> int:
    """How often a thing is measured at least."""
    return 1 if given["tiny"] else 3


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paced(
    run: Run, device: torch.device, *, seconds: float, least: int = 3, most: int = 300
) -> list[float]:
    """Seconds from the end of each call to the end of the next, by the device's own clock.

    Args:
        run: warmed up; one call more is not counted.
        device: that does it. A GPU's events are marked as it reaches them: what the host does
            between calls counts only where the GPU waits for it.
        seconds: about how long to measure.
        least: calls at least.
        most: calls at most.
    """
    finish(device)
    begun = time.perf_counter()
    run()
    finish(device)
    once = time.perf_counter() - begun
    calls = max(least, min(most, int(seconds / max(once, 1e-9))))
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(calls):
            run()
            marks.append(time.perf_counter())
        return [after - before for before, after in itertools.pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    finish(device)
    return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(events)]


def figures(seconds: Sequence[float], unit: float = 1e3) -> dict[str, float]:
    """Mean, median, least and most; by default in milliseconds."""
    scaled = [unit * each for each in seconds]
    return {"mean": float(f"{statistics.mean(scaled):.4g}"), **spread(scaled)}


def replayed(runs: Sequence[Run], device: torch.device, *, times: int = 1) -> Run:
    """`runs` one after another, `times` over: on a GPU as one graph, else as they are.

    The host takes longer to start a small kernel than the GPU to be done with it.
    """

    def whole() -> None:
        for _ in range(times):
            for run in runs:
                run()

    if device.type != "cuda":
        return whole
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries get their workspaces before capture
        for run in runs:
            run()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        whole()
    return graph.replay


def peak(device: torch.device) -> dict[str, float]:
    """GiB that tensors, and torch's allocator, held at most since `forget_peak`; a GPU's only."""
    if device.type != "cuda":
        return {}
    highest = {
        "peak_gib": torch.cuda.max_memory_allocated(device),
        "reserved_gib": torch.cuda.max_memory_reserved(device),
    }
    return {name: round(size / 2**30, 3) for name, size in highest.items()}


def forget_peak(device: torch.device) -> None:
    """Begin `peak` anew."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def ceilings(given: dict[str, Any]) -> Iterator[Row]:
    """TB/s of a copy, read and written; TFLOP/s of products; us from one small kernel to another.

    Products are of random numbers: of zeros they are quicker.
    """
    device, tiny = here(), given["tiny"]
    seconds = 0.01 if tiny else 0.5

    def copy() -> Row:
        source = torch.randn(2**10 if tiny else 2**29, device=device)
        target = torch.empty_like(source)
        taken = figures(paced(lambda: target.copy_(source), device, seconds=seconds), 1.0)
        return {"tbs": 2 * source.nbytes / taken["median"] / 1e12, "seconds": taken}

    yield attempted({"what": "copy"}, copy)
    for name, dtype, tf32 in (
        ("bfloat16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        yield attempted({"what": name}, lambda dtype=dtype: _product(dtype, tiny, seconds))
    torch.backends.cuda.matmul.allow_tf32 = False
    yield attempted({"what": "launch"}, lambda: _gap(device, 10 if tiny else 1000, seconds))
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        clock = getattr(about, "clock_rate", None)  # kHz; not in every release of torch
        yield {"what": "chip", "sms": about.multi_processor_count, "clock_khz": clock}


def _product(dtype: torch.dtype, tiny: bool, seconds: float) -> Row:
    device, side = here(), 64 if tiny else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(3):
        torch.mm(a, b, out=out)
    taken = figures(paced(lambda: torch.mm(a, b, out=out), device, seconds=seconds), 1.0)
    return {"tflops": 2 * side**3 / taken["median"] / 1e12, "side": side, "seconds": taken}


def _gap(device: torch.device, kernels: int, seconds: float) -> Row:
    x = torch.zeros(1, device=device)
    run = replayed([lambda: x.add_(1.0)], device, times=kernels)
    each = [taken / kernels for taken in paced(run, device, seconds=seconds)]
    return {"us": figures(each, 1e6), "kernels": kernels}
