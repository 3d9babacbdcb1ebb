"""Bits/dim after equal CPU seconds on the same cores: recipes beside what else a user could run.

    python -m benchmarks.minutes --data cifar10=cifar10.npz --recipes mixerflow-cifar10-tiny
        glow-cifar10-tiny --seconds 60 --seeds 3 --out minutes.json --plot minutes.png

Rivals are Glow in nflows, normflows and FrEIA, as wide as gives them the operations of the first
recipe (or of `--match`), and a causal transformer flow (`benchmarks/rival_transformer.py`). Other
sizes: `nflows-3-4-64` has 3 levels of 4 steps, 64 wide; `transformer-4-64-8-1` patches of 4, a
width of 64, 8 blocks of 1 layer.

All see the same images for the same CPU seconds of this process's threads. What counts is the
building of the model, its data-dependent start, the steps, and the last batch-norm statistics;
evaluations do not. A recipe trains by the package's trainer with its own settings (batch, warm-up,
schedule, averaging); a rival by a plain loop with Adam (the transformer: AdamW) and the settings of
the small recipes. Both have gradients shortened to a norm of 5, a warm-up, a cosine to 0 by the
clock, and averaged weights. Everybody's learning rate is the best of `--rates`, and of a recipe's
own rate too, after `--trial` seconds on images held out of the training images. Each seed's models
take turns of `--turn` seconds, so that a slow period hits all alike.

At the marks (seconds, seconds / 2, ...) the averaged weights are scored on test images, with the
same uniform dequantisation noise for all. Points before the last are of a run on its way: the rate
has not yet come down, and a run of fewer seconds would end lower there.

JSON goes to standard output and to `--out`, which grows as runs end; the same command goes on from
it. Tables go to standard error; `python -m benchmarks.markdown minutes.json` prints them again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.common import emit, facts, keep, pin
from benchmarks.kept import taken_over, told_in_a_line
from benchmarks.minutes_learners import Entrant, Named
from benchmarks.minutes_race import Run, race
from benchmarks.minutes_rivals import RIVALS, rival
from benchmarks.minutes_tables import draw, tables
from benchmarks.rivals import LIBRARIES, installed
from mixerflow.data import Images, Splits, hold_out, load
from mixerflow.errors import ConfigError, DataError
from mixerflow.means import mean_and_error
from mixerflow.recipes import build, recipe
from mixerflow.training.given import check_fit


@dataclass(frozen=True)
class Arguments:
    """What to train, on what, and for how long."""

    data: tuple[str, ...] = ("fashion-mini",)
    """Images, each NAME=IMAGES or what `mixerflow train --data` takes; with test images."""
    recipes: tuple[str, ...] = ("mixerflow-tiny",)
    """Recipes of the package; the others are compared with the first. None with `--match`."""
    rivals: tuple[str, ...] = RIVALS
    """Libraries' Glows, and transformer flows, see above; a library that is not installed is left
    out with a note."""
    match: str | None = None
    """Recipe whose operations the Glows have; the first of `recipes` by default."""
    seconds: float = 60.0
    """CPU seconds of a run, of all its threads."""
    seeds: int = 3
    """Runs of each; 0 for the trials of learning rates alone."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates to try."""
    trial: float = 20.0
    """CPU seconds of a trial."""
    batch: int = 32
    """Images in a rival's step."""
    images: int = 10_000
    """Test images of the last mark, or all where there are fewer."""
    curve_images: int = 1000
    """The first so many of them at the marks of curves."""
    marks: int = 5
    """Marks of a curve, each at twice the seconds of the one before."""
    turn: float = 2.0
    """CPU seconds of a turn."""
    threads: int = 1
    """0: one for each core."""
    out: Path | None = None
    """Where to keep the JSON; what it has of these settings is not run again."""
    plot: Path | None = None
    """Where to draw the curves: a PNG or SVG file."""

    def __post_init__(self) -> None:
        least = {"seconds": 0, "trial": 0, "turn": 0, "batch": 1, "images": 1, "curve_images": 1}
        for name, bound in {**least, "marks": 1, "seeds": 0, "threads": 0}.items():
            value, flag = getattr(self, name), f"--{name.replace('_', '-')}"
            if value < bound or (bound == 0 and isinstance(value, float) and value == 0):
                raise ConfigError(f"{value} cannot be", flag, "give a larger number")
        for name in ("data", "rates", *(("recipes",) if self.match is None else ())):
            if not getattr(self, name):
                raise ConfigError("nothing named", f"--{name}", "name at least one")
        if not all(0 < rate < np.inf for rate in self.rates):
            raise ConfigError(f"rates {self.rates}", "--rates", "give positive numbers")

    @property
    def settings(self) -> dict[str, Any]:
        """What two runs must share to stand in one table."""
        free = ("data", "recipes", "rivals", "seeds", "out", "plot")
        kept = {name: value for name, value in asdict(self).items() if name not in free}
        return kept | {"match": self.match or self.recipes[0], "rates": list(self.rates)}


def finite(value: float | None) -> float | None:
    """A figure for JSON, which has no infinity."""
    return float(value) if value is not None and np.isfinite(value) else None


class Benchmark:
    """The runs that are asked for, and the JSON that they become.

    Args:
        given: the arguments.

    Raises:
        ConfigError: no such recipe, or a file of other settings.
    """

    def __init__(self, given: Arguments) -> None:
        self.given = given
        for name in (*given.recipes, given.settings["match"]):
            recipe(name)
        self.result: dict[str, Any] = {
            **facts(0, LIBRARIES), "settings": given.settings, "commands": [], "sets": {},
            "entrants": {}, "trials": {}, "not_installed": [], "minutes": [],
        }  # fmt: skip
        if given.out is not None and given.out.exists():
            names = ("sets", "entrants", "trials", "minutes", "commands")
            self.result |= taken_over(given.out, self.result, names, "benchmark")
        self.result["commands"] = list(
            dict.fromkeys([*self.result["commands"], self.result["command"]])
        )

    def run(self) -> None:
        """Everything that is not there yet; mistakes are found before the first run."""
        found = {}
        for spec in self.given.data:
            name, equals, source = spec.partition("=")
            splits = load(source if equals else spec)
            found[name] = (splits, self._entrants(splits.train))
        for name, (splits, entrants) in found.items():
            self._note(name, splits, entrants)
        for name, (splits, entrants) in found.items():
            self._set(name, splits, entrants)

    def _note(self, name: str, splits: Splits, entrants: Sequence[Entrant]) -> None:
        """Describe images and entrants, or refuse images."""
        train, test = splits.train, splits.test
        if test is None:
            remedy = "give a source with test images too"
            raise DataError("no test images", train.dataset_id, remedy)
        sizes = {"training": len(train), "test": min(self.given.images, len(test))}
        facts_of = {"dataset_id": test.dataset_id, "shape": list(test.shape), **sizes}
        if self.result["sets"].setdefault(name, facts_of) != facts_of:
            raise ConfigError("other images than before", f"--data {name}=", "use another name")
        known = self.result["entrants"].setdefault(name, {})
        for each in entrants:
            known[each.name] = {"about": each.about, "package": each.package}

    def _set(self, name: str, splits: Splits, entrants: Sequence[Entrant]) -> None:
        assert splits.test is not None
        train, held = hold_out(splits.train)
        test = splits.test.first(self.given.images)
        chosen = {each.name: self._rate(name, each, train, held) for each in entrants}
        done = {(row["data"], row["name"], row["seed"]) for row in self.result["minutes"]}
        for seed in range(self.given.seeds):
            left = [each for each in entrants if (name, each.name, seed) not in done]
            self._race(name, left, chosen, seed, train, test)

    def _entrants(self, images: Images) -> list[Entrant]:
        given, found = self.given, [Named(each) for each in dict.fromkeys(self.given.recipes)]
        for each in found:
            check_fit(build(each.name, images.shape), images)
        missing = [each for each in given.rivals if each in LIBRARIES and not installed(each)]
        self.result["not_installed"] = missing
        rivals = [each for each in dict.fromkeys(given.rivals) if each not in missing]
        like = given.settings["match"]
        return [*found, *(rival(each, images.shape, like, given.batch) for each in rivals)]

    def _rate(self, data: str, entrant: Entrant, train: Images, held: Images) -> float:
        """The best learning rate after the trial's seconds on held-out images."""
        given, trials = self.given, self.result["trials"].setdefault(data, {})
        if entrant.name not in trials:
            rates = sorted({*given.rates, *entrant.rates})
            some, tried = held.first(given.curve_images), {}
            runs = [Run(entrant, train, 0, rate, given.trial) for rate in rates]

            def look(run: Run, last: bool) -> None:
                tried[run.rate] = finite(run.learner.score(some).mean())

            race(runs, given.turn, [], look)
            best = min(rates, key=lambda rate: float("inf") if tried[rate] is None else tried[rate])
            told = [{"rate": rate, "bits_per_dim": tried[rate]} for rate in rates]
            trials[entrant.name] = {"tried": told, "chosen": best, "images": len(some)}
            keep(self.result, self.given.out)
            _say(f"{data}, {entrant.name}: rate {best:g} of {told}")
        return trials[entrant.name]["chosen"]

    def _race(
        self, data: str, entrants: Sequence[Entrant], rates: dict[str, float], seed: int,
        train: Images, test: Images,
    ) -> None:  # fmt: skip
        given = self.given
        few = min(given.curve_images, len(test))
        marks = [given.seconds / 2**n for n in range(given.marks - 1, 0, -1)]
        runs = [Run(each, train, seed, rates[each.name], given.seconds) for each in entrants]
        curves: dict[Run, list[dict[str, Any]]] = {run: [] for run in runs}

        def look(run: Run, last: bool) -> None:
            scores = run.learner.score(test if last else test.first(few))
            point = {"seconds": run.used, "steps": run.steps}
            curves[run].append(point | {"bits_per_dim": finite(scores[:few].mean())})
            where = f"{data}, {run.entrant.name}, seed {seed}, {run.used:.1f} s"
            _say(f"{where}: {scores.mean():.4f} bits/dim of {len(scores):,} images")
            if last:
                row = {"data": data, **_row(run, scores), "curve": curves[run]}
                self.result["minutes"].append(row)
                keep(self.result, self.given.out)

        race(runs, given.turn, marks, look)


def _row(run: Run, scores: np.ndarray) -> dict[str, Any]:
    """What is kept of a run that has ended."""
    mean, error = mean_and_error(scores)
    return {
        "name": run.entrant.name,
        "seed": run.seed,
        "rate": run.rate,
        "parameters": run.learner.parameters,
        "batch": run.learner.config.batch,
        "steps": run.steps,
        "skipped": run.learner.skipped,
        "seconds": run.used,
        "start_seconds": run.begun,
        "images_per_second": run.images_per_second(),
        "images": len(scores),
        "bits_per_dim": finite(mean),
        "standard_error_of_images": finite(error),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Train all, print the tables, draw the curves."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        pin(given.threads, 0)
        benchmark = Benchmark(given)
        benchmark.run()
        result = benchmark.result
        if given.plot is not None and result["minutes"]:
            draw(result, given.plot)
        print(tables(result), file=sys.stderr)
        emit(result, None)


if __name__ == "__main__":
    main()
