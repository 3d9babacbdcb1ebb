"""Precision of what must not be rounded to 16 bits.

These are written so that tracing sees nothing where nothing is to be done: in an export, a switch
of autocast is a graph of its own, and ``torch.promote_types`` an operator.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off in a ``with`` on the device of `like`, if it is on."""
    device = like.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or in float64 if it is."""
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
