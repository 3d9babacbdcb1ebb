"""What every benchmark shares: who is measured, in turns; medians and spread; the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from torch import nn

from mixerflow.processes import cores
from mixerflow.runs.files import write_atomically

JOBS = ("train", "log_prob", "sample")
"""A training step with Adam; log-probabilities in eval mode; images drawn."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Work:
    """A model made ready, and what it does with one batch: each call does a job once."""

    model: nn.Module
    train: Callable[[], object]
    log_prob: Callable[[], object]
    sample: Callable[[], object]


class Contender(Protocol):
    """Who is measured. It is plain data, so that a fresh process can be told to measure it too."""

    @property
    def name(self) -> str:
        """As the tables call it."""
        ...

    @property
    def package(self) -> str:
        """The module to import, which says whether it can run here."""
        ...

    def work(self, batch: int) -> Work:
        """The model, initialised, and its jobs at a batch."""
        ...

    def path(self) -> contextlib.AbstractContextManager[object]:
        """Holds while a job runs: kernels off, say."""
        ...


Clock = Literal["wall", "cpu"]
"""Seconds that pass, or processor seconds of this process, which other programs do not use up."""


def interleaved(
    jobs: Mapping[Key, Callable[[], object]], rounds: int, clock: Clock = "wall"
) -> dict[Key, list[float]]:
    """Seconds of each job in each round; a round runs every job once, so noise hits all alike.

    A round before the first is not counted: it warms up.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1; got {rounds}")
    seconds: dict[Key, list[float]] = {key: [] for key in jobs}
    for number in range(rounds + 1):
        for key, run in jobs.items():
            begun = now()
            run()
            if number:
                seconds[key].append(now() - begun)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest, to four digits."""
    figures = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """``of / to``, paired round by round: what slows a round slows both."""
    return spread([a / b for a, b in zip(of, to, strict=True)])


def figure(value: float) -> str:
    """To three digits, or to the unit."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def pin(threads: int, seed: int, clock: Clock = "wall") -> None:
    """Set torch's threads (0: one for each core that this process may use) and the seed."""
    if clock == "cpu" and threads != 1:
        raise SystemExit("--clock cpu adds up the seconds of all threads: use --threads 1 with it")
    torch.set_num_threads(threads or cores())
    torch.manual_seed(seed)


def facts(seed: int, packages: Sequence[str] = ()) -> dict[str, object]:
    """Command, machine, versions: what a figure means nothing without."""
    command = [Path(sys.argv[0]).stem, *sys.argv[1:]]
    return {
        "command": f"python -m benchmarks.{shlex.join(command)}",
        "seed": seed,
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "cpu": processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {name: version(name) for name in packages},
    }


def version(package: str) -> str | None:
    """Of an installed distribution; None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def keep(result: dict[str, object], out: Path | None) -> None:
    """Write JSON to a file where one is named: what there is so far, should the rest be cut off."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (json.dumps(result, indent=1) + "\n").encode())


def emit(result: dict[str, object], out: Path | None) -> None:
    """Print JSON to standard output, and write it to a file where one is named."""
    print(json.dumps(result, indent=1))
    keep(result, out)
