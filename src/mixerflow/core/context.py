"""What a conditional flow is given beside its images: classes, vectors, or what its net takes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from mixerflow.core.inputs import class_numbers
from mixerflow.registry import register

_CONSTANT = 1e-6
"""A standard deviation, relative to the largest value, below which a number counts as constant."""


@register
class VectorNet(nn.Module):
    """``c = W_d h_d + b_d;  h_{i+1} = gelu(W_i h_i + b_i);  h_0 = (y - mean) / std``.

    It makes contexts ``(B, width)`` of vectors y ``(B, length)``, in the units of the data.
    `initialize` takes the mean and the standard deviation of each number from training data; until
    then they are 0 and 1. A number that is constant there keeps a standard deviation of 1. Both are
    buffers, which files of weights contain.

    Args:
        length: K, the length of a vector.
        width: length of a context.
        hidden: width of the hidden layers.
        depth: number of hidden layers; with 0 the net is an affine map.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, length: int, width: int, *, hidden: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.length, self.width = length, width
        sizes = [length, *[hidden] * depth, width]
        self.maps = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        for linear in self.maps:  # contexts of size 1, as those of classes are
            nn.init.kaiming_normal_(linear.weight)  # pyright: ignore[reportArgumentType]
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("std", torch.ones(length))

    def forward(self, vectors: Tensor) -> Float[Tensor, "batch width"]:
        h = (vectors.to(self.mean) - self.mean) / self.std
        for number, linear in enumerate(self.maps):
            h = linear(gelu(h) if number else h)
        return h

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Set mean and standard deviation to those of vectors ``(N, length)``."""
        wide = vectors.double()
        mean, std = wide.mean(0), wide.std(0, correction=0)
        constant = std <= _CONSTANT * wide.abs().amax(0)
        self.mean.copy_(mean)
        self.std.copy_(std.masked_fill(constant, 1.0))


def checked_context(net: nn.Module, context: Tensor) -> Tensor:
    """Return what users give as context ``(B, ...)`` as the net takes it.

    Class numbers become int64. A ValueError refuses numbers that are no classes, and vectors of
    another length or with values that are not finite. What a net of your own takes is not checked.
    """
    if isinstance(net, nn.Embedding):
        return class_numbers(context, net.num_embeddings)
    if not isinstance(net, VectorNet):
        return context
    if context.dim() != 2 or context.shape[1] != net.length:
        raise ValueError(f"contexts are vectors (B, {net.length}); got {tuple(context.shape)}")
    if not torch.compiler.is_compiling() and not bool(context.isfinite().all()):
        raise ValueError("contexts must be finite; got NaN or infinity")
    return context


def for_all(net: nn.Module | None, context: Tensor, n: int) -> Tensor:
    """Return contexts ``(n, ...)`` of one entry for all images; what has a batch axis as it is."""
    axes = 1 if isinstance(net, VectorNet) else 0
    return context.expand(n, *context.shape) if context.dim() == axes else context


def example_context(net: nn.Module, batch: int) -> Tensor | None:
    """Return contexts that a net of classes or vectors takes; None for a net of your own."""
    if isinstance(net, nn.Embedding):
        return torch.zeros(batch, dtype=torch.int64)
    return torch.zeros(batch, net.length) if isinstance(net, VectorNet) else None
