"""Files that hold many images as arrays: npz, npy and idx."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from mixerflow.errors import DataError, first_line

_IDX_STEMS = {"train": "train", "test": "t10k"}
_REFUSED = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class RawSplit(NamedTuple):
    """One split as a reader returns it: pixels `(N, C, H, W)`, labels `(N,)` or None."""

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


class RawSplits(NamedTuple):
    """Training images, and test and validation images where the source has them."""

    train: RawSplit
    test: RawSplit | None = None
    validation: RawSplit | None = None


def read_arrays(path: Path) -> RawSplits:
    """Read training and test images from an .npz or .npy file; DataError if it has none.

    Keys of an .npz are `train_images`, `train_labels`, `test_images`, `test_labels`; or `images`
    and `labels`; or there is one array of any name. Arrays are `(N, H, W)` or `(N, H, W, C)`.
    """
    if path.suffix.lower() == ".npy":
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        return RawSplits(_split({"": array}, "", "labels", path))
    with open_npz(path) as arrays:
        if "train_images" in arrays:
            train = _split(arrays, "train_images", "train_labels", path)
            if "test_images" not in arrays:
                return RawSplits(train)
            return RawSplits(train, _split(arrays, "test_images", "test_labels", path))
        key = next(iter(arrays)) if len(arrays) == 1 else "images"
        if key in arrays:
            return RawSplits(_split(arrays, key, "labels", path))
        what = f"no images among the arrays {', '.join(arrays) or '(none)'}"
        remedy = "name them train_images, train_labels, test_images, test_labels, or images, labels"
        raise DataError(what, path, remedy)


@contextmanager
def open_npz(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """Open an .npz file; each array is read on its first use, and none may hold a pickle."""
    try:  # numpy would leave the file open on an error, had it opened it
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):  # an .npy file under another name
                yield {"": loaded}
            else:
                with loaded:
                    yield loaded
    except _REFUSED as error:
        raise unreadable(path, error) from error


def idx_files(folder: Path) -> dict[str, Path]:
    """List a folder's MNIST-named idx files, keyed `train-images`, `train-labels`, `test-...`."""
    found = {}
    for split, stem in _IDX_STEMS.items():
        for kind, rank in (("images", 3), ("labels", 1)):
            for name in (f"{stem}-{kind}{mark}idx{rank}-ubyte" for mark in "-."):
                for path in (folder / name, folder / f"{name}.gz"):
                    if path.is_file():
                        found.setdefault(f"{split}-{kind}", path)
    return found


def read_idx_folder(files: dict[str, Path], folder: Path) -> RawSplits:
    """Read the splits found by `idx_files`; test images alone are returned as training images."""
    splits = []
    for name in _IDX_STEMS:
        images, labels = files.get(f"{name}-images"), files.get(f"{name}-labels")
        if images:
            arrays = {"": read_idx(images)} | ({"labels": read_idx(labels)} if labels else {})
            splits.append(_split(arrays, "", "labels", images))
    if not splits:
        raise DataError("labels without images", folder, "put the images' idx file beside them")
    return RawSplits(*splits)


def is_idx(path: Path) -> bool:
    """Whether a file starts as an idx file of bytes does, gzip or not."""
    try:
        with _open_idx(path) as file:
            start = file.read(4)
    except _REFUSED:
        return False
    return start[:3] == b"\0\0\x08" and len(start) == 4


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes (`.gz` or plain) of any rank, as long as its header says."""
    try:
        with _open_idx(path) as file:
            content = file.read()
    except _REFUSED as error:
        raise unreadable(path, error) from error
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise DataError("not an idx file of bytes", path, "give one that starts with 00 00 08")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError("an idx file cut off in its header", path, "fetch the file again")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != math.prod(shape):
        what = f"{values.size} bytes where the header says {shape}"
        raise DataError(what, path, "fetch the file again")
    return values.reshape(shape)


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file that the system or the reader of its format refuses."""
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"cannot be read ({error.strerror})", path, "check its permissions")
    if isinstance(error, ValueError) and "allow_pickle" in str(error):
        return DataError("holds Python objects, not plain numbers", path, "save plain arrays")
    return DataError(f"damaged or of another format ({first_line(error)})", path, "write it again")


def _open_idx(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb")


def _split(arrays: Mapping[str, np.ndarray], key: str, label_key: str, path: Path) -> RawSplit:
    """Check the arrays of one split and put its channels first."""
    pixels = _channels_first(arrays[key], f"{path} [{key}]" if key else str(path))
    labels = arrays.get(label_key)
    if labels is None:
        return RawSplit(pixels, None)
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        what = f"{label_key} is {labels.dtype} {labels.shape} for {len(pixels)} images"
        raise DataError(what, path, "give one whole number for each image")
    return RawSplit(pixels, labels)


def _channels_first(array: np.ndarray, where: str) -> np.ndarray:
    """Turn `(N, H, W)` or `(N, H, W, C)` integers into `(N, C, H, W)`, as a view."""
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise DataError(f"pixels are {array.dtype}", where, _conversion(array))
    if array.size == 0:
        raise DataError(f"no images in an array of shape {array.shape}", where, "give at least one")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise DataError(f"shape {array.shape}", where, "give (N, H, W) or (N, H, W, C)")
    if array.shape[1] < array.shape[3]:
        what = f"shape {array.shape} has the channels first"
        raise DataError(what, where, "give (N, H, W, C): numpy.moveaxis(images, 1, -1)")
    return np.moveaxis(array, -1, 1)


def _conversion(array: np.ndarray) -> str:
    """Return the remedy for pixels of a wrong type: how they become whole numbers."""
    kind = array.dtype.kind
    if kind == "b":
        return "convert with images.astype('uint8') * 255"
    if kind in "iu":
        return "convert with images.astype('uint8') if they run from 0 to 255"
    if kind != "f" or array.size == 0:
        return "give uint8 or uint16"
    if array.min() < 0:
        to_bytes = "numpy.rint((images + 1) * 127.5).astype('uint8')"
        return f"convert with {to_bytes} if they run from -1 to 1"
    scale = " * 255" if array.max() <= 1 else ""
    return f"convert with numpy.rint(images{scale}).astype('uint8')"
