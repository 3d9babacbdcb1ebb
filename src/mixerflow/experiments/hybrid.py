"""Hybrid models: bits/dim and accuracy for several weights lambda, and with few labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mixerflow.experiments.base import MNIST, TWIN, column
from mixerflow.experiments.field import CIFAR10_COLUMN, GLOW_32, MIXER, NSF_32
from mixerflow.experiments.table import Budget, Column, Row, Setup, Table
from mixerflow.models import MixerFlow
from mixerflow.models.mixerflow_recipes import PAPER_MNIST
from mixerflow.objectives import Hybrid
from mixerflow.parts import LinearHead, Model
from mixerflow.registry import evolve
from mixerflow.train_config import TrainConfig

_CLASSES = 10
MINUTES = 4.0
WEIGHTS = (1.0, 10.0, 100.0)
"""lambda in units of 1/D."""
# MNIST's images have fewer channels: these widths give as many parameters as MixerFlow's twin
_MNIST_WIDTHS = {"glow": 186, "nsf": 114}


def with_head(model: Model) -> Model:
    """Give a model a linear classifier of its latents."""
    return replace(model, head=LinearHead(_CLASSES))


def weighted(weight: float) -> Callable[[TrainConfig], TrainConfig]:
    """Return what makes the objective hybrid, with lambda = weight / D."""
    return lambda train: replace(train, objective=Hybrid(weight))


def _setups(
    setups: Mapping[Budget, Setup],
    training: Callable[[TrainConfig], TrainConfig],
    changes: Mapping[str, object] | None = None,
) -> dict[Budget, Setup]:
    """Give a baseline's models heads, and its training the objective and the minutes."""
    made = {}
    for budget, each in setups.items():
        model = evolve(each.model, dict(changes or {}) if budget in ("cpu", "time") else {})
        model = evolve(model, {"scales": 2}) if budget == "gpu" and changes else model
        train = training(each.train)
        train = replace(train, minutes=MINUTES) if budget == "time" else train
        made[budget] = Setup(with_head(model), train)
    return made


def _row(base: Row, weight: float) -> Row:
    training, number = weighted(weight), f"{weight:g}"
    name, label = f"{base.name}-{number}", f"{base.label}, lambda = {number}/D"
    if base is MIXER:
        return Row(name, label, with_head, training=training)
    widths = {"net.width": _MNIST_WIDTHS[base.name]}
    own = _setups(base.setups, training)
    return Row(name, label, setups=own, in_column={"mnist": _setups(base.setups, training, widths)})


def _timed(column: Column) -> Column:
    setups = dict(column.setups)
    setups["time"] = replace(setups["time"], train=replace(setups["time"].train, minutes=MINUTES))
    return replace(column, setups=setups)


MNIST_COLUMN = column(
    "mnist", replace(MixerFlow(), patching=PAPER_MNIST.patching), MNIST, TWIN, twin_steps=500
)

HYBRID = Table(
    "hybrid",
    "Section 5.5: hybrid models",
    "One network for p(x) and p(y | x): bits per dimension, and the accuracy of a linear layer on "
    "the latents, trained together on log p(y | x) + lambda log p(x). The smaller lambda, the more "
    "the labels count. All rows of a column have as many parameters, to 2 %.",
    columns=(_timed(CIFAR10_COLUMN), _timed(MNIST_COLUMN)),
    rows=tuple(_row(base, weight) for weight in WEIGHTS for base in (MIXER, GLOW_32, NSF_32)),
)

TABLES = (HYBRID,)
