"""Batch statistics: mean and variance of rows that processes share, and running averages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.errors import ConfigError
from mixerflow.processes import SINGLE, Processes

Entries = tuple[nn.Parameter, slice]
"""A parameter, and a part of it along its first axis.

A module's ``idle()`` yields those whose gradient is 0 in training mode, whatever the values of all
parameters, because a norm of batches or a softmax removes what they add. The ``constants()`` of a
transform are those that only add a constant to each feature of its output.
"""
ALL = slice(None)
Saved = Any
"""The `ctx` of an autograd function, which takes any attribute from `forward` to `backward`."""


def shared_moments(rows: Tensor, processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance ``(width,)`` over the rows of all processes, and the number of rows.

    ``rows`` ``(rows, width)`` are this process's own; the variance is the mean squared deviation.
    The processes' means and variances are combined as in Chan, Golub, LeVeque (1979), without a
    difference of large squares, by one message.
    """
    variance, mean = torch.var_mean(rows, 0, correction=0)
    own = torch.stack([torch.full_like(mean, len(rows)), mean, variance])
    counts, means, variances = processes.gather(own).unbind(1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean).square())).sum(0) / count
    return mean, variance, count


class TooFewRowsError(ConfigError, ValueError):
    """A batch with which batch norm has no variance."""


def require_rows(rows: int) -> None:
    """Raise a TooFewRowsError unless there are two rows, which have a variance."""
    if rows < 2:
        what = f"batch norm needs more than 1 value a feature for their variance, and got {rows}"
        remedy = "train on 2 or more images at a time, use norm rms or layer, or call eval()"
        raise TooFewRowsError(what, "--train.batch", remedy)


class RunningMoments(nn.BatchNorm1d):
    """Batch norm's running averages.

    Attributes:
        update: whether a forward pass in training mode moves the running averages. Code that runs a
            batch a second time (recomputation in the backward pass) sets it to False for that run,
            so that each batch counts once.
        processes: the processes that share a batch: mean and variance are those of all its rows.
    """

    update: bool = True
    processes: Processes = SINGLE

    @torch.no_grad()
    def move(self, mean: Tensor, variance: Tensor, rows: Tensor | int) -> None:
        """Move the running averages to a batch's mean and unbiased variance, as torch does."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (rows / (rows - 1))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(unbiased.to(self.running_var), share)
