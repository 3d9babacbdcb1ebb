"""Folders of image files: listed, checked and decoded; large ones go to the cache.

Classes are the first-level subfolders, where every image lies in one and there are at least two.
Which subfolders are splits instead, `mixerflow.data.layout` says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mixerflow.data import pixel_cache
from mixerflow.data.decode import Color, parse_transparency, read_image
from mixerflow.data.formats import RawSplit, RawSplits
from mixerflow.data.layout import find_layout, foreign_folders
from mixerflow.data.listing import Listing, list_images
from mixerflow.data.reading import Reading, size_of
from mixerflow.data.signatures import READ_ENDINGS
from mixerflow.errors import DataError


def read_folder(root: Path, *, reading: Reading, cache: Path | None = None) -> RawSplits:
    """Read a folder of images, recursively, in the order of the files' names.

    Links are followed. What is hidden or no image has a line in `skipped`; `list_images` says
    what an image is.

    Args:
        root: the folder.
        reading: how images are read. `on_bad_image="skip"` also leaves out files not of the
            commonest format.
        cache: folder for the decoded pixels of large sets; see `pixel_cache.load_or_decode`.

    Raises:
        DataError: no images, or one that cannot be used (`stop`), or none that can (`skip`), or
            subfolders that may be splits and cannot be told apart.
    """
    files, others = list_folder(root)
    layout = find_layout(root, files)
    reader = _Reader(root, reading, cache)
    train = reader.read(files, layout.train, classes=None)
    notes = (*layout.notes, *others)
    train = train._replace(skipped=(*train.skipped, *notes))
    classes = () if train.labels is None else train.classes
    test, validation = (
        reader.read(files, folder, classes=classes) if folder else None
        for folder in (layout.test, layout.validation)
    )
    return RawSplits(train, test, validation)


def list_folder(root: Path) -> Listing:
    """List the images that `read_folder` finds below a folder, and lines on what it passes over.

    Raises:
        DataError: there are none, or a folder cannot be listed.
    """
    foreign = foreign_folders(root)
    files, others = list_images(root, leave_out=foreign)
    if not files:
        raise _no_images(root, *others)
    return Listing(files, (*_passed_over(foreign), *others))


def place_labels(root: Path, files: Sequence[Path], classes: tuple[str, ...]) -> list[int | None]:
    """Return the number of each file's class, whose folder it lies in; None beside the splits.

    Args:
        root: the folder, perhaps with splits in it.
        files: all images below it.
        classes: the names that the class folders have.

    Raises:
        DataError: no class folders, one of another name, or splits that cannot be told apart.
    """
    layout, found = find_layout(root, files), dict[Path, int]()
    for folder in filter(None, (layout.train, layout.test, layout.validation)):
        inside = [path for path in files if path.is_relative_to(folder)]
        _, labels = _labels(inside, folder, classes)
        if labels is None:
            remedy = "give a folder of images for each class, or leave out --labels"
            raise DataError("no folders of classes", folder, remedy)
        found |= dict(zip(inside, map(int, labels), strict=True))
    return [found.get(path) for path in files]


def _no_images(folder: Path, *others: str) -> DataError:
    """Return the error for a folder without images; `others` are the lines on its other files."""
    put = f"put some there: {' '.join(sorted(READ_ENDINGS))}"
    return DataError("no images", folder, "; ".join([put, *others]))


def _passed_over(foreign: Sequence[Path]) -> list[str]:
    if not foreign:
        return []
    plural = "s" if len(foreign) > 2 else ""
    more = f" and {len(foreign) - 1} more folder{plural}" if len(foreign) > 1 else ""
    return [f"{foreign[0]}{more}: of a system or another program"]


class _Reader(NamedTuple):
    """The settings of all splits."""

    root: Path
    reading: Reading
    cache: Path | None

    def read(
        self, all_files: Iterable[Path], folder: Path, *, classes: tuple[str, ...] | None
    ) -> RawSplit:
        """Read one split; labels by `classes`, or by its own subfolders where `classes` is None."""
        files = [path for path in all_files if path.is_relative_to(folder)]
        if not files:
            raise _no_images(folder)
        key = pixel_cache.cache_key(folder, files, repr(self.reading))
        pixels, kept, skipped = pixel_cache.load_or_decode(
            lambda: self._stream(files), key=key, cache=self.cache
        )
        used = set(kept)  # a skipped file keeps its class, and beside the classes it has none
        placed = [i for i, path in enumerate(files) if i in used or path.parent != folder]
        names, labels = _labels([files[i] for i in placed], folder, classes)
        if labels is not None:
            labels = labels[np.searchsorted(placed, kept)]
        within = tuple(files[i].relative_to(self.root).as_posix() for i in kept)
        return RawSplit(pixels, labels, names, skipped, within)

    def _stream(self, files: list[Path]) -> pixel_cache.ImageStream:
        kept, skipped = list(range(len(files))), ()
        ground = parse_transparency(self.reading.transparency)
        if self.reading.on_bad_image == "skip":
            kept, skipped = self._good_files(files, ground)
        first = self._image(files[kept[0]], ground)

        def images() -> Iterator[np.ndarray]:
            for index in kept:
                image = self._image(files[index], ground)
                if (image.shape, image.dtype) != (first.shape, first.dtype):
                    what = f"images differ: {_format(first)} and {_format(image)}"
                    where = f"{files[kept[0]]} and {files[index]}"
                    raise DataError(what, where, _one_format(first, image))
                yield image

        return pixel_cache.ImageStream(images(), first.shape, first.dtype, kept, skipped)

    def _image(self, path: Path, ground: Color | None) -> np.ndarray:
        return self.reading.apply(read_image(path, ground), path)

    def _good_files(
        self, files: list[Path], ground: Color | None
    ) -> tuple[list[int], tuple[str, ...]]:
        """Return the indices of good files of the commonest format, and a line for each other."""
        formats: dict[int, str] = {}
        reasons: dict[int, str] = {}
        for index, path in enumerate(files):
            try:
                formats[index] = _format(self._image(path, ground))
            except DataError as error:
                reasons[index] = error.what
        if not formats:
            what = f"none of {len(files)} images can be used"
            remedy = f"the first one: {files[0].name}: {reasons[0]}"
            raise DataError(what, files[0].parent, remedy)
        common = Counter(formats.values()).most_common(1)[0][0]
        reasons |= {
            i: f"{each}, most are {common}" for i, each in formats.items() if each != common
        }
        kept = [index for index in formats if index not in reasons]
        return kept, tuple(f"{files[index]}: {reasons[index]}" for index in sorted(reasons))


def _format(image: np.ndarray) -> str:
    kind = {1: "grey", 3: "RGB"}.get(len(image), f"{len(image)} channels")
    return f"{size_of(image)} {kind} of {8 * image.itemsize} bits"


def _one_format(first: np.ndarray, other: np.ndarray) -> str:
    """Return the remedy for two images that differ."""
    flags = ["--grey"] if len(first) != len(other) else []
    if first.shape[1:] != other.shape[1:]:
        side = min(64, *first.shape[1:], *other.shape[1:])
        flags = ["--crop 1:1", f"--resize {side}x{side}", *flags]
    if first.dtype != other.dtype:
        return "convert them to one format, or keep the commonest with --on-bad-image skip"
    return f"give {' '.join(flags)}, or keep the commonest format with --on-bad-image skip"


def _labels(
    files: list[Path], folder: Path, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return class names and a label for each file; `((), None)` for folders without classes."""
    parents = [path.relative_to(folder).parts[:-1] for path in files]
    while classes != () and all(len(parts) > 1 for parts in parents) and _is_wrapped(parents):
        parents = [parts[1:] for parts in parents]  # set/set/class, as archives unpack
    if classes == () or not all(parents):
        return (), None
    own = [parts[0] for parts in parents]
    names = _ordered(set(own)) if classes is None else classes
    if classes is None and len(names) < 2:
        return (), None
    if unknown := sorted(set(own) - set(names)):
        what = f"class {unknown[0]!r} is not among the training classes"
        raise DataError(what, folder / unknown[0], f"name it as one of {', '.join(names)}")
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number[name] for name in own], dtype=np.int64)


def _is_wrapped(parents: Sequence[tuple[str, ...]]) -> bool:
    return len({parts[0] for parts in parents}) == 1


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Sort class names: by number where each is a whole number, otherwise as text."""
    names = sorted(names)
    if all(re.fullmatch("[0-9]+", name) for name in names):
        names.sort(key=int)
    return tuple(names)
