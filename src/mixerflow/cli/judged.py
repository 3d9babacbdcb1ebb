"""What ``mixerflow outliers`` says of images: its table, its JSON, and a line for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Column, Table

from mixerflow.cli.image_rows import csv_of_images
from mixerflow.data import Images
from mixerflow.detection import GROUPS, Detection, Outliers, percent, rarity, second_half
from mixerflow.detection.groups import SOURCE
from mixerflow.errors import printable
from mixerflow.runs import InsideFit
from mixerflow.terminal import say, show

_EACH = 8
"""Images up to which each has a row of its own."""
_WARNING = "bits/dim alone calls simple images likely, whatever they show: docs/outliers.md"


@dataclass(frozen=True, eq=False)
class Judged:
    """The scores of images beside those of the inside.

    Attributes:
        images: the images.
        split: name of the part of their data.
        fit: the fitted scores, and the inside images.
        found: the images' scores.
        compared: how well each score tells outliers.
        rows: which images ``(N,)`` are of the inside classes; None where no class is named.
        note: a sentence on the error of an estimated log-density; "" where it is none.
    """

    images: Images
    split: str
    fit: InsideFit
    found: Outliers
    compared: dict[str, Detection]
    rows: np.ndarray | None
    note: str = ""

    @property
    def against(self) -> str:
        """Words for the images that figures take as outliers, and those beside them."""
        if self.rows is None:
            return "all images given, beside the inside images"
        return "the images of other classes, beside those of the inside classes"

    @cached_property
    def sha256(self) -> str:
        """The images' fingerprint."""
        return self.images.fingerprint()

    @cached_property
    def _rarities(self) -> dict[str, np.ndarray]:
        """How rare each score is among those of the inside images that gave the thresholds."""
        inside = Outliers.of(second_half(self.fit.inside), self.fit.fitted)
        scores = self.found.scores.items()
        return {name: rarity(inside.scores[name], values) for name, values in scores}

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        fitted, compared, flagged = self.fit.fitted, self.compared, self.found.summary()
        return {
            "dataset_id": self.images.dataset_id,
            "split": self.split,
            "images": len(self.images),
            "images_sha256": self.sha256,
            "inside": self.fit.images | {"images": fitted.images},
            "seed": fitted.seed,
            "scores": {
                score.name: {
                    "equation": score.equation,
                    "source": score.source,
                    "larger": "more outlying",
                    "threshold": threshold.as_dict(),
                    "rate_interval": threshold.interval(),
                    "flagged": flagged[score.name],
                    "detection": compared[score.name].as_dict() if score.name in compared else None,
                }
                for score, threshold in zip(fitted.scores, fitted.thresholds, strict=True)
            },
            "groups": {
                "size": fitted.group,
                "source": SOURCE,
                "threshold": None if (t := fitted.group_threshold) is None else t.as_dict(),
                "detection": compared[GROUPS].as_dict() if GROUPS in compared else None,
            },
        }

    def print(self, chosen: Sequence[str]) -> None:
        """Print the table of the chosen scores, and of few images each."""
        images, fitted, compared = self.images, self.fit.fitted, self.compared
        plural = "" if len(images) == 1 else "s"
        say(f"{images.dataset_id}, {self.split}: {len(images):,} image{plural}")
        inside = f"{self.fit.images['dataset_id']}, {self.fit.images['split']}"
        first = fitted.thresholds[0]
        low, high = map(percent, first.interval())
        say(
            f"inside: {fitted.images:,} images of {inside}; half of them give the thresholds:",
            f"{100 * first.false_alarms:g} % false alarms, truly {low} to {high} % with 95 % "
            "confidence",
        )
        heads = ("threshold", "beyond, %", "AUROC, %", "AUPR, %", "FPR95, %")
        counted = np.ones(len(images), bool) if self.rows is None else ~self.rows
        names = Column("score", no_wrap=True)
        right = (Column(head, justify="right", no_wrap=True) for head in heads)
        table = Table(names, *right, box=SIMPLE, pad_edge=False)
        for score, threshold in zip(fitted.scores, fitted.thresholds, strict=True):
            if score.name in chosen:
                share = f"{100 * self.found.flags(score.name)[counted].mean():.1f}"
                told = _figures(compared.get(score.name))
                table.add_row(score.name, f"{threshold.value:.4g}", share, *told)
        few = ""
        if GROUPS in compared:
            limit = fitted.group_threshold
            words = "" if limit is None else f"{limit.value:.4g}"
            share = "" if limit is None else f"{100 * limit.flags(self.found.groups()).mean():.1f}"
            told = _figures(compared[GROUPS])
            table.add_row(f"groups of {fitted.group}", words, share, *told)
            few = "too few inside images for a threshold of groups" if limit is None else ""
        show(table)
        if few:
            say(few)
        if self.rows is not None:
            inner = {name: self.found.flags(name)[self.rows].mean() for name in chosen}
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in inner.items())
            say(f"beyond: of the other classes; of the inside classes {shares}")
        if len(images) <= _EACH:
            self._print_each(chosen)
        if compared:
            say(f"a larger score is more outlying; as if outliers were {self.against}")
        if self.fit.images.get("images_sha256") == self.sha256:
            say("these are the inside images themselves: half of them set the thresholds")
        if self.note:
            say(self.note)
        say(_WARNING)

    def _print_each(self, chosen: Sequence[str]) -> None:
        found, files = self.found, self.images.files
        names = [name for name in chosen if name in found.scores]
        right = (Column(name, justify="right", no_wrap=True) for name in names)
        file = [Column("file", overflow="fold")] if files else []
        table = Table("image", *file, *right, box=SIMPLE, pad_edge=False)
        gap = "\n" if files else " "  # names need room
        for number in range(len(found)):
            cells = []
            for name in names:
                mark = " !" if found.flags(name)[number] else ""
                rare = self._rarities[name][number]
                cells.append(f"{found.scores[name][number]:.4g}{gap}({rare:.2g}){mark}")
            file = map(printable, files[number : number + 1])  # one line
            table.add_row(str(number), *file, *cells)
        show(table)
        say("in brackets: the share of inside images that score at least as high; !: beyond")

    def csv(self) -> bytes:
        """Return a CSV file: each image's number, file if any, figures, scores and rarity."""
        found, measured = self.found, self.found.measured
        columns = {"log_prob": measured.log_prob, "log_base": measured.log_base}
        columns["log_det"] = measured.log_det
        if measured.complexity is not None:
            columns["file_bits"] = measured.complexity
        for name, scores in found.scores.items():
            columns |= {name: scores, f"{name}_rarity": self._rarities[name]}
            columns[f"{name}_outlier"] = found.flags(name).astype(int)
        rows = ([f"{value:.8g}" for value in row] for row in zip(*columns.values(), strict=True))
        return csv_of_images([*columns], rows, self.images.files)


def _figures(found: Detection | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    pairs = (
        (found.auroc, found.auroc_error),
        (found.aupr, found.aupr_error),
        (found.fpr95, found.fpr95_error),
    )
    first, second, third = (
        f"{100 * value:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")
        for value, error in pairs
    )
    return first, second, third
