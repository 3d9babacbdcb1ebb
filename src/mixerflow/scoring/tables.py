"""Parquet and Arrow files with a column of images, read a few rows at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mixerflow.data.formats import unreadable
from mixerflow.errors import ConfigError, DataError, nearest
from mixerflow.scoring.rows import Columns, Row, Shard, file_digest

_IMAGES, _IDS, _LABELS = ("image", "img"), ("id",), ("label",)
_KINDS = "give encoded images (bytes, or a struct of bytes and path), or lists of uint8 or uint16"
_BATCH = 128  # rows in memory at a time


def need_pyarrow() -> Any:  # noqa: ANN401
    """Return pyarrow, with its modules for files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        remedy = "pip install 'mixerflow[parquet]'"
        raise ConfigError("tables need pyarrow", "pyarrow", remedy) from error
    return pyarrow


class TableShard(Shard):
    """Rows of a parquet or Arrow file (file or stream format; content decides, not the ending).

    Args:
        name: of the shard.
        path: the file.
        root: the folder that was named; a row that no column names has the file's path in it.
        columns: names of columns.
        labels: whether the labels are needed.
        alone: whether the file itself was named; then a row's number says enough.

    Raises:
        DataError: the file cannot be read, or has no such column, or none that holds images.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        root: Path,
        columns: Columns,
        *,
        labels: bool = False,
        alone: bool = False,
    ) -> None:
        self.name, self._path = name, path
        self._prefix = "" if alone else f"{path.relative_to(root).as_posix()}:"
        with self._opened() as table:
            schema, self.images = table.schema, table.count()
        self._image = _image_column(schema, columns.image, path)
        self._id = _column(schema, columns.id, _IDS, path, "--id-column")
        if self._id is not None and not _holds_names(schema.field(self._id).type):
            what = f"the column {self._id!r} is {str(schema.field(self._id).type)[:60]}, no names"
            raise DataError(what, path, "name a column of texts or numbers with --id-column")
        self._label = None
        if labels:
            self._label = _column(schema, columns.label, _LABELS, path, "--label-column")
            if self._label is None:
                remedy = f"name one of {_listed(schema)} with --label-column, or leave out --labels"
                raise DataError("no column label", path, remedy)
            self.classes = _class_names(schema, self._label)

    @cached_property
    def digest(self) -> str:
        try:
            return file_digest(self._path, self._image, self._id, self._label)
        except OSError as error:
            raise unreadable(self._path, error) from error

    def rows(self) -> Iterator[Row]:
        names = [name for name in (self._image, self._id, self._label) if name is not None]
        number = 0
        with self._opened() as table, closing(table.batches([*dict.fromkeys(names)])) as batches:
            for batch in batches:
                images = _images(batch.column(self._image))
                ids = self._plain(batch, self._id)
                labels = self._plain(batch, self._label)
                for image, given, label in zip(images, ids, labels, strict=True):
                    named = given if self._id else _path_in(image)
                    name = _name(named)
                    if name is None or not self._id:
                        name = f"{self._prefix}{number if name is None else name}"
                    where = Path(f"{self._path}, row {number}")
                    yield Row(name, _located(image, self._path.parent), where, label)
                    number += 1

    def _plain(self, batch: Any, name: str | None) -> list[Any]:  # noqa: ANN401
        return [None] * batch.num_rows if name is None else batch.column(name).to_pylist()

    @contextmanager
    def _opened(self) -> Iterator[_Table]:
        """Open the file; what its reader raises in the block becomes a DataError."""
        pa = need_pyarrow()
        try:
            with self._path.open("rb") as file:  # pyarrow opens no name that is not UTF-8
                head = file.read(6)
                file.seek(0)
                kind = _Parquet if head.startswith(b"PAR1") else _Arrow
                with closing(kind(pa, file, stream=head != b"ARROW1")) as table:
                    yield table
        except UnicodeDecodeError as error:
            remedy = "write it as UTF-8, or as bytes, or name another column"
            raise DataError("a text that is not UTF-8", self._path, remedy) from error
        except (pa.ArrowException, OSError) as error:
            raise unreadable(self._path, error) from error


class _Parquet:
    def __init__(self, pa: Any, file: BinaryIO, *, stream: bool) -> None:  # noqa: ANN401
        self._file = pa.parquet.ParquetFile(file, pre_buffer=False)
        self.schema = self._file.schema_arrow

    def count(self) -> int:
        return self._file.metadata.num_rows

    def batches(self, columns: list[str]) -> Generator[Any, None, None]:
        yield from self._file.iter_batches(_BATCH, columns=columns, use_threads=False)

    def close(self) -> None:
        self._file.close()


class _Arrow:
    def __init__(self, pa: Any, file: BinaryIO, *, stream: bool) -> None:  # noqa: ANN401
        empty = not os.fstat(file.fileno()).st_size
        content = b"" if empty else mmap(file.fileno(), 0, access=ACCESS_READ)
        self._source = pa.BufferReader(pa.py_buffer(content))
        opening = pa.ipc.open_stream if stream else pa.ipc.open_file
        self._file, self._stream = opening(self._source), stream
        self.schema = self._file.schema

    def _every(self) -> Iterator[Any]:
        if self._stream:
            yield from self._file
        else:
            for number in range(self._file.num_record_batches):
                yield self._file.get_batch(number)

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._every())

    def batches(self, columns: list[str]) -> Generator[Any, None, None]:
        for batch in self._every():
            chosen = batch.select(columns)
            for start in range(0, batch.num_rows, _BATCH):
                yield chosen.slice(start, _BATCH)

    def close(self) -> None:
        self._source.close()


_Table = _Parquet | _Arrow


def _image_column(schema: Any, name: str | None, path: Path) -> str:  # noqa: ANN401
    found = [field.name for field in schema if _holds_images(field.type)]
    if name is None:
        usual = [each for each in _IMAGES if each in found]
        if usual or len(found) == 1:
            return _single(schema, (usual or found)[0], path)
        if not found:
            what = f"no column holds images; there are {_listed(schema)}"
            raise DataError(what, path, _KINDS)
        remedy = (
            f"name one of {_listed(each for each in schema if each.name in found)} with --column"
        )
        raise DataError(f"{len(found)} columns may hold images", path, remedy)
    if name not in schema.names:
        remedy = nearest(name, schema.names)
        raise DataError(f"no column {name!r}", path, f"{remedy}; there are {_listed(schema)}")
    if name not in found:
        what = f"the column {name!r} is {schema.field(name).type}, no images"
        raise DataError(what, path, _KINDS)
    return _single(schema, name, path)


def _single(schema: Any, name: str, path: Path) -> str:  # noqa: ANN401
    """Return the name of a column, which no other column may have."""
    if (count := schema.names.count(name)) > 1:
        raise DataError(f"{count} columns {name!r}", path, "give each its own name")
    return name


def _column(
    schema: Any,  # noqa: ANN401
    name: str | None,
    usual: tuple[str, ...],
    path: Path,
    flag: str,
) -> str | None:
    """Return the column of this name, which must be there, or one of the usual ones, if any."""
    if name is None:
        name = next((each for each in usual if each in schema.names), None)
        return None if name is None else _single(schema, name, path)
    if name not in schema.names:
        raise DataError(f"no column {name!r}", f"{flag} {path}", f"there are {_listed(schema)}")
    return _single(schema, name, path)


def _listed(schema: Any) -> str:  # noqa: ANN401
    return ", ".join(f"{field.name} ({str(field.type)[:60]})" for field in schema)[:800]


def _holds_images(kind: Any) -> bool:  # noqa: ANN401
    types = need_pyarrow().types
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _is_binary(kind.field("bytes").type)
    return _is_binary(kind) or _depth(kind) in (2, 3)


def _holds_names(kind: Any) -> bool:  # noqa: ANN401
    types = need_pyarrow().types
    return not types.is_nested(kind) and not isinstance(kind, need_pyarrow().BaseExtensionType)


def _is_binary(kind: Any) -> bool:  # noqa: ANN401
    types = need_pyarrow().types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _depth(kind: Any) -> int:  # noqa: ANN401
    """Return the axes of an array of uint8 or uint16 in each cell; 0 where it is none."""
    pa = need_pyarrow()
    if isinstance(kind, pa.FixedShapeTensorType):
        return len(kind.shape) if kind.value_type in (pa.uint8(), pa.uint16()) else 0
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    depth, types = 0, pa.types
    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if kind in (pa.uint8(), pa.uint16()) else 0


def _images(column: Any) -> list[object]:  # noqa: ANN401
    """Return the images of a column as `image_of` takes them."""
    pa = need_pyarrow()
    if isinstance(column.type, pa.FixedShapeTensorType):
        cells = (column.slice(place, 1) for place in range(len(column)))
        return [None if _lacks(cell) else cell.to_numpy_ndarray()[0] for cell in cells]
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if _depth(column.type):
        kind = column.type
        while not pa.types.is_integer(kind):
            kind = kind.value_type
        dtype = np.uint8 if kind == pa.uint8() else np.uint16
        return [None if each is None else _array(each, dtype) for each in column.to_pylist()]
    return column.to_pylist()


def _lacks(cell: Any) -> bool:  # noqa: ANN401
    """Whether the one tensor of a column is null, or one of its values is."""
    return bool(cell.null_count or cell.storage.flatten().null_count)


def _array(lists: object, dtype: type[np.integer[Any]]) -> object:
    try:
        return np.array(lists, dtype)
    except (TypeError, ValueError):  # lengths differ: `image_of` says so
        return lists


def _located(image: object, folder: Path) -> object:
    """Return a cell whose path, where it has no bytes, is taken from the table's folder."""
    if isinstance(image, dict) and image.get("bytes") is None and image.get("path"):
        return image | {"path": str(folder / image["path"])}
    return image


def _path_in(image: object) -> str | None:
    return (image.get("path") or None) if isinstance(image, dict) else None


def _name(value: object) -> str | None:
    """Return a row's name as a text; None for a null or NaN, which is none."""
    if value is None or value != value:
        return None
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:  # noqa: ANN401
    """Return the names of the classes 0, 1, ... that `datasets` keeps in a table's metadata."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = told["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):  # metadata of somebody else's
        return ()
    fits = isinstance(names, list) and all(isinstance(each, str) for each in names)
    return tuple(names) if fits else ()
