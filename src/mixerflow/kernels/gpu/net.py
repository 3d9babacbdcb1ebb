"""The conditioner of a tile's rows, on the chip: the residual MLP of `mixerflow.nets`."""

from __future__ import annotations

import triton
import triton.language as tl

from mixerflow.kernels.gpu.parts import (
    biased,
    gelu,
    normed,
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
