"""Launches of the GPU kernels: their compile-time settings, and their tiles."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from mixerflow.kernels.gpu.gradient import gradient_kernel, hidden_kernel
from mixerflow.kernels.gpu.step import step_kernel
from mixerflow.kernels.plan import Place

INTERPRETED = isinstance(step_kernel, InterpretedFunction)
"""Whether kernels run in Triton's interpreter, on the CPU: ``TRITON_INTERPRET=1`` at import."""

NET = (
    "enter", "enter_bias", "gamma1", "beta1", "linear1", "linear1_bias",
    "gamma2", "beta2", "linear2", "linear2_bias", "leave", "leave_bias",
)  # fmt: skip
"""A net's tensors in the order of the kernels' arguments."""
SUMS = (
    "dense", "offset", "leave_bias", "leave", "enter", "enter_bias", "linear1", "linear2",
    "linear1_bias", "gamma1", "beta1", "gamma2", "beta2", "tail_scale", "tail_shift",
)  # fmt: skip
"""The gradients that a program sums, in their order in memory."""
NORMS = {"none": 0, "layer": 1, "scale": 2, "rms": 3}
"""Norms of hidden rows by their numbers: "scale" is a fixed one before the first GELU."""


@dataclass(frozen=True)
class Setting:
    """Settings that all steps of a row flow share; those that `Plan` has too are the plan's.

    Attributes:
        flips: whether each step's net reads the second part.
        norm: one of `NORMS`.
        eps: constant in that norm.
        low: whether nets compute in bfloat16.
        linear: precision of the state's products, as Triton names it.
    """

    n: int
    hidden: int
    flips: tuple[bool, ...]
    norm: int
    eps: float
    squash: bool
    bound: float
    low: bool
    linear: str = "tf32x3"

    def halves(self, k: int) -> tuple[int, int]:
        """Return the lengths of the given and the changed part of step k."""
        first, second = (self.n + 1) // 2, self.n // 2
        return (second, first) if self.flips[k] else (first, second)

    def constants(self, place: Place) -> dict[str, Any]:
        """Return the compile-time constants of kernels for rows at such a place."""
        return {
            "P": max(16, triton.next_power_of_2((self.n + 1) // 2)),
            "WITHIN": place.within,
            "STRIDE": place.stride,
            "WIDE": self.hidden,
            "NORM": self.norm,
            "SQUASH": self.squash,
            "LOW": self.low,
            "EMULATE": INTERPRETED,
        }

    def rows(self, k: int, place: Place) -> tuple[Tensor, Tensor, int, int, int, int]:
        """Return the row arguments of step k: tables, number of rows, halves, which is first."""
        tables = (place.row_table, place.column_table)
        return *tables, place.rows, *self.halves(k), int(self.flips[k])

    def sums(self, k: int, *, tail: bool) -> list[tuple[int, ...] | None]:
        """Return the shapes of step k's gradients, in the order of `SUMS`; None for none."""
        given, changed = self.halves(k)
        n, h = self.n, (self.hidden,)
        scales = [h if self.norm == NORMS["layer"] else None] * 4
        ends = [(n,) if tail else None] * 2
        out = 2 * changed
        return [*((n, n), (n,), (out,), (out, *h), (*h, given), h, h * 2, h * 2, h), *scales, *ends]


class Weights(NamedTuple):
    """Tensors of a row flow of S steps with an ActNorm behind the last, as kernels take them."""

    dense: Tensor
    """W ``(S, n, n)``."""
    offset: Tensor
    """b ``(S, n)``."""
    log_det: Tensor
    """``log|det W|`` ``(S,)``, the last with the ActNorm's."""
    nets: tuple[tuple[Tensor | None, ...], ...]
    """The tensors of `NET` for each step."""
    tail: tuple[Tensor, Tensor] | None
    """Log-scale and shift ``(n,)``."""

    def tail_of(self, k: int) -> tuple[Tensor, Tensor] | None:
        """Return the ActNorm behind step k, if there is one."""
        return self.tail if k == len(self.nets) - 1 else None


_ALIGNED = 64
"""Numbers: 128 bytes of bfloat16."""


class Size(NamedTuple):
    """Rows of a tile, and warps, of one program of a kernel."""

    block: int
    warps: int


class Sizes(NamedTuple):
    """A size for each kernel."""

    step: Size
    gradient: Size
    hidden: Size


# as large as the chip holds: in bfloat16 two groups of four warps, of which one computes while the
# other waits for the matrix units; in float32 half the rows, or a quarter
LOW = Sizes(Size(128, 8), Size(128, 8), Size(128, 8))
HIGH = Sizes(Size(64, 4), Size(32, 4), Size(16, 4))


def launch(kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:  # noqa: ANN401
    """Launch a kernel on its tensors' device, with arguments and compile-time constants."""
    device = next(each.device for each in given if isinstance(each, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*given, **constants)


def aligned(count: int) -> int:
    """Return `count` rounded up, so that the tensor behind begins at a wide access's boundary."""
    return -(-count // _ALIGNED) * _ALIGNED


def programs(place: Place, size: Size, device: torch.device) -> int:
    """Return the number of programs: one a multiprocessor, at most one a tile."""
    tiles = -(-place.rows // size.block)
    if device.type != "cuda":
        return max(1, min(2, tiles))  # in the interpreter two, to test the sum over programs
    return max(1, min(torch.cuda.get_device_properties(device).multi_processor_count, tiles))


def run_step(
    setting: Setting, place: Place, weights: Weights, k: int, x: Tensor, z: Tensor, log_det: Tensor,
    *, add: bool, inverse: Tensor | None = None,
) -> None:  # fmt: skip
    """Map rows in x by step k to z (which may be x), or back with the `inverse` maps ``(S, n, n)``.

    Writes the log-dets to ``log_det`` ``(rows,)``, or adds them.
    """
    size = (LOW if setting.low else HIGH).step
    tail = weights.tail_of(k)
    launch(
        step_kernel, (programs(place, size, x.device),),
        x, z, log_det, int(add), *setting.rows(k, place),
        (weights.dense if inverse is None else inverse)[k], weights.offset[k], weights.log_det[k],
        *weights.nets[k], *(tail or (None, None)), setting.eps, setting.bound,
        **setting.constants(place), BLOCK=size.block, BOUND=setting.bound > 0,
        TAIL=tail is not None, INVERSE=inverse is not None, LINEAR=setting.linear,
        num_warps=size.warps, num_stages=1,
    )  # fmt: skip


def run_gradient(
    setting: Setting, place: Place, weights: Weights, k: int,
    z: Tensor, dz: Tensor, d_log_det: Tensor, x: Tensor, dx: Tensor,
    spills: tuple[Tensor, Tensor], total: Tensor, *, inverse: Tensor | None,
) -> None:  # fmt: skip
    """Write step k's gradients: dx from dz (which may be dx), and those of `SUMS` to `total`.

    With `inverse` maps x is rebuilt from z and written, else it is read.
    """
    sizes = LOW if setting.low else HIGH
    tail = weights.tail_of(k)
    count = programs(place, sizes.gradient, z.device)
    each = aligned(len(total))  # one kernel serves all steps
    grads = torch.empty(count, each, dtype=torch.float32, device=z.device)
    rows = setting.rows(k, place)
    tails = tail or (None, None)
    constants = {**setting.constants(place), "TAIL": tail is not None}
    net = weights.nets[k]
    launch(
        gradient_kernel, (count,),
        z, dz, d_log_det, x, dx, *spills, *rows,
        weights.dense[k], None if inverse is None else inverse[k], weights.offset[k],
        *net, *tails, setting.eps, setting.bound, grads, each,
        **constants, BLOCK=sizes.gradient.block, BOUND=setting.bound > 0,
        REBUILD=inverse is not None, LINEAR=setting.linear,
        num_warps=sizes.gradient.warps, num_stages=1,
    )  # fmt: skip
    launch(
        hidden_kernel, (count,),
        z, *spills, *rows, *net[:8], *tails, setting.eps, grads, each,
        **constants, BLOCK=sizes.hidden.block, num_warps=sizes.hidden.warps, num_stages=1,
    )  # fmt: skip
    torch.sum(grads[:, : len(total)], 0, out=total)
