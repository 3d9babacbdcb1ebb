"""Files that hold many images as arrays: npz and npy."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixerflow.errors import DataError, MixerFlowError, ResourceError, first_line

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
_KIND_WORDS = {
    **dict.fromkeys(("images", "image", "imgs", "img", "x", "data", "features"), "images"),
    **dict.fromkeys(("labels", "label", "y", "targets", "target"), "labels"),
    **dict.fromkeys(("vectors", "vector", "conditions", "condition"), "vectors"),
}


class RawSplit(NamedTuple):
    """One split as a reader returns it: pixels `(N, C, H, W)`, labels `(N,)`, `(N, K)` or None.

    `files` has the file of each image, as `Images` has them.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class RawSplits(NamedTuple):
    """Training images, and test and validation images where the source has them."""

    train: RawSplit
    test: RawSplit | None = None
    validation: RawSplit | None = None


def read_npy(path: Path) -> RawSplits:
    """Read the images of an .npy file as a read-only memory map; DataError if it has none."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # headers are texts that numpy evaluates: almost anything
        raise unreadable(path, error) from error
    return RawSplits(make_split({"": array}, "", "labels", path))


def read_npz(path: Path) -> RawSplits:
    """Read the splits of an .npz file; DataError if it has no images.

    Keys are `train_images`, `train_labels`, and so on for `test` and `val`, or `images` and
    `labels`, or other usual words (`x_train`, `y_train`); or there is one array of any name. Images
    are integers `(N, H, W)` or `(N, H, W, C)`, or floats `(N, C, H, W)`. Labels are class numbers
    `(N,)`, or vectors of floats `(N, K)`, also called `vectors`. Of both, the labels are used. The
    names of those not used are in `skipped`.
    """
    with open_npz(path) as arrays:
        keys, splits, used = _keys(arrays), {}, set()
        for split in ("train", "test", "validation"):
            if images := keys.get((split, "images")):
                labels = keys.get((split, "labels"), keys.get((split, "vectors"), ""))
                splits[split] = make_split(arrays, images, labels, path)
                used |= {images, labels}
        names = [key if key.isprintable() else ascii(key) for key in arrays if key not in used]
    if not splits:
        what = f"no images among the arrays {', '.join(names) or '(none)'}"
        remedy = "name them train_images, train_labels, test_images, test_labels, or images, labels"
        raise DataError(what, path, remedy)
    raw = arranged(splits, path)
    return with_line(raw, f"{path}: arrays not used: {', '.join(names)}") if names else raw


def arranged(splits: dict[str, RawSplit], where: Path) -> RawSplits:
    """Return splits by their names; a single one is the only one, which a line says."""
    if len(splits) == 1:
        ((name, only),) = splits.items()
        raw = RawSplits(only)
        line = f"{where}: {name} images alone: they are the images of every purpose, training too"
        return raw if name == "train" else with_line(raw, line)
    if "train" not in splits:
        what = f"{' and '.join(splits)} images without training images"
        raise DataError(what, where, "give training images too, or one of them alone")
    return RawSplits(**splits)


def with_line(raw: RawSplits, line: str) -> RawSplits:
    """Return the same splits with a further line in the training images' `skipped`."""
    return raw._replace(train=raw.train._replace(skipped=(*raw.train.skipped, line)))


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
                    sizes = (each.file_size for each in loaded.zip.infolist())  # pyright: ignore[reportOptionalMemberAccess]
                    require_proportion(path, sum(sizes))
                    yield loaded
    except MixerFlowError:
        raise
    except MemoryError as error:
        remedy = "write it again, or as .npy, which is not read into memory at once"
        raise ResourceError("an array that does not fit into memory", path, remedy) from error
    except Exception as error:  # a torn or hostile archive can make the reader raise anything
        raise unreadable(path, error) from error


def require_proportion(path: Path, size: int) -> None:
    """Refuse a compressed file of `size` bytes that would fill the memory from a few.

    Raises:
        DataError: the content has over 1 GiB, and is over 100 times as large as the file.
    """
    held = path.stat().st_size
    if size > 1 << 30 and size > 100 * held:
        what = f"{size:,} bytes of arrays in a file of {held:,}"
        raise DataError(what, path, "write it again as .npy, if it is what you expect")


def holds_arrays(path: Path) -> bool:
    """Whether a file is a ZIP archive with an array in it, as .npz files are, whatever its name."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error for a file that the system or the reader of its format refuses."""
    if isinstance(error, OSError) and error.strerror:
        gone = isinstance(error, FileNotFoundError)  # a link, or removed meanwhile
        remedy = "correct the link, or remove it" if gone else "check its permissions"
        return DataError(f"cannot be read ({error.strerror})", path, remedy)
    if isinstance(error, ValueError) and re.search("allow_pickle|Python objects", str(error)):
        return DataError("holds Python objects, not plain numbers", path, "save plain arrays")
    return DataError(f"damaged or of another format ({first_line(error)})", path, "write it again")


def make_split(arrays: Mapping[str, np.ndarray], key: str, label_key: str, path: Path) -> RawSplit:
    """Check the arrays of one split and put its channels first."""
    where = f"{path} [{key}]" if key else str(path)
    if not isinstance(arrays[key], np.ndarray):  # a ZIP archive may hold any file
        raise DataError("not an array", where, "write it again with numpy.savez")
    pixels = channels_first(arrays[key], where)
    if label_key not in arrays:
        return RawSplit(pixels, None)
    labels = np.asarray(arrays[label_key])
    if labels.dtype.kind in "iu" and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.squeeze(1)
    classes = labels.dtype.kind in "iu" and labels.ndim == 1
    vectors = labels.dtype.kind == "f" and labels.ndim == 2
    if not (classes or vectors) or len(labels) != len(pixels):
        what = f"{label_key} is {labels.dtype} {labels.shape} for {len(pixels)} images"
        remedy = "give one whole number for each image, or one row of floats"
        raise DataError(what, path, remedy)
    return RawSplit(pixels, labels)


def channels_first(array: np.ndarray, where: str) -> np.ndarray:
    """Turn `(N, H, W)` or `(N, H, W, C)` integers into `(N, C, H, W)`, as a view.

    Floats are `(N, C, H, W)` already: maps of features, not pixels.
    """
    if array.dtype.kind == "f" and array.ndim == 4 and array.size:
        _require_channels_first(array, where)
        return array
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise DataError(f"pixels are {array.dtype}", where, _conversion(array))
    if array.size == 0:
        raise DataError(f"no images in an array of shape {array.shape}", where, "give at least one")
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise DataError(f"shape {array.shape}", where, "give (N, H, W) or (N, H, W, C)")
    _, height, width, last = array.shape
    if height in (1, 3, 4) and last not in (1, 3, 4) and height != width:
        what = f"shape {array.shape} has the channels first"
        raise DataError(what, where, "give (N, H, W, C): numpy.moveaxis(images, 1, -1)")
    return np.moveaxis(array, -1, 1)


def _require_channels_first(array: np.ndarray, where: str) -> None:
    """Refuse floats `(N, H, W, C)`: pixels, or features that lie the other way."""
    _, height, width, last = array.shape
    if last in (3, 4) and width != last and height not in (1, 3, 4):
        raise DataError(f"pixels are {array.dtype}", where, _conversion(array))
    if height == width != last:
        what = f"floats of shape {array.shape} have the channels last"
        raise DataError(what, where, "give (N, C, H, W): numpy.moveaxis(features, -1, 1)")


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


def _keys(names: Mapping[str, object]) -> dict[tuple[str, str], str]:
    """Return the array names of an .npz by split (`train`, ...) and kind (`images`, `labels`)."""
    if len(names) == 1:
        return {("train", "images"): next(iter(names))}
    found: dict[tuple[str, str], str] = {}
    for name in names:
        words = re.split(r"[-_. ]", name.lower())
        split = [_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS]
        kind = [_KIND_WORDS[word] for word in words if word in _KIND_WORDS]
        if len(kind) == 1 and len(split) <= 1 and len(words) == len(split) + 1:
            found.setdefault((split[0] if split else "", kind[0]), name)
    if ("train", "images") not in found:  # a bare "images", with test_images perhaps
        found |= {("train", kind): name for (split, kind), name in found.items() if not split}
    return found
