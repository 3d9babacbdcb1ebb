"""Folders of image files: found, checked, decoded once, and kept decoded where they are large.

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

from mixerflow.data import store
from mixerflow.data.decode import (
    READABLE,
    UNREADABLE,
    bombs_refused,
    parse_transparency,
    read_image,
)
from mixerflow.data.formats import Part, unreadable
from mixerflow.errors import DataError

OnBadImage = Literal["stop", "skip"]

# Also as the downsampled ImageNet archives have them: train_32x32, valid_32x32.
_TRAIN = re.compile(r"train(ing)?(_\d+x\d+)?", re.IGNORECASE)
_TEST = re.compile(r"test(ing)?(_\d+x\d+)?", re.IGNORECASE)
_VALIDATION = re.compile(r"val(id(ation)?)?(_\d+x\d+)?", re.IGNORECASE)


class Form(NamedTuple):
    """What all images of a set share."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        channels, height, width = self.shape
        kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        return f"{width} x {height} {kind} of {8 * np.dtype(self.dtype).itemsize} bits"


def read_folder(
    root: Path,
    *,
    transparency: str = "refuse",
    on_bad_image: OnBadImage = "stop",
    cache: Path | None = None,
) -> tuple[Part, Part | None]:
    """Read a folder of images, recursively, in the order of the files' names.

    Args:
        root: the folder; links are followed, hidden files and other kinds of file passed over.
        transparency: `refuse` or a colour, see `parse_transparency`.
        on_bad_image: `stop` at the first bad file, or leave out (`skip`) bad ones and those not
            of the commonest shape.
        cache: where decoded pixels of large folders are kept; see `store.keep`.

    Raises:
        DataError: no images, or one that cannot be used (`stop`), or none that can (`skip`).
    """
    train, test, unused = _split_folders(root)
    reader = _Reader(transparency, on_bad_image, cache)
    first = reader.read(train, classes=None)
    first = first._replace(skipped=(*first.skipped, *unused))
    if test is None:
        return first, None
    return first, reader.read(test, classes=first.classes if first.labels is not None else ())


def image_files(root: Path, *, leave_out: Sequence[Path] = ()) -> list[Path]:
    """All files under `root` whose ending is an image's, sorted by name, links followed.

    Args:
        root: the folder.
        leave_out: folders in it that are not entered.

    Raises:
        DataError: a folder that cannot be listed.
    """
    try:
        closed = frozenset(_identity(path) for path in leave_out)
    except OSError as error:
        raise unreadable(root, error) from error
    return sorted(_walk(root, closed), key=lambda path: path.relative_to(root).as_posix())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _walk(folder: Path, closed: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Image files below a folder; not in `closed` folders, nor, by a link, in one above it."""
    try:
        identity = _identity(folder)
        if identity in closed:
            return
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise unreadable(folder, error) from error
    for entry in visible:
        if _is_folder(entry):
            yield from _walk(Path(entry.path), closed | {identity})
        elif Path(entry.name).suffix.lower() in READABLE + UNREADABLE:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and reading it as a file says what is wrong
        return False


def _split_folders(root: Path) -> tuple[Path, Path | None, tuple[str, ...]]:
    """Folders of training and test images, and a line for a split that is used as neither."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))

    def named(pattern: re.Pattern[str]) -> Path | None:
        return next((path for path in folders if pattern.fullmatch(path.name)), None)

    train, test, validation = named(_TRAIN), named(_TEST), named(_VALIDATION)
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
    """The settings that hold for both splits."""

    transparency: str
    on_bad_image: OnBadImage
    cache: Path | None

    def read(self, folder: Path, *, classes: tuple[str, ...] | None) -> Part:
        """One split; labels by `classes`, or by its own subfolders where that is None."""
        files = image_files(folder)
        if not files:
            raise DataError("no images", folder, f"put some there: {' '.join(READABLE)}")
        settings = f"{self.transparency} {self.on_bad_image}"
        pixels, kept, skipped = store.keep(
            lambda: self._decoded(files),
            key=store.key(folder, files, settings),
            cache=self.cache,
        )
        names, labels = _labels([files[i] for i in kept], folder, classes)
        return Part(pixels, labels, names, skipped)

    def _decoded(self, files: list[Path]) -> store.Source:
        """Which files are used, and their pixels, one after another."""
        ground = parse_transparency(self.transparency)
        kept, skipped = list(range(len(files))), ()
        if self.on_bad_image == "skip":
            kept, skipped = _sift(files, ground)
        with bombs_refused():
            first = read_image(files[kept[0]], ground)

        def pixels() -> Iterator[np.ndarray]:
            form = _form(first)
            with bombs_refused():
                for index in kept:
                    image = read_image(files[index], ground)
                    if _form(image) != form:
                        raise _differ(files[kept[0]], form, files[index], _form(image))
                    yield image

        return store.Source(pixels(), first.shape, first.dtype, kept, skipped)


def _sift(
    files: list[Path], ground: tuple[int, int, int] | None
) -> tuple[list[int], tuple[str, ...]]:
    """Indices of good files of the commonest form, and a line for each other file."""
    forms: dict[int, Form] = {}
    reasons: dict[int, str] = {}
    with bombs_refused():
        for index, path in enumerate(files):
            try:
                forms[index] = _form(read_image(path, ground))
            except DataError as error:
                reasons[index] = error.what
    if not forms:
        raise DataError(
            f"none of {len(files)} images can be used",
            files[0].parent,
            f"the first one: {files[0].name}: {reasons[0]}",
        )
    common = Counter(forms.values()).most_common(1)[0][0]
    reasons |= {i: f"{form}, most are {common}" for i, form in forms.items() if form != common}
    kept = [index for index in forms if index not in reasons]
    return kept, tuple(f"{files[index]}: {reasons[index]}" for index in sorted(reasons))


def _form(image: np.ndarray) -> Form:
    return Form(image.shape, image.dtype.name)


def _differ(first: Path, first_form: Form, other: Path, other_form: Form) -> DataError:
    return DataError(
        f"images differ: {first_form} and {other_form}",
        f"{first} and {other}",
        "convert them to one form, or keep the commonest with --on-bad-image skip",
    )


def _labels(
    files: list[Path], folder: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names of the classes and a label for each file; `((), None)` where folders tell none."""
    parents = [path.relative_to(folder).parts[:-1] for path in files]
    if classes == () or not all(parents):
        return (), None
    own = [parts[0] for parts in parents]
    names = tuple(sorted(set(own))) if classes is None else classes
    if classes is None and len(names) < 2:
        return (), None
    if unknown := sorted(set(own) - set(names)):
        raise DataError(
            f"class {unknown[0]!r} is not among the training classes",
            folder / unknown[0],
            f"name it as one of {', '.join(names)}",
        )
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number[name] for name in own], dtype=np.int64)
