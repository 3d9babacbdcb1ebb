"""How long commands take to start, beside ``import torch``: wall and processor time, medians.

    python -m benchmarks.start [--rounds N] [--out FILE]

Each command is a fresh process with one thread; the commands take turns. A first round, which is
not counted, fills a cache of this benchmark's own, and Python's bytecode is written as by default.
The rows "first ..." lack pages in that cache.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.common import facts, keep
from mixerflow.markdown import table
from mixerflow.terminal import say

_SCORE = """
import mixerflow, torch
flow = mixerflow.build("mixerflow-cifar10-tiny").eval()
flow.bits_per_dim(torch.zeros(16, 3, 32, 32, dtype=torch.uint8))
"""
_COMMANDS = ("train", "evaluate", "probe", "sample", "report", "publish", "reproduce", "info")
_PROGRAMS: dict[str, list[str]] = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import mixerflow, build, a first score": ["-c", _SCORE],
    **{f"{name} --help": ["-m", "mixerflow", name, "--help"] for name in _COMMANDS},
    **{
        " ".join(words): ["-m", "mixerflow", *words]
        for words in (
            ["train", "mixerflow-cifar10", "--help"],
            ["info"],
            ["info", "mixerflow-cifar10"],
            ["train", "mixerflow-cifr10"],
            ["train", "mixerflow-cifar10", "--bach", "8"],
            ["train", "mixerflow-cifar10", "--data", "/no/such"],
            ["evaluate", "/no/such"],
        )
    },
}
"""Python's arguments by name."""
_FIRST = {
    "first help": _PROGRAMS["train --help"],
    "first info": _PROGRAMS["info mixerflow-cifar10"],
}
"""Programs whose pages are removed each time; the kernels stay."""


@dataclass(frozen=True)
class Start:
    """Time the start of commands."""

    rounds: int = 7
    out: Path | None = None


def _measured(arguments: list[str], cache: str) -> tuple[float, float]:
    """Run Python once; return seconds that passed, and of the processor."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "COLUMNS": "80"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # with it every start compiles the source
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
    passed, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, sum(after[:2]) - sum(before[:2])


def measure(programs: dict[str, list[str]], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each program: its name, and medians of both times."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory() as cache:
        for k in range(rounds + 1):
            for name, arguments in programs.items():
                if name in _FIRST:
                    for page in (Path(cache) / "mixerflow" / "commands").glob("*/*"):
                        page.unlink()
                seconds = _measured(arguments, cache)
                times[name] += [seconds] if k else []
    kinds = ("wall_seconds", "cpu_seconds")
    return [
        {"command": name}
        | {
            kind: statistics.median(each)
            for kind, each in zip(kinds, zip(*found, strict=True), strict=True)
        }
        for name, found in times.items()
    ]


def main(given: Start) -> None:
    """Measure all, print the table, and write the figures."""
    rows = measure(_PROGRAMS, given.rounds) + measure(_FIRST, max(1, given.rounds // 2))
    lines = [[r["command"], f"{r['wall_seconds']:.2f}", f"{r['cpu_seconds']:.2f}"] for r in rows]
    heads = ["command", "wall s", "CPU s"]
    say(*table(heads, lines).splitlines())
    keep({"facts": facts(seed=0), "rounds": given.rounds, "rows": rows}, given.out)


if __name__ == "__main__":
    main(tyro.cli(Start, description=__doc__))
