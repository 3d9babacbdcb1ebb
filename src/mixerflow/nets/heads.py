"""Classifiers of latents: plain modules from ``z (B, D)`` to a score of each class ``(B, K)``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.conv import convolution
from mixerflow.registry import register


def _pieces(shapes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in shapes)


class _Scores(nn.Module):
    """``W f / sqrt(F) + b`` of features ``(B, F)``, from ``W = 0, b = 0``.

    A step of Adam changes each entry of W by about the learning rate, whatever F. Divided by
    sqrt(F), thousands of latents move a score no faster than ten do.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, features))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, features: Tensor) -> Tensor:
        width = math.sqrt(features.shape[1])
        return nn.functional.linear(features / width, self.weight, self.bias)


@register
class LinearClassifier(nn.Module):
    """``scores = W z / sqrt(D) + b``: one linear layer on all latents.

    Args:
        dims: D.
        classes: K.
    """

    def __init__(self, dims: int, classes: int) -> None:
        super().__init__()
        self.scores = _Scores(dims, classes)

    def forward(self, z: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch classes"]:
        return self.scores(z)


@register
class MeanClassifier(nn.Module):
    """A linear layer on the spatial mean of the last scale's latents, as Glow's classifier has it.

    Squares with a side of `patch` pixels become channels first. The mean over n places is
    multiplied by ``sqrt(n)``: independent latents of variance 1 stay such.

    Args:
        shapes: the latent's pieces, ``(C, *spatial)`` each, whose flattened values are z in order.
        classes: K.
        patch: side of the squares; it must divide the sides of the last piece.

    Raises:
        ValueError: latents without places, or sides that `patch` does not divide.

    Reference: Kingma, Dhariwal, Glow (2018), https://github.com/openai/glow.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], classes: int, patch: int = 1) -> None:
        super().__init__()
        *_, (channels, *spatial) = self.shapes = _pieces(shapes)
        if not spatial or any(side % patch for side in spatial):
            raise ValueError(f"MeanClassifier: patch={patch} does not divide the sides {spatial}")
        self.patch = patch
        self.scores = _Scores(channels * patch ** len(spatial), classes)

    def forward(self, z: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch classes"]:
        channels, *spatial = self.shapes[-1]
        last = z[:, -channels * math.prod(spatial) :].unflatten(1, (channels, *spatial))
        for axis, side in reversed(list(enumerate(spatial, 2))):
            last = last.unflatten(axis, (side // self.patch, self.patch))
        places = range(2, last.dim(), 2)
        count = math.prod(last.shape[axis] for axis in places)
        return self.scores(last.sum(tuple(places)).flatten(1) / math.sqrt(count))


@register
class ScalesClassifier(nn.Module):
    """Features of every scale, as Residual Flow: ``scores = W concat_s mean(relu(conv3(y_s)))``.

    Departs from the paper: no ActNorm after the convolutions, which have a bias instead.

    Args:
        shapes: the latent's pieces y, ``(C, *spatial)`` each, whose flattened values are z in
            order; a flow of one scale has one.
        classes: K.
        width: channels of each convolution.

    Raises:
        ValueError: pieces with no or more than three spatial axes.

    Reference: Chen et al., Residual flows for invertible generative modeling (2019), section 5.4,
        arXiv:1906.02735.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], classes: int, width: int = 256) -> None:
        super().__init__()
        self.shapes = _pieces(shapes)
        self._lengths = [math.prod(shape) for shape in self.shapes]
        self.convolutions = nn.ModuleList(
            convolution(len(shape) - 1, shape[0], width, 3) for shape in self.shapes
        )
        for each in self.convolutions:
            nn.init.kaiming_normal_(each.weight, nonlinearity="relu")  # pyright: ignore
            nn.init.zeros_(each.bias)  # pyright: ignore
        self.scores = _Scores(width * len(self.shapes), classes)

    def forward(self, z: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch classes"]:
        pieces = z.split(self._lengths, 1)
        means = [
            convolve(piece.unflatten(1, shape)).relu().flatten(2).mean(2)
            for convolve, piece, shape in zip(self.convolutions, pieces, self.shapes, strict=True)
        ]
        return self.scores(torch.cat(means, 1))
