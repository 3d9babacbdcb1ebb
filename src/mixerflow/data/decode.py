"""Decode an image file to an array, or refuse it with a reason; nothing is lost in silence."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from mixerflow.data.formats import unreadable
from mixerflow.data.losses import loss, palette_entries, palette_loss
from mixerflow.data.signatures import (
    HEAD,
    READ_ENDINGS,
    READ_FORMATS,
    has_image_ending,
    image_format,
    is_raw_photograph,
    sniff,
)
from mixerflow.errors import ConfigError, DataError, first_line

Color = tuple[int, int, int]

_HERE = "convert it to grey or RGB of 8 bits, or grey of 16 bits, one image in the file"
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr


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


def read_image(path: Path, ground: Color | None = None) -> np.ndarray:
    """Decode one file: `(C, H, W)`, uint8 or uint16. Its content says what it is, not its name.

    Transparent images are put on the colour `ground`, or refused if it is None.

    Raises:
        DataError: the file is unreadable, damaged, too large or of a format that is not read, has
            several frames, or its pixels fit neither uint8 grey, uint8 RGB nor uint16 grey.
    """
    try:
        if not path.is_file():
            raise DataError("a broken link, or not a file", path, "remove or replace it")
        _read_format(path, sniff(path))  # before a large file of another kind is read
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    return decode_image(content, path, ground)


def decode_image(content: bytes, path: Path, ground: Color | None = None) -> np.ndarray:
    """Decode the content of a file as `read_image` does; `path` names it in errors."""
    kind = _read_format(path, content[:HEAD])
    try:
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            array = _decode(content, kind, path, ground)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        remedy = f"cut it to at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise DataError("too many pixels for one image", path, remedy) from error
    except Exception as error:  # on damaged files the decoders raise almost anything
        what = f"truncated or corrupt, or a kind of {kind} that is not read ({first_line(error)})"
        raise DataError(what, path, "fetch or write it again") from error
    for remark in (
        first_line(each.message) for each in remarks if isinstance(each.message, Warning)
    ):
        # Other remarks are on metadata, such as damaged EXIF, and leave the pixels as they are.
        if kind == "TIFF" or "APNG" in remark or "MPO" in remark:
            raise DataError(f"damaged ({remark})", path, "fetch or write it again")
    return array


def _read_format(path: Path, head: bytes) -> str:
    """Return the format of a file that starts with `head`, one of those that are read."""
    if not head:
        raise DataError("an empty file", path, "fetch or write it again")
    kind = image_format(head)
    if kind in READ_FORMATS and not (kind == "TIFF" and is_raw_photograph(path)):
        return kind
    ending = path.suffix.lower()
    if kind is None and (ending in READ_ENDINGS or not has_image_ending(path)):
        raise DataError("not an image file", path, "remove or replace it")
    name = kind if kind and kind != "TIFF" else ending
    raise DataError(f"{name} is a format that is not read here", path, "save it as PNG")


def _decode(content: bytes, kind: str, path: Path, ground: Color | None) -> np.ndarray:
    # `load` passes over the checksums of PNG's pixel data; `verify` checks them.
    with _open(content, kind) as image:
        image.verify()
    with _open(content, kind) as image:
        if what := loss(image, content):
            raise DataError(what, path, _HERE)
        entries = palette_entries(image)
        image.load()
        if what := palette_loss(image, entries):
            raise DataError(what, path, "fetch or write it again")
        if kind == "PPM" and image.mode == "I":  # 16 bits in Pillow's 32
            return to_array(image.convert("I;16"), path)
        return to_array(image, path, ground)


def _open(content: bytes, kind: str) -> Image.Image:
    """Open with the decoder of `kind` only: others would run Ghostscript, or parse anything."""
    try:
        return Image.open(io.BytesIO(content), formats=(kind,))
    except UnidentifiedImageError:
        Image.OPEN[kind][0](io.BytesIO(content), "")  # raises what `open` keeps to itself
        raise


def to_array(image: Image.Image, where: object, ground: Color | None = None) -> np.ndarray:
    """Return a decoded picture as `(C, H, W)`, turned as its EXIF orientation says.

    Two-level pictures become 0 and 255, palettes RGB, transparency goes onto `ground`. A mode that
    cannot be read without loss is a DataError.
    """
    image = _opaque(ImageOps.exif_transpose(image), where, ground)
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in ("L", "RGB", "I;16", "I;16L", "I;16B"):
        raise DataError(f"mode {image.mode} is not read", where, _HERE)
    array = np.asarray(image)
    if array.ndim == 2:
        return np.array(array[None], dtype=np.uint8 if image.mode == "L" else np.uint16)
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _opaque(image: Image.Image, where: object, ground: Color | None) -> Image.Image:
    """Drop an alpha of 255 everywhere; put other transparency onto one colour, or refuse it.

    Grey on grey stays grey.
    """
    if not image.has_transparency_data:
        return image
    if image.mode == "I;16":  # no such mode has alpha: one level is transparent
        if np.any(np.asarray(image) == image.info["transparency"]):
            raise DataError("transparency in 16 bits", where, _HERE)
        return image
    top = image.convert("RGBA")
    grey = image.mode in ("1", "L", "LA")
    if top.getchannel("A").getextrema() == (255, 255):
        return top.getchannel(0) if grey else top.convert("RGB")
    if ground is None:
        remedy = "put it on a ground yourself, or with --transparency '#ffffff'"
        raise DataError("transparency", where, remedy)
    flat = Image.alpha_composite(Image.new("RGBA", image.size, (*ground, 255)), top)
    return flat.getchannel(0) if grey and len(set(ground)) == 1 else flat.convert("RGB")
