"""Kernels that run once a row flow: from parameters to the steps' tensors, and gradients back.

An ActNorm and the linear map behind it are one dense map; nets that compute in bfloat16 get copies
of their matrices. Kernels find parameters by address, so that a flow's thousands of small tensors
need no copy: 16 addresses a step, in the order of `PARAMETERS`, 0 for none.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixerflow.kernels.gpu.parts import low


@triton.jit
def _floats(table, k):
    """Return the pointer to parameter k of a step, and whether there is one."""
    address = tl.load(table + k)
    return address.to(tl.pointer_type(tl.float32)), address != 0


@triton.jit
def _vector(table, k, index, n):
    """Load numbers of parameter k, 0 where there are none."""
    at, there = _floats(table, k)
    return tl.load(at + index, mask=(index >= 0) & (index < n) & there, other=0.0)


@triton.jit
def _triangles(table, n, SIZE: tl.constexpr):
    """Return L, U and log of U's diagonal; the identity where there is no linear map."""
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    packed, there = _floats(table, 2)
    values = tl.load(packed + i * n + j, mask=(i < n) & (j < n) & there, other=0.0)
    diagonal = tl.where(i == j, values, 0.0)
    unit = tl.where(i == j, 1.0, 0.0)
    lower = tl.where(i > j, values, 0.0) + unit
    upper = tl.where(i < j, values, 0.0) + unit * tl.exp(diagonal)
    return lower, upper, diagonal


@triton.jit
def assemble_kernel(
    addresses, dense, dense_apart, offset, offset_apart, log_det, log_det_apart, n,
    SIZE: tl.constexpr, REVERSE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Write ``W = L U R diag(exp(s))``, ``b = L U R t + bias``, ``log|det W|`` of a program's step.

    The `*_aligned_rows` arguments are distances in memory from a step to the next. The last log-det
    includes that of the ActNorm behind, whose addresses are those of one more step.
    """
    step = tl.program_id(0)
    table = addresses + step * 16
    k = tl.arange(0, SIZE)
    i, j = k[:, None], k[None, :]
    lower, upper, diagonal = _triangles(table, n, SIZE)
    both = tl.dot(lower, upper, input_precision="tf32x3")
    column = n - 1 - k if REVERSE else k  # of x: what column k of L U meets
    scale, shift = _vector(table, 0, column, n), _vector(table, 1, column, n)
    at = dense + step * dense_apart + i * n + column[None, :]
    tl.store(at, both * tl.exp(scale)[None, :], mask=(i < n) & (j < n))
    b = tl.sum(both * shift[None, :], 1) + _vector(table, 3, k, n)
    tl.store(offset + step * offset_apart + k, b, mask=k < n)
    figure = tl.sum(tl.sum(diagonal, 1), 0) + tl.sum(scale, 0)
    if step == STEPS - 1:
        figure += tl.sum(_vector(addresses + STEPS * 16, 0, k, n), 0)
    tl.store(log_det + step * log_det_apart, figure)


@triton.jit
def disassemble_kernel(
    addresses, sums, each, d_log_det, images, within, grads, n, changed,
    SIZE: tl.constexpr, HIDDEN: tl.constexpr, REVERSE: tl.constexpr, IMAGES: tl.constexpr,
):  # fmt: skip
    """Write gradients of the parameters that each program's step was assembled from.

    `sums` has `each` numbers a step, and first the gradients of W, b and leave's bias; `d_log_det`
    belongs to `images` images of `within` rows each; `changed` has the length of each step's
    changed part. `grads` gets the gradients of s, t, the packed matrix, its bias, linear2's bias.
    """
    step = tl.program_id(0)
    table, given = addresses + step * 16, sums + step * each
    out = grads + step * (n * n + 3 * n + HIDDEN)
    k = tl.arange(0, SIZE)
    i, j = k[:, None], k[None, :]
    real, inside = k < n, (i < n) & (j < n)
    lower, upper, diagonal = _triangles(table, n, SIZE)
    both = tl.dot(lower, upper, input_precision="tf32x3")
    column = n - 1 - k if REVERSE else k
    scale = tl.exp(_vector(table, 0, column, n))
    shift = _vector(table, 1, column, n)
    d_figures = tl.zeros((IMAGES,), tl.float32)
    for at in range(0, images, IMAGES):
        image = at + tl.arange(0, IMAGES)
        d_figures += tl.load(d_log_det + image, mask=image < images, other=0.0)
    d_figure = tl.sum(d_figures, 0) * within
    d_dense = tl.load(given + i * n + column[None, :], mask=inside, other=0.0)
    d_offset = tl.load(given + n * n + k, mask=real, other=0.0)
    tl.store(out + column, tl.sum(d_dense * both, 0) * scale + d_figure, mask=real)
    tl.store(out + n + column, tl.sum(d_offset[:, None] * both, 0), mask=real)
    d_both = d_dense * scale[None, :] + d_offset[:, None] * shift[None, :]
    d_lower = tl.dot(d_both, tl.trans(upper), input_precision="tf32x3")
    d_upper = tl.dot(tl.trans(lower), d_both, input_precision="tf32x3")
    d_packed = tl.where(i > j, d_lower, d_upper)
    d_packed = tl.where(i == j, d_upper * tl.exp(diagonal) + d_figure, d_packed)
    tl.store(out + 2 * n + i * n + j, d_packed, mask=inside)
    tl.store(out + 2 * n + n * n + k, d_offset, mask=real)

    # linear2's bias reaches the output through leave, as leave's own bias does directly
    wide = tl.arange(0, HIDDEN)
    leave, _ = _floats(table, 14)
    total = tl.zeros((HIDDEN,), tl.float32)
    for row in range(2 * tl.load(changed + step)):
        weight = tl.load(leave + row * HIDDEN + wide)
        total += weight * tl.load(given + n * n + n + row)
    tl.store(out + 3 * n + n * n + wide, total)


@triton.jit
def copy_kernel(addresses, sizes, starts, copies, COPY: tl.constexpr, EMULATE: tl.constexpr):
    """Copy float32 tensors of `sizes` numbers to their `starts` in one bfloat16 tensor."""
    tensor = tl.program_id(0)
    size, start = tl.load(sizes + tensor), tl.load(starts + tensor)
    source = tl.load(addresses + tensor).to(tl.pointer_type(tl.float32))
    for at in range(tl.program_id(1) * COPY, size, tl.num_programs(1) * COPY):
        k = at + tl.arange(0, COPY)
        values = tl.load(source + k, mask=k < size, other=0.0)
        tl.store(copies + start + k, low(values, EMULATE), mask=k < size)
