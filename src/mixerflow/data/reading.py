"""How images are read: a value that run.json records, and what it does to an image."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mixerflow.data.decode import parse_transparency
from mixerflow.errors import ConfigError, DataError
from mixerflow.registry import register

OnBadImage = Literal["stop", "skip"]
Filter = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
_FORMS = {
    "crop": ("none", "148x148 (width, height) for pixels, 1:1 for a ratio, or none"),
    "resize": ("none", "64x64 (width, height), 64 for a square, or none"),
}


@register
@dataclass(frozen=True)
class Reading:
    """How images are read; each change is asked for by its own setting.

    An image is turned as its EXIF orientation says, put on the ground of `transparency`, cut to
    `crop`, turned to grey and scaled to `resize`, in this order. Grey comes before the scaling, so
    that one channel is scaled rather than three and mixed grey and colour images become alike; both
    are linear, so the order matters by rounding only.

    Raises:
        ConfigError: a setting that cannot be.
    """

    transparency: str = "refuse"
    """Transparent images: `refuse`, or the colour to put them on, such as `#ffffff`."""
    on_bad_image: OnBadImage = "stop"
    """A bad file in a folder: stop, or leave it out (`skip`) and list it in `Images.skipped`."""
    crop: str = "none"
    """Centred part to keep: `148x148`, width and height in pixels; or the largest of a ratio of
    width to height, `1:1`, its shorter side rounded to whole pixels."""
    resize: str = "none"
    """Width and height to scale down to, `64x64`, or `64` for both."""
    filter: Filter = "lanczos"
    """Pillow's filter for `resize`, widened by the scale (antialiased)."""
    grey: bool = False
    """Whether colour becomes grey by ITU-R 601-2 luma, 0.299 R + 0.587 G + 0.114 B."""

    def __post_init__(self) -> None:
        parse_transparency(self.transparency)
        for name, kind in (("on_bad_image", OnBadImage), ("filter", Filter)):
            if getattr(self, name) not in get_args(kind):
                words, flag = ", ".join(get_args(kind)), name.replace("_", "-")
                raise ConfigError(f"{getattr(self, name)!r}", f"--{flag}", f"give one of {words}")
        for name, pattern in (("crop", r"\d+([x:]\d+)?"), ("resize", r"\d+(x\d+)?")):
            given = str(getattr(self, name)).lower().replace("\N{MULTIPLICATION SIGN}", "x")
            off, remedy = _FORMS[name]
            fits = re.fullmatch(pattern, given, re.ASCII) and min(_numbers(given)) > 0
            if not fits and given != off:
                raise ConfigError(f"{getattr(self, name)!r} is no size", f"--{name}", remedy)
            square = f"{given}x{given}" if given.isdigit() else given
            object.__setattr__(self, name, square)  # one spelling for one meaning

    @property
    def changes(self) -> str:
        """What is done to pixels, such as `crop 1:1, grey, resize 64x64 lanczos`; may be empty."""
        words = [f"crop {self.crop}"] if self.crop != "none" else []
        words += ["grey"] if self.grey else []
        words += [f"resize {self.resize} {self.filter}"] if self.resize != "none" else []
        return ", ".join(words)

    def apply(self, image: np.ndarray, where: object) -> np.ndarray:
        """Cut, turn to grey and scale one decoded image.

        Args:
            image: `(C, H, W)`, uint8 or uint16.
            where: its name, for errors.

        Raises:
            DataError: the image is smaller than asked for, would be distorted, or has channels that
                are neither grey nor RGB and should become grey.
        """
        if self.crop != "none":
            image = _cut(image, self.crop, where)
        if self.grey:
            image = _grey(image, where)
        if self.resize != "none":
            image = _scaled(image, self.resize, self.filter, where)
        return image

    def apply_to_all(self, pixels: np.ndarray, where: object) -> np.ndarray:
        """Do as `apply` does to each of `(N, C, H, W)`; the same array where nothing changes."""
        if pixels.dtype.kind == "f":
            if self.changes:
                what = f"floats are taken as they are, and not {self.changes}"
                raise DataError(what, where, "leave out --crop, --grey and --resize")
            return pixels
        first = self.apply(pixels[0], where)
        if first.shape == pixels.shape[1:]:  # whatever changes an image changes its shape
            return pixels
        changed = np.empty((len(pixels), *first.shape), pixels.dtype)
        for row, image in enumerate(pixels):
            changed[row] = self.apply(image, where)
        return changed


def size_of(image: np.ndarray) -> str:
    """Return the size of an image `(C, H, W)` as width x height."""
    return f"{image.shape[-1]} x {image.shape[-2]}"


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _cut(image: np.ndarray, crop: str, where: object) -> np.ndarray:
    """Return the centred part; where the margin is odd, its larger half is right and below."""
    height, width = image.shape[-2:]
    across, down = _numbers(crop)
    if ":" in crop:  # to the nearest pixel, halves up
        across, down = (
            min(width, (2 * height * across + down) // (2 * down)),
            min(height, (2 * width * down + across) // (2 * across)),
        )
    if not (0 < across <= width and 0 < down <= height):
        what = f"{size_of(image)} pixels are too few for --crop {crop}"
        raise DataError(what, where, _SMALLER.format("crop"))
    left, top = (width - across) // 2, (height - down) // 2
    return image[..., top : top + down, left : left + across]


_SMALLER = "give a smaller --{}, or leave small images of a folder out with --on-bad-image skip"


def _grey(image: np.ndarray, where: object) -> np.ndarray:
    """Return ITU-R 601-2 luma, with Pillow's weights and rounding, which suit 16 bits as well."""
    if len(image) == 1:
        return image
    if len(image) != 3:
        raise DataError(f"--grey of {len(image)} channels", where, "give grey or RGB images")
    red, green, blue = image.astype(np.int64)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    return luma.astype(image.dtype)[None]


def _scaled(image: np.ndarray, resize: str, name: Filter, where: object) -> np.ndarray:
    """Scale each channel with Pillow: no sharper than its filter, nothing beyond the edges."""
    height, width = image.shape[-2:]
    across, down = _numbers(resize)
    if across > width or down > height:
        what = f"{size_of(image)} pixels are fewer than --resize {resize}, and none are made up"
        raise DataError(what, where, _SMALLER.format("resize"))
    if 2 * abs(width * down - height * across) > max(width, height):
        divisor = math.gcd(across, down)
        remedy = f"cut it first: --crop {across // divisor}:{down // divisor}"
        what = f"{size_of(image)} pixels would be distorted by --resize {resize}"
        raise DataError(what, where, remedy)
    if (across, down) == (width, height):
        return image
    sampling, sides = Image.Resampling[name.upper()], (across, down)
    if image.dtype == np.uint8:
        channels = [Image.fromarray(np.ascontiguousarray(each)) for each in image]
        return np.stack([np.asarray(each.resize(sides, sampling)) for each in channels])
    channels = [Image.fromarray(each.astype(np.float32)) for each in image]
    scaled = np.stack([np.asarray(each.resize(sides, sampling)) for each in channels])
    return np.rint(scaled).clip(0, 65535).astype(image.dtype)
