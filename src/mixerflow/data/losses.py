"""What Pillow would change or leave out: the header's promise beside what would arrive.

Pillow reads 16-bit colour as its upper bytes, stretches values, drops extra bands and pages, and
takes signed samples for unsigned ones, all without a word. Each function here returns a text that
names what would be lost, or an empty text. Widenings that keep every value apart are no loss.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

# Marks of a photograph's auxiliary pictures: gain maps (Adobe, Google, Apple, ISO), depth, masks.
_AUXILIARY = re.compile(
    rb"ns\.adobe\.com/hdr-gain-map|Semantic=.(GainMap|Depth)|HDRGainMap|urn:com:apple:photo:"
    rb"|urn:iso:std:iso:ts:21496"
)


def loss(image: Image.Image, content: bytes) -> str:
    """Return what would be lost of an opened image with this content, or an empty text."""
    return _frames(image) or _CHECKS.get(image.format or "", lambda *_: "")(image, content)


def palette_loss(image: Image.Image, entries: int) -> str:
    """Return the loss of a decoded picture whose palette has too few `entries`."""
    highest = image.getextrema()[-1] if image.mode == "P" and entries else 0
    if isinstance(highest, int | float) and highest >= max(entries, 1):
        return f"colour {highest} of a palette of {entries}"
    return ""


def palette_entries(image: Image.Image) -> int:
    """Return the number of colours in the palette of an image before it is decoded, or 0."""
    if image.palette is None:
        return 0
    return len(image.palette.palette) // len(image.palette.rawmode or image.palette.mode)


def _frames(image: Any) -> str:  # noqa: ANN401 - Pillow's plugins share no type for frames
    if image.format == "MPO":
        pictures = image.mpinfo[0xB002][1:]
        views = sum(not _is_auxiliary(image, n, each) for n, each in enumerate(pictures, start=1))
        image.seek(0)
        return f"{1 + views} pictures in one file" if views else ""
    return "more than one frame" if getattr(image, "is_animated", False) else ""


def _is_auxiliary(image: Any, number: int, entry: dict[str, Any]) -> bool:  # noqa: ANN401
    """Whether a further picture in a JPEG is a preview, or an auxiliary picture, of the first."""
    kind = entry["Attribute"]["MPType"]
    if kind.startswith("Large Thumbnail"):
        return True
    if kind not in ("Undefined", "Unknown"):  # a stereo pair, a panorama
        return False
    width, height = image.size
    directory = image.info.get("xmp", b"")
    try:
        image.seek(number)
    except (EOFError, OSError, SyntaxError, ValueError):
        return False
    own = b"".join(segment for _, segment in image.applist)
    if _AUXILIARY.search(own) or _AUXILIARY.search(directory):
        return True
    # A smaller picture of the same shape is a preview; views of a scene are of one size.
    smaller = image.width < width and image.height < height
    return smaller and abs(image.width * height - image.height * width) <= max(width, height)


def _png(image: Image.Image, _content: bytes) -> str:
    (tile,) = _tiles(image)
    return _CUT if ";16" in str(tile[3]) and not image.mode.startswith("I;16") else ""


def _gif(image: Image.Image, _content: bytes) -> str:
    (tile,) = _tiles(image)
    if tuple(tile[1]) != (0, 0, *image.size):
        return f"a frame that covers {tile[1]} of {image.width} x {image.height} pixels"
    return ""


def _bmp(image: Image.Image, content: bytes) -> str:
    """Four bytes a pixel of which Pillow drops one: a loss if it varies."""
    decoder, _, offset, arguments = _tiles(image)[0]
    if decoder == "bmp_rle":
        return _bmp_rle(image, content[offset:], four=bool(arguments[1]))
    unused = str(arguments[0]).find("X")
    if unused < 0:
        return ""
    count = 4 * image.width * image.height
    fourth = np.frombuffer(content, np.uint8)[offset : offset + count][unused::4]
    return "a fourth channel that is not constant" if np.ptp(fourth) else ""


def _bmp_rle(image: Image.Image, codes: bytes, *, four: bool) -> str:
    """Runs of pixels that leave some out; Pillow makes these black."""
    x = y = at = 0
    while at + 1 < len(codes):
        count, value = codes[at], codes[at + 1]
        at += 2
        if count:
            x += count
        elif value > 2:
            x += value
            length = (value + 1) // 2 if four else value
            at += length + length % 2
        elif value == 2 or x != image.width:  # a jump; the end of a line, or of all lines
            break
        elif value == 1:
            return "" if y + 1 == image.height else _LEFT_OUT
        else:
            x, y = 0, y + 1
            if y == image.height:
                return ""
    return _LEFT_OUT


def _ppm(image: Image.Image, content: bytes) -> str:
    """A maximum that Pillow would stretch to 255 or 65535, or bytes behind the pixels."""
    decoder, _, offset, arguments = _tiles(image)[0]
    maximum = 255 if decoder == "raw" or isinstance(arguments, str) else arguments[1]
    if image.mode == "RGB" and maximum > 255:
        return _CUT
    if maximum not in (255, 65535):
        return (
            f"values up to {maximum} that would be stretched to {65535 if maximum > 255 else 255}"
        )
    row = {"1": (image.width + 7) // 8, "L": image.width, "I": 2 * image.width}
    size = row.get(image.mode, 3 * image.width) * image.height
    if decoder == "raw" and content[offset + size :].strip():
        return "more than one frame, or bytes behind the pixels"
    return ""


def _tiff(image: Any, content: bytes) -> str:  # noqa: ANN401
    tags = image.tag_v2
    bands = len(image.getbands())
    samples = tags.get(277, bands)
    bits = set(tags.get(258, (1,)))
    formats = set(tags.get(339, (1,)))
    colors = np.array(tags.get(320, ()) if image.mode in ("P", "PA") else (), np.int64)
    if 50706 in tags or tags.get(254, 0) & 1 or tags.get(255, 1) == 2:
        return "a preview before the picture itself, as in a camera's raw file"
    if tags.get(32997, 1) != 1:
        return f"a volume of {tags[32997]} slices"
    if not all(_is_preview(content, each) for each in tags.get(330, ())):
        return "a further picture in a sub-directory"
    if samples != bands:
        return f"{samples} samples a pixel of which {bands} would be read"
    if formats != {1}:
        kind = "signed or floating" if formats <= {1, 2, 3} else "unknown"
        return f"samples of a kind that is {kind}, mode {image.mode}"
    if 262 not in tags:
        return "no word on whether 0 is black or white (tag PhotometricInterpretation)"
    if image.mode.startswith("I;16"):
        if bits != {16}:
            return f"samples of {max(bits)} bits"
        return "white as 0 in 16 bits, which would be inverted" if tags[262] == 0 else ""
    if max(bits) > 8 and image.mode not in ("I", "F"):
        return _CUT
    if (colors % 257).any() and (colors % 256).any():
        return "a palette of 16 bits that would be cut to 8"
    return ""


def _is_preview(content: bytes, offset: int) -> bool:
    """Whether a TIFF sub-directory says that it is a smaller picture, or a mask, of the first."""
    order = "<" if content[:1] == b"I" else ">"
    try:
        (count,) = struct.unpack_from(f"{order}H", content, offset)
        for n in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHII", content, offset + 2 + 12 * n)
            if tag == 254:
                return bool(value & 0b101)
    except struct.error:
        pass
    return False


def _tiles(image: Image.Image) -> list[Any]:
    return list(getattr(image, "tile", ()))


_CUT = "16 bits a channel that would be cut to 8"
_LEFT_OUT = "lines that its runs of pixels do not fill"
_CHECKS: dict[str, Callable[[Any, bytes], str]] = {
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "PPM": _ppm,
    "TIFF": _tiff,
}
