"""The shapes that a description would build, found without memory for its numbers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.errors import CheckpointError, MixerFlowError, first_line
from mixerflow.models import flow_from

_SPARE = 1000  # modules and numbers that any model may have: parts without parameters


class _TooLarge(Exception):
    pass


def state_of(spec: dict[str, Any], where: object, *, numbers: int, parts: int) -> dict[str, Tensor]:
    """Return the state dict, on the meta device, of the flow that a description stands for.

    A description may come from anybody, and a few digits ask for any size. Building stops at the
    first tensor or module beyond the bounds.

    Args:
        spec: the description.
        where: the file that has it.
        numbers: numbers that parameters and buffers may have together.
        parts: tensors that they may be; modules may be many times as many.

    Raises:
        CheckpointError: a larger model, or a description of none.
    """
    try:
        with torch.device("meta"), _at_most(2 * numbers + _SPARE, 20 * parts + _SPARE):
            return flow_from(spec, where).state_dict()
    except CheckpointError:
        raise
    except _TooLarge as error:
        what, remedy = "its model is larger than the weights", "restore the file from a copy"
        raise CheckpointError(what, where, remedy) from error
    except MixerFlowError as error:
        raise CheckpointError(error.what[:200], where, "restore the file from a copy") from error
    except Exception as error:  # sizes that nobody thought of end in many ways
        what = f"settings that make no model ({first_line(error)[:200]})"
        raise CheckpointError(what, where, "restore the file from a copy") from error


@contextmanager
def _at_most(numbers: int, modules: int) -> Iterator[None]:
    """Raise `_TooLarge` in this thread once tensors or modules that it registers are too many."""
    thread, left = threading.get_ident(), [numbers, modules]

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
