"""Launching the GPU kernels: a row flow forward, back, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from mixerflow.kernels.gpu.gradient import gradient_kernel, linear1_kernel
from mixerflow.kernels.gpu.step import step_kernel

INTERPRETED = isinstance(step_kernel, InterpretedFunction)
"""Whether kernels run in Triton's interpreter, on the CPU: ``TRITON_INTERPRET=1`` at import."""

NET = 12
"""A net's tensors, from enter to leave's bias."""


@dataclass(frozen=True)
class Setting:
    """What all steps of a row flow have in common.

    Attributes:
        n: length of the rows.
        hidden: width of the nets: a power of two.
        flips: of each step, whether its net reads the second part.
        norm: 0 none, 1 of each row by itself, 2 a fixed scale before the first GELU.
        eps: of that norm.
        squash: whether nets read sign(x) log(1 + |x|).
        bound: of the log-scales; 0 for none.
        low: whether nets compute in bfloat16.
        linear: precision of the state's products, as Triton names it.
    """

    n: int
    hidden: int
    flips: tuple[bool, ...]
    norm: Literal[0, 1, 2]
    eps: float
    squash: bool
    bound: float
    low: bool
    linear: str = "tf32x3"

    def halves(self, k: int) -> tuple[int, int]:
        """Lengths of the given and the changed part of step k."""
        first, second = (self.n + 1) // 2, self.n // 2
        return (second, first) if self.flips[k] else (first, second)

    def constants(self, k: int) -> dict[str, Any]:
        """What the kernels of step k are compiled for."""
        given, changed = self.halves(k)
        return {
            "GIVEN": given,
            "CHANGED": changed,
            "P": max(16, triton.next_power_of_2(max(given, changed))),
            "FLIP": self.flips[k],
            "WIDE": self.hidden,
            "NORM": self.norm,
            "SQUASH": self.squash,
            "LOW": self.low,
            "EMULATE": INTERPRETED,
        }


class Place(NamedTuple):
    """Where rows lie in a tensor: number i of row j of image k at ``k stride + row_table[j] + ...``

    ``... column_table[i]``. Plain rows are images of one row.
    """

    rows: int
    """Of all images."""
    within: int
    """An image."""
    stride: int
    """From one image to the next, in numbers."""
    row_table: Tensor
    column_table: Tensor


class Weights(NamedTuple):
    """A row flow's tensors: of S steps, and of the ActNorm behind the last."""

    dense: Tensor
    """W ``(S, n, n)``."""
    offset: Tensor
    """b ``(S, n)``."""
    log_det: Tensor
    """``log|det W|`` ``(S,)``."""
    nets: tuple[tuple[Tensor | None, ...], ...]
    """`NET` tensors a step."""
    tail: tuple[Tensor, Tensor] | None
    """Log-scale and shift ``(n,)``."""


@dataclass(frozen=True)
class Size:
    """How a kernel is laid out on the chip."""

    block: int
    warps: int
    stages: int = 1


FORWARD = Size(64, 4)
GRADIENT = Size(64, 8)
LINEAR1 = Size(64, 8)


def programs(place: Place, size: Size, device: torch.device, share: int = 1) -> int:
    """How many programs walk over the tiles: `share` a multiprocessor, at most one a tile."""
    tiles = triton.cdiv(place.rows, size.block)
    if device.type != "cuda":
        return min(2, tiles)  # in the interpreter: more than one, so that sums are put together
    return min(share * torch.cuda.get_device_properties(device).multi_processor_count, tiles)


def run_step(
    setting: Setting,
    place: Place,
    weights: Weights,
    k: int,
    x: Tensor,
    z: Tensor,
    log_det: Tensor,
    *,
    dense: Tensor | None = None,
    add: bool,
    size: Size = FORWARD,
) -> None:
    """Step k of rows in x to z (which may be x), or back with the inverse maps `dense`.

    ``log_det`` ``(rows,)`` is written, or added to.
    """
    tail = weights.tail if k == len(weights.nets) - 1 else None
    constant = weights.log_det[k] if tail is None else weights.log_det[k] + tail[0].sum()
    grid = (programs(place, size, x.device, 2),)
    step_kernel[grid](
        x, z, log_det, place.row_table, place.column_table,
        place.rows, place.within, place.stride,
        (weights.dense if dense is None else dense)[k], weights.offset[k], constant,
        *weights.nets[k], *(tail or (None, None)), setting.eps, setting.bound,
        **setting.constants(k), BLOCK=size.block, BOUND=setting.bound > 0, TAIL=tail is not None,
        ADD=add, INVERSE=dense is not None, LINEAR=setting.linear,
        num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip


class Sums(NamedTuple):
    """Gradients of step k's tensors."""

    net: tuple[Tensor | None, ...]
    dense: Tensor
    offset: Tensor
    tail: tuple[Tensor, Tensor] | None


def run_gradient(
    setting: Setting,
    place: Place,
    weights: Weights,
    k: int,
    z: Tensor,
    dz: Tensor,
    d_log_det: Tensor,
    x: Tensor,
    dx: Tensor,
    spill: Tensor,
    *,
    inverse: Tensor | None,
    size: Size = GRADIENT,
    linear1: Size = LINEAR1,
) -> Sums:
    """Gradients of step k: dx from dz, in place if they are one; the weights' are given back.

    With `inverse` maps x is rebuilt from z and written, else it is read.
    """
    tail = weights.tail if k == len(weights.nets) - 1 else None
    net = weights.nets[k]
    count = programs(place, size, z.device)
    shapes = [None if t is None else t.shape for t in net]
    shapes[9] = None  # linear2's bias: see below
    shapes += [weights.dense[k].shape, weights.offset[k].shape]
    shapes += [] if tail is None else [t.shape for t in tail]
    each = sum(shape.numel() for shape in shapes if shape is not None)
    grads = torch.empty(count, each, dtype=torch.float32, device=z.device)
    tables = (place.row_table, place.column_table, place.rows, place.within, place.stride)
    tails = tail or (None, None)
    constants = {**setting.constants(k), "TAIL": tail is not None}
    gradient_kernel[(count,)](
        z, dz, d_log_det, x, dx, spill, *tables,
        weights.dense[k], None if inverse is None else inverse[k], weights.offset[k],
        *net, *tails, setting.eps, setting.bound, grads, each,
        **constants, BLOCK=size.block, BOUND=setting.bound > 0, REBUILD=inverse is not None,
        LINEAR=setting.linear, num_warps=size.warps, num_stages=size.stages,
    )  # fmt: skip
    linear1_kernel[(count,)](
        z, spill, *tables, *net[:4], *tails, setting.eps, grads, each,
        **constants, BLOCK=linear1.block, num_warps=linear1.warps, num_stages=linear1.stages,
    )  # fmt: skip
    total = grads.sum(0)
    parts = iter(total.split([shape.numel() for shape in shapes if shape is not None]))
    found = [None if shape is None else next(parts).view(shape) for shape in shapes]
    leave, leave_bias = net[10], found[11]
    assert leave is not None and leave_bias is not None
    found[9] = leave_bias @ leave.float()
    d_net, rest = tuple(found[:NET]), found[NET:]
    assert rest[0] is not None and rest[1] is not None
    d_tail = None if tail is None else (rest[2], rest[3])
    return Sums(d_net, rest[0], rest[1], d_tail)  # pyright: ignore[reportArgumentType]
