"""How scored rows look as CSV, as JSON and on a terminal, and the summary of their figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from mixerflow.errors import ConfigError, ResourceError
from mixerflow.runs.files import json_text, replacing, writing
from mixerflow.scoring import Scorer
from mixerflow.scoring.parts import Totals, flags_of
from mixerflow.scoring.rows import Scored
from mixerflow.temporary import sweep
from mixerflow.terminal import pour, say, show, tell

FEW = 32
"""Rows that a terminal shows."""
_HEAD = b"id,bits_per_dim,"  # of every CSV file that is written


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is said at the end.

    Attributes:
        totals: sums over all rows, those of parts that were there before too.
        shards: the number of shards.
        skipped: how many of them were done before.
        rate: images/s of this command.
        figures: the kind of the bits/dim in words.
        path: where the rows are; None for a terminal.
        rows: the rows themselves, for JSON.
    """

    totals: Totals
    shards: int
    skipped: int
    rate: float
    figures: str
    path: Path | None = None
    rows: list[dict[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the summary for JSON."""
        totals = self.totals
        record: dict[str, Any] = {
            "images": totals.images,
            "errors": totals.errors,
            "not_finite": totals.not_finite,
            "shards": self.shards,
            "shards_skipped": self.skipped,
            "bits_per_dim": totals.bits_per_dim,
            "figures": self.figures,
            "outliers": totals.outliers,
            "images_per_second": self.rate,
            "out": None if self.path is None else str(self.path),
        }
        return record | ({} if self.rows is None else {"rows": self.rows})

    def print(self, *, as_json: bool, aside: bool) -> None:
        """Print it on stdout, or `aside` on stderr."""
        if as_json:
            say(*json_text(self.as_dict()).splitlines())
            return
        totals = self.totals
        plural = "" if totals.images == 1 else "s"
        parts = [f"{totals.images:,} image{plural}"]
        if self.shards > 1 or self.skipped:
            parts.append(f"{self.shards:,} shard{'' if self.shards == 1 else 's'}")
            parts[-1] += f", of which {self.skipped:,} were done before" if self.skipped else ""
        if (mean := totals.bits_per_dim) is not None:
            parts.append(f"mean {mean:.3f} bits/dim ({self.figures})")
        parts += [f"{totals.errors:,} could not be read"] if totals.errors else []
        parts += [f"{totals.not_finite:,} not finite"] if totals.not_finite else []
        if totals.outliers:
            told = ", ".join(f"{count:,} by {name}" for name, count in totals.outliers.items())
            parts.append(f"outliers: {told}")
        parts += [f"{self.rate:,.3g} images/s"] if self.rate else []
        line = "; ".join(parts) + ("" if self.path is None else f"; in {self.path}")
        tell(line) if aside else say(line)


def as_records(blocks: Iterable[Scored]) -> list[dict[str, Any]]:
    """Return rows for JSON, one dict each; None where an image could not be read."""
    records = []
    for block in blocks:
        for place, name in enumerate(block.ids):
            error = block.errors[place]
            values = {
                k: v[place].item() if error is None else None for k, v in block.columns.items()
            }
            records.append({"id": name, **values, **({} if error is None else {"error": error})})
    return records


def print_table(blocks: Sequence[Scored]) -> None:
    """Print rows: bits/dim, the scores that call them outliers, the likeliest class."""
    names = [*blocks[0].columns] if blocks else []
    flags = [name for name in names if name.startswith("outlier_")]
    classes = [name.removeprefix("p_") for name in names if name.startswith("p_")]
    heads = ["bits/dim", *(["outlier by"] if flags else []), *(["class"] if classes else [])]
    table = Table("", *heads, box=SIMPLE)
    for block in blocks:
        for place, name in enumerate(block.ids):
            if (error := block.errors[place]) is not None:
                table.add_row(name, error)
                continue
            cells = [f"{block.columns['bits_per_dim'][place]:.3f}"]
            if flags:
                found = [k for k, v in flags_of(block.columns).items() if v[place]]
                cells.append(", ".join(found))
            if classes:
                shares = np.array([block.columns[f"p_{word}"][place] for word in classes])
                cells.append(f"{classes[shares.argmax()]} ({100 * shares.max():.0f} %)")
            table.add_row(name, *cells)
    show(table)


def print_csv(scorer: Scorer, blocks: Iterable[Scored]) -> None:
    """Print rows as CSV on stdout."""
    for text in _csv(scorer, blocks):
        pour(text)


def require_own_csv(path: Path) -> None:
    """Refuse to replace a file that is no CSV file of scores; an empty one may be replaced.

    Raises:
        ConfigError: `mixerflow score` did not write it.
        ResourceError: it cannot be read.
    """
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            head = file.read(len(_HEAD))
    except OSError as error:
        remedy = "make it readable, or name another file"
        raise ResourceError(f"cannot read ({error.strerror})", path, remedy) from error
    if head not in (b"", _HEAD):
        remedy = "give another --csv, or delete what is there"
        raise ConfigError("not written by `mixerflow score`", path, remedy)


def write_csv(path: Path, scorer: Scorer, blocks: Iterable[Scored]) -> None:
    """Write rows as one CSV file, whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with replacing(path, named=True) as file:
            for text in _csv(scorer, blocks):
                file.write(text.encode())


def _csv(scorer: Scorer, blocks: Iterable[Scored]) -> Iterator[str]:
    """Yield the lines of a CSV file, a block at a time; NaN where an image could not be read."""
    skips = scorer.reading.on_bad_image == "skip"
    yield _lines([["id", *scorer.columns, *(["error"] if skips else [])]])
    for block in blocks:
        columns = [each.tolist() for each in block.columns.values()]
        rows = []
        for place, (name, error) in enumerate(zip(block.ids, block.errors, strict=True)):
            values = [each[place] if error is None else "NaN" for each in columns]
            rows.append([name, *values, *([error or ""] if skips else [])])
        yield _lines(rows)


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
