"""Log-likelihoods of noise draws, summed for each image, in float64 and in constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, Noise, as_tensor, evaluating
from mixerflow.processes import SINGLE, Processes

MARKS = tuple(10**power for power in range(10))
"""Numbers of draws after which a sum is kept besides: the bounds at 1, 10, 100, ... draws."""


@dataclass(eq=False)
class Draws:
    """The draws of each image so far, and the log of their summed likelihoods, in nats.

    With the weight of draw k ``log w_k = log p(x, noise_k)``, as `Flow.log_prob` gives it, the sum
    after n draws is ``log sum_{k<n} w_k``. Draw k of an image is the same in every evaluation with
    the same seed, so that the first n draws of a longer evaluation are a shorter one.

    Attributes:
        count: draws done ``(N,)`` int64.
        sums: the sum over them ``(N,)`` float64; -inf before the first.
        marks: the sums after each number of draws in `MARKS` ``(10, N)``; NaN before.
    """

    count: np.ndarray
    sums: np.ndarray
    marks: np.ndarray

    @classmethod
    def none(cls, images: int) -> Draws:
        """Return the state before the first draw."""
        marks = np.full((len(MARKS), images), math.nan)
        return cls(np.zeros(images, np.int64), np.full(images, -math.inf), marks)

    def __len__(self) -> int:
        return len(self.count)

    def add(self, rows: np.ndarray, log_weights: np.ndarray) -> None:
        """Add one draw to each of the images `rows`."""
        with np.errstate(invalid="ignore"):  # a NaN stays NaN, and is the caller's to judge
            self.sums[rows] = np.logaddexp(self.sums[rows], log_weights)
        self.count[rows] += 1
        for number, mark in zip(MARKS, self.marks, strict=True):
            reached = rows[self.count[rows] == number]
            mark[reached] = self.sums[reached]

    def log_mean(self, number: int) -> np.ndarray:
        """Return ``log (1/n sum_{k<n} w_k)`` ``(N,)`` for all n draws, or for an n of `MARKS`."""
        sums = self.sums if (self.count == number).all() else self.marks[MARKS.index(number)]
        return sums - math.log(number)

    def merge(self, other: Draws) -> None:
        """Take over the images of which `other` has more draws; both are of the same draws."""
        more = other.count > self.count
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            mine[..., more] = theirs[..., more]

    def share(self, mine: np.ndarray, processes: Processes) -> None:
        """Give all processes the images for which `mine` ``(N,)`` is True in one process."""
        for array in self._arrays():
            own = torch.from_numpy(np.where(mine, array, 0))
            array[...] = processes.sum(own).numpy()

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.count, self.sums, self.marks


@torch.no_grad()
def advance(
    flow: Flow,
    images: np.ndarray | Tensor,
    draws: Draws,
    *,
    until: int,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 128,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE,
) -> None:
    """Go on with `draws`, equal in all processes, until each image has `until` draws.

    The arguments are those of `bits`. `on_batch` is called by all processes after each draw of a
    batch; it may raise an error, which leaves whole draws, in this process those of its own images.
    """
    finished = draws.count == until
    mine = finished & processes.main
    left = np.argsort(draws.count, kind="stable")  # images with equally many draws share a batch
    left = left[~finished[left]]
    size = batch * processes.world
    with evaluating(flow) as scored:
        for start in range(0, len(left), size):
            block = left[start : start + size]
            own = block[processes.share(len(block))]
            mine[own] = True
            x, begun = as_tensor(images[own]), draws.count[block]
            context = None if labels is None else as_tensor(labels[own])
            keys, x = Noise.of(seed, x).keys, x.to(flow.device)
            # with sharded layers all processes must call the flow alike, if need be with no images
            for number in range(begun.min(), until):
                due = draws.count[own] == number
                part = torch.from_numpy(due)
                given = None if context is None else context[part]
                noise = Noise(seed, keys[part], draw=number)
                log_prob = scored.log_prob(x[part.to(x.device)], given, noise)
                draws.add(own[due], log_prob.double().cpu().numpy())
                if on_batch is not None:
                    on_batch(int((begun <= number).sum()))
    draws.share(mine, processes)
