"""A search for the settings of fewest bits/dim after a minute of CPU: successive halving.

    python -m benchmarks.search cifar10.txt --recipe mixerflow-cifar10-tiny --data cifar10.npz
        --rungs 60 180 600 --out search.json

A line of the file of candidates has a name and flags of `mixerflow train RECIPE`:

    today:
    rate: --train.lr 1e-2
    whitening < rate: --model.linear.start whitening

``A < B`` has the flags of B too, and then its own. The first line is what the others are compared
with, and stays in every rung. In the first rung each candidate trains for the first number of CPU
seconds, by the package's trainer as in `benchmarks.minutes`; the best `--keep` of them go on to the
next rung, where they train anew for longer. Figures are bits/dim of images that are held out of the
training images, single-sample, with averaged weights; test images are not looked at. All see the
same images and noise, so the difference of two candidates is of their means of `--seeds` seeds;
its error is that of the seeds, which the first candidate has `--noise` of.

JSON grows as runs end; the same command goes on from it, and new lines of the file are run too.
"""

from __future__ import annotations

import functools
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.common import facts, figure, keep, pin
from benchmarks.kept import require_positive, taken_over, told_in_a_line
from benchmarks.minutes_learners import Learner, Ours
from benchmarks.minutes_race import Run
from mixerflow.cli.train import of_recipe
from mixerflow.data import Images, hold_out, load
from mixerflow.errors import ConfigError, DataError
from mixerflow.experiments.student import quantile
from mixerflow.markdown import table
from mixerflow.means import mean_and_error
from mixerflow.parts import Model
from mixerflow.train_config import TrainConfig


@dataclass(frozen=True)
class Candidate:
    """A recipe with flags."""

    name: str
    words: tuple[str, ...]
    model: Model
    train: TrainConfig
    parent: str
    """The candidate whose flags come first."""
    own: str
    """The flags that are its own."""

    def begin(self, images: Images, seed: int, rate: float, seconds: float) -> Learner:
        """Build the model and give it its data-dependent start; `rate` is the candidate's own."""
        return Ours(self.model, replace(self.train, seed=seed), images, seconds)


@dataclass(frozen=True)
class Arguments:
    """What to try, on what, and for how long."""

    candidates: Annotated[Path, tyro.conf.Positional]
    """File of candidates, see above."""
    recipe: str = "mixerflow-cifar10-tiny"
    """The recipe whose flags they are."""
    data: str = "fashion-mini"
    """Images; a part of the training images is held out."""
    rungs: tuple[float, ...] = (60.0, 180.0, 600.0)
    """CPU seconds of a run in each rung."""
    keep: float = 0.34
    """Share of a rung's candidates that go on to the next."""
    seeds: int = 1
    """Runs of each candidate in a rung."""
    noise: int = 3
    """Runs of the first candidate in the first rung, which tell the seeds' noise."""
    images: int = 1000
    """Held-out images that are scored."""
    jobs: int = 2
    """Runs at a time, of one thread each."""
    out: Path | None = None
    """Where to keep the JSON."""

    def __post_init__(self) -> None:
        require_positive(self, "seeds", "noise", "images", "jobs")
        if not self.rungs or min(self.rungs) <= 0 or not 0 < self.keep <= 1:
            what = f"rungs {self.rungs}, keep {self.keep}"
            raise ConfigError(what, "--rungs, --keep", "give positive numbers, keep at most 1")


def candidates(path: Path, recipe: str) -> list[Candidate]:
    """Read a file of candidates.

    Raises:
        DataError: it cannot be read.
        ConfigError: a line that is none, a name twice, or a parent that is not above.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("cannot be read", path, "name a text file of candidates") from error
    found: dict[str, Candidate] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        head, colon, flags = line.partition(":")
        name, _, parent = (part.strip() for part in head.partition("<"))
        where = f"{path}, line {number}"
        if not colon or not name or name in found:
            raise ConfigError(f"{line!r}", where, "give `NAME: FLAGS`, each name once")
        if parent and parent not in found:
            raise ConfigError(f"no {parent!r} above", where, "name a line before it")
        words = (*(found[parent].words if parent else ()), *shlex.split(flags))
        given = of_recipe(recipe, [*words])
        found[name] = Candidate(name, words, given.model, given.train, parent, flags.strip())
    if not found:
        raise ConfigError("no candidates", path, "give a line `NAME: FLAGS`")
    return [*found.values()]


@functools.cache
def _images(data: str) -> tuple[Images, Images]:
    return hold_out(load(data).train)


def measure(each: Candidate, data: str, seed: int, seconds: float, images: int) -> dict[str, Any]:
    """Train one candidate for so many CPU seconds; return its row."""
    pin(1, seed)
    train, held = _images(data)
    run = Run(each, train, seed, 0.0, seconds)
    run.work(seconds)
    scores = run.learner.score(held.first(images))
    return {
        "name": each.name,
        "flags": shlex.join(each.words),
        "seconds": seconds,
        "seed": seed,
        "bits_per_dim": float(scores.mean()),
        "steps": run.steps,
        "skipped": run.learner.skipped,
        "images_per_second": run.images_per_second(),
        "parameters": run.learner.parameters,
        "used": run.used,
    }


class Search:
    """The rungs, and the JSON that they become."""

    def __init__(self, given: Arguments) -> None:
        self.given = given
        self.every = candidates(given.candidates, given.recipe)
        self.settings = {"recipe": given.recipe, "images": given.images, "keep": given.keep}
        self.result: dict[str, Any] = {**facts(0), "settings": self.settings, "runs": []}
        if given.out is not None and given.out.exists():
            self.result |= taken_over(given.out, self.result, ("runs",), "search")

    def row(self, each: Candidate, seed: int, seconds: float) -> dict[str, Any] | None:
        """Return what is kept of a run; None if it is still to do."""
        key = (each.name, shlex.join(each.words), seed, seconds)
        names = ("name", "flags", "seed", "seconds")
        return next((r for r in self.result["runs"] if tuple(r[n] for n in names) == key), None)

    def bits(self, each: Candidate, seconds: float) -> float:
        """Return the mean over the seeds that all candidates have."""
        rows = (self.row(each, seed, seconds) for seed in range(self.given.seeds))
        return statistics.fmean(row["bits_per_dim"] for row in rows if row)

    def rungs(self) -> Iterator[tuple[float, list[Candidate]]]:
        """Run each rung; give its seconds and its candidates, best first."""
        left = self.every
        for number, seconds in enumerate(self.given.rungs):
            first = self.every[0]
            tasks = [(each, seed) for each in left for seed in range(self.given.seeds)]
            if number == 0:
                tasks += [(first, seed) for seed in range(self.given.seeds, self.given.noise)]
            self._run([task for task in tasks if not self.row(*task, seconds)], seconds)
            ranked = sorted(left, key=lambda each: self.bits(each, seconds))
            yield seconds, ranked
            left = ranked[: max(1, round(self.given.keep * len(ranked)))]
            left = left if first in left else [*left, first]

    def _run(self, tasks: list[tuple[Candidate, int]], seconds: float) -> None:
        data, images = self.given.data, self.given.images
        words = [(each, data, seed, seconds, images) for each, seed in tasks]
        if self.given.jobs == 1:
            for each in words:
                self._keep(measure(*each))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.given.jobs, mp_context=context) as pool:
            for future in as_completed([pool.submit(measure, *each) for each in words]):
                self._keep(future.result())

    def _keep(self, row: dict[str, Any]) -> None:
        self.result["runs"].append(row)
        told = f"{row['bits_per_dim']:.4f} bits/dim, {row['steps']:,} steps"
        print(f"{row['name']}, {row['seconds']:g} s: {told}", file=sys.stderr, flush=True)
        keep(self.result, self.given.out)

    def told(self, seconds: float, ranked: list[Candidate]) -> str:
        """Return a rung's table: each candidate beside the first of the file."""
        first, lines = self.bits(self.every[0], seconds), []
        for each in ranked:
            row = self.row(each, 0, seconds)
            assert row is not None
            mine = self.bits(each, seconds)
            less = "" if each is self.every[0] else f"{first - mine:+.3f}"
            speed, steps = figure(row["images_per_second"]), f"{row['steps']:,}"
            flags = f"`{each.own}`" if each.own else ""
            size = f"{row['parameters'] / 1e6:.2f}M"
            lines.append([each.name, f"{mine:.3f}", less, steps, speed, size, each.parent, flags])
        heads = ["candidate", "bits/dim", f"less than {self.every[0].name}"]
        return table([*heads, "steps", "images/s", "par.", "like", "and"], lines)

    def noise(self) -> str:
        """Say how far two runs of one candidate differ by their seeds alone."""
        rows = (self.row(self.every[0], s, self.given.rungs[0]) for s in range(self.given.noise))
        values = [row["bits_per_dim"] for row in rows if row]
        error = mean_and_error(values)[1]
        if error is None:
            return "The seeds' noise is not known: one seed."
        spread = error * len(values) ** 0.5
        least = quantile(len(values) - 1) * spread * 2**0.5
        return (
            f"{len(values)} seeds of {self.every[0].name} have a standard deviation of "
            f"{spread:.3f} bits/dim: of two single runs, a difference of less than {least:.3f} may "
            "be the seeds' (Student's t, 95 %)."
        )


def main() -> None:
    """Run all rungs and print their tables."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        search = Search(given)
        parts = [
            f"{seconds:g} CPU seconds\n\n{search.told(seconds, ranked)}"
            for seconds, ranked in search.rungs()
        ]
        print("\n\n".join([*parts, search.noise()]))


if __name__ == "__main__":
    main()
