"""Parts of nets as numbers of a program: weights, and norms, folded where they are fixed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mixerflow.compression.constants import Numbers, normalisation, rounded
from mixerflow.compression.program import Norm
from mixerflow.compression.refusal import refused
from mixerflow.nets import Scale, SyncedBatchNorm


def values(tensor: Tensor | None, length: int = 0) -> Numbers:
    """Return a float32 tensor's values in float64; so many zeros for None."""
    if tensor is None:
        return np.zeros(length)
    if tensor.dtype != torch.float32:
        raise refused(f"weights of {tensor.dtype}, not torch.float32")
    return tensor.detach().cpu().double().numpy()


class Norms(NamedTuple):
    """The two norms of a residual block.

    Attributes:
        kind: of both.
        epsilon: that of a norm of each row.
        first, second: their numbers; a batch norm's second one has none.
        scale, shift: what folds into the map before the second one; None for nothing.
    """

    kind: Norm
    epsilon: float
    first: list[Numbers]
    second: list[Numbers]
    scale: Numbers | None = None
    shift: Numbers | None = None

    def folded(self, weight: Numbers, bias: Numbers) -> list[Numbers]:
        """Return the map ``(width, in)`` before the second norm, with what folds into it."""
        if self.scale is None or self.shift is None:
            return [weight, bias]
        return [weight * self.scale[:, None], bias * self.scale + self.shift]


def norms_of(first: nn.Module, second: nn.Module, width: int) -> Norms:
    """Return the norms of a block, as `mixerflow.nets.norm_of` makes them or as they fold."""
    kinds = type(first), type(second)
    if kinds == (nn.Identity, nn.Identity):
        return Norms(Norm.NO_NORM, 0.0, [], [])
    if isinstance(first, Scale) and kinds == (Scale, nn.Identity):
        return Norms(Norm.SCALE, 0.0, [values(first.weight), values(first.bias)], [])
    if kinds == (SyncedBatchNorm, SyncedBatchNorm):
        ours, others = _batch_norm(first), _batch_norm(second)
        return Norms(Norm.SCALE, 0.0, [*ours], [], *others)
    ours, others = _row_norm(first, width), _row_norm(second, width)
    if ours[:2] != others[:2]:
        raise refused("a net whose norms are not alike")
    return Norms(ours[0], ours[1], ours[2], others[2])


def _batch_norm(norm: nn.Module) -> tuple[Numbers, Numbers]:
    """Return scale and shift of a batch norm by its running averages."""
    assert isinstance(norm, SyncedBatchNorm)
    if norm.running_mean is None or norm.running_var is None or not norm.affine:
        raise refused("a batch norm without running averages, or without weights")
    moments = values(norm.running_mean), values(norm.running_var)
    return normalisation(*moments, norm.eps, values(norm.weight), values(norm.bias))


def _row_norm(norm: nn.Module, width: int) -> tuple[Norm, float, list[Numbers]]:
    if isinstance(norm, nn.LayerNorm) and type(norm) is nn.LayerNorm:
        affine = norm.weight is not None and norm.bias is not None
        if affine and norm.normalized_shape == (width,):
            return Norm.LAYER, norm.eps, [values(norm.weight), values(norm.bias)]
    if isinstance(norm, nn.RMSNorm) and type(norm) is nn.RMSNorm:
        if norm.weight is None and norm.eps and norm.normalized_shape == (width,):
            return Norm.RMS, norm.eps, []
    raise refused(f"a net with another norm than its models have ({type(norm).__name__})")


def linear(module: nn.Module) -> list[Numbers]:
    """Return weight and bias of a linear map."""
    if not isinstance(module, nn.Linear) or type(module) is not nn.Linear:
        raise refused(f"a net with {type(module).__name__} in place of a linear map")
    return [values(module.weight), values(module.bias, module.out_features)]


def float32(numbers: list[Numbers]) -> list[Numbers]:
    """Return the numbers of a net rounded to float32."""
    return [rounded(each) for each in numbers]
