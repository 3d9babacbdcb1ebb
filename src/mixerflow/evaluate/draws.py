"""Log-likelihoods of many passes over images, summed for each, in float64 and constant memory.

A pass has a number. It stands for a draw of the noise that a density is a function of (`Draws`), or
for a probe of an estimate of the density (`Estimates`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, Noise, as_tensor, evaluating
from mixerflow.processes import SINGLE, Processes

MARKS = tuple(10**power for power in range(10))
"""Numbers of draws after which a sum is kept besides: the bounds at 1, 10, 100, ... draws."""


@dataclass(eq=False)
class Passes(ABC):
    """How many passes each image has so far, and what is kept of their log-likelihoods.

    Pass k of an image is the same in every evaluation with the same seed, so that the first n
    passes of a longer evaluation are a shorter one. All fields are arrays ``(..., N)``.

    Attributes:
        count: passes done ``(N,)`` int64.
    """

    count: np.ndarray

    @classmethod
    @abstractmethod
    def none(cls, images: int) -> Self:
        """Return the state before the first pass."""

    @staticmethod
    @abstractmethod
    def noise(seed: int, keys: Tensor, number: int) -> Noise:
        """Return the noise of the pass of this number, for images of these keys ``(B,)``."""

    @abstractmethod
    def add(self, rows: np.ndarray, log_probs: np.ndarray) -> None:
        """Add the log-likelihoods, in nats, of one pass over each of the images `rows`."""

    def __len__(self) -> int:
        return len(self.count)

    def merge(self, other: Self) -> None:
        """Take over the images of which `other` has more passes; both are of the same passes."""
        more = other.count > self.count
        for name, mine in self.arrays().items():
            mine[..., more] = other.arrays()[name][..., more]

    def share(self, mine: np.ndarray, processes: Processes) -> None:
        """Give all processes the images for which `mine` ``(N,)`` is True in one process."""
        for array in self.arrays().values():
            own = torch.from_numpy(np.where(mine, array, 0))
            array[...] = processes.sum(own).numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name, as a file keeps them."""
        return vars(self)


@dataclass(eq=False)
class Draws(Passes):
    """The draws of each image so far, and the log of their summed likelihoods, in nats.

    With the weight of draw k ``log w_k = log p(x, noise_k)``, as `Flow.log_prob` gives it, the sum
    after n draws is ``log sum_{k<n} w_k``.

    Attributes:
        sums: the sum over the draws ``(N,)`` float64; -inf before the first.
        marks: the sums after each number of draws in `MARKS` ``(10, N)``; NaN before.
    """

    sums: np.ndarray
    marks: np.ndarray

    @classmethod
    def none(cls, images: int) -> Draws:
        marks = np.full((len(MARKS), images), math.nan)
        return cls(np.zeros(images, np.int64), np.full(images, -math.inf), marks)

    @staticmethod
    def noise(seed: int, keys: Tensor, number: int) -> Noise:
        return Noise(seed, keys, draw=number)

    def add(self, rows: np.ndarray, log_probs: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):  # a NaN stays NaN, and is the caller's to judge
            self.sums[rows] = np.logaddexp(self.sums[rows], log_probs)
        self.count[rows] += 1
        for number, mark in zip(MARKS, self.marks, strict=True):
            reached = rows[self.count[rows] == number]
            mark[reached] = self.sums[reached]

    def log_mean(self, number: int) -> np.ndarray:
        """Return ``log (1/n sum_{k<n} w_k)`` ``(N,)`` for all n draws, or for an n of `MARKS`."""
        sums = self.sums if (self.count == number).all() else self.marks[MARKS.index(number)]
        return sums - math.log(number)


@dataclass(eq=False)
class Estimates(Passes):
    """The estimates of each image's ``log p`` so far: their sum and their scatter, in nats.

    Each has a probe of its own and the same noise otherwise: the first draw of the dequantiser. Its
    expectation is ``log p(x, noise_0)``, so that the mean of several estimates has it too. The
    mean of their exponentials has not: it would overstate p.

    Attributes:
        sums: the sum over the probes ``(N,)`` float64.
        squares: the sum of the squared differences from the mean ``(N,)`` float64.
    """

    sums: np.ndarray
    squares: np.ndarray

    @classmethod
    def none(cls, images: int) -> Estimates:
        return cls(np.zeros(images, np.int64), np.zeros(images), np.zeros(images))

    @staticmethod
    def noise(seed: int, keys: Tensor, number: int) -> Noise:
        return Noise(seed, keys, probe=number)

    def add(self, rows: np.ndarray, log_probs: np.ndarray) -> None:
        count, sums = self.count[rows], self.sums[rows]
        with np.errstate(invalid="ignore"):  # a NaN stays NaN, and is the caller's to judge
            # Welford's update: no difference of large squares
            before = log_probs - sums / np.maximum(count, 1)
            after = log_probs - (sums + log_probs) / (count + 1)
            self.squares[rows] += np.where(count > 0, before * after, 0.0)
        self.sums[rows] += log_probs
        self.count[rows] += 1

    def means(self) -> np.ndarray:
        """Return the mean over the probes ``(N,)``."""
        return self.sums / self.count

    def error(self) -> float:
        """Return the standard error of the mean over images and probes that the probes cause.

        ``sqrt(sum_i s_i^2 / R) / N``, where ``s_i^2`` is the sample variance between the R probes
        of image i; NaN for a single probe. Probes of different images are independent.
        """
        if (self.count < 2).any():
            return math.nan
        variances = self.squares / (self.count - 1) / self.count
        return math.sqrt(variances.sum()) / len(self)


@torch.no_grad()
def advance(
    flow: Flow,
    images: np.ndarray | Tensor,
    passes: Passes,
    *,
    until: int,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 128,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE,
) -> None:
    """Go on with `passes`, equal in all processes, until each image has `until` of them.

    The arguments are those of `bits`. `on_batch` is called by all processes after each pass over a
    batch; it may raise an error, which leaves whole passes, in this process those of its own
    images.
    """
    finished = passes.count == until
    mine = finished & processes.main
    left = np.argsort(passes.count, kind="stable")  # images with equally many passes share a batch
    left = left[~finished[left]]
    size = batch * processes.world
    with evaluating(flow) as scored:
        for start in range(0, len(left), size):
            block = left[start : start + size]
            own = block[processes.share(len(block))]
            mine[own] = True
            x, begun = as_tensor(images[own]), passes.count[block]
            context = None if labels is None else as_tensor(labels[own])
            keys, x = Noise.of(seed, x).keys, x.to(flow.device)
            # with sharded layers all processes must call the flow alike, if need be with no images
            for number in range(begun.min(), until):
                due = passes.count[own] == number
                part = torch.from_numpy(due)
                given = None if context is None else context[part]
                noise = passes.noise(seed, keys[part], number)
                log_prob = scored.log_prob(x[part.to(x.device)], given, noise)
                passes.add(own[due], log_prob.double().cpu().numpy())
                if on_batch is not None:
                    on_batch(int((begun <= number).sum()))
    passes.share(mine, processes)
