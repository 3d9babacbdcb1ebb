"""The objective of training: minus the log-likelihood, or a loss of your own, which may learn."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, Transform
from mixerflow.errors import ConfigError
from mixerflow.objectives import Objective, likelihood
from mixerflow.processes import SINGLE, Processes
from mixerflow.training.parallel import local

_GRADIENT = "the gradient of"

TAKEN = frozenset(
    ("kind", "step", "objective", "bits_per_dim", "gradient_norm", "lr", "skipped", "seconds")
) | {"images_per_second", "density"}
"""Names in a record of metrics, which figures of an objective cannot have."""


def name_of(objective: Objective) -> str:
    """Return an objective's name in ``run.json``: "likelihood", or its qualified name."""
    while isinstance(objective, partial):
        objective = objective.func
    if objective is likelihood:
        return "likelihood"
    named = objective if hasattr(objective, "__qualname__") else type(objective)
    return f"{named.__module__}.{named.__qualname__}"


class Task(nn.Module):
    """A flow and its objective as one module that DDP can wrap; `forward` computes the loss.

    Args:
        flow: the flow to train.
        objective: the loss; a module is moved to the flow's device.

    Raises:
        ConfigError: an objective that holds the flow's parameters.
    """

    def __init__(self, flow: Flow, objective: Objective) -> None:
        super().__init__()
        self.flow, self.objective = flow, objective
        self._figures: set[str] | None = None
        if isinstance(objective, nn.Module):
            objective.to(flow.device)
            theirs = {id(parameter) for parameter in flow.parameters()}
            if any(id(parameter) in theirs for parameter in objective.parameters()):
                remedy = "let it use the flow that it is called with"
                raise ConfigError("an objective holds the flow", name_of(objective), remedy)

    @property
    def own(self) -> nn.Module | None:
        """The objective if it is a module, else None."""
        return self.objective if isinstance(self.objective, nn.Module) else None

    def forward(
        self, images: Tensor, labels: Tensor | None, noise: Noise | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each image ``(B,)``, and the means of the figures over the images.

        Raises:
            ConfigError: the objective returned a wrong shape or wrong names.
        """
        if self.objective is not likelihood and labels is not None:
            labels = labels.to(images.device)  # the flow moves them itself
        with self.flow.drawing(noise):
            loss, figures = self.objective(self.flow, images, labels)
        self._check(loss, figures, len(images))
        return loss, {name: figure.detach().float().mean() for name, figure in figures.items()}

    def _check(self, loss: Tensor, figures: dict[str, Tensor], batch: int) -> None:
        """Raise a ConfigError for a loss or figures of wrong shapes or names."""
        where = name_of(self.objective)
        if loss.shape != (batch,):
            remedy = f"return one of each image, ({batch},)"
            raise ConfigError(f"an objective's loss is {tuple(loss.shape)}", where, remedy)
        for name, figure in figures.items():
            if name in TAKEN:
                what = f"a figure of the objective is called {name}, as one of every run is"
                raise ConfigError(what, where, "give it another name")
            if figure.shape not in ((), (batch,)):
                what = f"the objective's figure {name} is {tuple(figure.shape)}"
                raise ConfigError(
                    what, where, f"return one of each image, ({batch},), or their mean"
                )
        if self._figures is not None and self._figures != figures.keys():
            now, before = (", ".join(sorted(names)) or "none" for names in (figures, self._figures))
            what = f"the objective's figures are {now}, and were {before}"
            raise ConfigError(what, where, "return the same ones each time")
        self._figures = set(figures)


def first_nonfinite(
    flow: Flow,
    x: Tensor,
    context: Tensor | None,
    noise: Noise | None = None,
    processes: Processes = SINGLE,
) -> str | None:
    """Name the first module whose output, or else gradient, is not finite; None if all are finite.

    The batch runs forward again: the caller restores torch's generators first. Each process runs
    its own share to the end, as the others may wait for it; the first finding counts.
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
