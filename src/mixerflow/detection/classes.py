"""Class-conditional flows whose images come without a class: the mixture of the classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Flow


def is_mixture(flow: Flow) -> bool:
    """Whether a flow, given no labels, is the mixture of its classes."""
    return isinstance(flow.context_net, nn.Embedding)


def contexts(flow: Flow, context: Context, batch: int) -> list[Context]:
    """Return the contexts ``(B,)`` of all classes in turn if none is given; else the one given."""
    if context is not None or not isinstance(flow.context_net, nn.Embedding):
        return [context]
    return [torch.full((batch,), k) for k in range(flow.context_net.num_embeddings)]


def mixed(log_probs: Tensor) -> Tensor:
    """Return ``log 1/K sum_k p(x | k)`` ``(B,)`` of log-probabilities ``(K, B)``."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))
