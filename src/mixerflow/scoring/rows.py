"""What is scored: shards of rows, each an image with its name; decoded and scored in blocks."""

from __future__ import annotations

import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mixerflow.errors import DataError
from mixerflow.scoring.images import image_of
from mixerflow.scoring.scorer import Scorer

_ENDS = 1 << 16  # bytes of each end of a file that its digest reads


class Columns(NamedTuple):
    """Names of a table's columns; those that are absent are found."""

    image: str | None = None
    label: str | None = None
    id: str | None = None


class Row(NamedTuple):
    """One image of a shard.

    Attributes:
        id: its name: a file's path, or what the table says, or a number.
        image: the image, as `image_of` takes it.
        where: names it in errors.
        label: the number or the name of its class, as the data have it; None without one.
    """

    id: str
    image: object
    where: Path
    label: object = None


class Shard(ABC):
    """A part of the images, which is scored as a whole.

    Attributes:
        name: its name, a part of a file's name; no other shard of the data has it.
        images: the number of its rows.
        classes: names of the classes 0, 1, ... of its labels; empty where there are none.
    """

    name: str
    images: int
    classes: tuple[str, ...] = ()

    @cached_property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 (hex) by which another content is known."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yield the rows in their order, a few in memory at a time.

        Raises:
            DataError: the file is damaged.
        """


@dataclass(frozen=True, eq=False)
class Scored:
    """Columns of N rows in a row.

    Attributes:
        ids: their names.
        columns: those of `Scorer.columns`, each ``(N,)``; NaN, or False, where there is an error.
        errors: why an image could not be read, for each row; None where it could.
    """

    ids: list[str]
    columns: dict[str, np.ndarray]
    errors: list[str | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bad(self) -> np.ndarray:
        """Which rows ``(N,)`` have an error."""
        return np.array([error is not None for error in self.errors], dtype=bool)


def score_rows(shard: Shard, scorer: Scorer) -> Iterator[Scored]:
    """Score a shard in blocks of `scorer.batch` rows, a block in memory at a time.

    Blocks begin with the shard, so that a row's block, and so its rounding, is always the same.

    Raises:
        DataError: an image that cannot be read or does not fit, unless `scorer.reading` leaves bad
            images out (`on_bad_image="skip"`); or a label that is no class of the run.
    """
    rows = shard.rows()
    while block := list(itertools.islice(rows, scorer.batch)):
        yield _scored(block, shard, scorer)


def _scored(rows: list[Row], shard: Shard, scorer: Scorer) -> Scored:
    errors: list[str | None] = [None] * len(rows)
    images, labels, good = [], [], []
    for place, row in enumerate(rows):
        try:
            image = _image(row, scorer)
            labels.append(number_of(row, shard.classes, scorer) if scorer.labels else 0)
        except DataError as error:
            if scorer.reading.on_bad_image == "stop":
                raise
            errors[place] = _text(error.what)
            continue
        images.append(image)
        good.append(place)
    given = np.array(labels, np.int64) if scorer.labels else None
    pixels = np.stack(images) if images else np.empty((0, *scorer.flow.shape), np.uint8)
    columns = scorer(pixels, given)
    if len(good) < len(rows):
        columns = {name: _spread(each, good, len(rows)) for name, each in columns.items()}
    return Scored([_text(row.id) for row in rows], columns, errors)


def _text(text: str) -> str:
    r"""Return a text as UTF-8 can hold it: other bytes of a file's name become ``\xff``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _image(row: Row, scorer: Scorer) -> np.ndarray:
    image = image_of(row.image, row.where, scorer.reading, scorer.flow.shape, scorer.levels)
    if image.dtype.kind != "f":
        return image.astype(image.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):  # what is infinite as float32 is refused
        image = image.astype(np.float32)
    if not np.isfinite(image).all():
        what = "a value that is NaN, infinite or beyond float32"
        raise DataError(what, row.where, "leave the image out, or correct it")
    return image


def _spread(values: np.ndarray, places: list[int], count: int) -> np.ndarray:
    spread = np.full(count, values.dtype.type(0) if values.dtype == bool else np.nan, values.dtype)
    spread[places] = values
    return spread


def number_of(row: Row, names: Sequence[str], scorer: Scorer) -> int:
    """Return the number of a row's class among the run's.

    Args:
        row: its label is a name, or a number, of one of `names` where these are known.
        names: names of the shard's classes; without any, numbers are the run's own.
        scorer: knows the run's classes.

    Raises:
        DataError: no label, or one of no class of the run.
    """
    label, count = row.label, scorer.given_classes
    own = tuple(scorer.weights.metadata["data"]["classes"])
    if isinstance(label, np.integer) or (isinstance(label, float) and label.is_integer()):
        label = int(label)
    if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
        what = f"a label is {str(label)[:60]}, no whole number and no name"
        raise DataError(what, row.where, "correct it, name another column, or leave out --labels")
    if isinstance(label, int) and 0 <= label < len(names) and own:
        label = names[label]
    if isinstance(label, str):
        if label in own:
            return own.index(label)
        what = f"class {label[:100]!r} is not among the run's"
        raise DataError(what, row.where, f"name it as one of {', '.join(own)[:400]}")
    if label is None or not 0 <= label < count:
        what = "no label" if label is None else f"a label is {label}"
        remedy = f"give one of the run's classes, 0 to {count - 1}, or leave out --labels"
        raise DataError(what, row.where, remedy)
    return label


def file_digest(path: Path, *more: Any) -> str:  # noqa: ANN401
    """Return the SHA-256 of a file's size and of its first and last 64 KiB, and of `more`.

    Tables and archives have their index at an end; to hash all of a large file would take as long
    as to read it.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size} {more}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_ENDS))
        if size > _ENDS:
            file.seek(max(_ENDS, size - _ENDS), os.SEEK_SET)
            digest.update(file.read(_ENDS))
    return digest.hexdigest()
