"""Which part of a flow first reached NaN or infinity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Transform


class _Found(Exception):
    pass


def first_part(flow: Flow, x: Tensor, context: Tensor | None) -> str:
    """Name the first part whose output, or failing that gradient, is not finite.

    Runs the batch forward again, with torch's generator where it stands: the caller restores the
    state of the step in question first.
    """
    handles = []

    def look(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: object, result: object) -> None:
            outputs = result if isinstance(result, tuple) else (result,)
            tensors = [t for t in outputs if isinstance(t, Tensor) and t.is_floating_point()]
            if not all(bool(t.isfinite().all()) for t in tensors):
                raise _Found(f"{name} ({type(module).__name__})")

        handles.append(module.register_forward_hook(hook))

    for name, module in flow.named_modules():
        if isinstance(module, (Transform, nn.Linear)):
            look(name, module)
    try:
        with torch.no_grad():
            flow(x, context)
    except _Found as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in reversed(list(flow.named_parameters())):
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"the gradient of {name}"
    return "the sum of the log-probabilities"
