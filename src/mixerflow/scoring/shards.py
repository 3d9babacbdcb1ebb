"""`find_shards`: the shards that a path or a set's name stands for."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixerflow.data import Reading
from mixerflow.data.folder import list_folder, place_labels
from mixerflow.data.formats import RawSplit, unreadable
from mixerflow.data.signatures import has_image_ending, sniff
from mixerflow.data.sources import open_arrays, path_of
from mixerflow.errors import DataError
from mixerflow.scoring.rows import Columns, Row, Shard, file_digest

TABLE_ENDINGS = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
SHARD_IMAGES = 10_000
"""Images of a shard that is no table."""
_LONGEST = 150  # characters of a shard's name


class Found(NamedTuple):
    """Shards of a source, a line on each kind of file that is not read, and if they are tables."""

    shards: Sequence[Shard]
    others: tuple[str, ...] = ()
    tables: bool = False


class ArrayShard(Shard):
    """Rows of an array of images, ``(N, C, H, W)`` as it is stored, perhaps a memory map."""

    def __init__(self, name: str, split: str, raw: RawSplit, rows: range, where: Path) -> None:
        self.name, self.images, self.classes = name, len(rows), raw.classes
        self._prefix, self._raw, self._rows, self._where = split and f"{split}/", raw, rows, where

    @cached_property
    def digest(self) -> str:
        if isinstance(self._mapped(), np.memmap):
            return file_digest(self._where, self._rows.start, self._rows.stop)
        pixels = self._raw.pixels[self._rows.start : self._rows.stop]
        digest = hashlib.sha256(f"{pixels.dtype.name} {pixels.shape}".encode())
        digest.update(np.ascontiguousarray(pixels).tobytes())
        return digest.hexdigest()

    def _mapped(self) -> object:
        """The array that holds the memory of a view."""
        held = self._raw.pixels
        while isinstance(held, np.ndarray) and not isinstance(held, np.memmap):
            held = held.base
        return held

    def rows(self) -> Iterator[Row]:
        pixels, labels, _, _, files = self._raw
        for number in self._rows:
            image = pixels[number]
            if image.dtype.kind != "f":
                image = np.moveaxis(image, 0, -1)
            name = files[number] if files else str(number)
            label = int(labels[number]) if labels is not None and labels.ndim == 1 else None
            where = Path(f"{self._where}, image {name}")
            yield Row(f"{self._prefix}{name}", image, where, label)


class FolderShard(Shard):
    """Image files of a folder, by their paths in it, read one by one."""

    def __init__(
        self, name: str, root: Path, files: Sequence[str], labels: Sequence[int | None] | None
    ) -> None:
        self.name, self.images = name, len(files)
        self._root, self._files, self._labels = root, files, labels

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for file in self._files:
            try:
                size = (self._root / file).stat().st_size
            except OSError:  # a broken link: reading says so
                size = -1
            digest.update(os.fsencode(f"{file}\0{size}\0"))
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        for place, file in enumerate(self._files):
            path = self._root / file
            yield Row(file, path, path, None if self._labels is None else self._labels[place])


def find_shards(
    data: str | Path,
    reading: Reading,
    *,
    columns: Columns | None = None,
    size: int = SHARD_IMAGES,
    labels: bool = False,
    classes: tuple[str, ...] = (),
) -> Found:
    """Return the shards of a source of images.

    Args:
        data: a parquet or Arrow file, or a folder of these, of which each is a shard; or a folder
            of images, or anything that `mixerflow.data.load` takes, cut into shards of `size`.
        reading: how encoded images are read.
        columns: names of the tables' columns.
        size: images of a shard that is no table.
        labels: whether the images' labels are needed.
        classes: names of the run's classes, which the class folders have.

    Raises:
        DataError: no such path, no images, tables and images in one folder, or no labels.
        ConfigError: a table, and no pyarrow.
    """
    path = path_of(data)
    if path is not None and path.is_file() and _is_table(path):
        return _tables(path.parent, [path], columns or Columns(), labels=labels, alone=True)
    if path is not None and path.is_dir():
        tables, image = _walk(path)
        if tables and image is not None:
            what = f"tables and images in one folder: {tables[0].name} and {image.name}"
            raise DataError(what, path, "name the folder, or the file, of the ones that are meant")
        if tables:
            return _tables(path, tables, columns or Columns(), labels=labels)
    splits = open_arrays(data, reading)
    if splits is None:
        assert path is not None
        return _pictures(path, size, classes if labels else None)
    return _arrays(path or Path(data), splits._asdict(), size, labels=labels)


def _is_table(path: Path) -> bool:
    """Whether a file is a table; an Arrow stream has no signature, and is known by its ending."""
    try:
        return path.suffix.lower() in TABLE_ENDINGS or sniff(path).startswith((b"PAR1", b"ARROW1"))
    except OSError as error:
        raise unreadable(path, error) from error


def _tables(
    root: Path, paths: Sequence[Path], columns: Columns, *, labels: bool, alone: bool = False
) -> Found:
    from mixerflow.scoring.tables import TableShard

    names = _names([path.relative_to(root).as_posix() for path in paths])
    shards = [
        TableShard(name, path, root, columns, labels=labels, alone=alone)
        for name, path in zip(names, paths, strict=True)
    ]
    return Found(shards, tables=True)


def _pictures(root: Path, size: int, classes: tuple[str, ...] | None) -> Found:
    listed = list_folder(root)
    labels = None if classes is None else place_labels(root, listed.images, classes)
    files = [path.relative_to(root).as_posix() for path in listed.images]
    ranges = _cut(len(files), size)
    names = _numbered("", len(ranges))
    return Found(
        [
            FolderShard(
                name,
                root,
                files[each.start : each.stop],
                None if labels is None else labels[each.start : each.stop],
            )
            for name, each in zip(names, ranges, strict=True)
        ],
        listed.others,
    )


def _arrays(where: Path, splits: dict[str, RawSplit | None], size: int, *, labels: bool) -> Found:
    there = {name: raw for name, raw in splits.items() if raw is not None}
    shards: list[Shard] = []
    for split, raw in there.items():
        if labels and (raw.labels is None or raw.labels.ndim != 1):
            remedy = "give class numbers with the images, or leave out --labels"
            raise DataError("the images have no labels", where, remedy)
        word = split if len(there) > 1 else ""
        ranges = _cut(len(raw.pixels), size)
        for name, rows in zip(_numbered(word, len(ranges)), ranges, strict=True):
            shards.append(ArrayShard(name, word, raw, rows, where))
    return Found(shards, tuple(line for raw in there.values() for line in raw.skipped))


def _cut(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _numbered(word: str, count: int) -> list[str]:
    prefix = f"{word}-" if word else ""
    return [f"{prefix}{number:05}-of-{count:05}" for number in range(count)]


def _names(files: Sequence[str]) -> list[str]:
    """Return a name for each table, such as `data-train-00000-of-00005`; no two are equal."""
    plain = []
    for file in files:
        stem = file[: -len(Path(file).suffix)] if Path(file).suffix else file
        plain.append(re.sub(r"[^A-Za-z0-9._=-]", "-", stem)[:_LONGEST])
    often = Counter(each.lower() for each in plain)  # some file systems ignore case
    return [
        name if often[name.lower()] == 1 else f"{name}-{_short(file)}"
        for name, file in zip(plain, files, strict=True)
    ]


def _short(file: str) -> str:
    return hashlib.sha256(os.fsencode(file)).hexdigest()[:8]


def _walk(root: Path) -> tuple[list[Path], Path | None]:
    """Return the tables below a folder, links followed, and the first file named as an image."""
    tables, image, seen = [], None, set()

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or root), error) from error

    for name, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:  # a link leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [each for each in folders if not each.startswith(".")]
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(TABLE_ENDINGS):
                tables.append(Path(name, file))
            elif image is None and has_image_ending(Path(file)):
                image = Path(name, file)
    return sorted(tables), image
