"""``mixerflow evaluate --likeness``: how much samples look like the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Column, Table

from mixerflow.caches import user_cache
from mixerflow.core import Flow
from mixerflow.data import Images, Splits, hold_out
from mixerflow.errors import ConfigError
from mixerflow.evaluate import LikenessTable, compare_likeness, require_likeness
from mixerflow.evaluate.likeness import SURE
from mixerflow.processes import Processes
from mixerflow.progress import ProgressBar
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, show, tell

_HELD_OUT = 0.2  # of data without test images
_SHOWN = (
    (f"sure, above {100 * SURE:.0f} %: share, %", "sure", 100.0),
    ("told right, %", "right", 100.0),
    ("classes, exp(entropy)", "classes", 1.0),
    ("rarest class, %", "fewest", 100.0),
    ("distance of features", "distance", 1.0),
    ("border/inside", "border", 1.0),
    ("high frequencies/test", "detail", 1.0),
)
"""Words, name of a figure, and its unit."""


@dataclass(frozen=True, kw_only=True)
class LikenessFlags:
    """Whether samples are judged beside the images by a small net that knows the images."""

    likeness: bool = False
    """Draw samples too, and measure how much they look like the images: by a small net, trained on
    the training images with their classes, and by their pixels."""
    likeness_samples: int | None = None
    """Number of samples; by default half of the images, at most 1,000."""
    temperatures: tuple[float, ...] = ()
    """Temperatures of the samples, a row for each; 1 unless given."""

    def check_likeness(self, split: str, processes: Processes) -> None:
        """Refuse flags that need ``--likeness``, and what it cannot do, with a ConfigError."""
        if not self.likeness:
            given = {
                "--likeness-samples": self.likeness_samples is not None,
                "--temperatures": bool(self.temperatures),
            }
            for flag in (flag for flag, is_given in given.items() if is_given):
                raise ConfigError("no samples are judged", flag, "give --likeness too")
            return
        for temperature in self.temperatures:
            if not 0 <= temperature < math.inf:
                raise ConfigError(f"{temperature}", "--temperatures", "give 0 or more, finite")
        if split == "train":
            what = "the net that judges is trained on these images"
            raise ConfigError(what, "--split train", "for --likeness give other images")
        if processes.world > 1:
            what = f"{processes.world} processes"
            raise ConfigError(what, "--likeness", "samples are judged by one process")

    def parts_of(
        self, flow: Flow, splits: Splits, images: Images, split: str, classes: Sequence[str]
    ) -> tuple[Images, Images] | None:
        """Return the images that train the net, and those beside which samples are judged.

        Of data without test images a fifth is held out for the second. Labels are numbered as the
        run's `classes`, where it knows them all. None without ``--likeness``; raises what
        `require_likeness` does.
        """
        if not self.likeness:
            return None
        train, test = splits.train, images
        if split == "test" and splits.test is None:
            train, test = hold_out(splits.train, _HELD_OUT)
            test = test.first(len(images))
        if set(train.classes) <= set(classes):
            train, test = (each.with_classes(tuple(classes)) for each in (train, test))
        require_likeness(flow, test, self.likeness_samples)
        return train, test


def judge_samples(
    flow: Flow,
    train: Images,
    test: Images,
    given: LikenessFlags,
    *,
    seed: int,
    split: str,
    quiet: bool,
) -> LikenessTable:
    """Compare samples with images, with a bar; the net is kept in the cache.

    Raises:
        Stopped: after a signal; samples are lost, and a net that was not ready.
    """
    with ProgressBar("image", 1, quiet=quiet) as bar, Interrupt() as interrupt:

        def on_progress(done: int, total: int) -> None:
            bar.expect(total)
            bar.update(done, "training the net that judges, and sampling")
            if interrupt.requested:
                tell(f"stopped after {done:,} of {total:,} images: the figure is kept")
                raise Stopped(interrupt.requested)

        return compare_likeness(
            flow,
            train,
            test,
            samples=given.likeness_samples,
            temperatures=given.temperatures or (1.0,),
            seed=seed,
            split=split,
            cache=user_cache() / "judges",
            on_progress=on_progress,
        )


def print_likeness(table: LikenessTable) -> None:
    """Print a column for the test images, the yardstick, and one for each temperature."""
    say(f"samples beside {table.dataset_id}, {table.split}: {table.rows[0].images:,} of each")
    heads = (Column(row.name.replace(" ", "\n"), justify="right") for row in table.rows)
    shown = Table("", *heads, box=SIMPLE)
    for words, name, factor in _SHOWN:
        values = [getattr(row, name) for row in table.rows]
        if any(value is not None for value in values):
            shown.add_row(words, *(_text(value, factor) for value in values))
    show(shown)
    if table.accuracy is not None:
        say(
            f"a net trained on the images judges: it tells {100 * table.accuracy:.1f} % of the test"
        )
        say("images right; distances are Frechet's, to other test images, in its last features")
    else:
        say(f"{table.without}: no net judges the samples, and pixels are compared alone")
    for row in table.rows:
        if row.nonfinite:
            say(f"{row.name}: {row.nonfinite:,} with values that are not finite are left out")
    say("")


def _text(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:.3g}"
