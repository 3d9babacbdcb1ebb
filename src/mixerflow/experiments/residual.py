"""Residual flows and their kin beside MixerFlow and Glow, in the neighbourhood of Table 1.

Twins have as many parameters as MixerFlow's, to 2 %, but for FFJORD's, and the learning rate of
their recipes' twins.
Figures of two kinds stand beside each other: estimates without bias of the same density, uniform
dequantisation, that the others compute exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixerflow.experiments import field
from mixerflow.experiments.base import STEPS, setups
from mixerflow.experiments.images import Budget
from mixerflow.experiments.table import Claim, Row, Setup, Table
from mixerflow.models.ffjord_recipes import RECIPES as FFJORDS
from mixerflow.models.recipe import Recipe
from mixerflow.models.related_recipes import RECIPES as RELATED
from mixerflow.models.residual_recipes import RECIPES
from mixerflow.registry import evolve

TINY = {"blocks": 1, "net.width": 4, "dense.width": 4, "eval_terms": 4}


def twin_setups(
    recipes: Mapping[str, Recipe],
    name: str,
    changes: dict[str, Any],
    tiny: dict[str, Any],
    **training: Any,  # noqa: ANN401
) -> dict[Budget, Setup]:
    """Return a recipe's model, its twin with `changes`, and a model of a few numbers.

    Twins train as that of the recipe does, but for `training`.
    """
    full, twin = recipes[name], recipes[f"{name}-tiny"]
    names = ("optimizer", "lr", "betas", "clip", "late_epochs")
    own = {name: getattr(twin.train, name) for name in names}
    return setups(
        full.model,
        full.train,
        evolve(twin.model, changes),
        evolve(twin.model, tiny),
        steps=STEPS,
        **own | training,
    )


SETUPS = {
    name: twin_setups(RECIPES, f"{name}-cifar10", changes, TINY)
    for name, changes in (
        ("residual", {"dense.width": 69}),
        ("iresnet", {"dense.width": 69}),
        ("idensenet", {"dense.enter": 41}),
        ("monotone", {"dense.width": 40}),
    )
}
_FFJORD = twin_setups(FFJORDS, "ffjord-cifar10", {}, {"net.width": 4, "scales": 2})
_ATTENTION = twin_setups(
    RELATED,
    "attention-glow-cifar10",
    {"net.width": 157},
    {"steps": 1, "net.width": 4},
    lr=5e-3,
)
_ROWS = (
    field.MIXER,
    field.GLOW_32,
    Row("residual", "Residual Flow", setups=SETUPS["residual"]),
    Row("iresnet", "i-ResNet", setups=SETUPS["iresnet"]),
    Row("idensenet", "i-DenseNet", setups=SETUPS["idensenet"]),
    Row("monotone", "Monotone flow", setups=SETUPS["monotone"]),
    Row("ffjord", "FFJORD", setups=_FFJORD),
    Row("attention", "Glow with attention", setups=_ATTENTION),
)


def _claim(better: Row, worse: Row) -> Claim:
    words = f"{better.label} is better than {worse.label}"
    return Claim(better.name, worse.name, words, kinds="any")


RESIDUAL_64 = twin_setups(RECIPES, "residual-cifar10", {"dense.width": 49}, TINY)
IDENSENET_64 = twin_setups(RECIPES, "idensenet-cifar10", {"dense.enter": 23}, TINY)

TABLES = (
    Table(
        "residual-and-continuous",
        "Residual and continuous flows beside MixerFlow and Glow",
        "Negative log-likelihood in bits per dimension. Rows of residual and continuous flows are "
        "estimates without bias, all others are exact; of both the expectation is the same figure. "
        "Twins, of the budgets cpu and time, have as many parameters as MixerFlow's; FFJORD's, "
        "which solve an equation for every image, are smaller.",
        columns=(field.CIFAR10_COLUMN,),
        rows=_ROWS,
        claims=(
            *(_claim(_ROWS[0], row) for row in _ROWS[2:]),
            *(_claim(_ROWS[1], row) for row in _ROWS[2:]),
            _claim(_ROWS[2], _ROWS[3]),
            _claim(_ROWS[4], _ROWS[2]),
        ),
    ),
)
