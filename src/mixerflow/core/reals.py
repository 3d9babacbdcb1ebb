"""The density of real numbers that a flow over integer pixels has behind its dequantiser."""

from __future__ import annotations

from torch import nn

from mixerflow.core.combine import Chain
from mixerflow.core.transform import Transform
from mixerflow.errors import ConfigError


def without_dequantizer(transform: Transform) -> Transform:
    """Take the dequantiser out of a transform of integer pixels, in place; return the transform.

    The dequantiser maps pixels x to real numbers ``y = x + u``. What follows it is a transform of
    y. The dequantiser must be a step of a chain, or of chains in it, and only transforms that
    rearrange values (`Transform.rearranges`) may come before it: they rearrange real numbers alike.

    Raises:
        ConfigError: there is no such dequantiser.
    """
    if transform.dequantization != "none":
        return Chain()
    steps = list(transform) if isinstance(transform, Chain) else []
    for number, step in enumerate(steps):
        if _dequantizes(step):
            steps[number] = without_dequantizer(step)
            transform.steps = nn.ModuleList(steps)
            return transform
        if not step.rearranges:
            break
    name = type(steps[0] if steps else transform).__name__
    remedy = "use a flow that begins with a dequantiser; only a shuffle may stand before it"
    raise ConfigError("it takes integers, and has no density of real numbers", name, remedy)


def _dequantizes(step: Transform) -> bool:
    return any(isinstance(m, Transform) and m.dequantization != "none" for m in step.modules())
