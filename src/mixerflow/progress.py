"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mixerflow.errors import printable
from mixerflow.terminal import console, tell

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """Progress of `total` units on stderr, with a line of figures.

    Args:
        what: name of the unit.
        total: number of units.
        done: units done before.
        quiet: show nothing.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self.what, self.total, self.done, self.quiet = what, total, done, quiet
        self._begun, self._begun_at = time.monotonic(), done
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        stderr = console(stderr=True)
        if not quiet and stderr.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=stderr,
            )
            self._task = self._bar.add_task(what, total=total, completed=done, figures="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Set the number of units, where it is known late."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def update(self, done: int, figures: str) -> None:
        """Show the number of units done, and figures."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, figures=printable(figures))
        elif not self.quiet and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = f"  {self._left()} left" if done > self._begun_at else ""
            self.say(f"{self.what} {done}/{self.total}  {figures}{left}")

    def wait(self, what: str) -> None:
        """Say what is done before the first unit; the time of the units begins after it."""
        self.update(self.done, what)
        self._begun, self._begun_at = time.monotonic(), self.done

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(printable(line), soft_wrap=True)
        else:
            tell(line)

    @property
    def rate(self) -> float:
        """Units a second since this bar began; 0 before the first."""
        return (self.done - self._begun_at) / max(time.monotonic() - self._begun, 1e-9)

    def _left(self) -> str:
        passed, units = time.monotonic() - self._begun, self.done - self._begun_at
        seconds = round(passed / units * (self.total - self.done))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
