"""A program's values on real numbers, in plain float64: a second reading of `program.py`."""

import math
from statistics import NormalDist

import numpy as np

from mixerflow.compression.program import Base, Map, Norm, Operation, Program

_erf = np.vectorize(math.erf, otypes=[float])


class Reading:
    """Numbers of a list, from the first to the last."""

    def __init__(self, values):
        self.values, self.place = values, 0

    def take(self, *shape):
        count = math.prod(shape)
        taken = self.values[self.place : self.place + count]
        assert len(taken) == count, "the list is too short"
        self.place += count
        return taken.reshape(shape) if shape else taken[0]

    def done(self):
        return self.place == len(self.values)


def evaluate(program: Program, reals, classes=None):
    """Latents by position ``(B, D)``, and log-densities ``(B,)``, of real images ``(B, D)``."""
    words, numbers = Reading(program.words), Reading(program.numbers)
    head = [int(words.take()) for _ in range(9)]
    number, levels, size, channels, height, width, n_classes, base, components = head
    assert (number, levels, n_classes) == (1, program.levels, program.classes)
    assert size == channels * height * width == math.prod(program.shape)
    law = _law(Base(base), components, numbers)
    tables = [words.take(int(words.take())) for _ in range(words.take())]
    x = np.array(reals, dtype=np.float64)
    log_det = np.zeros(len(x))
    for _ in range(words.take()):
        kind, table, rows = Operation(int(words.take())), tables[words.take()], int(words.take())
        table = table.reshape(-1, rows)
        assert len(np.unique(table)) == table.size
        step = {Operation.AFFINE: _affine, Operation.TRIANGLES: _triangles}
        if kind == Operation.SCORES:
            log_det += _scores(numbers, x, table, levels)
        elif kind == Operation.CONVOLUTION:
            log_det += _convolution(words, numbers, x, table, classes, n_classes)
        elif kind == Operation.COUPLING:
            log_det += _coupling(words, numbers, x, table, classes, n_classes)
        else:
            log_det += step[kind](numbers, x, table)
    density = law(x)
    assert words.done() and numbers.done()
    return x, density.sum(1) + log_det


def _affine(numbers, x, table):
    factor, log_scale, shift = numbers.take(3, len(table))[..., None]
    assert (factor != 0).all()
    x[:, table] = x[:, table] * factor * np.exp(log_scale) + shift
    return (np.log(np.abs(factor)) + log_scale).sum() * table.shape[1]


def _triangles(numbers, x, table):
    n = len(table)
    packed, bias = numbers.take(n, n), numbers.take(n)
    lower = np.tril(packed, -1) + np.eye(n)
    upper = np.triu(packed, 1) + np.diag(np.exp(np.diagonal(packed)))
    x[:, table] = np.einsum("ij,jk,bkr->bir", lower, upper, x[:, table]) + bias[:, None]
    return np.trace(packed) * table.shape[1]


def _coupling(words, numbers, x, table, classes, n_classes):
    given, *kind = _map(words)
    hidden, squash, squares, norm, by_class, by_row = map(int, words.take(6))
    changed = len(table) - given
    limit, epsilon = numbers.take(2)
    read = x[:, table[:given]].swapaxes(1, 2)  # (B, rows, given)
    read = np.sign(read) * np.log1p(np.abs(read)) if squash else read
    read = np.concatenate([read, read**2], 2) if squares else read
    h = _linear(numbers, read, hidden)
    if by_class:
        h = h + numbers.take(n_classes, hidden)[classes][:, None]
    if by_row:
        h = h + numbers.take(table.shape[1], hidden)
    inner = _gelu(_norm(numbers, h, Norm(norm), epsilon, first=True))
    inner = _linear(numbers, inner, hidden)
    inner = _gelu(_norm(numbers, inner, Norm(norm), epsilon, first=False))
    h = h + _linear(numbers, inner, hidden)
    raw = _linear(numbers, h, _params(*kind) * changed)
    return _change(raw, kind, limit, x, table[given:])


def _convolution(words, numbers, x, table, classes, n_classes):
    given, *kind = _map(words)
    hidden, squash, norm, by_class, depth, taps = map(int, words.take(6))
    neighbours = words.take(taps, table.shape[1])
    limit, epsilon = numbers.take(2)

    def gathered(h):
        """``(B, rows, features)`` to ``(B, rows, taps features)``, zeros outside."""
        padded = np.concatenate([h, np.zeros_like(h[:, :1])], 1)
        return padded[:, neighbours.T].reshape(*h.shape[:2], -1)

    read = x[:, table[:given]].swapaxes(1, 2)
    read = np.sign(read) * np.log1p(np.abs(read)) if squash else read
    h = _linear(numbers, gathered(read), hidden)
    if by_class:
        h = h + numbers.take(n_classes, hidden)[classes][:, None]
    for _ in range(depth):
        inner = _gelu(_norm(numbers, h, Norm(norm), epsilon, first=True))
        inner = _linear(numbers, inner, hidden)
        inner = _gelu(_norm(numbers, inner, Norm(norm), epsilon, first=False))
        h = h + _linear(numbers, gathered(inner), hidden)
    raw = _linear(numbers, gathered(_gelu(h)), _params(*kind) * (len(table) - given))
    return _change(raw, kind, limit, x, table[given:])


def _map(words):
    """Features read, the kind of a map, and the bins of a spline."""
    given, kind = map(int, words.take(2))
    return given, Map(kind), int(words.take()) if kind == Map.SPLINE else 0


def _params(kind, bins):
    return 3 * bins - 1 if kind == Map.SPLINE else 2


def _spline(x, raw, bins, tail):
    """Durkan et al., eqs. 4 and 5, of numbers whose raw parameters are on the first axis."""

    def knots(each):
        share = np.exp(each) / np.exp(each).sum(0)
        widths = 1e-3 + (1 - 1e-3 * bins) * share
        return tail * (2 * np.concatenate([0 * widths[:1], widths.cumsum(0)]) - 1)

    xs, ys = knots(raw[:bins]), knots(raw[bins : 2 * bins])
    slopes = 1e-3 + (1 - 1e-3) * np.log2(1 + 2 ** raw[2 * bins :])
    slopes = np.concatenate([1 + 0 * slopes[:1], slopes, 1 + 0 * slopes[:1]])
    number = np.clip((x >= xs[1:-1]).sum(0), 0, bins - 1)[None]
    x0, x1, y0, y1, d0, d1 = (
        np.take_along_axis(each, number + more, 0)[0]
        for each in (xs, ys, slopes)
        for more in (0, 1)
    )
    slope, t = (y1 - y0) / (x1 - x0), (x - x0) / (x1 - x0)
    below = slope + (d1 + d0 - 2 * slope) * t * (1 - t)
    inside = np.abs(x) < tail
    z = y0 + (y1 - y0) * (slope * t**2 + d0 * t * (1 - t)) / below
    top = slope**2 * (d1 * t**2 + 2 * slope * t * (1 - t) + d0 * (1 - t) ** 2)
    with np.errstate(invalid="ignore"):
        log_slope = np.log(top / below**2)
    return np.where(inside, z, x), np.where(inside, log_slope, 0)


def _scores(numbers, x, table, levels):
    shares, log_det, normal = numbers.take(len(table), levels), np.zeros(len(x)), NormalDist()
    for channel, places in zip(shares, table, strict=True):
        level = np.floor(x[:, places]).astype(int)
        below = (channel.cumsum() - channel)[level]
        p = 2**-14 + (1 - 2**-13) * (below + channel[level] * (x[:, places] - level))
        z = np.vectorize(normal.inv_cdf)(p)
        x[:, places] = z
        each = np.log(channel[level] * (1 - 2**-13)) + 0.5 * (z**2 + math.log(2 * math.pi))
        log_det += each.sum(1)
    return log_det


def _change(raw, kind, limit, x, table):
    """Apply raw parameters ``(B, rows, params features)`` at the places of a table."""
    (kind, bins), raw, changed = kind, raw.swapaxes(1, 2), len(table)
    if kind == Map.SPLINE:
        each = raw.reshape(len(x), -1, *x[:, table].shape[1:]).swapaxes(0, 1)
        x[:, table], log_slope = _spline(x[:, table], each, bins, limit)
        return log_slope.sum((1, 2))
    scale, shift = raw[:, :changed], raw[:, changed:]
    if kind == Map.FLOORED:
        scale = np.log1p((1 - limit) * np.tanh(scale / 2))
    elif kind == Map.BOUNDED:
        scale = limit * np.tanh(scale / limit)
    x[:, table] = x[:, table] * np.exp(scale) + shift
    return scale.sum((1, 2))


def _linear(numbers, x, out):
    weight, bias = numbers.take(out, x.shape[-1]), numbers.take(out)
    assert (weight == weight.astype(np.float32)).all() and (bias == bias.astype(np.float32)).all()
    return x @ weight.T + bias


def _norm(numbers, h, norm, epsilon, *, first):
    hidden = h.shape[-1]
    if norm == Norm.RMS:
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + epsilon)
    if norm == Norm.NO_NORM or (norm == Norm.SCALE and not first):
        return h
    weight, bias = numbers.take(2, hidden)
    if norm == Norm.LAYER:
        h = h - h.mean(-1, keepdims=True)
        h = h / np.sqrt((h**2).mean(-1, keepdims=True) + epsilon)
    return h * weight + bias


def _gelu(h):
    return h * 0.5 * (1 + _erf(h / math.sqrt(2)))


def _law(base, components, numbers):
    """The log-density of the base, as a function of latents, elementwise."""
    if base == Base.NORMAL:
        return lambda z: -0.5 * (z**2 + math.log(2 * math.pi))
    if base == Base.STUDENT:
        offset, factor, log = numbers.take(3)
        dof = offset + factor * math.exp(log)
        peak = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(math.pi * dof)
        return lambda z: peak - (dof + 1) / 2 * np.log1p(z**2 / dof)
    logits, means, log_scales = numbers.take(3, components)
    peaks = logits - np.log(np.exp(logits).sum()) - log_scales - 0.5 * math.log(2 * math.pi)

    def mixture(z):
        each = peaks - 0.5 * ((z[..., None] - means) * np.exp(-log_scales)) ** 2
        top = each.max(-1)
        return top + np.log(np.exp(each - top[..., None]).sum(-1))

    return mixture
