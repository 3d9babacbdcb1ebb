"""An exponential moving average of the weights, with batch-norm statistics of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise
from mixerflow.training.parallel import local


class Average:
    """A copy of a flow whose weights are a moving average of the flow's.

    Early on the decay is lower, ``min(decay, (1 + n) / (10 + n))`` after n updates, so that the
    initial weights do not linger.

    Args:
        flow: the flow that trains.
        decay: weight of the past; 0 means no average: the copy follows the flow.
    """

    def __init__(self, flow: Flow, decay: float) -> None:
        self.decay = decay
        self.flow = copy.deepcopy(flow).eval().requires_grad_(False)
        self._source = flow

    def share(self, step: int) -> float:
        """How much of the flow's weights the average takes in after step `step` (from 0)."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the flow's weights after step `step` (from 0)."""
        # listed anew: sharding replaces parameters; one call for thousands of small tensors
        mine = [local(p) for p in self.flow.parameters()]
        theirs = [local(p) for p in self._source.parameters()]
        torch._foreach_lerp_(mine, theirs, self.share(step))  # pyright: ignore[reportPrivateImportUsage]


def batch_norms(flow: nn.Module) -> list[nn.BatchNorm1d]:
    """The batch-norm modules of a flow, in its conditioners or between its layers."""
    return [module for module in flow.modules() if isinstance(module, nn.BatchNorm1d)]


@torch.no_grad()
def recalibrate(flow: Flow, batches: Iterable[tuple[Tensor, Tensor | None, Noise]]) -> None:
    """Give averaged weights the batch-norm statistics that fit them: the mean over `batches`.

    Each is images, labels or None, and their noise: no generator moves. Does nothing for a flow
    without batch norm.
    """
    norms = batch_norms(flow)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for x, labels, noise in batches:
        flow(x, labels, noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
