"""Idle parameters: training leaves them as they are, because no likelihood depends on them.

Some gradients are 0 but for rounding. Adam divides a gradient by its size, and would turn this
rounding into steps as long as any, different ones for another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from mixerflow.core import Along, Chain, Flow, Inverse, StandardNormal, Transform, Window
from mixerflow.moments import ALL, Entries
from mixerflow.transforms import (
    LU,
    Affine,
    Autoregressive,
    BatchNorm,
    Butterfly,
    Coupling,
    DiagonalAffine,
    FlooredAffine,
    Patchify,
    Woodbury,
)

Placed = tuple[int | None, Transform]
"""A step, and the axis of the images that it runs along."""
_AFFINE = (LU, Woodbury, Butterfly, DiagonalAffine)


def trained_entries(flow: Flow, *, likelihood: bool = True) -> dict[str, Tensor]:
    """Return masks of the parameters that are idle, all or in part: 1 where they train, else 0.

    Idle are, whatever the values of the others,

    - what a module's ``idle()`` yields: biases before batch norm, and of keys;
    - what is only added to the input of a batch-norm flow layer: the bias of its shift;
    - with `likelihood` the loss: shifts that only affine maps and batch norms follow, up to a
      standard normal base. They are at their optimum while all of them are 0, as at the start.
    """
    idle = [entry for module in flow.modules() for entry in _declared(module)]
    idle += [entry for module in flow.modules() for entry in _before_batch_norm(module)]
    if likelihood and isinstance(flow.base, StandardNormal):
        last = list(_last_shifts(flow.transform))
        idle += last if all(_is_zero(parameter) for parameter, _ in last) else []
    names = {id(parameter): name for name, parameter in flow.named_parameters()}
    masks: dict[str, Tensor] = {}
    for parameter, part in idle:
        fresh = torch.ones_like(parameter, requires_grad=False)
        masks.setdefault(names[id(parameter)], fresh)[part] = 0
    return masks


def _is_zero(parameter: Tensor) -> bool:
    return parameter.is_meta or not bool(parameter.any())


def _declared(module: nn.Module) -> Iterator[Entries]:
    declared: Callable[[], Iterator[Entries]] | None = getattr(module, "idle", None)
    return iter(()) if declared is None else declared()


def _steps(transform: Transform, axis: int | None = None) -> Iterator[Placed]:
    """The steps of chains in chains, in order."""
    if isinstance(transform, Chain):
        for step in transform.steps:
            yield from _steps(step, axis)  # pyright: ignore[reportArgumentType]
    elif isinstance(transform, Along):
        yield from _steps(transform.transform, transform.dim)
    elif isinstance(transform, Window):
        yield from _steps(transform.transform, axis)
    elif isinstance(transform, BatchNorm) and axis is None and len(transform.shape) == 1:
        yield -1, transform
    else:
        yield axis, transform


def _before_batch_norm(module: nn.Module) -> Iterator[Entries]:
    if isinstance(module, Chain):
        for (axis, step), (norm_axis, norm) in pairwise(_steps(module)):
            if isinstance(norm, BatchNorm) and axis == norm_axis:
                yield from _constants(step)


def _constants(step: Transform) -> Iterator[Entries]:
    """The parameters that only add a constant to each feature of a step's output."""
    if isinstance(step, _AFFINE):
        yield from step.constants()
    elif isinstance(step, (Coupling, Autoregressive)):
        leave = getattr(step.net, "leave", None)
        if isinstance(step.elementwise, (Affine, FlooredAffine)) and isinstance(leave, nn.Linear):
            yield leave.bias, slice(leave.out_features // 2, None)


def _last_shifts(transform: Transform) -> Iterator[Entries]:
    """The shifts of batch norms, and biases after them, that only affine maps follow."""
    after: list[Entries] = []
    for _, step in reversed(list(_steps(transform))):
        if isinstance(step, BatchNorm):
            yield from after
            yield step.shift, ALL
            after = []
        elif isinstance(step, _AFFINE):
            after += step.constants()
        elif not (isinstance(step, Inverse) and isinstance(step.transform, Patchify)):
            return
