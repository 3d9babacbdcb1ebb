"""Images that a page sends: decoded by the package's checks, and fitted to the model if asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixerflow.core import Shape
from mixerflow.data import Reading
from mixerflow.data.decode import Color, decode_image, parse_transparency
from mixerflow.data.reading import size_of
from mixerflow.errors import DataError

_WHERE = Path("the image")
_WHITE: Color = (255, 255, 255)


def read_upload(
    content: bytes, shape: Shape, levels: int, reading: Reading, *, fit: bool
) -> tuple[np.ndarray, str]:
    """Return an image ``(C, H, W)`` of the model's kind, and words for what was done to it.

    An image of the model's own kind is taken as it is. Another one is read as the run's images
    were, if that makes it one of its kind, and else cut and scaled where `fit` says so.

    Args:
        content: the bytes of a file.
        shape: the model's ``(C, H, W)``, C 1 or 3.
        levels: the model's number of values, 256 or 65536.
        reading: how the run's own images are read.
        fit: whether the image may be put on white, cut in its middle, turned to grey and scaled
            down, and its levels changed.

    Raises:
        DataError: it cannot be decoded, or is no image of the model's kind.
    """
    image, done = _decoded(content, parse_transparency(reading.transparency), fit=fit)
    own = np.dtype(np.uint8 if levels <= 256 else np.uint16)
    if image.dtype != own:
        if not fit:
            what = f"pixels of {8 * image.itemsize} bits, the model's have {8 * own.itemsize}"
            raise DataError(what, _WHERE, _REMEDY)
        deeper = own.itemsize > image.itemsize
        image = image.astype(own) * own.type(257) if deeper else (image >> 8).astype(own)
        done.append(f"{8 * own.itemsize} bits made of {8 if deeper else 16}")
    if image.shape == tuple(shape):
        return image, ", ".join(done) or "taken as it is"
    if reading.changes:
        try:
            read = reading.apply(image, _WHERE)
        except DataError:
            read = image  # too small for it, for example
        if read.shape == tuple(shape):
            return read, ", ".join([*done, f"read as the run's images ({reading.changes})"])
    if not fit:
        what = f"an image of {_kind(image.shape)}, the model's are {_kind(shape)}"
        raise DataError(what, _WHERE, _REMEDY)
    image, more = _fitted(image, shape)
    return image, ", ".join([*done, *more])


_REMEDY = "let it be fitted, or give an image of that kind"


def _decoded(content: bytes, ground: Color | None, *, fit: bool) -> tuple[np.ndarray, list[str]]:
    """Return the decoded image; one with transparency on white, if it is fitted anyway."""
    try:
        return decode_image(content, _WHERE, ground), []
    except DataError as error:
        if not fit or ground is not None:
            raise
        try:
            return decode_image(content, _WHERE, _WHITE), ["put on white"]
        except DataError:  # transparency was not what is wrong
            raise error from None


def _fitted(image: np.ndarray, shape: Shape) -> tuple[np.ndarray, list[str]]:
    """Cut the middle of an image, turn it to grey or repeat its channel, and scale it down."""
    channels, height, width = shape
    if image.shape[1] < height or image.shape[2] < width:
        what = f"{size_of(image)} pixels are fewer than {width} x {height}, and none are made up"
        raise DataError(what, _WHERE, "give a larger image")
    cut = Reading(crop=f"{width}:{height}").apply(image, _WHERE)
    done = [f"cut to {size_of(cut)}"] if cut.shape != image.shape else []
    if channels == 1 and len(cut) == 3:
        cut = Reading(grey=True).apply(cut, _WHERE)
        done.append("turned to grey")
    scaled = Reading(resize=f"{width}x{height}").apply(cut, _WHERE)
    if scaled.shape != cut.shape:
        done.append(f"scaled to {size_of(scaled)}")
    if len(scaled) == 1 and channels == 3:
        scaled = scaled.repeat(3, axis=0)
        done.append("its grey used as red, green and blue")
    return np.ascontiguousarray(scaled), done


def _kind(shape: Shape) -> str:
    colour = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
    return f"{shape[2]} x {shape[1]}, {colour}"
