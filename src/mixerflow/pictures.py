"""Pictures of images: grids, PNG files, and the size of images in ordinary lossless codecs."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mixerflow.temporary import sweep, temporary_path

PictureCodec = Literal["png", "webp", "jxl"]
SETTINGS: dict[PictureCodec, list[dict[str, Any]]] = {
    "png": [{"optimize": True, "compress_level": 9}],
    "webp": [{"lossless": True, "quality": 100, "method": method} for method in (2, 3, 4, 5)],
    "jxl": [{"lossless": True, "effort": 9, "num_threads": 1}],
}
"""Settings of each codec; the shortest of the files that they give counts. Of WebP's methods, 6
takes five times as long as 2 to 5 together; its files of CIFAR-10's images are longer."""
_SIDE = 64
"""Pixels of the screen that an image of a page is wide at least."""
_LONGEST_SIDE = 16383  # a WebP file's sides are 14-bit numbers


def grid(
    pixels: np.ndarray, *, columns: int | None = None, pad: int = 2, scale: int = 1
) -> Image.Image:
    """Lay images `(N, C, H, W)` out in rows, on white, with `pad` pixels around each image.

    Images are uint8 or uint16 (shown by its upper eight bits). One channel is shown as grey, two as
    the first one, three or more as the first three as RGB. `columns` is the number of images in a
    row, by default for a grid about square; `scale` the side of the square that stands for a pixel.
    Anything but a stack of images, and a layout that cannot be drawn, is a ValueError.
    """
    if pixels.ndim != 4 or pixels.size == 0 or pixels.dtype not in (np.uint8, np.uint16):
        shape = tuple(pixels.shape)
        raise ValueError(f"expected images (N, C, H, W) uint8/uint16, got {shape} {pixels.dtype}")
    if pad < 0 or scale < 1 or (columns is not None and columns < 1):
        raise ValueError(f"grid with columns={columns}, pad={pad}, scale={scale}")
    cells = np.moveaxis(_seen(pixels), 1, -1)
    border = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    cells = np.pad(cells, border, constant_values=255)
    sheet = _tile(cells, columns or _square(cells), fill=255)
    sheet = sheet.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)


def png_grid(pixels: np.ndarray, *, columns: int | None = None) -> bytes:
    """Return the `grid` of images as a PNG file, each at least about 64 pixels wide."""
    buffer = io.BytesIO()
    scale = max(1, _SIDE // pixels.shape[-1])
    grid(pixels, columns=columns, scale=scale).save(buffer, "PNG")
    return buffer.getvalue()


def coloured(pixels: np.ndarray) -> np.ndarray:
    """Return images `(N, C, H, W)` of 8 or 16 bits as `grid` shows them, `(N, 3, H, W)` uint8."""
    seen = _seen(pixels)
    return seen if seen.shape[1] == 3 else seen.repeat(3, axis=1)


def _seen(pixels: np.ndarray) -> np.ndarray:
    """Return the channels that are shown, one or three, in 8 bits."""
    pixels = pixels[:, :3] if pixels.shape[1] >= 3 else pixels[:, :1]
    return (pixels if pixels.dtype == np.uint8 else pixels >> 8).astype(np.uint8)


def heat(pixels: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Lay maps `(N, H, W)` as heat over grey images `(N, C, H, W)`; return `(N, 3, H, W)` uint8.

    All images have one scale, so that an image without anything hot stays grey: from the 80th
    percentile of all values on, red grows, and becomes yellow at the 99th. Values that are not
    finite are magenta. Images are as in `grid`; other shapes are a ValueError.
    """
    if pixels.ndim != 4 or maps.shape != (len(pixels), *pixels.shape[2:]):
        raise ValueError(f"expected maps of images {pixels.shape}, got {maps.shape}")
    grey = _seen(pixels).mean(1, keepdims=True)
    finite = np.isfinite(maps)
    low, high = np.percentile(maps[finite], (80, 99)) if finite.any() else (0.0, 1.0)
    level = (np.where(finite, maps, low) - low) / max(high - low, np.finfo(np.float64).tiny)
    level = level.clip(0, 1)[:, None]
    colour = 255 * np.concatenate([np.ones_like(level), level**2, np.zeros_like(level)], 1)
    share = 0.75 * np.sqrt(level)
    shown = (1 - share) * grey + share * colour
    shown = np.where(finite[:, None], shown, np.array([255.0, 0.0, 255.0])[:, None, None])
    return shown.round().astype(np.uint8)


def save(image: Image.Image, path: Path) -> None:
    """Write an image file, completely or not at all; the ending of `path` names the format.

    Raises:
        ValueError: an ending that no format has.
        OSError: the file cannot be written; an older file is unchanged.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"unknown file extension {path.suffix!r}")
    temporary = temporary_path(path)
    sweep(path.parent)
    try:
        image.save(temporary, kind)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode one image `(C, H, W)` as PNG, at the strongest compression.

    Channels other than 1 or 3, and 16 bits in colour, are a ValueError: PNG has no such image.
    """
    return encoded(np.moveaxis(pixels, 0, -1), "png")


def installed() -> tuple[PictureCodec, ...]:
    """Return the codecs that can be used here: JPEG XL needs the package pillow-jxl-plugin."""
    return tuple(codec for codec in SETTINGS if codec != "jxl" or find_spec("pillow_jxl"))


def codec_bits(pixels: np.ndarray, codec: PictureCodec, *, sheet: bool) -> float:
    """Return bits per dimension of a lossless codec, headers included.

    Images are `(N, C, H, W)`, uint8, or uint16 with one channel (PNG only); a ValueError refuses
    others. The settings are those of `SETTINGS`: PNG of level 9, optimised; lossless WebP of
    quality 100, the shortest file of methods 2 to 5; lossless JPEG XL (jxl) of effort 9, a
    ValueError without the package pillow-jxl-plugin (extra ``codec``). `sheet` puts all images into
    one picture (about square; several where a side would pass 16,383 pixels), with one header for
    all; otherwise each image is a file.
    """
    if pixels.ndim != 4 or pixels.size == 0:
        raise ValueError(f"expected images (N, C, H, W), got shape {tuple(pixels.shape)}")
    cells = np.moveaxis(pixels, 1, -1)
    pictures = sheets(cells) if sheet else iter(cells)
    return sum(8 * len(encoded(picture, codec)) for picture in pictures) / pixels.size


def encoded(picture: np.ndarray, codec: PictureCodec) -> bytes:
    """Return the file of one picture ``(H, W, C)``; settings and errors as in `codec_bits`."""
    channels, dtype = picture.shape[-1], picture.dtype
    deep = dtype == np.uint16 and channels == 1 and codec == "png"
    if picture.ndim != 3 or channels not in (1, 3) or not (dtype == np.uint8 or deep):
        raise ValueError(f"{codec} has no images of shape {picture.shape} and type {dtype}")
    image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if channels == 1 else picture))
    if codec == "jxl":
        _require_jpeg_xl()
    files = []
    for settings in SETTINGS[codec]:
        buffer = io.BytesIO()
        image.save(buffer, codec.upper(), **settings)
        files.append(buffer.getvalue())
    return min(files, key=len)


def _require_jpeg_xl() -> None:
    try:
        importlib.import_module("pillow_jxl")  # registers the format
    except ImportError as error:
        raise ValueError("JPEG XL: pip install 'mixerflow[codec]'") from error


def sheets(cells: np.ndarray) -> Iterator[np.ndarray]:
    """Tile all cells `(N, H, W, C)` into pictures whose sides the codecs can write.

    Raises:
        ValueError: a cell is too large.
    """
    height, width = cells.shape[1:3]
    rows, columns = _LONGEST_SIDE // height, _LONGEST_SIDE // width
    if not (rows and columns):
        raise ValueError(f"an image of {height} x {width} is too large for a sheet")
    most = rows * columns
    for start in range(0, len(cells), most):
        part = cells[start : start + most]
        # about square, unless the limit of a side needs more or fewer columns
        across = max(math.ceil(len(part) / rows), min(_square(part), columns))
        yield _tile(part, across, fill=0)


def _square(cells: np.ndarray) -> int:
    """Return the number of columns of an about square sheet of cells `(N, H, W, C)`."""
    count, height, width = cells.shape[:3]
    return min(count, max(1, round(math.sqrt(count * height / width))))


def _tile(cells: np.ndarray, columns: int, *, fill: int) -> np.ndarray:
    """Tile cells row by row into `(rows H, columns W, C)`; empty cells are `fill`."""
    count, height, width, channels = cells.shape
    rows = math.ceil(count / columns)
    board = np.full((rows * columns, height, width, channels), fill, dtype=cells.dtype)
    board[:count] = cells
    board = board.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return board.reshape(rows * height, columns * width, channels)
