"""Files that hold many images as arrays: npz, npy and idx.

Every reader returns `Part`s: pixels in the layout of `Images`, and labels where the file has them.
"""

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

from mixerflow.errors import DataError

_IDX_STEMS = {"train": "train", "test": "t10k"}


class Part(NamedTuple):
    """One split as it was read: pixels `(N, C, H, W)`, labels `(N,)` or None."""

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def read_arrays(path: Path) -> tuple[Part, Part | None]:
    """Read training and test images from an .npz or .npy file.

    Keys of an .npz are `train_images`, `train_labels`, `test_images`, `test_labels`; or `images`
    and `labels`; or there is one array of any name. Arrays are `(N, H, W)` or `(N, H, W, C)`.

    Raises:
        DataError: no such arrays, or not images of whole numbers.
    """
    if path.suffix.lower() == ".npy":
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        return _part({"": array}, "", "labels", path), None
    with archive(path) as arrays:
        if "train_images" in arrays:
            train = _part(arrays, "train_images", "train_labels", path)
            if "test_images" not in arrays:
                return train, None
            return train, _part(arrays, "test_images", "test_labels", path)
        if "images" in arrays:
            return _part(arrays, "images", "labels", path), None
        if len(arrays) == 1:
            return _part(arrays, next(iter(arrays)), "labels", path), None
        raise DataError(
            f"no images among the arrays {', '.join(arrays) or '(none)'}",
            path,
            "name them train_images, train_labels, test_images, test_labels, or images, labels",
        )


@contextmanager
def archive(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file, each read when it is asked for; none may hold a pickle.

    Raises:
        DataError: the file cannot be read, on entering or later.
    """
    try:  # numpy would leave the file open on an error, had it opened it
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):  # an .npy by another name
                yield {"": loaded}
            else:
                with loaded:
                    yield loaded
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise unreadable(path, error) from error


def idx_files(folder: Path) -> dict[str, Path]:
    """The MNIST-named idx files of a folder, keyed `train-images`, `train-labels`, `test-...`."""
    found = {}
    for split, stem in _IDX_STEMS.items():
        for kind, rank in (("images", 3), ("labels", 1)):
            names = (
                f"{stem}-{kind}{mark}idx{rank}-ubyte{end}" for mark in "-." for end in ("", ".gz")
            )
            path = next((folder / name for name in names if (folder / name).is_file()), None)
            if path:
                found[f"{split}-{kind}"] = path
    return found


def read_idx_folder(files: dict[str, Path], folder: Path) -> tuple[Part, Part | None]:
    """Read the splits found by `idx_files`; without training images, the test images are them.

    Raises:
        DataError: labels without images, or a damaged file.
    """
    parts = {}
    for split in _IDX_STEMS:
        images, labels = files.get(f"{split}-images"), files.get(f"{split}-labels")
        if images:
            arrays = {"": read_idx(images)} | ({"labels": read_idx(labels)} if labels else {})
            parts[split] = _part(arrays, "", "labels", images)
    if not parts:
        raise DataError("labels without images", folder, "put the images' idx file beside them")
    train = parts.pop("train", None)
    return (train, parts.get("test")) if train else (parts["test"], None)


def read_idx_file(path: Path) -> tuple[Part, None]:
    """Read one idx file of images; labels it has none.

    Raises:
        DataError: the file is damaged, or does not hold images.
    """
    return _part({"": read_idx(path)}, "", "labels", path), None


def is_idx(path: Path) -> bool:
    """Whether a file starts as an idx file of bytes does, gzip or not."""
    try:
        with _open_idx(path) as file:
            start = file.read(4)
    except (OSError, EOFError, zlib.error):
        return False
    return start[:3] == b"\0\0\x08" and len(start) == 4


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes (`.gz` or plain), whatever its rank.

    Raises:
        DataError: not such a file, or its length is not what its header says.
    """
    try:
        with _open_idx(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from error
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise DataError("not an idx file of bytes", path, "give one that starts with 00 00 08")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError("an idx file cut off in its header", path, "fetch the file again")
    shape = tuple(int(n) for n in np.frombuffer(content[4:start], ">u4"))
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != math.prod(shape):
        raise DataError(
            f"{values.size} bytes where the header says {shape}", path, "fetch the file again"
        )
    return values.reshape(shape)


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that the operating system or its format's reader refuses."""
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"cannot be read ({error.strerror})", path, "check its permissions")
    if isinstance(error, ValueError) and "allow_pickle" in str(error):
        return DataError("holds Python objects, not plain numbers", path, "save plain arrays")
    return DataError(f"damaged or of another format ({first_line(error)})", path, "write it again")


def first_line(error: Exception) -> str:
    """The first line of an exception's text, or its name where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _open_idx(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb")


def _part(arrays: Mapping[str, np.ndarray], key: str, label_key: str, path: Path) -> Part:
    """Check the arrays of one split and put its channels first."""
    where = f"{path} [{key}]" if key else str(path)
    pixels = _channels_first(arrays[key], where)
    labels = arrays.get(label_key)
    if labels is None:
        return Part(pixels, None)
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.dtype.kind not in "iu" or labels.shape != (len(pixels),):
        raise DataError(
            f"{label_key} is {labels.dtype} {labels.shape} for {len(pixels)} images",
            path,
            "give one whole number for each image",
        )
    return Part(pixels, labels)


def _channels_first(array: np.ndarray, where: str) -> np.ndarray:
    """`(N, H, W)` or `(N, H, W, C)` integers as `(N, C, H, W)`; no copy where none is needed."""
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise DataError(f"pixels are {array.dtype}", where, _remedy(array))
    if array.size == 0:
        raise DataError(f"no images in an array of shape {array.shape}", where, "give at least one")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise DataError(f"shape {array.shape}", where, "give (N, H, W) or (N, H, W, C)")
    if array.shape[1] < array.shape[3]:
        raise DataError(
            f"shape {array.shape} has the channels first",
            where,
            "give (N, H, W, C): numpy.moveaxis(images, 1, -1)",
        )
    return np.moveaxis(array, -1, 1)


def _remedy(array: np.ndarray) -> str:
    """How pixels of the wrong type become whole numbers."""
    if array.dtype.kind == "b":
        return "convert with images.astype('uint8') * 255"
    if array.dtype.kind == "i" or array.dtype.kind == "u":
        return "convert with images.astype('uint8') if they run from 0 to 255"
    if array.dtype.kind != "f" or array.size == 0:
        return "give uint8 or uint16"
    low, high = float(array.min()), float(array.max())
    if low < 0:
        return (
            "convert with numpy.rint((images + 1) * 127.5).astype('uint8') if they run from -1 to 1"
        )
    scale = " * 255" if high <= 1 else ""
    return f"convert with numpy.rint(images{scale}).astype('uint8')"
