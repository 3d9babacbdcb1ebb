"""Outliers: the likelihood's failure, and what its corrections make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mixerflow.augmentation import Augmentation
from mixerflow.experiments.dense import MIXER_DENSE, MIXER_DENSE_MNIST
from mixerflow.experiments.images import Budget
from mixerflow.experiments.outlying import BACKGROUND, Outlying
from mixerflow.experiments.table import Row, Setup, Table
from mixerflow.train_config import TrainConfig

MINUTES = 3.0
_MUTATION = 0.1
_FLOWS = ("mixer", "glow", "dense")
_CAPTION = (
    "Flows trained on one set of images are asked which images of other sets are outliers. The "
    "flows have as many parameters as MixerFlow's twin, to 2 %, and uniform dequantisation; the "
    f"background flow is a MixerFlow of the same kind whose training images have {_MUTATION:.0%} "
    "of their values replaced at random."
)


def _mutated(train: TrainConfig) -> TrainConfig:
    return replace(train, augmentation=Augmentation(mutation=_MUTATION))


def _changed(
    setups: Mapping[Budget, Setup], change: Callable[[TrainConfig], TrainConfig]
) -> dict[Budget, Setup]:
    """Change the training at all budgets; twins of equal time get the tables' minutes."""
    made = {}
    for budget, each in setups.items():
        train = change(each.train)
        train = replace(train, minutes=MINUTES) if budget == "time" else train
        made[budget] = Setup(each.model, train)
    return made


def _table(name: str, data: str, sets: tuple[str, ...], base: Table) -> Table:
    """Make the table of flows trained on `data`, the rows of uniform noise of another table."""
    flows = {row.name: row for row in base.rows if row.name in _FLOWS}
    rows = [replace(row, setups=_changed(row.setups, lambda t: t)) for row in flows.values()]
    background = Row(
        BACKGROUND,
        "Background of the ratio, a MixerFlow",
        setups=_changed(flows["mixer"].setups, _mutated),
    )
    column = base.columns[0]
    setups = _changed(column.setups, lambda t: t)
    return Table(
        name,
        f"Outliers of {data}",
        _CAPTION,
        columns=(replace(column, name=data, data="", weighted=None, setups=setups),),
        rows=(background, *rows),
        further=Outlying(sets=sets),
    )


TABLES = (
    _table("outliers-cifar10", "cifar10", ("svhn", "cifar100"), MIXER_DENSE),
    _table("outliers-fashion", "fashion-mnist", ("mnist",), MIXER_DENSE_MNIST),
)
