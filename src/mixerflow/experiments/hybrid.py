"""Hybrid models: bits/dim and accuracy for several weights lambda, and with few labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from mixerflow.experiments.base import MNIST, TWIN, column
from mixerflow.experiments.field import CIFAR10_COLUMN, GLOW_32, MIXER, NSF_32
from mixerflow.experiments.images import Budget
from mixerflow.experiments.table import Claim, Column, Row, Setup, Table
from mixerflow.experiments.told import FewLabels, Told
from mixerflow.models import MixerFlow
from mixerflow.models.mixerflow_recipes import PAPER_MNIST
from mixerflow.objectives import Hybrid
from mixerflow.parts import GaussiansHead, LinearHead, Model
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


def _timed(column: Column, minutes: float) -> Column:
    setups = dict(column.setups)
    setups["time"] = replace(setups["time"], train=replace(setups["time"].train, minutes=minutes))
    return replace(column, setups=setups)


MNIST_COLUMN = column(
    "mnist", replace(MixerFlow(), patching=PAPER_MNIST.patching), MNIST, TWIN, twin_steps=500
)

_BASES = (MIXER, GLOW_32, NSF_32)
_CURVES = tuple((f"{base.name}-{weight:g}", base.label) for base in _BASES for weight in WEIGHTS)
HYBRID = Table(
    "hybrid",
    "Section 5.5: hybrid models",
    "One network for p(x) and p(y | x): bits per dimension, and the accuracy of a linear layer on "
    "the latents, trained together on log p(y | x) + lambda log p(x). The smaller lambda, the more "
    "the labels count. Twins, of the budgets cpu and time, have as many parameters as MixerFlow's. "
    "The paper gives no figures: it expects that MixerFlow does better under similar weights.",
    columns=(_timed(CIFAR10_COLUMN, MINUTES), _timed(MNIST_COLUMN, MINUTES)),
    rows=tuple(_row(base, weight) for weight in WEIGHTS for base in _BASES),
    claims=tuple(
        Claim(
            f"mixer-{weight:g}",
            f"{other.name}-{weight:g}",
            f"MixerFlow is better than {other.label} at lambda = {weight:g}/D",
            figure=figure,
        )
        for weight in WEIGHTS
        for other in (GLOW_32, NSF_32)
        for figure in ("accuracy", "")
    ),
    further=Told(MINUTES, _CURVES),
)

_FEW_MINUTES = 1.0
_COUNTS = (10, 40, 400)


def _few(column: Column, count: int) -> Column:
    """Return a column of the same images, of which `count` of each class have a label."""
    setups = {
        budget: replace(each, train=replace(each.train, labels_per_class=count))
        for budget, each in _timed(column, _FEW_MINUTES).setups.items()
    }
    return replace(column, name=f"{column.name}-{count}", data=column.name, setups=setups)


def _flowgmm(column: Column) -> dict[Budget, Setup]:
    """Return the setups of a column with a Gaussian for each class, and lambda = 1."""
    objective = Hybrid(float(math.prod(column.shape)))
    return {
        budget: Setup(
            replace(each.model, head=GaussiansHead(_CLASSES)),
            replace(each.train, objective=objective),
        )
        for budget, each in column.setups.items()
    }


_FEW = tuple(_few(each, count) for each in (CIFAR10_COLUMN, MNIST_COLUMN) for count in _COUNTS)
SEMI = Table(
    "semi-supervised",
    "Few labels: semi-supervised learning",
    "MixerFlows on all training images, of which 10, 40 or 400 of each class have a label: the "
    "others add log p(x) alone. A quarter of each batch are images with a label. Rows with a "
    "linear head have lambda = 1/D; FlowGMM has a Gaussian of the latents for each class, and "
    "lambda = 1.",
    columns=_FEW,
    rows=(
        Row(
            "alone",
            "Images with a label alone",
            with_head,
            training=lambda train: replace(weighted(1.0)(train), labelled=1.0),
        ),
        Row("hybrid", "Hybrid, all images", with_head, training=weighted(1.0)),
        Row(
            "gaussians",
            "FlowGMM without consistency, all images",
            in_column={each.name: _flowgmm(each) for each in _FEW},
        ),
    ),
    claims=tuple(
        Claim(better, worse, words, figure="accuracy")
        for better, worse, words in (
            ("hybrid", "alone", "images without labels help a hybrid"),
            ("gaussians", "alone", "images without labels help FlowGMM"),
            ("gaussians", "hybrid", "FlowGMM uses them better than a linear head"),
        )
    ),
    further=FewLabels(),
)

TABLES = (HYBRID, SEMI)
