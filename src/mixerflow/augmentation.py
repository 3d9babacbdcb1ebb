"""Random changes of training images, as a value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from mixerflow.core import Noise, Shape
from mixerflow.errors import ConfigError
from mixerflow.registry import register

_STREAM = 2
"""Stream of the draws; the streams of a flow's transforms begin after it."""


@register
@dataclass(frozen=True)
class Augmentation:
    """Mirrors and shifts training images at random; a negative shift is a ValueError.

    On each spatial axis the shift is uniform among the whole numbers from -`shift` to `shift`.

    With ``flip=True, shift=1`` it is DenseFlow's augmentation of CIFAR-10 (arXiv:2106.04627: flip,
    edges padded by 2 pixels, translation by up to 4 % of 36 pixels, centre crop) up to the weights
    of the shifts. There the translation is uniform in -1.44..1.44 and rounded, so -1, 0, 1 have the
    weights 0.326, 0.347, 0.326; here each has 1/3.
    """

    flip: bool = False
    """Whether to mirror images left to right, with probability 1/2: along the last axis."""
    shift: int = 0
    """Most pixels of a random shift on each spatial axis, either way; edges fill the gap."""

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"Augmentation: shift must be at least 0; got {self.shift}")

    def check(self, shape: Shape) -> None:
        """Raise a ConfigError unless images ``(C, *spatial)`` are larger than the shift."""
        least = min(shape[1:])
        if self.shift >= least:
            what = f"a shift of {self.shift} pixels, of images with a side of {least}"
            raise ConfigError(what, "--train.augmentation.shift", f"give at most {least - 1}")

    def augmented(
        self, images: Shaped[Tensor, "batch channels *spatial"], noise: Noise
    ) -> Shaped[Tensor, "batch channels *spatial"]:
        """Return the images, mirrored and shifted as `noise` says, each by its own key."""
        sides = images.shape[2:]
        like = torch.empty(len(images), 1 + len(sides), dtype=torch.float64, device=images.device)
        mirror, *draws = noise.uniform(like, _STREAM).T[:, :, None]
        source = torch.zeros(len(images), 1, dtype=torch.int64, device=images.device)
        for axis, (draw, side) in enumerate(zip(draws, sides, strict=True), 1):
            offset = (draw * (2 * self.shift + 1)).long() - self.shift
            index = torch.arange(side, device=images.device) + offset
            if self.flip and axis == len(sides):
                index = torch.where(mirror < 0.5, side - 1 - index, index)
            index = index.clamp(0, side - 1)
            source = (source[:, :, None] * side + index[:, None]).flatten(1)
        planes = images.flatten(2)
        return planes.gather(2, source[:, None].expand_as(planes)).view_as(images)
