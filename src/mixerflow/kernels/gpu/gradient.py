"""The backward pass of a flow step on the GPU, without anything of the forward pass but its rows.

The sums that make the gradients of a step's weights are more than a multiprocessor's registers hold
beside the rows: those of linear1, a third of all, are left to a second kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixerflow.kernels.gpu.parts import (
    bounded,
    column_sums,
    features,
    gelu,
    gelu_slope,
    join,
    matrix,
    normed,
    pairs,
    places,
    product,
    put_matrix,
    put_sums,
    split,
    squash,
    unbounded,
    unnormed,
    unsquash,
    vector,
)

# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportReturnType=false
# pyright: reportPossiblyUnbound=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806


@triton.jit
def gradient_kernel(
    z, dz, d_log_det, x, dx, spill, row_table, column_table, rows, within, stride,
    dense, inverse, offset,
    enter, enter_bias, gamma1, beta1, linear1, linear1_bias,
    gamma2, beta2, linear2, linear2_bias, leave, leave_bias,
    tail_scale, tail_shift, eps, bound, grads, each,
    GIVEN: tl.constexpr, CHANGED: tl.constexpr, P: tl.constexpr, FLIP: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, SQUASH: tl.constexpr,
    BOUND: tl.constexpr, TAIL: tl.constexpr, REBUILD: tl.constexpr,
    LOW: tl.constexpr, LINEAR: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradient dx of rows x, from dz and the rows' ``d_log_det``; this program's weight sums.

    x is rebuilt from z and written (`REBUILD`, with W's inverse), or read. `spill` ``(rows, WIDE)``
    gets the gradient of what linear1 gives, for `linear1_kernel`. The program's sums are `each`
    numbers in `grads`: enter, its bias, gamma1, beta1, linear1, its bias, gamma2, beta2, linear2,
    leave, its bias, W, offset, the ActNorm's log-scale and shift. Linear2's bias has the gradient
    that ``leave^T`` makes of leave's bias's.
    """
    N: tl.constexpr = GIVEN + CHANGED
    feature, real = features(GIVEN, CHANGED, P, FLIP)
    column = tl.load(column_table + feature, mask=real, other=0)
    square = real[:, None] & real[None, :]
    w = tl.load(dense + feature[:, None] * N + feature[None, :], mask=square, other=0.0)
    if REBUILD:
        at = inverse + feature[None, :] * N + feature[:, None]
        back = tl.load(at, mask=square, other=0.0)
        b = tl.load(offset + feature, mask=real, other=0.0)[None, :]
    a = matrix(enter, WIDE, GIVEN, WIDE, P, LOW)
    w1 = matrix(linear1, WIDE, WIDE, WIDE, WIDE, LOW)
    w2 = matrix(linear2, WIDE, WIDE, WIDE, WIDE, LOW)
    to, named = pairs(leave, CHANGED, P)
    wide = tl.arange(0, WIDE)
    at = leave + to[:, None] * WIDE + wide[None, :]
    out = tl.load(at, mask=named[:, None], other=0.0).to(tl.bfloat16 if LOW else tl.float32)
    out_bias = tl.load(leave_bias + to, mask=named, other=0.0).to(tl.float32)[None, :]

    d_enter = tl.zeros((WIDE, P), tl.float32)
    d_enter_bias = tl.zeros((WIDE, 16), tl.float32)
    d_linear2 = tl.zeros((WIDE, WIDE), tl.float32)
    d_out = tl.zeros((2 * P, WIDE), tl.float32)
    d_out_bias = tl.zeros((2 * P, 16), tl.float32)
    d_dense = tl.zeros((2 * P, 2 * P), tl.float32)
    d_offset = tl.zeros((2 * P, 16), tl.float32)
    if NORM == 1:
        d_gamma1 = tl.zeros((WIDE, 16), tl.float32)
        d_beta1 = tl.zeros((WIDE, 16), tl.float32)
        d_gamma2 = tl.zeros((WIDE, 16), tl.float32)
        d_beta2 = tl.zeros((WIDE, 16), tl.float32)
    if TAIL:
        d_tail_s = tl.zeros((2 * P, 16), tl.float32)
        d_tail_t = tl.zeros((2 * P, 16), tl.float32)

    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK), tl.num_programs(0)):
        row, there, begin = places(tile, rows, within, stride, row_table, BLOCK)
        inside = there[:, None] & real[None, :]
        place = begin[:, None] + column[None, :]
        values = tl.load(z + place, mask=inside, other=0.0)
        dvalues = tl.load(dz + place, mask=inside, other=0.0)
        d_figure = tl.load(d_log_det + row, mask=there, other=0.0)[:, None]
        if TAIL:
            tail_s = tl.load(tail_scale + feature, mask=real, other=0.0)[None, :]
            tail_t = tl.load(tail_shift + feature, mask=real, other=0.0)[None, :]
            values = values - tl.where(inside, tail_t, 0.0)
            d_tail_s += column_sums(dvalues * values + d_figure, BLOCK, False, EMULATE)
            d_tail_t += column_sums(dvalues, BLOCK, False, EMULATE)
            values *= tl.exp(-tail_s)
            dvalues *= tl.exp(tail_s)
        given, changed = split(values, BLOCK, P)
        d_given, d_changed = split(dvalues, BLOCK, P)

        # the net again
        read = squash(given, SQUASH)
        h = product(read, tl.trans(a), LOW, EMULATE) + vector(enter_bias, WIDE)
        first, standard1, inverse1 = normed(h, gamma1, beta1, eps, WIDE, NORM)
        inner = product(gelu(first), tl.trans(w1), LOW, EMULATE) + vector(linear1_bias, WIDE)
        second, standard2, inverse2 = normed(inner, gamma2, beta2, eps, WIDE, NORM)
        active = gelu(second)
        h += product(active, tl.trans(w2), LOW, EMULATE) + vector(linear2_bias, WIDE)
        raw, shift = split(product(h, tl.trans(out), LOW, EMULATE) + out_bias, BLOCK, P)
        log_scale = bounded(raw, bound, BOUND)

        # the law, backwards; a padded row or column has gradients 0 all the way
        moved = changed - shift
        d_scale = unbounded(d_changed * moved + d_figure, log_scale, bound, BOUND)
        d_raw = join(d_scale, d_changed, BLOCK, P)
        d_raw = tl.where(there[:, None] & named[None, :], d_raw, 0.0)
        changed = moved * tl.exp(-log_scale)
        d_changed *= tl.exp(log_scale)
        d_out += product(tl.trans(d_raw), h, LOW, EMULATE)
        d_out_bias += column_sums(d_raw, BLOCK, LOW, EMULATE)

        # the net, backwards
        dh = product(d_raw, out, LOW, EMULATE)
        d_linear2 += product(tl.trans(dh), active, LOW, EMULATE)
        d_inner = product(dh, w2, LOW, EMULATE) * gelu_slope(second)
        if NORM == 1:
            d_gamma2 += column_sums(d_inner * standard2, BLOCK, LOW, EMULATE)
            d_beta2 += column_sums(d_inner, BLOCK, LOW, EMULATE)
        d_inner = unnormed(d_inner, standard2, inverse2, gamma2, WIDE, NORM)
        hidden = row.to(tl.int64)[:, None] * WIDE + wide[None, :]
        tl.store(spill + hidden, d_inner.to(spill.dtype.element_ty), mask=there[:, None])
        d_first = product(d_inner, w1, LOW, EMULATE) * gelu_slope(first)
        if NORM == 1:
            d_gamma1 += column_sums(d_first * standard1, BLOCK, LOW, EMULATE)
            d_beta1 += column_sums(d_first, BLOCK, LOW, EMULATE)
        dh += unnormed(d_first, standard1, inverse1, gamma1, WIDE, NORM)
        d_enter += product(tl.trans(dh), read, LOW, EMULATE)
        d_enter_bias += column_sums(dh, BLOCK, LOW, EMULATE)
        d_given += unsquash(product(dh, a, LOW, EMULATE), given, SQUASH)

        # the dense map, backwards
        dy = join(d_given, d_changed, BLOCK, P)
        d_offset += column_sums(dy, BLOCK, False, EMULATE)
        if REBUILD:
            before = tl.dot(join(given, changed, BLOCK, P) - b, back, input_precision=LINEAR)
            tl.store(x + place, before, mask=inside)
            before = tl.where(inside, before, 0.0)
        else:
            before = tl.load(x + place, mask=inside, other=0.0)
        d_dense += tl.dot(tl.trans(dy), before, input_precision=LINEAR)
        tl.store(dx + place, tl.dot(dy, w, input_precision=LINEAR), mask=inside)

    at = grads + tl.program_id(0).to(tl.int64) * each
    put_matrix(at, d_enter, WIDE, GIVEN, WIDE, P)
    at += WIDE * GIVEN
    put_sums(at, d_enter_bias, WIDE, WIDE)
    at += WIDE
    if NORM == 1:
        put_sums(at, d_gamma1, WIDE, WIDE)
        put_sums(at + WIDE, d_beta1, WIDE, WIDE)
        at += 2 * WIDE
    at += WIDE * WIDE + WIDE  # linear1's
    if NORM == 1:
        put_sums(at, d_gamma2, WIDE, WIDE)
        put_sums(at + WIDE, d_beta2, WIDE, WIDE)
        at += 2 * WIDE
    put_matrix(at, d_linear2, WIDE, WIDE, WIDE, WIDE)
    at += WIDE * WIDE
    tl.store(at + to[:, None] * WIDE + wide[None, :], d_out, mask=named[:, None])
    at += 2 * CHANGED * WIDE
    copy = tl.arange(0, 16)[None, :]
    tl.store(at + to[:, None] + 0 * copy, d_out_bias, mask=named[:, None] & (copy == 0))
    at += 2 * CHANGED
    tl.store(at + feature[:, None] * N + feature[None, :], d_dense, mask=square)
    at += N * N
    only = real[:, None] & (copy == 0)
    tl.store(at + feature[:, None] + 0 * copy, d_offset, mask=only)
    if TAIL:
        at += N
        tl.store(at + feature[:, None] + 0 * copy, d_tail_s, mask=only)
        tl.store(at + N + feature[:, None] + 0 * copy, d_tail_t, mask=only)


@triton.jit
def linear1_kernel(
    z, spill, row_table, column_table, rows, within, stride,
    enter, enter_bias, gamma1, beta1, tail_scale, tail_shift, eps, grads, each,
    GIVEN: tl.constexpr, CHANGED: tl.constexpr, P: tl.constexpr, FLIP: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, NORM: tl.constexpr, SQUASH: tl.constexpr,
    TAIL: tl.constexpr, LOW: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradient of linear1 and its bias: what it read, once more, and what `spill` holds."""
    i = tl.arange(0, P)
    feature = i + (CHANGED if FLIP else 0)
    real = i < GIVEN
    column = tl.load(column_table + feature, mask=real, other=0)
    wide = tl.arange(0, WIDE)
    a = tl.trans(matrix(enter, WIDE, GIVEN, WIDE, P, LOW))
    d_linear1 = tl.zeros((WIDE, WIDE), tl.float32)
    d_bias = tl.zeros((WIDE, 16), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK), tl.num_programs(0)):
        row, there, begin = places(tile, rows, within, stride, row_table, BLOCK)
        inside = there[:, None] & real[None, :]
        given = tl.load(z + begin[:, None] + column[None, :], mask=inside, other=0.0)
        if TAIL:
            tail_s = tl.load(tail_scale + feature, mask=real, other=0.0)[None, :]
            tail_t = tl.load(tail_shift + feature, mask=real, other=0.0)[None, :]
            given = (given - tail_t) * tl.exp(-tail_s)
        hidden = row.to(tl.int64)[:, None] * WIDE + wide[None, :]
        d_inner = tl.load(spill + hidden, mask=there[:, None], other=0.0)
        h = product(squash(given, SQUASH), a, LOW, EMULATE) + vector(enter_bias, WIDE)
        first, _, _ = normed(h, gamma1, beta1, eps, WIDE, NORM)
        d_linear1 += product(tl.trans(d_inner), gelu(first), LOW, EMULATE)
        d_bias += column_sums(d_inner, BLOCK, LOW, EMULATE)
    at = grads + tl.program_id(0).to(tl.int64) * each + WIDE * GIVEN + WIDE
    if NORM == 1:
        at += 2 * WIDE
    put_matrix(at, d_linear1, WIDE, WIDE, WIDE, WIDE)
    put_sums(at + WIDE * WIDE, d_bias, WIDE, WIDE)
