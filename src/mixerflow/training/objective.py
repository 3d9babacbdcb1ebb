"""What training makes smaller: minus the log-likelihood, or a loss of your own, which may learn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from mixerflow.core import Flow, Noise
from mixerflow.errors import ConfigError

Objective: TypeAlias = Callable[[Flow, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""``(flow, images, labels) -> (loss, figures)``.

Images are ``(B, *shape)`` as they are stored, labels ``(B,)`` int64 or None where there are none.
The loss is ``(B,)``, of each image in nats; figures have names, and are ``(B,)`` or of no
dimension. An `nn.Module` may have parameters of its own, which train with the flow's.
"""

TAKEN = frozenset(
    ("kind", "step", "objective", "bits_per_dim", "gradient_norm", "lr", "skipped", "seconds")
) | {"images_per_second"}
"""What a record of metrics has besides the objective's figures."""


def likelihood(
    flow: Flow, images: Tensor, labels: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The default objective, ``-log p(x)``, given the label where the flow is conditional."""
    return -flow.log_prob(images, context_of(flow, labels)), {}


def context_of(flow: Flow, labels: Tensor | None) -> Tensor | None:
    """The labels as the flow's context; None for a flow that takes none."""
    return None if flow.context_net is None else labels


def name_of(objective: Objective) -> str:
    """What ``run.json`` calls it: "likelihood", or the module and name of what it is made of."""
    while isinstance(objective, partial):
        objective = objective.func
    if objective is likelihood:
        return "likelihood"
    named = objective if hasattr(objective, "__qualname__") else type(objective)
    return f"{named.__module__}.{named.__qualname__}"


class Task(nn.Module):
    """A flow and its objective, as one module that DDP can wrap: `forward` is a part of a step.

    Args:
        flow: what trains.
        objective: of its training; one with parameters goes to the flow's device.

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
        """The objective, if it is a module."""
        return self.objective if isinstance(self.objective, nn.Module) else None

    def forward(
        self, images: Tensor, labels: Tensor | None, noise: Noise | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each image ``(B,)``, and the means of the figures over the images.

        Raises:
            ConfigError: what the objective returned is not what it must.
        """
        if self.objective is not likelihood and labels is not None:
            labels = labels.to(images.device)  # likelihood: the flow looks at them where they are
        with self.flow.drawing(noise):
            loss, figures = self.objective(self.flow, images, labels)
        self._check(loss, figures, len(images))
        return loss, {name: figure.detach().float().mean() for name, figure in figures.items()}

    def _check(self, loss: Tensor, figures: dict[str, Tensor], batch: int) -> None:
        """Raise a ConfigError for a loss or figures that are not such as they must be."""
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
