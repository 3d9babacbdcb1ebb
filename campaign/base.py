"""A row of the campaign: what is done, how often, and what one trial found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Fault = Literal["traceback", "lost", "wrong"]
"""A traceback, or a death by a signal that nobody sent; work that was lost; a wrong result."""
FAULTS: tuple[Fault, ...] = get_args(Fault)


@dataclass(frozen=True)
class Outcome:
    """What one trial found.

    Attributes:
        figure: the row's figure, in its unit; None where the trial has none.
        fault: None where all was right.
        text: the fault in full: the command, its output, what was expected.
    """

    figure: float | None = None
    fault: Fault | None = None
    text: str = ""


class Found(Exception):
    """A fault, raised anywhere in a trial.

    Args:
        fault: its kind.
        text: the fault in full.
    """

    def __init__(self, fault: Fault, text: str) -> None:
        self.fault: Fault = fault
        self.text = text
        super().__init__(f"{fault}: {text}")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: the word of the command, ``python -m campaign NAME``; a file name.
        words: what is done, for the table.
        trials: their number.
        trial: does trial `number` in an empty folder of its own, in a process of its own. All
            that is random in it comes from its number.
        figure: what the row's figure is, with its unit, such as "longest resume, s": the largest
            figure of all trials.
        seconds: what one trial takes on two cores, about.
        prepare: makes, once, what all trials use, in the folder `prepared` of each.
        limit: seconds after which a trial is stopped, and counts as lost.
    """

    name: str
    words: str
    trials: int
    trial: Callable[[int, Path], Outcome]
    figure: str = "longest trial, s"
    seconds: float = 1.0
    prepare: Callable[[Path], None] | None = None
    limit: float = 900.0


def prepared(folder: Path) -> Path:
    """Return the folder that the row of a trial has prepared; trials only read it."""
    return folder.parent / "prepared"
