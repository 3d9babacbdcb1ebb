"""Base classes of conditioners: checks of inputs, contexts, the squash, a start at 0."""

from __future__ import annotations

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
RowsIn = Float[Tensor, "rows in"]
RowsOut = Float[Tensor, "rows out"]
RowContext = Float[Tensor, "rows k"] | None
"""The input, the output and the context of a conditioner of rows."""


def squash(x: Tensor) -> Tensor:
    """``sign(x) log(1 + |x|)``: the same as x near 0, and logarithmic for large ``|x|``.

    A pixel that is almost always 0 comes to be scaled by hundreds. On the first image where the
    pixel is not 0, a net that reads x itself gives a log-scale whose exponential overflows.
    """
    return x.sign() * x.abs().log1p()


def zeroed(module: M) -> M:
    """Return the module with all of its parameters set to 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def context_map(length: int, width: int) -> nn.Linear | None:
    """The linear map C of contexts of that length; None for length 0, a net without a context."""
    return nn.Linear(length, width, bias=False) if length else None


class Conditioner(nn.Module):
    """Base of the nets: checks the shape of events, and adds ``C c`` of a context c.

    Constructors of subclasses have these arguments in common:

    - in_features, out_features: length of the vectors ``(rows, in_features)``, and of the output;
    - width: length of the hidden vectors;
    - norm: norm of the hidden vectors, see `mixerflow.nets.norm_of`. Batch norm couples the rows of
      a training batch: figures computed in training mode are then no likelihoods;
    - squash: whether the net reads ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`, or
      x itself;
    - context: length K of the contexts ``(rows, K)``, 0 for none.
    """

    context: nn.Module | None
    """The map C; None for a net that reads no context."""
    late: tuple[str, ...] = ()
    """Names of parameters that may stay as they are for the first epochs of training."""

    def require_vectors(self, x: Tensor, length: int) -> None:
        """Raise a ValueError unless x is ``(rows, length)``."""
        if x.dim() != 2 or x.shape[1] != length:
            name = type(self).__name__
            raise ValueError(f"{name}: reads events {(length,)}; got {tuple(x.shape[1:])}")

    def require_context(self, context: Tensor | None) -> Tensor:
        """Return the context; raise a ValueError where there is none."""
        if context is None:
            raise ValueError(f"{type(self).__name__}: built for a context, and got none")
        return context

    def add_context(self, h: Tensor, context: Tensor | None) -> Tensor:
        """``h + C c``; h itself where the net reads no context."""
        if self.context is None:
            return h
        return h + self.context(self.require_context(context))


class ConcatenatingNet(Conditioner):
    """Base of the nets that read a vector (squashed or not) and its context as one vector."""

    def __init__(self, in_features: int, context: int, *, squash: bool) -> None:
        super().__init__()
        self.in_features, self.context_length, self.squash = in_features, context, squash

    def concatenate(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Return ``(rows, in_features + K)``."""
        self.require_vectors(x, self.in_features)
        x = squash(x) if self.squash else x
        if not self.context_length:
            return x
        return torch.cat([x, self.require_context(context).to(x.dtype)], 1)
