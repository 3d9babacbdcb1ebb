"""Training, scoring and sampling on one GPU, on every way, within some minutes.

    PYTHONPATH=src python3 -m benchmarks.gpu --minutes 9 --out OUT
    PYTHONPATH=src python3 -m benchmarks.gpu --only "train kernels" sweep   # parts by their names
    TRITON_INTERPRET=1 python -m benchmarks.gpu --tiny --minutes 5          # on a CPU: that it runs

Parts run in processes of their own, in order of importance; ``--list`` names them. A part that
crashes, hangs or runs out of memory says so and loses no other; what there was no time for is
listed. ``OUT/gpu.json`` and ``OUT/gpu.md`` are written after each; parts that are there from
earlier runs, and not measured now, stay.

- **Right?** comes first. Kernels beside operators in float64, for each kind of row flow: the
  largest error over what is allowed, with memory that nobody writes full of NaN. Then a whole flow:
  bits/dim and gradients by kernels beside those by operators, and gradients twice.
- **Ceilings**: a copy, matrix products, the gap between small kernels, as the GPU does them now.
- **Training** is the package's own trainer on noise, as the recipe trains, with norms of each row.
  Milliseconds are from step to step by the GPU's clock: what the host takes counts where the GPU
  waits for it. "operators" has kernels switched off; "graph" is ``--train.graph``.
- **Floors** are those of `benchmarks.count` at the rates that were measured.
- **Kernels** are launches of a layer's training step, each timed by itself in a graph, with random
  rows in turn from several places, so that they do not wait in the L2 cache.

On a CPU kernels run in Triton's interpreter, and no time means anything. It wants torch, numpy,
Pillow, safetensors, jaxtyping and rich; other libraries are measured where they are installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import facts, keep
from benchmarks.gpu_markdown import page
from benchmarks.gpu_parts import Given, groups
from benchmarks.gpu_process import Outcome, Part, Row, together

_MARGIN = 4.0
"""Seconds that are left for ending and writing."""
_LEAST = 3.0
"""Seconds with which nothing is begun."""
_HEADLINES = ("Right?", "Training", "Floors")
"""Tables that are printed too."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; not by tyro, which the machine with the GPU may not have."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--recipe", default="mixerflow-cifar10")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole run")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="a folder")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="images a step")
    parser.add_argument("--seconds", type=float, default=None, help="about, for each figure")
    parser.add_argument("--norm", default="layer", help="in the nets: one that kernels know")
    parser.add_argument("--only", nargs="+", default=[], help="parts whose names begin so")
    parser.add_argument("--skip", nargs="+", default=[], help="parts whose names begin so")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--list", action="store_true", help="name the parts, and run none")
    return parser.parse_args(arguments)


def chosen(found: list[list[Part]], only: Sequence[str], skip: Sequence[str]) -> list[list[Part]]:
    """Those that are asked for."""

    def wanted(part: Part) -> bool:
        asked = not only or part.name.startswith(tuple(only))
        return asked and not part.name.startswith(tuple(skip))

    picked = ([part for part in group if wanted(part)] for group in found)
    return [group for group in picked if group]


def measure(
    found: list[list[Part]], seconds: float, done: Callable[[list[Outcome]], None]
) -> list[Outcome]:
    """Run groups one after another while there is time.

    Args:
        found: groups of parts.
        seconds: for all of them.
        done: is told after each group how every part stands; those to come have had no time yet.
    """
    until = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for number, group in enumerate(found):
        rest = [Outcome(part.name, "no time") for later in found[number:] for part in later]
        done([*outcomes, *rest])
        left = until - time.monotonic()
        if left < _LEAST:
            return [*outcomes, *rest]
        outcomes += together(group, left)
        for outcome in outcomes[-len(group) :]:
            outcome.command = str(facts(0)["command"])
            print(told(outcome, seconds - (until - time.monotonic())), flush=True)
    return outcomes


def told(outcome: Outcome, at: float) -> str:
    """What a part came to, in a line."""
    figures = " | ".join(map(_brief, outcome.rows[:4]))
    text = f"[{at:4.0f} s] {outcome.name}: {outcome.status}, {outcome.seconds:.0f} s"
    return ": ".join(filter(None, [text, outcome.error, figures]))[:400]


def _brief(row: Row) -> str:
    """The plain figures of a row, and the medians of the others."""
    plain = {k: v["median"] if isinstance(v, dict) and "median" in v else v for k, v in row.items()}
    plain = {k: v for k, v in plain.items() if isinstance(v, (int, float, str, bool))}
    cut = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in plain.items()}
    return ", ".join(f"{name} {value}" for name, value in cut.items())


def earlier(file: Path, names: set[str]) -> list[Row]:
    """Parts that earlier runs left in a file, but for those that are measured now."""
    found = json.loads(file.read_text())["parts"] if file.exists() else []
    return [part for part in found if part["name"] not in names and part["rows"]]


def prepare(given: argparse.Namespace) -> Given:
    """What the parts are given; on a CPU kernels are interpreted from now on."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    batches = tuple(given.batches or ((4,) if given.tiny else (512, 256)))
    seconds = given.seconds or (0.01 if given.tiny else 3.0)
    results = str((given.out / "gpu.json").resolve())
    return Given(given.recipe, batches, seconds, given.norm, given.tiny, results)


def _possible(asked: argparse.Namespace, found: Sequence[Sequence[object]]) -> None:
    """Exit with a line unless there is something to measure, and something to measure it on."""
    import torch

    if not any(found):
        sys.exit("no part of that name: see --list")
    if not asked.tiny and not torch.cuda.is_available():
        sys.exit("there is no GPU here: --tiny tries everything on the CPU")
    asked.out.mkdir(parents=True, exist_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 if anything was."""
    begun = time.monotonic()
    asked = parse(arguments)
    given = prepare(asked)
    found = chosen(groups(given), asked.only, asked.skip)
    if asked.list:
        print("\n".join(f"{part.name}  ({part.limit:.0f} s)" for group in found for part in group))
        return 0
    _possible(asked, found)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    before = earlier(asked.out / "gpu.json", {part.name for group in found for part in group})

    def write(outcomes: list[Outcome]) -> None:
        parts = [*map(asdict, outcomes), *before]
        result: dict[str, Any] = facts(0) | {"given": asdict(given), "minutes": asked.minutes}
        result |= {"seconds": round(time.monotonic() - begun, 1), "parts": parts}
        keep(result, asked.out / "gpu.json")
        (asked.out / "gpu.md").write_text(page(result))

    left = 60 * asked.minutes - _MARGIN - (time.monotonic() - begun)
    outcomes = measure(found, left, write)
    write(outcomes)
    result = json.loads((asked.out / "gpu.json").read_text())
    print(page(result, _HEADLINES))
    rows = [row for outcome in outcomes for row in outcome.rows]
    return 0 if any("error" not in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
