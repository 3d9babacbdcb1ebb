"""Couplings as operations of a program: their maps, and the numbers of their nets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixerflow.compression.assembly import Assembly, Positions
from mixerflow.compression.constants import contracted, normalisation, rounded
from mixerflow.compression.program import Map, Norm, Operation
from mixerflow.compression.refusal import refused
from mixerflow.core import Context
from mixerflow.kernels import Net
from mixerflow.nets import ResidualMLP
from mixerflow.transforms import Affine, Coupling, FlooredAffine
from mixerflow.transforms.elementwise import Elementwise
from mixerflow.transforms.plans import net_of


def values(tensor: Tensor | None, like: int = 0) -> np.ndarray:
    """Return a float32 tensor's values in float64; so many zeros for None."""
    if tensor is None:
        return np.zeros(like)
    if tensor.dtype != torch.float32:
        raise refused(f"weights of {tensor.dtype}, not torch.float32")
    return tensor.detach().cpu().double().numpy()


def map_of(elementwise: Elementwise) -> tuple[Map, float]:
    """Return the elementwise map of a coupling as a program has it, with its limit."""
    if type(elementwise) is FlooredAffine:
        return Map.FLOORED, elementwise.floor
    if type(elementwise) is not Affine:
        raise refused(f"couplings with {type(elementwise).__name__}")
    if elementwise.bound is None:
        return Map.EXPONENTIAL, 0.0
    return Map.BOUNDED, elementwise.bound


def add_coupling(
    assembly: Assembly,
    coupling: Coupling,
    parts: tuple[Positions, Positions],
    context: Context,
    classes: Tensor | None,
) -> None:
    """Add a coupling of rows, whose read and changed features have these positions.

    Args:
        assembly: is added to.
        coupling: has a residual MLP.
        parts: positions ``(rows, given)`` and ``(rows, changed)``.
        context: what nets read beside a row, ``(G, K)`` for groups of rows that follow each other,
            with zeros in the place of the class's numbers.
        classes: the contexts of classes ``(classes, k)``, the first k numbers; None for none.
    """
    given, changed = parts
    kind, limit = map_of(coupling.elementwise)
    assert isinstance(coupling.net, ResidualMLP)
    net = net_of(coupling.net)
    if isinstance(net, str):
        raise refused(f"a net in a coupling that differs from its kind ({net})")
    norm, numbers = _net(net, _added(net, context, classes, len(given)))
    flags = [int(net.squash), int(net.squares), norm.kind]
    flags += [int(part is not None) for part in norm.added]
    words = [given.shape[1], kind, net.hidden, *flags]
    rows = np.concatenate([given, changed], 1)
    limits = np.array([limit, norm.epsilon])
    assembly.add(Operation.COUPLING, rows, *words, numbers=[limits, *numbers])


class _Norm(NamedTuple):
    """A net's norm, and what a class and a row add to its first layer, or None."""

    kind: Norm
    epsilon: float
    added: tuple[np.ndarray | None, np.ndarray | None]


def _added(
    net: Net, context: Context, classes: Tensor | None, rows: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return what a class and what a row adds to the first layer: ``(classes or rows, hidden)``."""
    if net.context is None:
        return None, None
    matrix = values(net.context)
    if context is None or context.shape[1] != matrix.shape[1]:
        raise refused("a net that reads a context of another length than the model has")
    length = 0 if classes is None else classes.shape[1]
    by_class = None if classes is None else contracted(values(classes), matrix[:, :length])
    of_rows = values(context)[:, length:]
    if not of_rows.shape[1]:
        return by_class, None
    of_rows = np.repeat(of_rows, rows // len(of_rows), 0)
    return by_class, contracted(of_rows, matrix[:, length:])


def _net(
    net: Net, added: tuple[np.ndarray | None, np.ndarray | None]
) -> tuple[_Norm, list[np.ndarray]]:
    """Return a net's norm and its numbers, rounded to float32, in the program's order."""
    enter, enter_bias, gamma1, beta1, linear1, bias1, gamma2, beta2, linear2, bias2, *leave = (
        None if each is None else values(each) for each in net.parameters
    )
    hidden, out = net.hidden, net.out
    assert (
        enter is not None and linear1 is not None and linear2 is not None and leave[0] is not None
    )
    enter_bias, bias1, bias2 = (_or_zeros(b, hidden) for b in (enter_bias, bias1, bias2))
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    kind, epsilon = Norm.NO_NORM, 0.0
    if net.norm is not None:  # batch norm, by its running averages
        assert gamma1 is not None and beta1 is not None
        assert gamma2 is not None and beta2 is not None
        mean1, var1, mean2, var2 = map(values, net.statistics)
        kind, first = Norm.SCALE, [*normalisation(mean1, var1, net.norm.eps, gamma1, beta1)]
        scale, shift = normalisation(mean2, var2, net.norm.eps, gamma2, beta2)
        linear1, bias1 = linear1 * scale[:, None], bias1 * scale + shift
    elif net.by_row is not None:
        kind = Norm.LAYER if net.by_row.kind == "layer" else Norm.RMS
        epsilon = net.by_row.eps
        if kind == Norm.LAYER:
            assert gamma1 is not None and beta1 is not None
            assert gamma2 is not None and beta2 is not None
            first, second = [gamma1, beta1], [gamma2, beta2]
    elif gamma1 is not None and beta1 is not None:  # batch norm that is folded already
        kind, first = Norm.SCALE, [gamma1, beta1]
    numbers = [enter, enter_bias, *(part for part in added if part is not None), *first]
    numbers += [linear1, bias1, *second, linear2, bias2, leave[0], _or_zeros(leave[1], out)]
    return _Norm(kind, epsilon, added), [rounded(each) for each in numbers]


def _or_zeros(numbers: np.ndarray | None, length: int) -> np.ndarray:
    return np.zeros(length) if numbers is None else numbers
