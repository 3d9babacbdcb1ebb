"""Speed beside busy neighbours, and beside another version on a quiet machine; prints JSON.

A neighbour is a process that computes without end. With b of them on C cores the fair rate is the
quiet rate x C / (C + b). `--against SOURCES` measures another version's sources too: on the quiet
machine in interleaved pairs, and beside the same neighbours.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from scipy import stats

from benchmarks.common import emit, facts, figure, keep
from mixerflow.markdown import table
from mixerflow.processes import cores

JOBS = ("train", "score")
RECIPES = ("mixerflow-cifar10-tiny", "mixerflow-cifar10")
BARS = {"loaded": 2 / 3, "quiet": -0.03}
"""The least share of the fair rate, and the least change of speed on a quiet machine."""
_BATCH = {"train": 32, "score": 64}


@dataclass
class Worker:
    """A process that holds a model ready and works when it is told to."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, sources: Path, recipe: str, threads: int) -> Worker:
        """Start a process on a version's sources, and wait until it is ready."""
        command = [sys.executable, str(Path(__file__).resolve()), "--work", recipe]
        path = os.pathsep.join((str(sources), str(Path(__file__).resolve().parents[1])))
        process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        worker = cls(process)
        worker.answer()
        return worker

    def answer(self) -> list[str]:
        """Wait for a line of the process; RuntimeError if it has ended."""
        line = cast("IO[str]", self.process.stdout).readline()
        if not line:
            raise RuntimeError(f"a worker ended with code {self.process.wait()}")
        return line.split()

    def rate(self, job: str, seconds: float) -> float:
        """Work for about some seconds and return images/s."""
        into = cast("IO[str]", self.process.stdin)
        into.write(f"{job} {seconds}\n")
        into.flush()
        images, taken = map(float, self.answer())
        return images / taken

    def end(self) -> None:
        """End the process."""
        cast("IO[str]", self.process.stdin).close()
        self.process.wait()


def work(recipe: str, threads: int) -> None:
    """Obey lines ``job seconds`` of the standard input; answer ``images seconds``."""
    import torch

    from benchmarks.ours import Ours
    from mixerflow.recipes import recipe as named

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    found = named(recipe)
    works = {job: Ours(recipe, found.model, found.shape).work(_BATCH[job]) for job in JOBS}
    calls = {"train": works["train"].train, "score": works["score"].log_prob}
    for call in calls.values():
        call()
    print("ready", flush=True)
    for line in sys.stdin:
        job, seconds = line.split()
        begun, images, taken = time.perf_counter(), 0, 0.0
        while taken < float(seconds):
            calls[job]()
            images += _BATCH[job]
            taken = time.perf_counter() - begun
        print(images, taken, flush=True)


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Keep some processes busy in a ``with``."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0)
        yield
    finally:
        for each in busy:
            each.send_signal(signal.SIGKILL)
            each.wait()


def interval(pairs: Sequence[tuple[float, float]]) -> dict[str, object]:
    """Change of speed: the median of the pairs' ratios less 1, with its 95 % interval."""
    changes = sorted(new / old - 1 for new, old in pairs)
    low = int(stats.binom.ppf(0.025, len(changes), 0.5))
    ends = changes[low], changes[-1 - low]
    middle = statistics.median(changes)
    return {
        "pairs": len(changes),
        "median": round(middle, 4),
        "interval": [round(each, 4) for each in ends],
        "reached": ends[0] > BARS["quiet"],
    }


def beside(workers: dict[str, Worker], given: argparse.Namespace, cores: int) -> dict[str, object]:
    """Measure each job on a quiet machine in turns, then beside each number of neighbours."""
    result: dict[str, object] = {}
    for job in JOBS:
        turns = [
            {name: each.rate(job, given.seconds / 2) for name, each in workers.items()}
            for _ in range(given.pairs)
        ]
        quiet = {name: statistics.median(turn[name] for turn in turns) for name in workers}
        found: dict[str, object] = {"quiet": {k: round(v, 2) for k, v in quiet.items()}}
        if "other" in workers:
            found["change"] = interval([(turn["this"], turn["other"]) for turn in turns])
        for count in given.neighbours:
            fair = cores / (cores + count)
            with neighbours(count):
                rates = {
                    name: statistics.median(
                        each.rate(job, given.seconds) for _ in range(given.rounds)
                    )
                    for name, each in workers.items()
                }
            found[f"{count} busy"] = {
                name: {
                    "rate": round(rate, 2),
                    "of_fair": round(rate / (fair * quiet[name]), 3),
                    "reached": rate >= BARS["loaded"] * fair * quiet[name],
                }
                for name, rate in rates.items()
            }
        result[job] = found
        print(job, found, file=sys.stderr, flush=True)
    return result


def lines(result: dict[str, Any], recipes: Sequence[str]) -> list[list[str]]:
    """Rows of the table: images/s of each version, and shares of the fair rate."""
    found = []
    for recipe in recipes:
        for job, by_load in result[recipe].items():
            change = by_load.get("change")
            for version, rate in by_load["quiet"].items():
                share = ""
                if change and version == "this":
                    share = "{:+.1%} ({:+.1%} to {:+.1%})".format(
                        change["median"], *change["interval"]
                    )
                found.append([recipe, job, "nothing", version, figure(rate), share])
            for load in (each for each in by_load if each.endswith("busy")):
                for version, at in by_load[load].items():
                    of_fair = f"{at['of_fair']:.2f}"
                    found.append([recipe, job, load, version, figure(at["rate"]), of_fair])
    return found


def main() -> None:
    """Measure each recipe and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", help="a recipe: be a worker")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--against", type=Path, help="the src folder of another version")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--neighbours", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.work:
        work(given.work, given.threads)
        return
    sources = {"this": Path(__file__).resolve().parents[1] / "src"}
    sources |= {"other": given.against.resolve()} if given.against else {}
    result: dict[str, object] = {"facts": facts(0), "bars": BARS}
    for recipe in given.recipes:
        workers = {
            name: Worker.start(path, recipe, given.threads) for name, path in sources.items()
        }
        result[recipe] = beside(workers, given, cores())
        for each in workers.values():
            each.end()
        keep(result, given.out)
    emit(result, given.out)
    head = ["recipe", "job", "beside", "version", "images/s", "change, or share of the fair rate"]
    print(table(head, lines(result, given.recipes)), file=sys.stderr)


if __name__ == "__main__":
    main()
