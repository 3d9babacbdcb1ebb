"""Pieces of the GPU kernels: operations on a tile of rows on the chip.

A tile is `BLOCK` rows of `reads` numbers that the coupling's net reads, and `changes` numbers that
the coupling changes. On the chip given and changed numbers alternate, padded with zeros to `P` of
each: one thread holds both neighbours, so that to split them costs nothing. `flip` is 1 where the
changed ones come first in memory, else 0. `WIDE` is the number of hidden units.

Products take bfloat16 (`LOW`) or float32 operands and add up in float32. `EMULATE` is for Triton's
interpreter, which multiplies bfloat16 numbers as if they were integers: there operands are rounded
to bfloat16 and multiplied in float32, as the matrix units do.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNSPECIALIZED = ["rows", "reads", "changes", "flip"]
"""Arguments that differ from launch to launch: kernels are not specialised for their values."""


@triton.jit
def low(values, EMULATE: tl.constexpr):
    """Round to the nearest bfloat16; the interpreter would cut off the last bits."""
    if EMULATE:
        bits = values.to(tl.float32).to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return values.to(tl.bfloat16)


@triton.jit
def product(a, b, to, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """Return ``a b + to`` with operands of the conditioner's precision, added up in float32."""
    if LOW:
        a, b = low(a, EMULATE), low(b, EMULATE)
        if EMULATE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        return tl.dot(a, b, to)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), to, input_precision="tf32x3")


@triton.jit
def biased(at, BLOCK: tl.constexpr, COUNT: tl.constexpr):
    """Return a bias ``(COUNT,)`` for each row, to which a product adds."""
    bias = tl.load(at + tl.arange(0, COUNT)).to(tl.float32)
    return tl.zeros((BLOCK, COUNT), tl.float32) + bias[None, :]


@triton.jit
def column_sums(values, to, ROWS: tl.constexpr, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """Add the sum of each column to `to` ``(columns, 16)``, 16 equal copies, by matrix units."""
    ones = tl.full((ROWS, 16), 1.0, tl.float32)
    return product(tl.trans(values), ones, to, LOW, EMULATE)


@triton.jit
def store_sums(at, sums, rows, there):
    """Write one of the 16 copies that `column_sums` makes."""
    copy = tl.arange(0, 16)[None, :]
    tl.store(at + rows[:, None] + 0 * copy, sums, mask=there[:, None] & (copy == 0))


@triton.jit
def matrix(at, rows, there, columns, COLUMNS: tl.constexpr, LOW: tl.constexpr):
    """Load the `rows` of a weight that are `there`, padded with zeros to `COLUMNS`."""
    j = tl.arange(0, COLUMNS)[None, :]
    inside = there[:, None] & (j < columns)
    weight = tl.load(at + rows[:, None] * columns + j, mask=inside, other=0.0)
    return weight if LOW else weight.to(tl.float32)


@triton.jit
def hold(at, rows, there, columns, COLUMNS: tl.constexpr, LOW: tl.constexpr):
    """Return a weight for `use`: loaded in bfloat16; in float32, where few fit, its address."""
    if LOW:
        return matrix(at, rows, there, columns, COLUMNS, LOW)
    else:
        return at


@triton.jit
def use(held, rows, there, columns, COLUMNS: tl.constexpr, LOW: tl.constexpr):
    """Return the result of `hold` as a matrix."""
    if LOW:
        return held
    else:
        return matrix(held, rows, there, columns, COLUMNS, LOW)


@triton.jit
def store_matrix(at, values, rows, there, columns, COLUMNS: tl.constexpr):
    """Write a matrix where `matrix` reads it."""
    j = tl.arange(0, COLUMNS)[None, :]
    tl.store(at + rows[:, None] * columns + j, values, mask=there[:, None] & (j < columns))


@triton.jit
def vector(at, COUNT: tl.constexpr):
    """Load a vector ``(1, COUNT)`` in float32."""
    return tl.load(at + tl.arange(0, COUNT)).to(tl.float32)[None, :]


@triton.jit
def features(reads, changes, flip, P: tl.constexpr):
    """Return the number of a row for each of the 2 P columns, and whether there is one."""
    k = tl.arange(0, 2 * P)
    odd = k % 2
    first = odd * (1 - flip) * reads + (1 - odd) * flip * changes
    return first + k // 2, k // 2 < odd * changes + (1 - odd) * reads


@triton.jit
def pairs(count, P: tl.constexpr):
    """Return where each of 2 P columns lies among `count` first, then `count` second numbers."""
    k = tl.arange(0, 2 * P)
    return k // 2 + (k % 2) * count, k // 2 < count


@triton.jit
def split(values, BLOCK: tl.constexpr, P: tl.constexpr):
    """Split given and changed columns, or log-scales and shifts: twice ``(BLOCK, P)``."""
    return tl.split(tl.reshape(values, (BLOCK, P, 2)))


@triton.jit
def join(first, second, BLOCK: tl.constexpr, P: tl.constexpr):
    """Invert `split`."""
    return tl.reshape(tl.join(first, second), (BLOCK, 2 * P))


@triton.jit
def places(
    tile, rows, row_table, BLOCK: tl.constexpr, WITHIN: tl.constexpr, STRIDE: tl.constexpr
):  # fmt: skip
    """Return a tile's row numbers, whether each exists, where it begins, and its image."""
    row = tile * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    if WITHIN == 1:
        return row, there, row * STRIDE, row
    else:
        image, place = row // WITHIN, row % WITHIN
        begin = image * STRIDE + tl.load(row_table + place, mask=there, other=0)
        return row, there, begin, image


@triton.jit
def log(x, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """Return the natural logarithm of x >= 1; with `LOW` by the chip's approximation, to 1e-7."""
    if EMULATE:
        return tl.log(x)
    elif LOW:
        ask: tl.constexpr = "lg2.approx.ftz.f32 $0, $1;"
        two = tl.inline_asm_elementwise(ask, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        return two * 0.6931471805599453
    else:
        return tl.log(x)


@triton.jit
def tanh(x, EMULATE: tl.constexpr):
    """Approximate tanh by the chip's own unit, to 5e-4: an eighth of bfloat16's rounding."""
    if EMULATE:
        return 2.0 / (1.0 + tl.exp(-2.0 * x)) - 1.0
    else:
        ask: tl.constexpr = "tanh.approx.f32 $0, $1;"
        return tl.inline_asm_elementwise(ask, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def squash(x, SQUASH: tl.constexpr, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """Return the net's input: ``sign(x) log(1 + |x|)``, or x."""
    if SQUASH:
        size = log(1.0 + tl.abs(x), LOW, EMULATE)
        return tl.where(x < 0, -size, size)
    return x


@triton.jit
def unsquash(grad, x, SQUASH: tl.constexpr):
    """Return the gradient of x from that of `squash`."""
    if SQUASH:
        return grad / (1.0 + tl.abs(x))
    return grad


@triton.jit
def gelu(x, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """``x Phi(x)``, Phi the standard normal's distribution function.

    In float32 by Abramowitz, Stegun: Handbook of mathematical functions (1964), 7.1.26, to 1.5e-7.
    With `LOW` by ``Phi(x) = (1 + tanh(x p(x^2))) / 2`` with p fitted so that this is off by at most
    2.6e-5, its derivative by 1.2e-4: eight operations instead of thirty, and there are 256 a row.
    """
    if LOW:
        half = 0.5 * x
        return half + half * _gate(x, EMULATE)
    below, _ = _normal(x)
    return x * below


@triton.jit
def gelu_slope(x, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """Return the derivative of `gelu`."""
    if LOW:
        t = _gate(x, EMULATE)
        square = tl.minimum(x * x, 36.0)
        slope = 0.797505275 + square * (3 * 0.0370080200 - 5 * 0.000351902398 * square)
        return 0.5 + 0.5 * t + 0.5 * x * (1.0 - t * t) * slope
    below, density = _normal(x)
    return below + x * density


@triton.jit
def _gate(x, EMULATE: tl.constexpr):
    square = tl.minimum(x * x, 36.0)
    return tanh(x * (0.797505275 + square * (0.0370080200 - 0.000351902398 * square)), EMULATE)


@triton.jit
def _normal(x):
    """Return distribution function and density of the standard normal, with one exponential."""
    size = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * size)
    bell = tl.exp(-size * size)
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + t * series))
    return tl.where(x < 0, tail, 1.0 - tail), bell * 0.3989422804014327


@triton.jit
def compact(values, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """Return values that are needed much later: with `LOW` in half the registers."""
    return low(values, EMULATE) if LOW else values


@triton.jit
def normed(h, eps, WIDE: tl.constexpr, NORM: tl.constexpr):
    """Return hidden rows by the norm of that number, before scale and shift, and 1 / deviations.

    0: none. 1: of each row by itself, to mean 0 and variance 1. 2: a fixed scale and shift alone.
    3: of each row, to mean square 1, and no scale and shift.
    """
    if NORM == 1:
        centred = h - (tl.sum(h, 1) / WIDE)[:, None]
        inverse = tl.rsqrt(tl.sum(centred * centred, 1) / WIDE + eps)[:, None]
        return centred * inverse, inverse
    elif NORM == 3:
        inverse = tl.rsqrt(tl.sum(h * h, 1) / WIDE + eps)[:, None]
        return h * inverse, inverse
    else:
        return h, 1.0


@triton.jit
def scaled(standard, gamma, beta, WIDE: tl.constexpr, NORM: tl.constexpr):
    """Apply the norm's scale and shift, where it has them."""
    if NORM == 1 or NORM == 2:
        return standard * vector(gamma, WIDE) + vector(beta, WIDE)
    else:
        return standard


@triton.jit
def unnormed(grad, standard, inverse, gamma, WIDE: tl.constexpr, NORM: tl.constexpr):
    """Return the gradient of h from that of `scaled`."""
    if NORM == 1:
        grad = grad * vector(gamma, WIDE)
        along = (tl.sum(grad * standard, 1) / WIDE)[:, None]
        return (grad - (tl.sum(grad, 1) / WIDE)[:, None] - standard * along) * inverse
    elif NORM == 3:
        along = (tl.sum(grad * standard, 1) / WIDE)[:, None]
        return (grad - standard * along) * inverse
    else:
        return grad


@triton.jit
def bounded(raw, bound, BOUND: tl.constexpr):
    """Return the log-scale: raw, or ``bound tanh(raw / bound)``."""
    if BOUND:
        # tanh by exp of what is at most 0: never overflows
        small = tl.exp(-2.0 * tl.abs(raw) / bound)
        size = bound * (1.0 - small) / (1.0 + small)
        return tl.where(raw < 0, -size, size)
    return raw


@triton.jit
def unbounded(grad, log_scale, bound, BOUND: tl.constexpr):
    """Return the gradient of raw from that of the log-scale."""
    if BOUND:
        return grad * (1.0 - (log_scale / bound) * (log_scale / bound))
    return grad
