"""Couplings as operations of a program: their maps, and the numbers of their nets."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from mixerflow.compression.assembly import Assembly, Positions
from mixerflow.compression.constants import Numbers, contracted
from mixerflow.compression.lowered_nets import float32, linear, norms_of, values
from mixerflow.compression.program import Map, Operation
from mixerflow.compression.refusal import refused
from mixerflow.core import Context
from mixerflow.nets import ResidualMLP
from mixerflow.transforms import Affine, FlooredAffine, RationalQuadratic
from mixerflow.transforms.elementwise import Elementwise

MOST_BOUND = 80.0
"""The largest bound of log-scales: float32 has no larger exponentials than ``exp(88)``."""
MOST_BINS = 64
"""Bins of a spline for which the codec has room."""


def map_of(elementwise: Elementwise) -> tuple[list[int], float]:
    """Return the words of a coupling's elementwise map, and its limit."""
    if type(elementwise) is FlooredAffine:
        return [Map.FLOORED], elementwise.floor
    if type(elementwise) is RationalQuadratic:
        if elementwise.bins > MOST_BINS:
            raise refused(f"splines of {elementwise.bins} bins, more than {MOST_BINS}")
        return [Map.SPLINE, elementwise.bins], elementwise.tail
    if type(elementwise) is not Affine:
        raise refused(f"couplings with {type(elementwise).__name__}")
    if elementwise.bound is None:
        return [Map.EXPONENTIAL], 0.0
    if elementwise.bound > MOST_BOUND:
        raise refused(f"couplings with log-scales up to {elementwise.bound:g}")
    return [Map.BOUNDED], elementwise.bound


def add_coupling(
    assembly: Assembly,
    parts: tuple[Positions, Positions],
    net: ResidualMLP,
    elementwise: Elementwise,
    context: Context,
    classes: Tensor | None,
) -> None:
    """Add a coupling of rows, whose read and changed features have these positions.

    Args:
        assembly: is added to.
        parts: positions ``(rows, given)`` and ``(rows, changed)``.
        net: the coupling's.
        elementwise: the coupling's.
        context: what nets read beside a row, ``(G, K)`` for groups of rows that follow each other,
            with zeros in the place of the class's numbers.
        classes: the contexts of classes ``(classes, k)``, the first k numbers; None for none.
    """
    given, changed = parts
    kind, limit = map_of(elementwise)
    enter, enter_bias = linear(net.enter)
    hidden, reads = enter.shape
    if reads != (1 + net.squares) * given.shape[1]:
        raise refused("a net that reads another number of entries than its coupling has")
    norms = norms_of(net.norm1, net.norm2, hidden)
    added = _added(net.context, context, classes, len(given))
    numbers = [enter, enter_bias, *(part for part in added if part is not None), *norms.first]
    numbers += [*norms.folded(*linear(net.linear1)), *norms.second]
    numbers += [*linear(net.linear2), *linear(net.leave)]
    flags = [int(part is not None) for part in added]
    words = [given.shape[1], *kind, hidden, int(net.squash), int(net.squares), norms.kind, *flags]
    limits = np.array([limit, norms.epsilon])
    rows = np.concatenate([given, changed], 1)
    assembly.add(Operation.COUPLING, rows, *words, numbers=[limits, *float32(numbers)])


def _added(
    by: nn.Module | None, context: Context, classes: Tensor | None, rows: int
) -> tuple[Numbers | None, Numbers | None]:
    """Return what a class and what a row adds to the first layer: ``(classes or rows, hidden)``."""
    if by is None:
        return None, None
    matrix = linear(by)[0]
    if context is None or context.shape[1] != matrix.shape[1]:
        raise refused("a net that reads a context of another length than the model has")
    length = 0 if classes is None else classes.shape[1]
    by_class = None if classes is None else contracted(values(classes), matrix[:, :length])
    of_rows = values(context)[:, length:]
    if not of_rows.shape[1]:
        return by_class, None
    of_rows = np.repeat(of_rows, rows // len(of_rows), 0)
    return by_class, contracted(of_rows, matrix[:, length:])
