"""Shuffles as values: one random order of the pixels, in which a model sees all images."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.registry import register
from mixerflow.transforms import ShufflePixels


class Shuffle:
    """A random order of the pixels, the same for all images; see `ShufflePixels`."""

    seed: int

    def build(self, shape: Shape) -> Transform:
        """Return the transform of images ``(C, *spatial)``."""
        raise NotImplementedError


@register("global")
@dataclass(frozen=True)
class GlobalShuffle(PositiveCounts, Shuffle):
    """One order of all pixels."""

    least = 0

    seed: int = 0
    """Seed of the order."""

    def build(self, shape: Shape) -> Transform:
        return ShufflePixels(shape, self.seed)


@register("local")
@dataclass(frozen=True)
class LocalShuffle(PositiveCounts, Shuffle):
    """An order of the patches, and an order of the pixels in a patch, the same for each patch."""

    least = 0

    seed: int = 0
    """Seed of both orders."""
    patch: int = 4
    """Side of the patches, at least 1; it divides the images' sides."""

    def build(self, shape: Shape) -> Transform:
        return ShufflePixels(shape, self.seed, self.patch)
