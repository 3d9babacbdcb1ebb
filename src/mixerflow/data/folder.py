"""Folders of image files: listed, checked and decoded; large ones go to the cache.

Classes are the first-level subfolders, where every image lies in one and there are at least two.
`train` and `test` (or `val`, `valid`, `validation`) subfolders are the splits.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from mixerflow.data import pixel_cache
from mixerflow.data.decode import (
    READABLE,
    UNREADABLE,
    Color,
    bombs_refused,
    parse_transparency,
    read_image,
)
from mixerflow.data.formats import RawSplit, RawSplits, unreadable
from mixerflow.errors import DataError

OnBadImage = Literal["stop", "skip"]
_ONE_FORMAT = "convert them to one format, or keep the commonest with --on-bad-image skip"

# The downsampled ImageNet archives have train_32x32 and valid_32x32.
_TRAIN = re.compile(r"train(ing)?(_\d+x\d+)?", re.IGNORECASE)
_TEST = re.compile(r"test(ing)?(_\d+x\d+)?", re.IGNORECASE)
_VALIDATION = re.compile(r"val(id(ation)?)?(_\d+x\d+)?", re.IGNORECASE)


def read_folder(
    root: Path,
    *,
    transparency: str = "refuse",
    on_bad_image: OnBadImage = "stop",
    cache: Path | None = None,
) -> RawSplits:
    """Read a folder of images, recursively, in the order of the files' names.

    Links are followed, hidden files and other kinds of file passed over.

    Args:
        root: the folder.
        transparency: `refuse` or a colour, see `parse_transparency`.
        on_bad_image: `stop` at the first bad file, or leave out (`skip`) bad files and files not
            of the commonest format.
        cache: folder for the decoded pixels of large sets; see `pixel_cache.load_or_decode`.

    Raises:
        DataError: no images, or one that cannot be used (`stop`), or none that can (`skip`).
    """
    train_folder, test_folder, unused = _split_folders(root)
    reader = _Reader(transparency, on_bad_image, cache)
    train = reader.read(train_folder, classes=None)
    train = train._replace(skipped=(*train.skipped, *unused))
    if test_folder is None:
        return RawSplits(train)
    classes = () if train.labels is None else train.classes
    return RawSplits(train, reader.read(test_folder, classes=classes))


def image_files(root: Path, *, leave_out: Sequence[Path] = ()) -> list[Path]:
    """List all files under `root` with an image's ending, sorted by name, links followed.

    Folders of `leave_out` are not entered. A folder that cannot be listed is a DataError.
    """
    files: list[Path] = []

    def refuse(error: OSError) -> None:
        raise error

    try:
        closed = {_identity(path) for path in leave_out}
        for name, subfolders, names in os.walk(root, followlinks=True, onerror=refuse):
            folder = Path(name)
            parents = [folder, *folder.parents][: 1 + len(folder.relative_to(root).parts)]
            closed_here = closed | {_identity(path) for path in parents}  # a link may lead there
            visible = [folder / each for each in subfolders if not each.startswith(".")]
            subfolders[:] = [path.name for path in visible if _identity(path) not in closed_here]
            visible = [folder / each for each in names if not each.startswith(".")]
            files += [path for path in visible if path.suffix.lower() in READABLE + UNREADABLE]
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from error
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _split_folders(root: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Find the folders of training and test images; the last value has a line for an unused one."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def find(pattern: re.Pattern[str]) -> Path | None:
        return next((path for path in folders if pattern.fullmatch(path.name)), None)

    train, test, validation = find(_TRAIN), find(_TEST), find(_VALIDATION)
    splits = [path for path in (train, test, validation) if path]
    if train is None or (splits == [train] and len(folders) > 1):  # "train" may be a class
        return root, None, ()
    if stray := next(iter(image_files(root, leave_out=splits)), None):
        names = " and ".join(f"{path.name}/" for path in splits)
        raise DataError(f"an image outside {names}", stray, "move it into one of them, or away")
    if test is not None and validation is not None:
        return train, test, (f"{validation}: not used, {test.name} is the test set",)
    return train, test or validation, ()


class _Reader(NamedTuple):
    """The settings of both splits."""

    transparency: str
    on_bad_image: OnBadImage
    cache: Path | None

    def read(self, folder: Path, *, classes: tuple[str, ...] | None) -> RawSplit:
        """Read one split; labels by `classes`, or by its own subfolders where `classes` is None."""
        files = image_files(folder)
        if not files:
            raise DataError("no images", folder, f"put some there: {' '.join(READABLE)}")
        key = pixel_cache.cache_key(folder, files, f"{self.transparency} {self.on_bad_image}")
        pixels, kept, skipped = pixel_cache.load_or_decode(
            lambda: self._stream(files), key=key, cache=self.cache
        )
        names, labels = _labels([files[i] for i in kept], folder, classes)
        return RawSplit(pixels, labels, names, skipped)

    def _stream(self, files: list[Path]) -> pixel_cache.ImageStream:
        ground = parse_transparency(self.transparency)
        kept, skipped = list(range(len(files))), ()
        if self.on_bad_image == "skip":
            kept, skipped = _good_files(files, ground)
        with bombs_refused():
            first = read_image(files[kept[0]], ground)

        def images() -> Iterator[np.ndarray]:
            with bombs_refused():
                for index in kept:
                    image = read_image(files[index], ground)
                    if (image.shape, image.dtype) != (first.shape, first.dtype):
                        what = f"images differ: {_format(first)} and {_format(image)}"
                        where = f"{files[kept[0]]} and {files[index]}"
                        raise DataError(what, where, _ONE_FORMAT)
                    yield image

        return pixel_cache.ImageStream(images(), first.shape, first.dtype, kept, skipped)


def _good_files(files: list[Path], ground: Color | None) -> tuple[list[int], tuple[str, ...]]:
    """Return the indices of good files of the commonest format, and a line for each other file."""
    formats: dict[int, str] = {}
    reasons: dict[int, str] = {}
    with bombs_refused():
        for index, path in enumerate(files):
            try:
                formats[index] = _format(read_image(path, ground))
            except DataError as error:
                reasons[index] = error.what
    if not formats:
        what = f"none of {len(files)} images can be used"
        remedy = f"the first one: {files[0].name}: {reasons[0]}"
        raise DataError(what, files[0].parent, remedy)
    common = Counter(formats.values()).most_common(1)[0][0]
    reasons |= {i: f"{each}, most are {common}" for i, each in formats.items() if each != common}
    kept = [index for index in formats if index not in reasons]
    return kept, tuple(f"{files[index]}: {reasons[index]}" for index in sorted(reasons))


def _format(image: np.ndarray) -> str:
    channels, height, width = image.shape
    kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    return f"{width} x {height} {kind} of {8 * image.itemsize} bits"


def _labels(
    files: list[Path], folder: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return class names and a label for each file; `((), None)` for folders without classes."""
    parents = [path.relative_to(folder).parts[:-1] for path in files]
    if classes == () or not all(parents):
        return (), None
    own = [parts[0] for parts in parents]
    names = tuple(sorted(set(own))) if classes is None else classes
    if classes is None and len(names) < 2:
        return (), None
    if unknown := sorted(set(own) - set(names)):
        what = f"class {unknown[0]!r} is not among the training classes"
        raise DataError(what, folder / unknown[0], f"name it as one of {', '.join(names)}")
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number[name] for name in own], dtype=np.int64)
