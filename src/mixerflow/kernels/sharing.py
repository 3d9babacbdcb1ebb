"""Batch norm's sums over the rows of several processes, from inside a kernel."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from mixerflow.processes import Processes

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_double), ctypes.c_long, ctypes.c_long)
_MOMENTS = 0


class Sharing:
    """What a kernel calls with its own rows' numbers to get those of all processes' rows.

    C cannot pass an exception on: it is kept, nothing is sent any more, and `check` raises it once
    the kernel is back.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.error: BaseException | None = None
        self.callback = _CALLBACK(self._share)

    def check(self) -> None:
        """Raise what went wrong."""
        if self.error is not None:
            raise self.error

    def _share(self, numbers: Any, count: int, kind: int) -> None:  # noqa: ANN401
        if self.error is not None:
            return
        try:
            own = torch.frombuffer((ctypes.c_double * count).from_address(
                ctypes.addressof(numbers.contents)), dtype=torch.float64)  # fmt: skip
            if kind == _MOMENTS:
                own.copy_(_together(self.processes.gather(own)))
            else:
                own.copy_(self.processes.sum(own))
        except BaseException as error:
            self.error = error


def _together(each: Tensor) -> Tensor:
    """Counts, means and summed squares of parts ``(world, 1 + 2 H)`` as those of the whole."""
    counts, means, squares = each[:, :1], *each[:, 1:].chunk(2, 1)
    rows = counts.sum(0)
    mean = (counts * means).sum(0) / rows
    return torch.cat((rows, mean, (squares + counts * (means - mean).square()).sum(0)))
