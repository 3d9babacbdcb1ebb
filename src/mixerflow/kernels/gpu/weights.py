"""From a plan's parameters to the GPU kernels' tensors, and from their gradients back."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mixerflow.kernels.gpu.assemble import assemble_kernel, copy_kernel, disassemble_kernel
from mixerflow.kernels.gpu.launch import (
    INTERPRETED,
    NET,
    NORMS,
    SUMS,
    Setting,
    Weights,
    aligned,
    launch,
)
from mixerflow.kernels.plan import DENSE, PARAMETERS, Plan

_COPY = 1024
_AT = {name: k for k, name in enumerate(PARAMETERS)}
_MATRICES = ("enter", "linear1", "linear2", "leave")


def setting_of(plan: Plan, *, low: bool) -> Setting:
    """Return the kernels' settings for a plan."""
    kind, eps = plan.by_row or ("none", 0.0)
    if plan.by_row is None and plan.steps[0].parameters[_AT["gamma1"]] is not None:
        kind = "scale"
    return Setting(
        n=plan.n,
        hidden=plan.hidden,
        flips=tuple(step.flip for step in plan.steps[:-1]),
        norm=NORMS[kind],
        eps=eps,
        squash=plan.squash,
        bound=plan.bound,
        low=low,
    )


@functools.cache  # never freed: a captured graph keeps the address only
def _integers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a tensor on the device, copied once: a captured graph may not copy from the host."""
    return torch.tensor(values, dtype=torch.int64, device=device)


def _addresses(plan: Plan, device: torch.device) -> Tensor:
    found = []
    for step in plan.steps:
        tensors = [*step.parameters, *(None,) * (len(PARAMETERS) - len(step.parameters))]
        found += [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    return _integers(tuple(found), device)


def assemble(plan: Plan, setting: Setting, device: torch.device) -> Weights:
    """Return the tensors of the steps' kernels for the present parameters."""
    steps, n = len(plan.steps) - 1, plan.n
    scale, shift = plan.steps[-1].parameters or (None, None)
    tail = None if scale is None or shift is None else (scale, shift)
    nets = [step.parameters[_AT["enter"] :] for step in plan.steps[:-1]]
    if setting.low:
        nets = _low_copies(nets, device)
    if plan.steps[0].dense:
        weight, _, log_det = _folded(plan)
        offset = torch.stack(
            [_or_zeros(step.parameters[_AT["offset"]], weight[0, 0]) for step in plan.steps[:-1]]
        )
        if tail is not None:
            log_det = torch.cat([log_det[:-1], log_det[-1:] + tail[0].sum()])
        return Weights(weight, offset, log_det, tuple(nets), tail)
    dense, offset, log_det = (_aligned_rows(steps, count, device) for count in (n * n, n, 1))
    launch(
        assemble_kernel, (steps,), _addresses(plan, device),
        dense, dense.stride(0), offset, offset.stride(0), log_det, log_det.stride(0), n,
        SIZE=max(16, triton.next_power_of_2(n)), REVERSE=plan.reverse, STEPS=steps, num_warps=4,
    )  # fmt: skip
    maps = dense.unflatten(1, (n, n))
    return Weights(maps, offset, log_det[:, 0], tuple(nets), tail)


def _aligned_rows(rows: int, count: int, device: torch.device) -> Tensor:
    """Allocate rows of `count` numbers, each aligned like a tensor, so that one kernel fits all."""
    return torch.empty(rows, aligned(count), device=device)[:, :count]


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


def _folded(plan: Plan) -> list[Tensor]:
    """Return W, its inverse and its log-det of a folded plan, stacked."""
    return [torch.stack([step.dense[i] for step in plan.steps[:-1]]) for i in range(len(DENSE))]


def _low_copies(nets: list[tuple[Tensor | None, ...]], device: torch.device) -> list[tuple]:
    """Return the nets with their matrices copied to bfloat16, all in one tensor."""
    sources = [(net, NET.index(name)) for net in nets for name in _MATRICES]
    matrices = [net[i] for net, i in sources]
    sizes = [matrix.numel() for matrix in matrices if matrix is not None]
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += aligned(size)
    copies = torch.empty(end, dtype=torch.bfloat16, device=device)
    pointers = tuple(matrix.data_ptr() for matrix in matrices if matrix is not None)
    tables = (_integers(tuple(each), device) for each in (pointers, sizes, starts))
    launch(copy_kernel, (len(sizes), 4), *tables, copies, COPY=_COPY, EMULATE=INTERPRETED)
    made = [list(net) for net in nets]
    for number, (start, matrix) in enumerate(zip(starts, matrices, strict=True)):
        assert matrix is not None
        step, which = divmod(number, len(_MATRICES))
        view = copies[start : start + matrix.numel()].view(matrix.shape)
        made[step][NET.index(_MATRICES[which])] = view
    return [tuple(net) for net in made]


@torch.no_grad()
def inverse_maps(plan: Plan, weights: Weights) -> Tensor:
    """Return ``W^-1`` ``(S, n, n)``."""
    if plan.steps[0].dense:
        return _folded(plan)[1]
    # in double precision, as on the CPU: rebuilding and sampling go through hundreds of these;
    # solvers return columns one after another, and kernels read rows
    return torch.linalg.inv_ex(weights.dense.double())[0].float().contiguous()


class Totals(NamedTuple):
    """Memory for the gradients of all steps ``(S, most)``, and the number of those of each step."""

    sums: Tensor
    counts: tuple[int, ...]


def totals(setting: Setting, weights: Weights, device: torch.device) -> Totals:
    """Allocate memory for the gradients that `run_gradient` writes."""
    counts = tuple(
        sum(math.prod(shape) for shape in shapes if shape is not None)
        for shapes in _shapes(setting, weights)
    )
    return Totals(_aligned_rows(len(counts), max(counts), device), counts)


def _shapes(setting: Setting, weights: Weights) -> list[list[tuple[int, ...] | None]]:
    steps = range(len(setting.flips))
    return [setting.sums(k, tail=weights.tail_of(k) is not None) for k in steps]


def disassemble(
    plan: Plan, setting: Setting, weights: Weights, found: Totals, d_log_det: Tensor, within: int
) -> list[Tensor]:
    """Return the gradients of a plan's parameters, in the order of `Plan.parameters`.

    `d_log_det` ``(images,)`` belongs to images of `within` rows each.
    """
    steps, n, hidden, device = len(setting.flips), plan.n, plan.hidden, d_log_det.device
    grads = torch.empty(steps, n * n + 3 * n + hidden, device=device)
    changed = _integers(tuple(setting.halves(k)[1] for k in range(steps)), device)
    launch(
        disassemble_kernel, (steps,),
        _addresses(plan, device), found.sums, found.sums.stride(0),
        d_log_det, len(d_log_det), within, grads, n, changed,
        SIZE=max(16, triton.next_power_of_2(n)), HIDDEN=hidden, REVERSE=plan.reverse,
        IMAGES=_COPY, num_warps=4,
    )  # fmt: skip
    results = []
    for k, (step, shapes) in enumerate(zip(plan.steps, _shapes(setting, weights), strict=False)):
        scale, shift, packed, offset, bias2 = grads[k].split([n, n, n * n, n, hidden])
        sizes = [0 if shape is None else math.prod(shape) for shape in shapes]
        named = dict(zip(SUMS, found.sums[k, : sum(sizes)].split(sizes), strict=True))
        named |= {"log_scale": scale, "shift": shift, "packed": packed, "linear2_bias": bias2}
        named["offset"] = offset
        for name, tensor in zip(PARAMETERS, step.parameters, strict=True):
            if tensor is not None:
                results.append(named[name].view(tensor.shape))
        if weights.tail_of(k) is not None:
            results += [named["tail_scale"], named["tail_shift"]]
    return results
