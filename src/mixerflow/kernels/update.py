"""Adam's step on many float32 tensors, with the norm of their gradients and their moving average.

Run operator by operator these pass over memory four times, tensor by tensor, and a flow has
thousands of small tensors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixerflow.kernels.library import library

_LEAST = 2**20
"""Numbers from which on several threads are quicker than one."""
_ARRAYS = ("p", "gradient", "first", "second", "average", "step", "numbers", "lr", "decay")


class _Update(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("count", "threads")),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_double) for name in ("scale", "beta1", "beta2", "eps", "share")),
    ]


def addresses(tensors: Sequence[Tensor | None]) -> np.ndarray:
    """Return where tensors lie in memory ``(count,)``, 0 for None."""
    return np.array([0 if t is None else t.data_ptr() for t in tensors], np.uintp)


@dataclass(frozen=True)
class Moments:
    """Adam's state of a parameter: the two means, and the steps taken, float32 ``()``."""

    first: Tensor
    second: Tensor
    step: Tensor


class Update:
    """Parameters with their averages and moments, whose places in memory stay the same.

    Args:
        parameters: float32 tensors on the CPU, each in one piece.
        averages: the averaged copy of each, or None.
        moments: Adam's state of each, or None for one that Adam leaves as it is.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        averages: Sequence[Tensor | None],
        moments: Sequence[Moments | None],
    ) -> None:
        self._held = (parameters, averages, moments)  # so that no address becomes another's
        states = [(None,) * 3 if m is None else (m.first, m.second, m.step) for m in moments]
        first, second, step = zip(*states, strict=True)
        self._arrays = {
            "p": addresses(parameters),
            "first": addresses(first),
            "second": addresses(second),
            "average": addresses(averages),
            "step": addresses(step),
            "numbers": np.array([p.numel() for p in parameters], np.dtype(ctypes.c_long)),
            "gradient": np.zeros(len(parameters), np.uintp),
            "lr": np.zeros(len(parameters)),
            "decay": np.zeros(len(parameters)),
        }
        self._sums = np.zeros(len(parameters))
        large = sum(p.numel() for p in parameters) >= _LEAST
        self._threads = None if large else 1

    def norm(self, gradients: Sequence[Tensor | None]) -> float:
        """Set the gradients of the step; return the norm of all of them together."""
        self._gradients = gradients
        self._arrays["gradient"] = addresses(gradients)
        self._call("squares", ctypes.c_void_p(self._sums.ctypes.data))
        return float(np.sqrt(self._sums.sum()))

    def step(
        self,
        *,
        lr: np.ndarray,
        decay: np.ndarray,
        betas: tuple[float, float],
        eps: float,
        scale: float,
        share: float,
    ) -> None:
        """Change the parameters with moments by the gradients that `norm` was given, then averages.

        Args:
            lr: the learning rate of each parameter ``(count,)``.
            decay: the decoupled weight decay of each, in units of its learning rate.
            betas: the decay rates of the two means.
            eps: what is added to the root of the second mean.
            scale: what the gradients are multiplied by first.
            share: the weight of the parameter in its average.
        """
        self._arrays |= {"lr": np.ascontiguousarray(lr), "decay": np.ascontiguousarray(decay)}
        self._call("update", scale=scale, beta1=betas[0], beta2=betas[1], eps=eps, share=share)
        self._gradients = ()

    def _call(self, name: str, *more: ctypes.c_void_p, **settings: float) -> None:
        pointers = {name: array.ctypes.data for name, array in self._arrays.items()}
        update = _Update(
            count=len(self._sums),
            threads=self._threads or torch.get_num_threads(),
            **pointers,
            **settings,
        )
        getattr(library(torch.float32), name)(ctypes.byref(update), *more)
