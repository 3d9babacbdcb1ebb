"""Batch files whose rows are images, planes one after another: CIFAR's, and small ImageNet's.

CIFAR-10 and -100 come as `.bin` or as Python pickles, ImageNet at 32 and 64 pixels as `.npz` or
pickles. A pickle is a program, which `read_pickle` does not run: it rebuilds arrays, texts, lists
and dictionaries with stand-ins of its own and refuses every other name in the file.
"""

from __future__ import annotations

import codecs
import math
import pickle
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow.data.formats import RawSplit, RawSplits, open_npz, unreadable
from mixerflow.data.signatures import READ_FORMATS, image_format, sniff
from mixerflow.errors import DataError, first_line

_TRAIN = re.compile(r"(train_)?data_batch_(\d+)(\.bin|\.npz)?|train(\.bin)?")
_TEST = re.compile(r"test_batch(\.bin)?|val_data(\.npz)?|test(\.bin)?")
_CIFAR100_ROW = 2 + 3 * 32 * 32  # bytes: two labels, three planes


def batch_files(path: Path) -> tuple[list[Path], list[Path]]:
    """List the training and the test batches in a folder; or a file itself, if it is one.

    The names are those of the published sets; a file whose content cannot be a batch, such as a
    list of names or a picture, is none.
    """
    files = sorted(path.iterdir(), key=_number) if path.is_dir() else [path]
    train = [file for file in files if _TRAIN.fullmatch(file.name) and _may_be_batch(file)]
    test = [file for file in files if _TEST.fullmatch(file.name) and _may_be_batch(file)]
    return (train, test) if train else (test, [])


def read_batches(batches: tuple[list[Path], list[Path]], where: Path) -> RawSplits:
    """Read the splits found by `batch_files`; a file that is no such batch is a DataError."""
    if len({file.suffix for split in batches for file in split}) > 1:
        raise DataError("batches in more than one format", where, "leave the files of one format")
    train, test = batches
    return RawSplits(_read_split(train), _read_split(test) if test else None)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dictionary of arrays, numbers and texts without running anything in it."""
    try:
        file = BytesIO(path.read_bytes())  # a length in a pickle then allocates nothing
        content = _without_stand_ins(_Unpickler(file, encoding="bytes").load())
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a hostile or torn stream can make the reader raise anything
        what = f"not a batch of plain arrays ({first_line(error)})"
        raise DataError(what, path, "fetch it again from where the set is published") from error
    if not isinstance(content, dict):
        raise DataError("not a pickled dictionary", path, "give one of the set's batch files")
    return content


def _number(path: Path) -> tuple[int, str]:
    digits = re.search(r"_(\d+)(\.\w+)?$", path.name)
    return (int(digits[1]) if digits else 0, path.name)


def _may_be_batch(path: Path) -> bool:
    """Whether a file's content allows what its name says; a damaged batch is still one."""
    try:
        head, size = (sniff(path), path.stat().st_size) if path.is_file() else (b"", -1)
    except OSError:  # reading it says why
        return True
    sure_name = "batch" in path.name or "val_data" in path.name
    if size <= 0 or image_format(head) in READ_FORMATS:
        return size == 0 and sure_name
    if path.suffix == ".bin":
        return sure_name or size % _CIFAR100_ROW == 0
    if path.suffix == ".npz":
        return head.startswith(b"PK")
    # Protocols 2 and later begin with a byte of their own, 0 and 1 with a dictionary or list.
    return head[0] == 0x80 or head.startswith((b"(d", b"}", b"(l", b"]"))


def _read_split(files: list[Path]) -> RawSplit:
    batches = [_read_batch(file) for file in files]
    shapes = {batch.pixels.shape[1:] for batch in batches}
    if len(shapes) > 1:
        raise DataError(f"batches of shapes {sorted(shapes)}", files[0].parent, "keep one size")
    labels = np.concatenate([np.asarray(batch.labels) for batch in batches])
    pixels = np.empty((len(labels), *shapes.pop()), np.uint8)
    start = 0
    while batches:  # free each batch once it is copied: large sets need their memory once
        batch = batches.pop(0).pixels
        pixels[start : start + len(batch)] = batch
        start += len(batch)
    return RawSplit(pixels, labels)


def _read_batch(path: Path) -> RawSplit:
    if path.suffix == ".bin":
        return _read_binary(path)
    try:
        if path.suffix == ".npz":
            with open_npz(path) as arrays:
                content = {key: arrays[key] for key in ("data", "labels") if key in arrays}
        else:
            content = read_pickle(path)
        rows = np.asarray(content["data"])
        labels = np.asarray(content["fine_labels" if "fine_labels" in content else "labels"])
    except KeyError as error:
        raise DataError(f"no {error} in it", path, "give one of the set's batch files") from error
    except ValueError as error:  # rows or labels of unequal lengths
        raise unreadable(path, error) from error
    side = math.isqrt(rows.shape[1] // 3) if rows.ndim == 2 else 0
    if rows.dtype != np.uint8 or rows.size == 0 or rows.shape[1:] != (3 * side * side,):
        what = f"data are {rows.dtype} {rows.shape}"
        raise DataError(what, path, "give uint8 rows of square RGB planes")
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
        what = f"labels are {labels.dtype} {labels.shape} for {len(rows)} images"
        raise DataError(what, path, "fetch the file again")
    if path.name.startswith(("train_data", "val_data")):
        labels = labels.astype(np.int64) - 1  # small ImageNet counts its classes from 1
    return RawSplit(rows.reshape(-1, 3, side, side), labels)


def _read_binary(path: Path) -> RawSplit:
    """Read CIFAR's rows: a label (CIFAR-100: a coarse and a fine one), then 3 x 32 x 32 bytes."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise unreadable(path, error) from error
    label_bytes = 1 if "batch" in path.name else 2
    row_bytes = label_bytes + 3 * 32 * 32
    if content.size == 0 or content.size % row_bytes:
        what = f"{content.size} bytes are not rows of {row_bytes}"
        raise DataError(what, path, "fetch the file again")
    rows = content.reshape(-1, row_bytes)
    return RawSplit(rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1])


class _Array:
    """Stands in for numpy's array while its state is read."""

    def __init__(self, *_: object) -> None:
        self.values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(raw, dtype.numpy)
        self.values = flat.reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands in for numpy's dtype; only integers of known size."""

    def __init__(self, name: object, *_: object) -> None:
        text = name.decode() if isinstance(name, bytes) else str(name)
        if not re.fullmatch(r"[|<>=]?[iu][1248]", text):
            raise pickle.UnpicklingError(f"numbers of type {text!r}")
        self.numpy = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else str(state[1])
        self.numpy = np.dtype(f"{order}{self.numpy.kind}{self.numpy.itemsize}")


def _from_buffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", raw))
    return array


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if codecs.lookup(encoding).name != "iso8859-1":
        raise pickle.UnpicklingError(f"bytes as {encoding!r}")
    return text.encode("latin1")


_STAND_INS: Mapping[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle._Unpickler):  # in Python: C's allocates what a memo's number asks for
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        """Return a stand-in; nothing is imported."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run") from None


def _without_stand_ins(value: object) -> Any:  # noqa: ANN401 - the content of a pickle has any type
    """Replace stand-ins by arrays, and the keys of dictionaries by text."""
    if isinstance(value, dict):
        return {
            key.decode() if isinstance(key, bytes) else str(key): _without_stand_ins(item)
            for key, item in value.items()
        }
    if isinstance(value, _Array):
        if value.values is None:
            raise pickle.UnpicklingError("an array without a state")
        return value.values
    return value
