"""A program's values on real numbers, in plain float64: a second reading of `program.py`."""

import math

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
        if kind == Operation.COUPLING:
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
    given, kind, hidden, squash, squares, norm, by_class, by_row = map(int, words.take(8))
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
    raw = _linear(numbers, h, 2 * changed).swapaxes(1, 2)
    scale, shift = raw[:, :changed], raw[:, changed:]
    if kind == Map.FLOORED:
        scale = np.log1p((1 - limit) * np.tanh(scale / 2))
    elif kind == Map.BOUNDED:
        scale = limit * np.tanh(scale / limit)
    x[:, table[given:]] = x[:, table[given:]] * np.exp(scale) + shift
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
