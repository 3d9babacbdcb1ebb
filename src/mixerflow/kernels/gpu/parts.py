"""Pieces of the GPU kernels: what happens to a tile of rows on the chip.

A tile is `BLOCK` rows of `GIVEN` + `CHANGED` numbers: those that the coupling's net reads, and those
that its law changes. On the chip they alternate, given, changed, given, changed, padded with zeros
to `P` of each: neighbours that one thread holds anyway, so that parting them costs nothing. `FLIP`
says that the changed ones come first in memory. `WIDE` columns are hidden.

Products take bfloat16 (`LOW`) or float32 operands and add up in float32. `EMULATE` is for Triton's
interpreter, which multiplies bfloat16 numbers as if they were integers: there operands are rounded
to bfloat16 and multiplied in float32, which is what the matrix units do.
"""

from __future__ import annotations

import triton
import triton.language as tl

# pyright: basic, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false, reportReturnType=false
# ruff: noqa: ANN001, ANN201, ANN202, N803, N806


@triton.jit
def product(a, b, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """``a b`` with operands of the conditioner's precision, added up in float32."""
    if LOW:
        a, b = a.to(tl.bfloat16), b.to(tl.bfloat16)
        if EMULATE:
            a, b = a.to(tl.float32), b.to(tl.float32)
        return tl.dot(a, b)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32x3")


@triton.jit
def column_sums(values, ROWS: tl.constexpr, LOW: tl.constexpr, EMULATE: tl.constexpr):
    """The sum of each column, 16 times over, by the matrix units: ``(columns, 16)``."""
    ones = tl.full((ROWS, 16), 1.0, tl.float32)
    return product(tl.trans(values), ones, LOW, EMULATE)


@triton.jit
def put_sums(at, sums, count, COUNT: tl.constexpr):
    """Write the `count` sums of a padded ``(COUNT, 16)``."""
    i, copy = tl.arange(0, COUNT)[:, None], tl.arange(0, 16)[None, :]
    tl.store(at + i + 0 * copy, sums, mask=(i < count) & (copy == 0))


@triton.jit
def matrix(at, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, LOW: tl.constexpr):
    """A weight ``(rows, columns)``, padded with zeros to ``(ROWS, COLUMNS)``."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    weight = tl.load(at + i * columns + j, mask=(i < rows) & (j < columns), other=0.0)
    return weight.to(tl.bfloat16) if LOW else weight.to(tl.float32)


@triton.jit
def put_matrix(at, values, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Write one."""
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    tl.store(at + i * columns + j, values, mask=(i < rows) & (j < columns))


@triton.jit
def vector(at, COUNT: tl.constexpr):
    """A vector ``(1, COUNT)`` in float32."""
    return tl.load(at + tl.arange(0, COUNT)).to(tl.float32)[None, :]


@triton.jit
def features(GIVEN: tl.constexpr, CHANGED: tl.constexpr, P: tl.constexpr, FLIP: tl.constexpr):
    """Which number of a row stands in each of the 2 P columns, and whether there is one."""
    k = tl.arange(0, 2 * P)
    which, changed = k // 2, k % 2 == 1
    if FLIP:
        first = tl.where(changed, 0, CHANGED)
    else:
        first = tl.where(changed, GIVEN, 0)
    return first + which, which < tl.where(changed, CHANGED, GIVEN)


@triton.jit
def pairs(at, count, P: tl.constexpr):
    """Where each of 2 P columns lies that has `count` first and `count` second numbers."""
    k = tl.arange(0, 2 * P)
    return k // 2 + (k % 2) * count, k // 2 < count


@triton.jit
def split(values, BLOCK: tl.constexpr, P: tl.constexpr):
    """The given and the changed columns, or log-scales and shifts: twice ``(BLOCK, P)``."""
    return tl.split(tl.reshape(values, (BLOCK, P, 2)))


@triton.jit
def join(first, second, BLOCK: tl.constexpr, P: tl.constexpr):
    """The inverse of `split`."""
    return tl.reshape(tl.join(first, second), (BLOCK, 2 * P))


@triton.jit
def places(tile, rows, within, stride, row_table, BLOCK: tl.constexpr):
    """The numbers of a tile's rows, which of them there are, and where they begin."""
    row = tile * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    image, place = row // within, row % within
    begin = image.to(tl.int64) * stride + tl.load(row_table + place, mask=there, other=0)
    return row, there, begin


@triton.jit
def squash(x, SQUASH: tl.constexpr):
    """What the net reads: ``sign(x) log(1 + |x|)``, or x."""
    if SQUASH:
        size = tl.log(1.0 + tl.abs(x))
        return tl.where(x < 0, -size, size)
    return x


@triton.jit
def unsquash(grad, x, SQUASH: tl.constexpr):
    """The gradient of x from that of `squash`."""
    if SQUASH:
        return grad / (1.0 + tl.abs(x))
    return grad


@triton.jit
def normal(x):
    """Distribution function and density of the standard normal at x; errors up to 1.5e-7.

    Abramowitz, Stegun: Handbook of mathematical functions (1964), 7.1.26. One exponential serves
    both.
    """
    size = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.3275911 * size)
    bell = tl.exp(-size * size)
    series = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    tail = 0.5 * bell * t * (0.254829592 + t * (-0.284496736 + t * series))
    return tl.where(x < 0, tail, 1.0 - tail), bell * 0.3989422804014327


@triton.jit
def gelu(x):
    """``x Phi(x)``."""
    below, _ = normal(x)
    return x * below


@triton.jit
def gelu_slope(x):
    """The derivative of `gelu`."""
    below, density = normal(x)
    return below + x * density


@triton.jit
def normed(h, gamma, beta, eps, WIDE: tl.constexpr, NORM: tl.constexpr):
    """Norm 0: none; 1: of each row by itself; 2: a fixed scale. Also what came before the scale."""
    if NORM == 1:
        centred = h - (tl.sum(h, 1) / WIDE)[:, None]
        inverse = tl.rsqrt(tl.sum(centred * centred, 1) / WIDE + eps)[:, None]
        standard = centred * inverse
        return standard * vector(gamma, WIDE) + vector(beta, WIDE), standard, inverse
    if NORM == 2:
        return h * vector(gamma, WIDE) + vector(beta, WIDE), h, h
    return h, h, h


@triton.jit
def unnormed(grad, standard, inverse, gamma, WIDE: tl.constexpr, NORM: tl.constexpr):
    """The gradient of h from that of `normed`."""
    if NORM == 1:
        grad = grad * vector(gamma, WIDE)
        along = (tl.sum(grad * standard, 1) / WIDE)[:, None]
        return (grad - (tl.sum(grad, 1) / WIDE)[:, None] - standard * along) * inverse
    if NORM == 2:
        return grad * vector(gamma, WIDE)
    return grad


@triton.jit
def bounded(raw, bound, BOUND: tl.constexpr):
    """The log-scale: raw, or ``bound tanh(raw / bound)``."""
    if BOUND:
        # tanh by exp of what is at most 0: never overflows
        small = tl.exp(-2.0 * tl.abs(raw) / bound)
        size = bound * (1.0 - small) / (1.0 + small)
        return tl.where(raw < 0, -size, size)
    return raw


@triton.jit
def unbounded(grad, log_scale, bound, BOUND: tl.constexpr):
    """The gradient of raw from that of the log-scale."""
    if BOUND:
        return grad * (1.0 - (log_scale / bound) * (log_scale / bound))
    return grad
