"""One flow step on the GPU: a kernel for each direction, and a backward pass in two.

A step is a dense map and an affine coupling with a residual MLP; a row flow's last one has an
ActNorm behind it:

    y = W x + b;  h = A s(y_given) + a;  h' = h + W2 gelu(n(W1 gelu(n(h)) + b1)) + b2
    (log_scale, shift) = B h' + b';  z = (y_given, y_changed exp(log_scale) + shift)

A program walks over tiles of rows and keeps the step's weights; hidden activations stay on the
chip. W and b are the product of the ActNorm and the linear map before a coupling.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mixerflow.kernels.gpu.parts import (
    UNSPECIALIZED,
    biased,
    bounded,
    features,
    gelu,
    hold,
    join,
    normed,
    pairs,
    places,
    product,
    scaled,
    split,
    squash,
    use,
    vector,
)


@triton.jit
def hidden_layers(
    given, enter, enter_bias, gamma1, beta1, linear1, linear1_bias, gamma2, beta2, reads, eps,
    BLOCK: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr, NORM: tl.constexpr,
    SQUASH: tl.constexpr, LOW: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Run a conditioner up to its second GELU, and return all that its backward pass needs.

    That is: its input; h; for each of the two norms the normed rows, 1 over the deviations, and the
    GELU behind. `enter` and `linear1` are results of `hold`.
    """
    wide = tl.arange(0, WIDE)
    every = wide >= 0
    read = squash(given, SQUASH, LOW, EMULATE)
    weight = tl.trans(use(enter, wide, every, reads, P, LOW))
    h = product(read, weight, biased(enter_bias, BLOCK, WIDE), LOW, EMULATE)
    first, inverse1 = normed(h, eps, WIDE, NORM)
    active1 = gelu(scaled(first, gamma1, beta1, WIDE, NORM), LOW, EMULATE)
    weight = tl.trans(use(linear1, wide, every, WIDE, WIDE, LOW))
    inner = product(active1, weight, biased(linear1_bias, BLOCK, WIDE), LOW, EMULATE)
    second, inverse2 = normed(inner, eps, WIDE, 0 if NORM == 2 else NORM)
    active2 = gelu(scaled(second, gamma2, beta2, WIDE, 0 if NORM == 2 else NORM), LOW, EMULATE)
    return read, h, first, inverse1, active1, second, inverse2, active2


@triton.jit
def outputs(
    h, active, linear2, linear2_bias, leave, leave_bias, to, named,
    BLOCK: tl.constexpr, P: tl.constexpr, WIDE: tl.constexpr,
    LOW: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Run the rest: h after the residual block, the log-scales, not yet bounded, and the shifts."""
    wide = tl.arange(0, WIDE)
    weight = tl.trans(use(linear2, wide, wide >= 0, WIDE, WIDE, LOW))
    h = product(active, weight, h + vector(linear2_bias, WIDE), LOW, EMULATE)
    weight = tl.trans(use(leave, to, named, WIDE, WIDE, LOW))
    both = tl.zeros((BLOCK, 2 * P), tl.float32) + leave_bias
    raw, shift = split(product(h, weight, both, LOW, EMULATE), BLOCK, P)
    return h, raw, shift


@triton.jit(do_not_specialize=["add", *UNSPECIALIZED])
def step_kernel(
    x, z, log_det, add, row_table, column_table, rows, reads, changes, flip,
    dense, offset, constant,
    enter, enter_bias, gamma1, beta1, linear1, linear1_bias,
    gamma2, beta2, linear2, linear2_bias, leave, leave_bias,
    tail_scale, tail_shift, eps, bound,
    P: tl.constexpr, WITHIN: tl.constexpr, STRIDE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, NORM: tl.constexpr, SQUASH: tl.constexpr, BOUND: tl.constexpr,
    TAIL: tl.constexpr, INVERSE: tl.constexpr, LOW: tl.constexpr, LINEAR: tl.constexpr,
    EMULATE: tl.constexpr,
):  # fmt: skip
    """Map rows of x by one step to z, or z (given as x) back to x (`INVERSE`).

    Adds the rows' log-dets to `log_det`, or writes them if `add` is 0. `constant` is the log-det of
    W and of the ActNorm behind. For the inverse, `dense` is the inverse of W; the other arguments
    are the same.
    """
    feature, real = features(reads, changes, flip, P)
    column = tl.load(column_table + feature, mask=real, other=0)
    square = real[:, None] & real[None, :]
    at = dense + feature[None, :] * (reads + changes) + feature[:, None]
    w = tl.load(at, mask=square, other=0.0)
    b = tl.load(offset + feature, mask=real, other=0.0)[None, :]
    if TAIL:
        tail_s = tl.load(tail_scale + feature, mask=real, other=0.0)[None, :]
        tail_t = tl.load(tail_shift + feature, mask=real, other=0.0)[None, :]
    wide = tl.arange(0, WIDE)
    every = wide >= 0
    to, named = pairs(changes, P)
    a = hold(enter, wide, every, reads, P, LOW)
    w1 = hold(linear1, wide, every, WIDE, WIDE, LOW)
    w2 = hold(linear2, wide, every, WIDE, WIDE, LOW)
    out = hold(leave, to, named, WIDE, WIDE, LOW)
    out_bias = tl.load(leave_bias + to, mask=named, other=0.0).to(tl.float32)[None, :]
    fixed = tl.load(constant)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK), tl.num_programs(0)):
        row, there, begin, _ = places(tile, rows, row_table, BLOCK, WITHIN, STRIDE)
        inside = there[:, None] & real[None, :]
        values = tl.load(x + begin[:, None] + column[None, :], mask=inside, other=0.0)
        if INVERSE:
            if TAIL:
                values = (values - tail_t) * tl.exp(-tail_s)
        else:
            values = tl.dot(values, w, input_precision=LINEAR) + b
        given, changed = split(values, BLOCK, P)

        _, h, _, _, _, _, _, active = hidden_layers(
            given, a, enter_bias, gamma1, beta1, w1, linear1_bias, gamma2, beta2, reads, eps,
            BLOCK, P, WIDE, NORM, SQUASH, LOW, EMULATE,
        )  # fmt: skip
        _, raw, shift = outputs(
            h, active, w2, linear2_bias, out, out_bias, to, named, BLOCK, P, WIDE, LOW, EMULATE
        )
        log_scale = bounded(raw, bound, BOUND)
        figure = tl.sum(log_scale, 1) + fixed

        if INVERSE:
            figure = -figure
            values = join(given, (changed - shift) * tl.exp(-log_scale), BLOCK, P)
            values = tl.dot(values - b, w, input_precision=LINEAR)
        else:
            values = join(given, changed * tl.exp(log_scale) + shift, BLOCK, P)
            if TAIL:
                values = values * tl.exp(tail_s) + tail_t
        tl.store(z + begin[:, None] + column[None, :], values, mask=inside)
        figure += tl.load(log_det + row, mask=there & (add != 0), other=0.0)
        tl.store(log_det + row, figure, mask=there)
