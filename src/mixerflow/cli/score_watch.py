"""What is seen of the scoring of many images: a bar, the line after a signal, a summary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from mixerflow.cli.scores import Summary
from mixerflow.processes import Processes, first_to_report
from mixerflow.progress import ProgressBar
from mixerflow.scoring.parts import Totals, figures_of
from mixerflow.scoring.work import Plan, Work
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import tell


def first_to_say() -> bool:
    """Whether no other process has said why the work ends: one line is enough."""
    return first_to_report("scoring ends")


class Watch:
    """A bar over the rows of all processes, and the signals that stop the work between blocks.

    Args:
        work: what is done.
        planned: for parts, what is left of it; None for one output.
        processes: that do it.
        quiet: show no bar.
    """

    def __init__(
        self, work: Work, planned: Plan | None, processes: Processes, *, quiet: bool
    ) -> None:
        self._work, self._planned = work, planned
        self._before = 0 if planned is None else planned.done.images
        self._rows, self._taken, self._finished = (
            processes.counter(name) for name in ("rows", "taken", "finished")
        )
        quiet = quiet or not processes.main
        self.bar = ProgressBar("image", work.images, done=self._before, quiet=quiet)
        self._interrupt = Interrupt()

    def __enter__(self) -> Watch:
        self.bar.__enter__()
        self._interrupt.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        self._interrupt.__exit__(*error)
        self.bar.__exit__(*error)

    def over(self, work: Work) -> Work:
        """Return the same work, watched."""
        return replace(work, on_rows=self._on_rows)

    def take(self) -> int:
        """Return the place of a shard that no other process takes."""
        return self._taken(1) - 1

    def finished(self) -> None:
        """Count a shard that has its part."""
        self._finished(1)

    def _on_rows(self, count: int) -> None:
        self.bar.update(self._before + self._rows(count), f"{self.bar.rate:,.0f} images/s")
        if number := self._interrupt.requested:
            if first_to_say():
                tell(self._stopped())
            raise Stopped(number)

    def _stopped(self) -> str:
        line = f"stopped after {self.bar.done:,} of {self.bar.total:,} images"
        if self._planned is None:
            return f"{line}: nothing is kept"
        shards = len(self._work.shards)
        done = shards - len(self._planned.left) + self._finished(0)
        return f"{line}, with {done:,} of {shards:,} shards done: the same command goes on"

    def summary(
        self,
        totals: Totals,
        path: Path | None = None,
        *,
        nothing_done: bool = False,
        rows: list[dict[str, Any]] | None = None,
    ) -> Summary:
        """Return what is said at the end."""
        if not nothing_done:
            self.bar.done = self._before + self._rows(0)
        shards = len(self._work.shards)
        skipped = shards * nothing_done
        if self._planned is not None:
            skipped = shards - len(self._planned.left)
        return Summary(
            totals=totals,
            shards=shards,
            skipped=skipped,
            rate=self.bar.rate,
            figures=figures_of(self._work.scorer.flow),
            path=path,
            rows=rows,
        )
