"""Further figures of a table: what is measured of a trained flow, beside its bits/dim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from mixerflow.core import Flow
from mixerflow.data import Splits
from mixerflow.experiments.images import Budget, SeedImages

Rows = tuple[list[str], list[list[str]]]
"""The head and the rows of a table, as texts."""


@dataclass(frozen=True)
class Figure:
    """A figure of a run, and of a row its mean over seeds."""

    name: str
    """The name in claims and in JSON."""
    label: str
    """The name in tables, with its unit."""
    better: Literal["lower", "higher"] = "lower"
    digits: int = 3
    """Digits behind the point."""


class Further:
    """Figures that a table has beside bits/dim, measured once for each run after its training.

    A subclass says how to measure them; the table keeps and shows them, and judges its claims. What
    it measures is a record for JSON with an entry "figures", the name of each `Figure` -> its value
    or None, and others as it likes, which `pictures` may draw.

    Attributes:
        name: of the files that keep the records.
        figures: what a record has.
        about: paragraph above the figures.
        references: name -> label of rows that need no flow, only the images.
        sets: names of images that it needs beside the columns', given as ``--data NAME=IMAGES``.
    """

    name: ClassVar[str]
    figures: ClassVar[tuple[Figure, ...]]
    about: ClassVar[str]
    references: ClassVar[Mapping[str, str]] = {}
    sets: tuple[str, ...] = ()

    def settings(self, budget: Budget) -> dict[str, Any]:
        """Return all settings that a record depends on, for JSON: others are measured anew."""
        return {}

    def depends(self, folder: Path, images: SeedImages) -> dict[str, Any]:
        """Return what a run's record depends on besides, for JSON; others are renewed."""
        return {}

    def require(self, splits: Splits) -> None:
        """Raise a ConfigError, before the first run, for images that cannot be measured on."""

    def measure(
        self, flow: Flow, folder: Path, images: SeedImages, seed: int, budget: Budget
    ) -> dict[str, Any]:
        """Measure the flow of a finished run, which is in `folder`; return the record."""
        raise NotImplementedError

    def measure_reference(
        self, name: str, images: SeedImages, seed: int, budget: Budget, device: torch.device
    ) -> dict[str, Any]:
        """Measure one of `references` on a seed's images; return the record."""
        raise NotImplementedError

    def tables(self, column: Mapping[str, Any]) -> Sequence[tuple[str, Rows]]:
        """Return tables of a column's results, each with the text above it.

        Without any there is the usual one, of a row for each row and a column for each figure.
        """
        return []

    def pictures(self, column: dict[str, Any]) -> dict[str, bytes]:
        """Return PNG files by name that show a column's results, with its `references`."""
        return {}
