"""Columns of the tables at each budget, the base models, and changes that rows make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mixerflow.experiments.images import Budget
from mixerflow.experiments.table import Column, Setup
from mixerflow.models import MAF, MixerFlow, recipe
from mixerflow.models.mixerflow_recipes import CIFAR10_TRAINING, TABLE_8, TINY, TWIN_32
from mixerflow.parts import LogitPixels, Model, Patching
from mixerflow.registry import evolve, settings_of
from mixerflow.schedule import Constant
from mixerflow.train_config import TrainConfig

TIME = 2.0
"""Minutes of processor time of a run of the budget `time`, unless a table has its own."""

STEPS = 500
"""Steps of a run of the budget `cpu` in the tables of several models."""

_CPU = replace(TINY, minutes=None, evaluate_images=500, keep=1)
# a constant rate and averaged weights: a curve's every point is the result of a shorter run; few
# images, the same for every row, or a slow row would be judged on fewer than a fast one
_TIME = replace(_CPU, minutes=TIME, clock="cpu", schedule=Constant(), evaluate_images=64)
_SECONDS = replace(_CPU, steps=6, batch=8, initial=8, warmup=1, evaluate_every=3, evaluate_images=8)
_SHAPES = dict((recipe.MNIST, recipe.CIFAR10, recipe.GALAXY32, recipe.ANIME64))
_SHAPES |= dict((recipe.IMAGENET32, recipe.IMAGENET64))


def setups(
    paper: Model,
    train: TrainConfig,
    twin: Model,
    tiny: Model,
    *,
    steps: int,
    minutes: float = TIME,
    **training: Any,  # noqa: ANN401
) -> dict[Budget, Setup]:
    """Return the setups of all budgets: the paper's model, its twin, and a model of a few numbers.

    Twins train for `steps`, or for `minutes` of processor time, with the settings `training`.
    """
    return {
        "tiny": Setup(tiny, _SECONDS),
        "cpu": Setup(twin, replace(_CPU, steps=steps, **training)),
        "time": Setup(twin, replace(_TIME, minutes=minutes, **training)),
        "gpu": Setup(paper, train),
    }


def column(
    name: str,
    paper: Model,
    train: TrainConfig,
    twin: Model,
    *,
    twin_steps: int,
    twin_minutes: float = TIME,
    data: str = "",
    **changes: Any,  # noqa: ANN401
) -> Column:
    """Make a column of MixerFlow at all budgets; the smallest has two layers."""
    tiny = evolve(twin, {"layers": 2, "flow_layers": 2, "flow.net.width": 8})
    bases = setups(paper, train, twin, tiny, steps=twin_steps, minutes=twin_minutes)
    return Column(name, _SHAPES[data or name], bases, data, **changes)


CIFAR10, MNIST = CIFAR10_TRAINING, TABLE_8
TWIN = replace(TWIN_32, patching=Patching(shift=(0, 1)))


def changed(**settings: object) -> Callable[[Model], Model]:
    """Change settings of the base; two underscores in a name are the dot of a part's path."""
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    return lambda model: evolve(model, paths)


def whole_image_maf(layers: int) -> Callable[[Model], Model]:
    """Replace the mixer by MAF over whole images, with nets eight times as wide."""

    def change(model: Model) -> Model:
        photographs = isinstance(model, MixerFlow) and not model.linear.reverses
        return MAF(
            layers=layers,
            width=min(1024, 8 * settings_of(model)["flow.net.width"]),
            batch_norm=layers > 1,
            order="random" if photographs else "sequential",
            pixels=LogitPixels(0.05 if photographs else 1e-6),
        )

    return change
