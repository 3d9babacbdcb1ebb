"""Columns of the tables at each budget, the base models, and changes that rows make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow.experiments.table import Budget, Column, Setup
from mixerflow.models import MAF, MixerFlow, recipe
from mixerflow.models.mixerflow_recipes import CIFAR10_TRAINING, TABLE_8, TINY, TWIN_32
from mixerflow.parts import LogitPixels, Model, Patching
from mixerflow.registry import evolve, settings_of
from mixerflow.train_config import TrainConfig

_CPU = replace(TINY, minutes=None, evaluate_images=500, keep=1)
_SECONDS = replace(_CPU, steps=6, batch=8, initial=8, warmup=1, evaluate_every=3, evaluate_images=8)
_SHAPES = dict((recipe.MNIST, recipe.CIFAR10))


def column(data: str, paper: Model, train: TrainConfig, twin: Model, *, twin_steps: int) -> Column:
    """Make a column at all budgets: the paper's model, its twin, and a twin of two layers."""
    tiny = evolve(twin, {"layers": 2, "flow_layers": 2, "flow.net.width": 8})
    setups: dict[Budget, Setup] = {
        "tiny": Setup(tiny, _SECONDS),
        "cpu": Setup(twin, replace(_CPU, steps=twin_steps)),
        "gpu": Setup(paper, train),
    }
    return Column(data, _SHAPES[data], setups)


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
