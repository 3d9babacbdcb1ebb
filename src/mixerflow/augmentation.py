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
    """Mirrors, shifts and mutates training images at random; impossible settings are a ValueError.

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
    mutation: float = 0.0
    """Share of the values that a uniform random value replaces: for the background flow of a
    likelihood ratio (Ren et al. 2019, arXiv:1906.02845)."""

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"Augmentation: shift must be at least 0; got {self.shift}")
        if not 0 <= self.mutation <= 1:
            raise ValueError(f"Augmentation: mutation must be 0 to 1; got {self.mutation}")

    def check(self, shape: Shape, levels: int | None = 256) -> None:
        """Raise a ConfigError for images ``(C, *spatial)`` that it cannot change.

        Shifts must be smaller than the images, and only integers mutate.
        """
        if self.mutation and levels is None:
            what, flag = "float data have no levels to draw from", "--train.augmentation.mutation"
            raise ConfigError(what, flag, "leave it out")
        least = min(shape[1:])
        if self.shift >= least:
            what = f"a shift of {self.shift} pixels, of images with a side of {least}"
            raise ConfigError(what, "--train.augmentation.shift", f"give at most {least - 1}")

    def augmented(
        self,
        images: Shaped[Tensor, "batch channels *spatial"],
        noise: Noise,
        levels: int | None = 256,
    ) -> Shaped[Tensor, "batch channels *spatial"]:
        """Return the images, changed as `noise` says, each by its own key.

        `levels` is the number of values that a mutated one is drawn from.
        """
        images = self._mirrored_and_shifted(images, noise)
        if self.mutation and levels is not None:
            like = torch.empty(len(images), 2, *images.shape[1:], device=images.device)
            chance, value = Noise(noise.seed, noise.keys, draw=1).uniform(like, _STREAM).unbind(1)
            drawn = (value * levels).to(images.dtype)
            images = torch.where(chance < self.mutation, drawn, images)
        return images

    def _mirrored_and_shifted(self, images: Tensor, noise: Noise) -> Tensor:
        if not (self.flip or self.shift):
            return images
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
