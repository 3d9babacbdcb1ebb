"""Contractions of images as values: nets with a Lipschitz constant below 1."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import nn

from mixerflow.core import Shape
from mixerflow.nets import (
    CLipSwish,
    LipELU,
    LipschitzConvNet,
    LipschitzDense,
    LipschitzDenseConv,
    LipschitzMLP,
    LipSwish,
)
from mixerflow.parts.base import Part, PositiveCounts
from mixerflow.registry import register

ActivationName = Literal["lipswish", "concatenated-lipswish", "elu"]
_ACTIVATIONS = dict(zip(get_args(ActivationName), (LipSwish, CLipSwish, LipELU), strict=True))


@dataclass(frozen=True, kw_only=True)
class Contraction(PositiveCounts, Part):
    """A contraction of images ``(C, *spatial)``, or of all of their numbers as one vector."""

    coefficient: float = 0.98
    """Lipschitz constant, below 1."""
    activation: ActivationName = "lipswish"
    """Activation: "lipswish", "concatenated-lipswish" or "elu"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation not in _ACTIVATIONS:
            what = f"one of {', '.join(_ACTIVATIONS)}; got {self.activation!r}"
            raise ValueError(f"{type(self).__name__}: activation must be {what}")

    def build(self, shape: Shape, *, context: int = 0, first: bool = False) -> nn.Module:
        """Return the net of events `shape`; `first` is that of a flow's first block."""
        raise NotImplementedError

    def made(self, *sizes: Any, **settings: Any) -> nn.Module:  # noqa: ANN401
        """Return the net with the activation that the value names."""
        return self.make(*sizes, **settings | {"activation": _ACTIVATIONS[self.activation]})


@register("convolution")
@dataclass(frozen=True)
class ConvContraction(Contraction):
    """Convolutions with an activation before each; before the first in later blocks alone."""

    makes = LipschitzConvNet

    width: int = 512
    """Hidden channels."""
    kernels: tuple[int, ...] = (3, 1, 3)
    """Sides of the kernels, odd; as many as there are convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.kernels) < 2 or any(side < 1 or side % 2 == 0 for side in self.kernels):
            what = f"kernels must be two or more odd sides; got {self.kernels}"
            raise ValueError(f"{type(self).__name__}: {what}")

    def build(self, shape: Shape, *, context: int = 0, first: bool = False) -> nn.Module:
        channels, *sides = shape
        return self.made(channels, tuple(sides), context=context, leading=not first)


@register("dense-convolution")
@dataclass(frozen=True)
class DenseConvContraction(Contraction):
    """Densely connected convolutions, and a 1x1 convolution back to the image's channels."""

    makes = LipschitzDenseConv

    width: int = 86
    """Channels that each layer adds, before a concatenated activation doubles them."""
    depth: int = 3
    """Layers."""
    kernel: int = 3
    """Side of the kernels, odd."""
    activation: ActivationName = field(default="concatenated-lipswish", kw_only=True)
    """Activation: "lipswish", "concatenated-lipswish" or "elu"."""

    def build(self, shape: Shape, *, context: int = 0, first: bool = False) -> nn.Module:
        channels, *sides = shape
        return self.made(channels, tuple(sides), context=context)


@register("vector")
@dataclass(frozen=True)
class VectorContraction(Contraction):
    """Linear maps of all numbers of the image, with an activation before each."""

    makes = LipschitzMLP

    width: int = 128
    """Hidden units."""
    depth: int = 2
    """Hidden layers."""

    def build(self, shape: Shape, *, context: int = 0, first: bool = False) -> nn.Module:
        n = math.prod(shape)
        return self.made(n, n, context=context, leading=not first)


@register("dense-vector")
@dataclass(frozen=True)
class DenseVectorContraction(Contraction):
    """Densely connected linear maps between one that narrows and one that widens."""

    makes = LipschitzDense

    width: int = 16
    """Units that each layer adds, before a concatenated activation doubles them."""
    depth: int = 3
    """Layers."""
    enter: int = 64
    """Units of the first map."""
    activation: ActivationName = field(default="concatenated-lipswish", kw_only=True)
    """Activation: "lipswish", "concatenated-lipswish" or "elu"."""

    def build(self, shape: Shape, *, context: int = 0, first: bool = False) -> nn.Module:
        n = math.prod(shape)
        return self.made(n, n, context=context)
