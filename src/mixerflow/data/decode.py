"""Decode an image file to an array, or refuse it with a reason; nothing is lost in silence."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from mixerflow.data.formats import unreadable
from mixerflow.errors import ConfigError, DataError, first_line

READABLE = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
READABLE += (".pbm", ".pgm", ".ppm", ".pnm")
# Images too: in a folder such a file is an error, while a README is passed over.
UNREADABLE = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".psd", ".dng", ".cr2", ".nef")

Color = tuple[int, int, int]


def parse_transparency(text: str) -> Color | None:
    """Return the colour of the ground under transparent images, or None for `refuse`."""
    if text == "refuse":
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
        if alpha:
            raise ValueError("a ground that is transparent itself")
    except ValueError as error:
        remedy = "give refuse or an opaque colour such as '#ffffff'"
        raise ConfigError(f"{text!r} is not a colour", "--transparency", remedy) from error
    return red, green, blue


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Make Pillow refuse pictures of more than `Image.MAX_IMAGE_PIXELS`; by default it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def read_image(path: Path, ground: Color | None = None) -> np.ndarray:
    """Decode one file: `(C, H, W)`, uint8 or uint16. Call this inside `bombs_refused`.

    Transparent images are put on the colour `ground`, or refused if it is None.

    Raises:
        DataError: the file is unreadable, damaged, animated or too large, or its pixels fit
            neither uint8 grey, uint8 RGB nor uint16 grey.
    """
    if path.suffix.lower() in UNREADABLE:
        raise DataError("a format that is not read here", path, "save it as PNG")
    try:
        if not path.is_file():
            raise DataError("a broken link, or not a file", path, "remove or replace it")
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if not content:
        raise DataError("an empty file", path, "fetch or write it again")
    try:
        # `load` passes over the checksums of PNG's pixel data; `verify` checks them.
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
        with Image.open(io.BytesIO(content)) as image:
            _refuse_losses(image, path)
            image.load()
            return to_array(image, path, ground)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        remedy = f"cut it to at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise DataError("too many pixels for one image", path, remedy) from error
    except UnidentifiedImageError as error:
        raise DataError("not an image file", path, "remove or replace it") from error
    except Exception as error:  # on damaged files the decoders raise almost anything
        what = f"truncated or corrupt ({first_line(error)})"
        raise DataError(what, path, "fetch or write it again") from error


def _refuse_losses(image: Image.Image, where: object) -> None:
    """Refuse an image of which Pillow would read one frame, or the upper 8 of 16 bits."""
    if getattr(image, "is_animated", False):
        raise DataError("more than one frame", where, "save one frame as PNG")
    # Pillow has no 16-bit colour: it reads the upper bytes and calls the result RGB. The raw mode
    # of its tiles still names the 16 bits; for PNM, the largest value is above 255.
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    deep = any(";16" in str(argument) for argument in arguments)
    if image.format == "PPM":
        deep |= any(
            isinstance(a, tuple) and isinstance(a[1], int) and a[1] > 255 for a in arguments
        )
    if deep and not image.mode.startswith("I"):
        remedy = "save it as 8-bit colour or as 16-bit grey PNG"
        raise DataError("16 bits a channel that would be cut to 8", where, remedy)


def to_array(image: Image.Image, where: object, ground: Color | None = None) -> np.ndarray:
    """Return a decoded picture as `(C, H, W)`, turned as its EXIF orientation says.

    Two-level pictures become 0 and 255, palettes RGB, transparency goes onto `ground`. A mode that
    cannot be read without loss is a DataError.
    """
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data and image.mode != "I;16":
        image = _on_ground(image, where, ground)
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in ("L", "RGB", "I;16", "I;16L", "I;16B") or "transparency" in image.info:
        remedy = "convert it to grey or RGB of 8 bits, or grey of 16 bits, without transparency"
        raise DataError(f"mode {image.mode} is not read", where, remedy)
    array = np.asarray(image)
    if array.ndim == 2:
        return np.array(array[None], dtype=np.uint8 if image.mode == "L" else np.uint16)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _on_ground(image: Image.Image, where: object, ground: Color | None) -> Image.Image:
    """Put a picture with transparency onto one colour; grey on grey stays grey."""
    if ground is None:
        remedy = "put it on a ground yourself, or with --transparency '#ffffff'"
        raise DataError("transparency", where, remedy)
    grey = image.mode in ("1", "L", "LA") and len(set(ground)) == 1
    top = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, (*ground, 255)), top)
    return flat.getchannel(0) if grey else flat.convert("RGB")
