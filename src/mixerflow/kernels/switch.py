"""Choice of the kernels that run a row flow: on the CPU, on a GPU, or none."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mixerflow.compiled import BuildError
from mixerflow.kernels import cpu
from mixerflow.kernels.library import library
from mixerflow.kernels.plan import Keep, Place, Plan, Where

_switched_off = os.environ.get("MIXERFLOW_KERNELS", "1").lower() in ("0", "false", "no", "off")
_off: ContextVar[bool] = ContextVar("kernels_off", default=_switched_off)
_interpreted: ContextVar[bool] = ContextVar("kernels_interpreted", default=False)
_CAPABILITY = (8, 0)
"""The lowest compute capability with bfloat16 matrix units."""


@contextmanager
def disabled() -> Iterator[None]:
    """Run operator by operator in a ``with``, in this thread: to compare, or to look inside."""
    before = _off.set(True)
    try:
        yield
    finally:
        _off.reset(before)


@contextmanager
def interpreted() -> Iterator[None]:
    """Run the GPU's kernels in Triton's interpreter in a ``with``, for slow checks on the CPU.

    It is for this thread only. It needs ``TRITON_INTERPRET=1`` before their first use, else it
    raises a RuntimeError.
    """
    from mixerflow.kernels.gpu.launch import INTERPRETED

    if not INTERPRETED:
        raise RuntimeError("set TRITON_INTERPRET=1 before the first use of the GPU's kernels")
    before = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(before)


def where(x: Tensor) -> Where:
    """Return the device whose kernels rows like `x` go through, if they go through kernels."""
    return "gpu" if _interpreted.get() or x.device.type != "cpu" else "cpu"


def is_low(x: Tensor) -> bool:
    """Whether autocast lowers the precision of nets that read `x`."""
    return torch.is_autocast_enabled(x.device.type)


@functools.cache
def _build_error() -> str | None:
    try:
        library(torch.float32)
    except BuildError as error:
        warnings.warn(
            f"mixerflow runs operator by operator, about half as fast: its CPU kernels "
            f"could not be built ({error})",
            RuntimeWarning,
            stacklevel=2,
        )
        return str(error)
    return None


@functools.cache
def _unsupported_gpu(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the GPU's kernels need the package triton"
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < _CAPABILITY:
        return f"the GPU's kernels need an NVIDIA GPU of compute capability {_CAPABILITY[0]}"
    return None


def unsupported_reason(x: Tensor) -> str | None:
    """Return the reason why rows like `x` cannot go through the kernels, or None if they can."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return "the model is being compiled"
    if _off.get():
        return "kernels are switched off"
    device = x.device.type
    if type(x) not in (Tensor, nn.Parameter) or device not in ("cpu", "cuda"):
        return f"kernels take plain tensors on the CPU or a GPU, not {type(x).__name__} on {device}"
    if x.dtype != torch.float32:
        return f"kernels take float32, not {x.dtype}"
    if torch._C._are_functorch_transforms_active():
        return "torch.func transforms need operators"
    if forward_ad._current_level >= 0 or _get_current_dispatch_mode() is not None:
        return "forward-mode differentiation and dispatch modes need operators"
    if where(x) == "cpu":
        return "the conditioner runs in lower precision" if is_low(x) else _build_error()
    if is_low(x) and torch.get_autocast_dtype(device) != torch.bfloat16:
        return "the GPU's kernels know float32 and bfloat16 conditioners"
    if x.numel() >= 2**31:
        return "more than 2^31 numbers in a batch"
    return None if _interpreted.get() else _unsupported_gpu(x.device)


def rows_forward(
    plan: Plan,
    x: Tensor,
    context: Tensor | None = None,
    *,
    keep: Keep = "inputs",
    place: Place | None = None,
) -> tuple[Tensor, Tensor]:
    """Map rows ``(R, n)`` to z ``(R, n)`` and ``log|det dz/dx|`` ``(R,)``, differentiable once.

    x is float32 (or float64, on the CPU); on a GPU the nets compute in bfloat16 under autocast.
    `keep` is stored for the GPU's backward pass; the CPU stores hidden activations too. `place` is
    the position of the rows in x, of any shape, and then in z; on a GPU only, and log-dets are then
    those of images. `context` ``(G, K)``, on the CPU only, has one for each ``R / G`` rows that
    follow each other.
    """
    if where(x) == "cpu":
        return cpu.rows_forward(plan, x, context)
    from mixerflow.kernels.gpu import flow  # imported late, because Triton may be missing

    return flow.rows_forward(plan, x, low=is_low(x), keep=keep, place=place)


def rows_inverse(
    plan: Plan, z: Tensor, context: Tensor | None = None, *, place: Place | None = None
) -> tuple[Tensor, Tensor]:
    """Invert `rows_forward`, without gradients; of the same rows in training mode."""
    if where(z) == "cpu":
        return cpu.rows_inverse(plan, z, context)
    from mixerflow.kernels.gpu import flow

    return flow.rows_inverse(plan, z, low=is_low(z), place=place)
