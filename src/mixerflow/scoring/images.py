"""Images as tables hold them: encoded, decoded by Pillow, or arrays with the channels last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mixerflow.core import Shape
from mixerflow.data import Reading
from mixerflow.data.decode import decode_image, parse_transparency, read_image, to_array
from mixerflow.data.formats import channels_first
from mixerflow.errors import DataError


def image_of(
    value: object, where: Path, reading: Reading, shape: Shape, levels: int | None
) -> np.ndarray:
    """Return one image as an array ``(C, H, W)``, read as `reading` says.

    Args:
        value: the bytes of a file; a mapping with `bytes` or a `path`, as Hugging Face's tables
            hold images; a path; a picture of Pillow's; or an array ``(H, W)`` or ``(H, W, C)``.
        where: names the image in errors.
        reading: how images are read.
        shape: the shape that it must have.
        levels: the number of values that its pixels must have, 256 or 65,536; None for floats.

    Raises:
        DataError: it cannot be read, or is of another shape or of other levels.
    """
    ground = parse_transparency(reading.transparency)
    if isinstance(value, Mapping):
        content, path = value.get("bytes"), value.get("path")
        value = Path(path) if content is None and path else content
    if isinstance(value, (bytes, bytearray, memoryview)):
        image = decode_image(bytes(value), where, ground)
    elif isinstance(value, (str, Path)):
        image = read_image(Path(value), ground)
    elif isinstance(value, Image.Image):
        image = to_array(value, where, ground)
    elif value is None:
        remedy = "leave the row out, or use `mixerflow score --on-bad-image skip`"
        raise DataError("no image", where, remedy)
    else:
        image = channels_first(_array(value, where)[None], str(where))[0]
    floats = image.dtype.kind == "f"
    image = reading.apply_to_all(image[None], where)[0] if floats else reading.apply(image, where)
    return _fitting(image, where, shape, levels)


def pixels_of(values: object, reading: Reading, shape: Shape, levels: int | None) -> np.ndarray:
    """Return the images of a column as one array ``(N, C, H, W)``; see `image_of`.

    Args:
        values: a sequence of images, or an array ``(N, H, W)`` or ``(N, H, W, C)``.
        reading: how images are read.
        shape: the shape that each must have.
        levels: the number of values that their pixels must have, as in `image_of`.

    Raises:
        DataError: one cannot be read, or is of another shape or of other levels.
    """
    if isinstance(values, np.ndarray) and values.dtype != object:
        where = Path("images")
        if not len(values):
            return np.empty((0, *shape), values.dtype)
        pixels = reading.apply_to_all(channels_first(values, str(where)), where)
        _fitting(pixels[0], where, shape, levels)
        return pixels
    if not isinstance(values, (Sequence, np.ndarray)) or isinstance(values, (str, bytes)):
        what = f"a column of images is {type(values).__name__}"
        raise DataError(what, "images", "give a list of images, or an array")
    images = [
        image_of(each, Path(f"image {i}"), reading, shape, levels) for i, each in enumerate(values)
    ]
    return np.stack(images) if images else np.empty((0, *shape), np.uint8)


def _array(value: object, where: Path) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        remedy = "give rows of one length, (H, W) or (H, W, C)"
        raise DataError("no array of pixels", where, remedy) from error


def _fitting(image: np.ndarray, where: Path, shape: Shape, levels: int | None) -> np.ndarray:
    if image.shape != tuple(shape):
        what = f"an image is {image.shape}, the run's are {tuple(shape)}"
        raise DataError(what, where, "give --crop, --resize or --grey, or images of that shape")
    own = None if image.dtype.kind == "f" else 256**image.itemsize
    if own != levels:
        words = [f"integers of {each:,} levels" if each else "floats" for each in (own, levels)]
        what = f"pixels are {words[0]}, those of the run's images {words[1]}"
        raise DataError(what, where, "give images of as many levels")
    return image
