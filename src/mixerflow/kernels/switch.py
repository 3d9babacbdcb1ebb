"""Whether a tensor's rows can go through the kernels now."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mixerflow.kernels.library import BuildError, library

_off = os.environ.get("MIXERFLOW_KERNELS", "1").lower() in ("0", "false", "no", "off")


@contextmanager
def disabled() -> Iterator[None]:
    """Run operator by operator for the time of a ``with``: to compare, or to look inside."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


@functools.cache
def _build_error() -> str | None:
    try:
        library(torch.float32)
    except BuildError as error:
        said = str(error)
        warnings.warn(
            f"mixerflow runs operator by operator, two to three times slower: its CPU kernels "
            f"could not be built ({said})",
            RuntimeWarning,
            stacklevel=2,
        )
        return said
    return None


def why_not(x: Tensor) -> str | None:
    """Why rows like `x` cannot go through the kernels, or None if they can."""
    if _off:
        return "kernels are switched off"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "the model is being compiled"
    if type(x) not in (Tensor, nn.Parameter) or x.device.type != "cpu" or x.dtype != torch.float32:
        return f"kernels take float32 on the CPU, not {x.dtype} on {x.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "the conditioner runs in lower precision"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need operators"
    if forward_ad._current_level >= 0 or _get_current_dispatch_mode() is not None:
        return "forward-mode differentiation and dispatch modes need operators"
    return _build_error()
