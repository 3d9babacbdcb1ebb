"""A set of images in memory, and its split into training and validation images.

Pixels are integers, or floats for data without levels, channels first. Every `Images` has been
checked, so the code that uses one asks about types or shapes no more.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixerflow.errors import ConfigError, DataError

_LEVELS = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536, np.dtype(np.float32): None}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class Images:
    """A checked set of images of one shape; arrays that do not fit together are a DataError.

    Args:
        pixels: `(N, C, *spatial)`, uint8 or uint16, or float32 for data without levels;
            C-contiguous; may be a read-only memory map.
        labels: what belongs to each image: the number of its class, `(N,)` int64, or a vector of
            numbers, `(N, K)` float32; None where there is nothing.
        classes: names of the labels 0, 1, ...; empty where there are none.
        dataset_id: the name of the data. A bare name (`cifar10`) is the published set, image for
            image; a prefix (`folder:`, `npz:`, `hub:`) marks data that are not known to be one, and
            an end in brackets, `cifar10 (resize 16x16 lanczos)`, says how they were changed.
        skipped: one line "file: reason" for each file that was left out.
        files: the file of each image, `N` paths within the folder that was read, with `/` on every
            system; empty where one file holds many images.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    dataset_id: str
    skipped: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pixels, dtype, where = self.pixels, self.pixels.dtype, self.dataset_id
        if pixels.ndim < 3 or dtype not in _LEVELS:
            what = f"pixels are {dtype} {pixels.shape}"
            raise DataError(what, where, "give (N, C, H, W) uint8/uint16, or floats")
        if dtype == np.float32 and (wrong := _first_not_finite(pixels)) is not None:
            what = f"image {wrong} has a value that is NaN, infinite or beyond float32"
            raise DataError(what, where, "leave it out, or correct it")
        if pixels.size == 0:
            raise DataError(f"no pixels, shape {pixels.shape}", where, "give at least one image")
        if not pixels.flags.c_contiguous:
            raise DataError("pixels are not contiguous", where, "use numpy.ascontiguousarray")
        if self.files and len(self.files) != len(pixels):
            what = f"{len(self.files):,} files for {len(pixels):,} images"
            raise DataError(what, where, "give one for each image, or none")
        if self.labels is not None:
            _check_labels(self.labels, len(pixels), self.classes, where)

    def __len__(self) -> int:
        return len(self.pixels)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # noqa: ANN401
        """Return the pixels, so that functions of arrays take `Images` too."""
        return np.array(self.pixels, dtype=dtype) if copy else np.asarray(self.pixels, dtype)

    @property
    def levels(self) -> int | None:
        """The number of values a pixel can take, 256 or 65536; None for floats."""
        return _LEVELS[self.pixels.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, *spatial)` of one image."""
        return tuple(self.pixels.shape[1:])

    @property
    def vector_length(self) -> int | None:
        """K where the labels are vectors `(N, K)`; None for class numbers, and without labels."""
        return None if self.labels is None or self.labels.ndim == 1 else self.labels.shape[1]

    def take(self, indices: np.ndarray) -> Images:
        """Copy the images at `indices`, in that order."""
        labels = None if self.labels is None else self.labels[indices]
        files = self.files and tuple(self.files[i] for i in np.arange(len(self))[indices])
        return replace(self, pixels=self.pixels[indices], labels=labels, files=files)

    def first(self, count: int) -> Images:
        """Copy the first `count` images, or all where there are fewer."""
        return self.take(np.arange(min(count, len(self))))

    def with_classes(self, classes: tuple[str, ...]) -> Images:
        """Number the labels by other `classes`, by name; images without named classes stay.

        Raises:
            DataError: a class is not among them.
        """
        if self.labels is None or not self.classes or self.classes == classes:
            return self
        if unknown := [name for name in self.classes if name not in classes]:
            what = f"class {unknown[0]!r} is not among the training classes"
            raise DataError(what, self.dataset_id, f"name it as one of {', '.join(classes)}")
        numbers = np.array([*map(classes.index, self.classes), -1])  # -1 stays no label
        return replace(self, labels=numbers[self.labels], classes=classes)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of type, shape and pixels; reads memory maps a piece at a time."""
        digest = hashlib.sha256(f"{self.pixels.dtype.name} {self.pixels.shape}".encode())
        little_endian = self.pixels.dtype.newbyteorder("<")
        step = max(1, _CHUNK_BYTES // self.pixels[0].nbytes)
        for start in range(0, len(self), step):
            digest.update(self.pixels[start : start + step].astype(little_endian).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Splits:
    """Training images, and test and validation images where the source has them.

    All have one shape and one number of levels; others are a DataError.
    """

    train: Images
    test: Images | None
    validation: Images | None = None

    def __post_init__(self) -> None:
        for split, images in self.parts().items():
            for name in ("shape", "levels"):
                train, other = getattr(self.train, name), getattr(images, name)
                if train != other:
                    what = f"training images have {name} {train}, {split} images {other}"
                    remedy = "convert them to one format; --crop and --resize make one size"
                    raise DataError(what, self.train.dataset_id, remedy)

    def parts(self) -> dict[str, Images]:
        """Return the splits that there are, by their names `training`, `test`, `validation`."""
        every = {"training": self.train, "test": self.test, "validation": self.validation}
        return {name: images for name, images in every.items() if images is not None}


def make_images(
    pixels: np.ndarray,
    labels: np.ndarray | None,
    *,
    dataset_id: str,
    classes: tuple[str, ...] = (),
    skipped: tuple[str, ...] = (),
    files: tuple[str, ...] = (),
) -> Images:
    """Make `Images` of `(N, C, H, W)` pixels of any byte order or strides; floats become float32.

    Labels `(N,)` are integers, and vectors `(N, K)` integers or floats.
    """
    vectors = labels is not None and labels.ndim == 2
    if labels is not None and labels.dtype.kind not in ("iuf" if vectors else "iu"):
        what = f"labels are {labels.dtype} {labels.shape}"
        remedy = "number the classes 0, 1, ... as integers, or give vectors (N, K)"
        raise DataError(what, dataset_id, remedy)
    native = np.dtype(np.float32) if pixels.dtype.kind == "f" else pixels.dtype.newbyteorder("=")
    if pixels.dtype != native or not pixels.flags.c_contiguous:
        with np.errstate(over="ignore"):  # what is infinite as float32 is refused
            pixels = np.ascontiguousarray(pixels, dtype=native)
    if labels is not None:
        with np.errstate(over="ignore"):  # what is infinite as float32 is refused
            labels = labels.astype(np.float32 if vectors else np.int64)
    return Images(pixels, labels, classes, dataset_id, skipped, files)


def hold_out(images: Images, fraction: float = 0.04, seed: int = 0) -> tuple[Images, Images]:
    """Split off the share `fraction` as validation images: both parts keep their old order.

    Each part has at least one image.

    Raises:
        ConfigError: the fraction is not between 0 and 1.
        DataError: there are fewer than two images.
    """
    mask = held_out(images, fraction, seed)
    return images.take(np.flatnonzero(~mask)), images.take(np.flatnonzero(mask))


def held_out(images: Images, fraction: float = 0.04, seed: int = 0) -> np.ndarray:
    """Return which images `hold_out` splits off, ``(N,)`` bool; raises what it raises."""
    count = len(images)
    if count < 2:
        what = "one image cannot be split into training and validation"
        raise DataError(what, images.dataset_id, "give at least two images")
    if not 0 < fraction < 1:
        what = f"{fraction} of {count} images cannot be held out"
        raise ConfigError(what, "", "hold out more than 0 and less than 1")
    mask = np.zeros(count, dtype=bool)
    size = min(max(1, round(fraction * count)), count - 1)
    mask[np.random.default_rng(seed).permutation(count)[:size]] = True
    return mask


def _first_not_finite(pixels: np.ndarray) -> int | None:
    """Return the first image with a value that is not finite; reads a piece at a time."""
    step = max(1, _CHUNK_BYTES // max(pixels[:1].nbytes, 1))
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step]
        finite = np.isfinite(part).reshape(len(part), -1).all(1)
        if not finite.all():
            return start + int(np.argmin(finite))
    return None


def _check_labels(labels: np.ndarray, count: int, classes: tuple[str, ...], where: str) -> None:
    if labels.ndim == 2 and labels.dtype == np.float32 and not classes:
        _check_vectors(labels, count, where)
        return
    if labels.shape != (count,) or labels.dtype != np.int64:
        what = f"labels are {labels.dtype} {labels.shape} for {count} images"
        raise DataError(what, where, "give one integer for each image")
    if labels.min() < -1 or (classes and labels.max() >= len(classes)):
        what = f"labels run from {labels.min()} to {labels.max()}"
        highest = f" to {len(classes) - 1}" if classes else ""
        remedy = f"number the classes from 0{highest}, with -1 for images without a label"
        raise DataError(what, where, remedy)


def _check_vectors(vectors: np.ndarray, count: int, where: str) -> None:
    if len(vectors) != count or vectors.shape[1] == 0:
        what = f"vectors are {vectors.shape} for {count} images"
        raise DataError(what, where, "give one row of numbers for each image")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])
        what = f"the vector of image {row} is not finite"
        raise DataError(what, where, "leave out NaN and infinity")
