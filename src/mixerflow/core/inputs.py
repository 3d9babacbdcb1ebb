"""What users give a flow: images, latents and labels in any container, checked once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(array: Any) -> Tensor:  # noqa: ANN401
    """Return a tensor itself; copy anything that numpy reads, whatever its strides or byte order.

    uint16 becomes int32, and wider unsigned integers int64, with which torch can compute. Objects,
    text and complex numbers are a TypeError, and so are tensors that are not dense.
    """
    if isinstance(array, Tensor):
        tensor = array
    else:
        array = np.asarray(array)
        kind = array.dtype
        if kind.kind not in "biufc":
            raise TypeError(f"expected an array of numbers; got one of {kind}")
        wide = {"u2": np.int32, "u4": np.int64, "u8": np.int64, "f16": np.float64}
        kind = wide.get(kind.str[1:], kind.newbyteorder("="))
        tensor = torch.from_numpy(np.array(array, dtype=kind, order="C"))
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError("expected a dense tensor: call .to_dense() or .dequantize() on it")
    if tensor.is_complex():
        raise TypeError(f"expected real numbers; got {tensor.dtype}")
    return tensor


def require_wide(dtype: torch.dtype) -> None:
    """Raise a TypeError for a flow of half precision, whose log-dets would be meaningless."""
    if dtype in (torch.float16, torch.bfloat16):
        remedy = "call .float() on it, and use torch.autocast for nets in lower precision"
        raise TypeError(f"this flow's weights are {dtype}, and flows compute in float32: {remedy}")


def class_numbers(labels: Tensor, classes: int) -> Tensor:
    """Return labels ``(B,)`` as int64; a ValueError refuses what is no class from 0 on.

    While a graph is captured or compiled, values cannot be read, and only their type is checked.
    """
    if labels.dim() != 1:
        raise ValueError(f"labels are (B,), one an image; got {tuple(labels.shape)}")
    if labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are the classes' numbers; got {labels.dtype}")
    if torch.compiler.is_compiling() or len(labels) == 0:  # a length may not be known either
        return labels.long()
    if labels.is_floating_point() and not bool((labels == labels.floor()).all()):
        raise ValueError(f"labels must be whole numbers; got {labels.tolist()[:8]}")
    if not (0 <= labels.min() and labels.max() < classes):
        raise ValueError(f"labels must lie in 0..{classes - 1}; got {labels.tolist()[:8]}")
    return labels.long()


def count_of(n: Any, what: str) -> int:  # noqa: ANN401
    """Return a number of images as an int; a ValueError refuses all else."""
    number = n.item() if isinstance(n, (np.generic, np.ndarray, Tensor)) and n.ndim == 0 else n
    if type(number) is not int or number < 0:
        raise ValueError(f"{what}: n={n!r} must be an integer, 0 or more")
    return number


def latents_of(z: Any, latent_shape: tuple[int, ...]) -> Tensor:  # noqa: ANN401
    """Return latents ``(B, D)``; a ValueError refuses another shape."""
    z, size = as_tensor(z), math.prod(latent_shape)
    if z.dim() != 2 or z.shape[1] != size:
        raise ValueError(f"this flow takes latents (B, {size}); got {tuple(z.shape)}")
    return z
