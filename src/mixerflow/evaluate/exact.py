"""What exact log-dets cost where a flow estimates them, and whether that is within reason.

A transform of n numbers takes n passes backward for each event, and a matrix ``(n, n)`` whose
determinant takes n^3 operations. An estimate takes some ten passes, whatever n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixerflow.core import Composite, Context, Flow, Noise, Transform, evaluating, is_estimated
from mixerflow.errors import ConfigError

LARGEST = 1024
"""Numbers of an event up to which exact log-dets are within reason: a grey image of 32 x 32."""
_MEMORY = 2**29
"""Bytes that a batch may take for its passes backward and its matrices."""


@dataclass(frozen=True)
class ExactCost:
    """What the exact log-dets of a flow take.

    Attributes:
        numbers: n, the most numbers of an event of a transform that estimates; 0 without any.
        bytes: memory of one image, about.
    """

    numbers: int
    bytes: int

    @property
    def batch(self) -> int:
        """Images at a time that half a gigabyte holds; at least 1."""
        return max(1, _MEMORY // max(self.bytes, 1))


@torch.no_grad()
def exact_cost(flow: Flow, image: Tensor, context: Context = None) -> ExactCost:
    """Return what `Flow.exact` of a flow costs, from one pass of `image` ``(1, *shape)``.

    Hooks on the flow's transforms see their events; they are removed at the end.
    """
    found, handles = [ExactCost(0, 0)], []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        found.append(_cost(module, given[0]))

    with evaluating(flow) as still:
        for part in still.modules():
            estimates = isinstance(part, Transform) and is_estimated(part.density)
            if estimates and not isinstance(part, Composite):
                handles.append(part.register_forward_pre_hook(look))
        try:
            still.log_prob(image, context, Noise.of(0, image))
        finally:
            for handle in handles:
                handle.remove()
    return ExactCost(max(each.numbers for each in found), max(each.bytes for each in found))


def _cost(transform: nn.Module, x: Tensor) -> ExactCost:
    """Return the cost of one transform of the rows ``(rows, *event)`` of one image."""
    n, places = math.prod(x.shape[1:]), math.prod(x.shape[2:])
    shapes = [p.shape for p in transform.parameters() if p.dim() > 1]
    widest = max([n, *(shape[0] * (places if len(shape) > 2 else 1) for shape in shapes)])
    # gradients before and after a layer for each of n passes; the matrix and its factors
    return ExactCost(n, len(x) * n * (3 * widest + 4 * n) * x.element_size())


def require_small(cost: ExactCost) -> None:
    """Raise a ConfigError for a flow whose exact log-dets are not within reason."""
    if cost.numbers > LARGEST:
        what = f"exact log-dets of {cost.numbers:,} numbers take as many passes for each image"
        remedy = f"it is for at most {LARGEST:,}: raise --probes in its place"
        raise ConfigError(what, "--exact", remedy)
