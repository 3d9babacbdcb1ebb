"""Whether a tensor's rows can go through kernels now, and through which."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mixerflow.kernels.library import BuildError, library
from mixerflow.kernels.plan import Where

_off = os.environ.get("MIXERFLOW_KERNELS", "1").lower() in ("0", "false", "no", "off")
_interpreted = False
_CAPABILITY = (8, 0)
"""The least that has bfloat16 matrix units."""


@contextmanager
def disabled() -> Iterator[None]:
    """Run operator by operator for the time of a ``with``: to compare, or to look inside."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


@contextmanager
def interpreted() -> Iterator[None]:
    """Run the GPU's kernels in Triton's interpreter, for rows on the CPU: to check them, slowly.

    Raises:
        RuntimeError: ``TRITON_INTERPRET=1`` was not set when they were first used.
    """
    global _interpreted
    from mixerflow.kernels.gpu.launch import INTERPRETED

    if not INTERPRETED:
        raise RuntimeError("set TRITON_INTERPRET=1 before the first use of the GPU's kernels")
    before, _interpreted = _interpreted, True
    try:
        yield
    finally:
        _interpreted = before


def where(x: Tensor) -> Where:
    """Whose kernels rows like `x` go through, if any."""
    return "gpu" if _interpreted or x.device.type != "cpu" else "cpu"


def is_low(x: Tensor) -> bool:
    """Whether nets that read `x` compute in lower precision now: autocast's."""
    return torch.is_autocast_enabled(x.device.type)


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


@functools.cache
def _no_gpu(device: torch.device) -> str | None:
    """Why the GPU's kernels cannot run on a device at all."""
    if importlib.util.find_spec("triton") is None:
        return "the GPU's kernels need the package triton"
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < _CAPABILITY:
        return f"the GPU's kernels need an NVIDIA GPU of compute capability {_CAPABILITY[0]}"
    return None


def unsupported_reason(x: Tensor) -> str | None:
    """Why rows like `x` cannot go through the kernels, or None if they can."""
    if _off:
        return "kernels are switched off"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "the model is being compiled"
    device = x.device.type
    if type(x) not in (Tensor, nn.Parameter) or device not in ("cpu", "cuda"):
        return f"kernels take plain tensors on the CPU or a GPU, not {type(x).__name__} on {device}"
    if x.dtype != torch.float32:
        return f"kernels take float32, not {x.dtype}"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need operators"
    if forward_ad._current_level >= 0 or _get_current_dispatch_mode() is not None:
        return "forward-mode differentiation and dispatch modes need operators"
    return _why_not_cpu(x) if where(x) == "cpu" else _why_not_gpu(x)


def _why_not_cpu(x: Tensor) -> str | None:
    return "the conditioner runs in lower precision" if is_low(x) else _build_error()


def _why_not_gpu(x: Tensor) -> str | None:
    if is_low(x) and torch.get_autocast_dtype(x.device.type) != torch.bfloat16:
        return "the GPU's kernels know float32 and bfloat16 conditioners"
    if x.numel() >= 2**31:
        return "more than 2^31 numbers in a batch"
    return None if _interpreted else _no_gpu(x.device)
