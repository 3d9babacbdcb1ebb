"""Heads as values: how a model tells the class of an image from its latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from mixerflow.core import ClassGaussians, Shape
from mixerflow.nets import LinearClassifier, MeanClassifier, ScalesClassifier
from mixerflow.registry import register


@dataclass(frozen=True)
class Head:
    """A classifier of latents.

    Fewer than two classes are a ValueError.
    """

    classes: int | None = None
    """Number of classes; None for as many as the training images have."""

    def __post_init__(self) -> None:
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"{type(self).__name__}: classes must be at least 2")

    def build(self, shapes: Sequence[Shape]) -> nn.Module:
        """Return the net from z ``(B, D)`` to scores ``(B, K)``, or a `Base` that has scores.

        Args:
            shapes: the latent's pieces, whose flattened values are z in order.
        """
        raise NotImplementedError

    def count(self) -> int:
        """Return the number of classes; a ValueError where it is not known."""
        if self.classes is None:
            raise ValueError("head: the number of its classes is not known without images")
        return self.classes


@register("linear")
@dataclass(frozen=True)
class LinearHead(Head):
    """One linear layer on all latents."""

    def build(self, shapes: Sequence[Shape]) -> nn.Module:
        return LinearClassifier(sum(map(math.prod, shapes)), self.count())


@register("mean")
@dataclass(frozen=True)
class MeanHead(Head):
    """A linear layer on the spatial mean of the last scale's latents."""

    patch: int = 1
    """Side of the squares that become channels before the mean."""

    def build(self, shapes: Sequence[Shape]) -> nn.Module:
        return MeanClassifier(shapes, self.count(), self.patch)


@register("scales")
@dataclass(frozen=True)
class ScalesHead(Head):
    """A convolution and a mean over the latents of each scale, and a linear layer on all means."""

    width: int = 256
    """Channels of each convolution."""

    def build(self, shapes: Sequence[Shape]) -> nn.Module:
        return ScalesClassifier(shapes, self.count(), self.width)


@register("gaussians")
@dataclass(frozen=True)
class GaussiansHead(Head):
    """A Gaussian of the latents for each class, in place of one for all: FlowGMM's classifier."""

    distance: float = 10.0
    """Distance between two means at the start, in expectation, in standard deviations."""
    learned: bool = True
    """Whether the means are learned; FlowGMM's stay where they are."""

    def build(self, shapes: Sequence[Shape]) -> nn.Module:
        dims = sum(map(math.prod, shapes))
        return ClassGaussians(dims, self.count(), self.distance, learned=self.learned)
