"""What an ActNorm and a linear map multiply out to, for all steps of a row flow at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mixerflow.kernels.plan import PARAMETERS, Plan

_AT = {name: k for k, name in enumerate(PARAMETERS)}


class Dense(NamedTuple):
    """``y = W x + b`` of S steps: W ``(S, n, n)``, b ``(S, n)``, ``log|det W|`` ``(S,)``."""

    weight: Tensor
    offset: Tensor
    log_det: Tensor


def dense_maps(plan: Plan) -> Dense:
    """``W = L U R diag(exp(s))`` and ``b = L U R t + bias`` of a plan's steps, differentiable.

    s and t are the ActNorm's log-scales and shifts; R reverses the order, or is nothing.
    """
    steps = plan.steps[:-1]
    if steps[0].dense:
        weight = torch.stack([step.dense[0] for step in steps])
        log_det = torch.stack([step.dense[2] for step in steps])
    elif steps[0].parameters[_AT["packed"]] is not None:
        packed = _stacked(plan, "packed", (plan.n, plan.n))
        lower, upper, diagonal = _triangles(packed)
        weight, log_det = lower @ upper, diagonal.sum(1)
    else:
        like = _first(plan)
        weight = torch.eye(plan.n, dtype=like.dtype, device=like.device).expand(len(steps), -1, -1)
        log_det = like.new_zeros(len(steps))
    if plan.reverse:
        weight = weight.flip(2)
    log_scale, shift, bias = (_stacked(plan, k, (plan.n,)) for k in ("log_scale", "shift", "offset"))
    offset = (weight @ shift[..., None])[..., 0] + bias
    return Dense(weight * log_scale.exp()[:, None], offset, log_det + log_scale.sum(1))


@torch.no_grad()
def inverse_maps(plan: Plan) -> Tensor:
    """``W^-1`` ``(S, n, n)`` of `dense_maps`."""
    steps = plan.steps[:-1]
    like = _first(plan)
    unit = torch.eye(plan.n, dtype=like.dtype, device=like.device).expand(len(steps), -1, -1)
    if steps[0].dense:
        inverse = torch.stack([step.dense[1] for step in steps])
    elif steps[0].parameters[_AT["packed"]] is not None:
        lower, upper, _ = _triangles(_stacked(plan, "packed", (plan.n, plan.n)))
        inverse = torch.linalg.solve_triangular(lower, unit, upper=False, unitriangular=True)
        inverse = torch.linalg.solve_triangular(upper, inverse, upper=True)
    else:
        inverse = unit
    if plan.reverse:
        inverse = inverse.flip(1)
    # solvers answer column by column; kernels read row by row
    return (inverse * (-_stacked(plan, "log_scale", (plan.n,))).exp()[..., None]).contiguous()


def _triangles(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L, U and the logarithm of U's diagonal, of matrices ``(S, n, n)`` packed as `LU` has them."""
    diagonal = packed.diagonal(dim1=1, dim2=2)
    lower = packed.tril(-1) + torch.eye(packed.shape[1], dtype=packed.dtype, device=packed.device)
    return lower, packed.triu(1) + torch.diag_embed(diagonal.exp()), diagonal


def _first(plan: Plan) -> Tensor:
    tensors = (*plan.steps[0].parameters, *plan.steps[0].dense)
    return next(t for t in tensors if t is not None)


def _stacked(plan: Plan, name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter of all steps ``(S, *shape)``, zeros where a step has none."""
    found = [step.parameters[_AT[name]] for step in plan.steps[:-1]]
    if all(tensor is None for tensor in found):
        return _first(plan).new_zeros((len(found), *shape))
    return torch.stack([_first(plan).new_zeros(shape) if t is None else t for t in found])
