"""Masks as values: which pixels of an image were not measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Shape
from mixerflow.data.decode import read_image
from mixerflow.errors import ConfigError
from mixerflow.registry import register

_WORDS = "centre:16, random:0.5 or a picture, FILE.png"


class Mask:
    """Which pixels of images ``(C, *spatial)`` are hidden: in all channels, in all images alike."""

    def hidden(self, shape: Shape) -> Tensor:
        """Return ``(*spatial)`` bool: True where a pixel is not measured.

        Raises:
            ConfigError: a mask that does not fit images of that shape, or that hides none or all of
                their pixels.
        """
        spatial = tuple(shape[1:])
        hidden = self.places(spatial)
        if not hidden.any() or hidden.all():
            share = "all pixels" if hidden.any() else "no pixel"
            size = " x ".join(map(str, spatial))
            raise ConfigError(f"it hides {share} of {size}", f"--mask {self}", "choose another")
        return hidden

    def places(self, spatial: Shape) -> Tensor:
        """Return what `hidden` returns; it may hide none or all."""
        raise NotImplementedError


@register("centre")
@dataclass(frozen=True)
class CentreMask(Mask):
    """A box in the centre is hidden, half a pixel nearer the start where it has no exact centre."""

    side: int
    """Its side in pixels, the same along each axis; an axis that is shorter is hidden whole."""

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ConfigError(f"a side of {self.side} pixels", "--mask", "give at least 1")

    def places(self, spatial: Shape) -> Tensor:
        hidden = torch.zeros(spatial, dtype=torch.bool)
        starts = [max(0, n - self.side) // 2 for n in spatial]
        hidden[tuple(slice(start, start + self.side) for start in starts)] = True
        return hidden

    def __str__(self) -> str:
        return f"centre:{self.side}"


@register("random")
@dataclass(frozen=True)
class RandomMask(Mask):
    """A random share of the pixels is hidden: the nearest whole number of them."""

    share: float
    """Between 0 and 1."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"a share of {self.share}", "--mask", "give one between 0 and 1")

    def places(self, spatial: Shape) -> Tensor:
        hidden = np.zeros(math.prod(spatial), dtype=bool)
        order = np.random.default_rng(self.seed).permutation(len(hidden))
        hidden[order[: round(self.share * len(hidden))]] = True
        return torch.from_numpy(hidden.reshape(spatial))

    def __str__(self) -> str:
        return f"random:{self.share:g}"


@register("picture")
@dataclass(frozen=True)
class PictureMask(Mask):
    """The black pixels of a picture of the images' size are hidden, all others are measured."""

    path: str
    """The picture's file."""

    def places(self, spatial: Shape) -> Tensor:
        picture = read_image(Path(self.path))
        if picture.shape[1:] != tuple(spatial):
            size, wanted = (" x ".join(map(str, s)) for s in (picture.shape[1:], spatial))
            what = f"it has {size} pixels (height x width), the images have {wanted}"
            raise ConfigError(what, f"--mask {self}", "give a mask of their size")
        return torch.from_numpy((picture == 0).all(0))

    def __str__(self) -> str:
        return self.path


def mask_of(words: str, *, seed: int = 0) -> Mask:
    """Return the mask that a text names: ``centre:16``, ``random:0.5`` or a picture's path.

    Raises:
        ConfigError: it names none.
    """
    kind, colon, number = words.partition(":")
    try:
        if colon and kind == "centre":
            return CentreMask(int(number))
        if colon and kind == "random":
            return RandomMask(float(number), seed)
    except ValueError:
        raise ConfigError(f"{number!r} is no number", f"--mask {words}", f"give {_WORDS}") from None
    if not Path(words).is_file():
        raise ConfigError("no such mask or file", f"--mask {words}", f"give {_WORDS}")
    return PictureMask(words)
