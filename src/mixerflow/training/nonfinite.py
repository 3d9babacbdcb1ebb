"""Which part of a flow first reached NaN or infinity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, Transform
from mixerflow.processes import SINGLE, Processes
from mixerflow.training.parallel import local

_GRADIENT = "the gradient of"


def first_part(
    flow: Flow,
    x: Tensor,
    context: Tensor | None,
    noise: Noise | None = None,
    processes: Processes = SINGLE,
) -> str | None:
    """Name the first part whose output, or failing that gradient, is not finite; None if all are.

    Runs the batch forward again, with torch's generator where it stands: the caller restores the
    state of the step in question first. Each process looks at its own share, to the end, for the
    others may wait for it in any layer; the first that has found something has the word.
    """
    handles, found = [], []

    def look(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, given: object, result: object) -> None:
            outputs = result if isinstance(result, tuple) else (result,)
            tensors = [t for t in outputs if isinstance(t, Tensor) and t.is_floating_point()]
            if not found and not all(bool(t.isfinite().all()) for t in tensors):
                found.append(f"{name} ({type(module).__name__})")

        handles.append(module.register_forward_hook(hook))

    for name, module in flow.named_modules():
        if isinstance(module, (Transform, nn.Linear)):
            look(name, module)
    try:
        with torch.no_grad():
            flow(x, context, noise)
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in reversed(list(flow.named_parameters())):
        if parameter.grad is not None and not bool(local(parameter.grad).isfinite().all()):
            found.append(f"{_GRADIENT} {name}")
            break
    firsts = [each[0] for each in processes.collect(found) if each]
    return next(iter(sorted(firsts, key=_is_gradient)), None)


def _is_gradient(part: str) -> bool:
    return part.startswith(_GRADIENT)
