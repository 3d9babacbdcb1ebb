"""Flows of descriptions that may come from anybody: a few digits ask for any size."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mixerflow.core import Flow
from mixerflow.errors import CheckpointError, MixerFlowError, first_line
from mixerflow.models import flow_from

_SPARE = 1000  # modules and numbers that any model may have: parts without parameters
_SMALL = 4096  # no tensor is large if no setting, and no image, is larger
_DRAWN = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "trunc_normal_"}


def flow_within_reason(spec: dict[str, Any], where: object) -> Flow:
    """Return the untrained flow of a description without weights: up to 2^29 numbers."""
    return flow_within(spec, where, numbers=1 << 28, parts=10**5, than="2^29 numbers")


def flow_within(
    spec: dict[str, Any], where: object, *, numbers: int, parts: int, than: str = "the weights"
) -> Flow:
    """Return the untrained flow of a description, on the CPU, if it is within the bounds.

    Building stops at the first tensor or module beyond them. If a setting is large, the flow is
    built without memory first.

    Args:
        spec: the description.
        where: the file that has it.
        numbers: numbers that parameters and buffers have together.
        parts: their tensors; modules may be many times as many.
        than: what a model beyond the bounds is larger than.

    Raises:
        CheckpointError: a larger model, or a description of none.
    """
    try:
        if _largest(spec) > _SMALL:
            with torch.device("meta"), _Undrawn(), _at_most(numbers, parts):
                flow_from(spec, where)
        with torch.device("cpu"), _at_most(numbers, parts):
            return flow_from(spec, where)
    except CheckpointError:
        raise
    except _TooLarge as error:
        what, remedy = f"its model is larger than {than}", "restore the file from a copy"
        raise CheckpointError(what, where, remedy) from error
    except MixerFlowError as error:
        raise CheckpointError(error.what[:200], where, "restore the file from a copy") from error
    except Exception as error:  # sizes that nobody thought of end in many ways
        what = f"settings that make no model ({first_line(error)[:200]})"
        raise CheckpointError(what, where, "restore the file from a copy") from error


def _largest(spec: Any) -> int:  # noqa: ANN401
    """Return the largest whole number in a description, or that of an image's numbers."""
    if isinstance(spec, dict):
        shape = spec.get("shape", [])
        whole = isinstance(shape, list) and all(type(each) is int for each in shape)
        return max(math.prod(shape) if whole else 0, *map(_largest, spec.values()), 0)
    if isinstance(spec, list):
        return max(map(_largest, spec), default=0)
    return abs(spec) if isinstance(spec, int) else 0


class _TooLarge(Exception):
    pass


class _Undrawn(TorchFunctionMode):
    """Passes over draws into tensors without memory, for which torch imports its compiler."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **{k: v for k, v in kwargs.items() if k != "generator"})
        if getattr(func, "__name__", "") in _DRAWN:
            into = args[0] if args else kwargs["tensor"]
            if into.is_meta:
                return into
        return func(*args, **kwargs)


@contextmanager
def _at_most(numbers: int, parts: int) -> Iterator[None]:
    """Raise `_TooLarge` in this thread once tensors or modules that it registers are too many."""
    thread, left = threading.get_ident(), [2 * numbers + _SPARE, 20 * parts + _SPARE]

    def count(_module: nn.Module, _name: str, added: object) -> None:
        if threading.get_ident() != thread:
            return
        left[1] -= 1
        if isinstance(added, Tensor):
            left[0] -= added.numel()
        if min(left) < 0:
            raise _TooLarge

    hooks = torch.nn.modules.module
    with ExitStack() as held:
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
            hooks.register_module_module_registration_hook,
        ):
            held.enter_context(register(count))
        yield
