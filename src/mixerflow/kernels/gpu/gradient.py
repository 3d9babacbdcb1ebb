"""The backward pass of a flow step on the GPU, which needs only the rows of the forward pass.

The sums for the gradients of a step's weights do not fit into a multiprocessor's registers beside
the rows: a second kernel computes those of the two square matrices.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixerflow.kernels.gpu.parts import (
    UNSPECIALIZED,
    bounded,
    column_sums,
    compact,
    features,
    gelu_slope,
    hold,
    join,
    pairs,
    places,
    product,
    scaled,
    split,
    store_matrix,
    store_sums,
    unbounded,
    unnormed,
    unsquash,
    use,
)
from mixerflow.kernels.gpu.step import hidden_layers, outputs


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gradient_kernel(
    z, dz, d_log_det, x, dx, spill1, spill2, row_table, column_table, rows, reads, changes, flip,
    dense, inverse, offset,
    enter, enter_bias, gamma1, beta1, linear1, linear1_bias,
    gamma2, beta2, linear2, linear2_bias, leave, leave_bias,
    tail_scale, tail_shift, eps, bound, grads, each,
    P: tl.constexpr, WITHIN: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, NORM: tl.constexpr, SQUASH: tl.constexpr, BOUND: tl.constexpr,
    TAIL: tl.constexpr, REBUILD: tl.constexpr, LOW: tl.constexpr, LINEAR: tl.constexpr,
    EMULATE: tl.constexpr,
):  # fmt: skip
    """Write the gradient dx of rows x from dz and the images' ``d_log_det``, and the weights' sums.

    x is rebuilt from z and written (`REBUILD`, with W's inverse), or read. ``spill1`` and
    ``spill2`` ``(rows, WIDE)`` get the gradients of the outputs of linear1 and linear2, for
    `hidden_kernel`. The program's sums are `each` numbers in `grads`, in the order of
    `mixerflow.kernels.gpu.launch.SUMS`.
    """
    n = reads + changes
    SECOND: tl.constexpr = 0 if NORM == 2 else NORM
    feature, real = features(reads, changes, flip, P)
    column = tl.load(column_table + feature, mask=real, other=0)
    square = real[:, None] & real[None, :]
    w = tl.load(dense + feature[:, None] * n + feature[None, :], mask=square, other=0.0)
    if REBUILD:
        at = inverse + feature[None, :] * n + feature[:, None]
        back = tl.load(at, mask=square, other=0.0)
        b = tl.load(offset + feature, mask=real, other=0.0)[None, :]
    wide = tl.arange(0, WIDE)
    every = wide >= 0
    to, named = pairs(changes, P)
    a = hold(enter, wide, every, reads, P, LOW)
    w1 = hold(linear1, wide, every, WIDE, WIDE, LOW)
    w2 = hold(linear2, wide, every, WIDE, WIDE, LOW)
    out = hold(leave, to, named, WIDE, WIDE, LOW)
    out_bias = tl.load(leave_bias + to, mask=named, other=0.0).to(tl.float32)[None, :]

    d_enter = tl.zeros((WIDE, P), tl.float32)
    d_enter_bias = tl.zeros((WIDE, 16), tl.float32)
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
        row, there, begin, image = places(tile, rows, row_table, BLOCK, WITHIN, STRIDE)
        inside = there[:, None] & real[None, :]
        place = begin[:, None] + column[None, :]
        values = tl.load(z + place, mask=inside, other=0.0)
        dvalues = tl.load(dz + place, mask=inside, other=0.0)
        d_figure = tl.load(d_log_det + image, mask=there, other=0.0)[:, None]
        if TAIL:
            tail_s = tl.load(tail_scale + feature, mask=real, other=0.0)[None, :]
            tail_t = tl.load(tail_shift + feature, mask=real, other=0.0)[None, :]
            values = values - tl.where(inside, tail_t, 0.0)
            each_s = dvalues * values + d_figure
            d_tail_s = column_sums(each_s, d_tail_s, BLOCK, LOW, EMULATE)
            d_tail_t = column_sums(dvalues, d_tail_t, BLOCK, LOW, EMULATE)
            values *= tl.exp(-tail_s)
            dvalues *= tl.exp(tail_s)
        given, changed = split(values, BLOCK, P)
        d_given, d_changed = split(dvalues, BLOCK, P)

        # the net again
        read, h, standard, inverse1, _, standard2, inverse2, active = hidden_layers(
            given, a, enter_bias, gamma1, beta1, w1, linear1_bias, gamma2, beta2, reads, eps,
            BLOCK, P, WIDE, NORM, SQUASH, LOW, EMULATE,
        )  # fmt: skip
        first, second = compact(standard, LOW, EMULATE), compact(standard2, LOW, EMULATE)
        h, raw, shift = outputs(
            h, active, w2, linear2_bias, out, out_bias, to, named, BLOCK, P, WIDE, LOW, EMULATE
        )
        log_scale = bounded(raw, bound, BOUND)

        # the elementwise map, backwards; a padded row or column has gradients 0 all the way
        moved = changed - shift
        d_scale = unbounded(d_changed * moved + d_figure, log_scale, bound, BOUND)
        d_raw = join(d_scale, d_changed, BLOCK, P)
        d_raw = tl.where(there[:, None] & named[None, :], d_raw, 0.0)
        changed = moved * tl.exp(-log_scale)
        d_changed *= tl.exp(log_scale)
        d_out = product(tl.trans(d_raw), h, d_out, LOW, EMULATE)
        d_out_bias = column_sums(d_raw, d_out_bias, BLOCK, LOW, EMULATE)

        # the net, backwards
        none = tl.zeros((BLOCK, WIDE), tl.float32)
        hidden = row[:, None] * WIDE + wide[None, :]
        weight = use(out, to, named, WIDE, WIDE, LOW)
        dh = product(d_raw, weight, none, LOW, EMULATE)
        tl.store(spill2 + hidden, compact(dh, LOW, EMULATE), mask=there[:, None])
        standard = second.to(tl.float32)
        slope = gelu_slope(scaled(standard, gamma2, beta2, WIDE, SECOND), LOW, EMULATE)
        weight = use(w2, wide, every, WIDE, WIDE, LOW)
        d_inner = product(dh, weight, none, LOW, EMULATE) * slope
        if NORM == 1:
            d_gamma2 = column_sums(d_inner * standard, d_gamma2, BLOCK, LOW, EMULATE)
            d_beta2 = column_sums(d_inner, d_beta2, BLOCK, LOW, EMULATE)
        d_inner = unnormed(d_inner, standard, inverse2, gamma2, WIDE, SECOND)
        tl.store(spill1 + hidden, compact(d_inner, LOW, EMULATE), mask=there[:, None])
        standard = first.to(tl.float32)
        slope = gelu_slope(scaled(standard, gamma1, beta1, WIDE, NORM), LOW, EMULATE)
        weight = use(w1, wide, every, WIDE, WIDE, LOW)
        d_first = product(d_inner, weight, none, LOW, EMULATE) * slope
        if NORM == 1:
            d_gamma1 = column_sums(d_first * standard, d_gamma1, BLOCK, LOW, EMULATE)
            d_beta1 = column_sums(d_first, d_beta1, BLOCK, LOW, EMULATE)
        dh += unnormed(d_first, standard, inverse1, gamma1, WIDE, NORM)
        d_enter = product(tl.trans(dh), read, d_enter, LOW, EMULATE)
        d_enter_bias = column_sums(dh, d_enter_bias, BLOCK, LOW, EMULATE)
        weight = use(a, wide, every, reads, P, LOW)
        d_read = product(dh, weight, tl.zeros((BLOCK, P), tl.float32), LOW, EMULATE)
        d_given += unsquash(d_read, given, SQUASH)

        # the dense map, backwards
        dy = join(d_given, d_changed, BLOCK, P)
        d_offset = column_sums(dy, d_offset, BLOCK, LOW, EMULATE)
        if REBUILD:
            before = tl.dot(join(given, changed, BLOCK, P) - b, back, input_precision=LINEAR)
            tl.store(x + place, before, mask=inside)
            before = tl.where(inside, before, 0.0)
        else:
            before = tl.load(x + place, mask=inside, other=0.0)
        d_dense = tl.dot(tl.trans(dy), before, d_dense, input_precision="tf32" if LOW else LINEAR)
        tl.store(dx + place, tl.dot(dy, w, input_precision=LINEAR), mask=inside)

    at = grads + tl.program_id(0).to(tl.int64) * each
    tl.store(at + feature[:, None] * n + feature[None, :], d_dense, mask=square)
    store_sums(at + n * n, d_offset, feature, real)
    at += n * n + n
    store_sums(at, d_out_bias, to, named)
    store_matrix(at + 2 * changes, d_out, to, named, WIDE, WIDE)
    at += 2 * changes + 2 * changes * WIDE
    store_matrix(at, d_enter, wide, every, reads, P)
    store_sums(at + WIDE * reads, d_enter_bias, wide, every)
    at += WIDE * reads + WIDE
    at += 2 * WIDE * WIDE + WIDE  # `hidden_kernel`'s
    if NORM == 1:
        store_sums(at, d_gamma1, wide, every)
        store_sums(at + WIDE, d_beta1, wide, every)
        store_sums(at + 2 * WIDE, d_gamma2, wide, every)
        store_sums(at + 3 * WIDE, d_beta2, wide, every)
        at += 4 * WIDE
    if TAIL:
        store_sums(at, d_tail_s, feature, real)
        store_sums(at + n, d_tail_t, feature, real)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def hidden_kernel(
    z, spill1, spill2, row_table, column_table, rows, reads, changes, flip,
    enter, enter_bias, gamma1, beta1, linear1, linear1_bias, gamma2, beta2,
    tail_scale, tail_shift, eps, grads, each,
    P: tl.constexpr, WITHIN: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, NORM: tl.constexpr, SQUASH: tl.constexpr, TAIL: tl.constexpr,
    LOW: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Write the gradients of linear1, its bias, and linear2: from their inputs and the spills."""
    i = tl.arange(0, P)
    feature = i + flip * changes
    real = i < reads
    column = tl.load(column_table + feature, mask=real, other=0)
    wide = tl.arange(0, WIDE)
    every = wide >= 0
    a = hold(enter, wide, every, reads, P, LOW)
    w1 = hold(linear1, wide, every, WIDE, WIDE, LOW)
    d_linear1 = tl.zeros((WIDE, WIDE), tl.float32)
    d_linear2 = tl.zeros((WIDE, WIDE), tl.float32)
    d_bias = tl.zeros((WIDE, 16), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK), tl.num_programs(0)):
        row, there, begin, _ = places(tile, rows, row_table, BLOCK, WITHIN, STRIDE)
        inside = there[:, None] & real[None, :]
        given = tl.load(z + begin[:, None] + column[None, :], mask=inside, other=0.0)
        if TAIL:
            tail_s = tl.load(tail_scale + feature, mask=real, other=0.0)[None, :]
            tail_t = tl.load(tail_shift + feature, mask=real, other=0.0)[None, :]
            given = (given - tail_t) * tl.exp(-tail_s)
        _, _, _, _, active1, _, _, active2 = hidden_layers(
            given, a, enter_bias, gamma1, beta1, w1, linear1_bias, gamma2, beta2, reads, eps,
            BLOCK, P, WIDE, NORM, SQUASH, LOW, EMULATE,
        )  # fmt: skip
        hidden = row[:, None] * WIDE + wide[None, :]
        d_inner = tl.load(spill1 + hidden, mask=there[:, None], other=0.0)
        d_linear1 = product(tl.trans(d_inner), active1, d_linear1, LOW, EMULATE)
        d_bias = column_sums(d_inner, d_bias, BLOCK, LOW, EMULATE)
        dh = tl.load(spill2 + hidden, mask=there[:, None], other=0.0)
        d_linear2 = product(tl.trans(dh), active2, d_linear2, LOW, EMULATE)
    n = reads + changes
    at = grads + tl.program_id(0).to(tl.int64) * each
    at += n * n + n + 2 * changes + 2 * changes * WIDE + WIDE * reads + WIDE
    store_matrix(at, d_linear1, wide, every, WIDE, WIDE)
    store_matrix(at + WIDE * WIDE, d_linear2, wide, every, WIDE, WIDE)
    store_sums(at + 2 * WIDE * WIDE, d_bias, wide, every)
