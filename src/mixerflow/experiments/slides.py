"""The tables of the DenseFlow slides: bits/dim, the cost of training, and Frechet distances.

Rows are the slides' flows that are here, and MixerFlow beside them; all that the slides print is
quoted. Twins have as many parameters as MixerFlow's, to 2 %, and its training, but for residual
flows, Flow++, VFlow, ANF and SurVAE, which learn at the rates of their recipes' twins; learned
dequantisers are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from mixerflow.experiments import added, field, residual
from mixerflow.experiments.base import STEPS, setups
from mixerflow.experiments.dense import DENSEFLOW_32
from mixerflow.experiments.images import Budget
from mixerflow.experiments.slides_quoted import (
    BITS,
    CELEBA,
    CIFAR10,
    COSTS,
    DENSITY,
    DISTANCES,
    KIND,
    NEW_32,
    NEW_64,
    OLD_32,
    OLD_64,
    published,
)
from mixerflow.experiments.table import Claim, PublishedResult, Row, Setup, Table
from mixerflow.models import RealNVP
from mixerflow.models.anf_recipes import RECIPES as ANFS
from mixerflow.models.baseline_recipes import RECIPES as BASELINES
from mixerflow.models.denseflow_recipes import RECIPES as DENSEFLOWS
from mixerflow.models.flowpp_recipes import RECIPES as FLOWPPS
from mixerflow.models.glow_recipes import RECIPES as GLOWS
from mixerflow.models.mixerflow_recipes import RECIPES as MIXERFLOWS
from mixerflow.models.recipe import Recipe
from mixerflow.models.survae import Pooling
from mixerflow.models.survae_recipes import RECIPES as SURVAES
from mixerflow.parts import Model, ResidualConv
from mixerflow.registry import evolve

_Setups = Mapping[Budget, Setup]
_FACES, _IMAGENET64 = field.TABLE_2.columns
COLUMNS = {
    each.name: each
    for each in (
        field.CIFAR10_COLUMN,
        replace(field.IMAGENET_COLUMN, name=NEW_32),
        replace(_FACES, name=CELEBA),
        replace(_IMAGENET64, name=NEW_64),
        field.IMAGENET_COLUMN,
        _IMAGENET64,
    )
}
_SIDE_32, _SIDE_64 = (CIFAR10, NEW_32, OLD_32), (CELEBA, NEW_64, OLD_64)
_KNOWN = {row.name: row for row in (*field.TABLE_1.rows, *field.LARGE)}
_KNOWN_64 = {row.name: row for row in field.ROWS_64}


def _setups(full: Recipe, twin: Model, tiny: Model) -> _Setups:
    """Return a recipe, and its twins with the training of MixerFlow's."""
    return setups(full.model, full.train, twin, tiny, steps=STEPS)


def _row(name: str, in_column: Mapping[str, _Setups]) -> Row:
    """Make the row of a quoted model that is here too."""
    quoted = DENSITY[name]
    reported = {
        column: PublishedResult(bits, note=str(each[KIND]))
        for column, each in quoted.figures.items()
        if isinstance(bits := each[BITS], float)
    }
    return Row(name, quoted.label.partition(",")[0], published=reported, in_column=in_column)


def _realnvp() -> Row:
    full, twin = BASELINES["realnvp-cifar10"], BASELINES["realnvp-cifar10-tiny"].model
    twin_32 = evolve(twin, {"net.width": 17, "net.depth": 3})
    twin_64 = evolve(twin, {"net.width": 21, "scales": 3})
    tiny = evolve(twin, {"net.width": 4})
    # section 4.1: outside CIFAR-10 down to images of 4 pixels a side, with smaller nets
    other_32 = replace(full, model=RealNVP(scales=4, net=ResidualConv(32, depth=4)))
    other_64 = replace(full, model=RealNVP(scales=5, net=ResidualConv(32, depth=2)))
    at_32, at_64 = _setups(other_32, twin_32, tiny), _setups(other_64, twin_64, tiny)
    places = dict.fromkeys(_SIDE_32, at_32) | dict.fromkeys(_SIDE_64, at_64)
    return _row("realnvp", {**places, CIFAR10: _setups(full, twin_32, tiny)})


def _macow() -> Row:
    full, twin = GLOWS["macow-cifar10"], GLOWS["macow-cifar10-tiny"].model
    large = replace(full, model=evolve(full.model, {"scales": 4, "steps": 16}))  # as Glow's
    twin_64 = evolve(twin, {"scales": 3, "net.width": 56})
    at_64 = _setups(large, twin_64, evolve(twin, {"steps": 1, "net.width": 4}))
    at_32 = _KNOWN["macow"].setups
    return _row("macow", dict.fromkeys(_SIDE_32, at_32) | dict.fromkeys(_SIDE_64, at_64))


_DENSEFLOW_64 = evolve(DENSEFLOW_32, {"net.width": 39, "net.growth": 39, "net.depth": 3})


def _denseflow() -> Row:
    places = {}
    for column, name, model in (
        (CIFAR10, "cifar10", DENSEFLOW_32),
        (NEW_32, "imagenet32", DENSEFLOW_32),
        (OLD_32, "imagenet32", DENSEFLOW_32),
        (CELEBA, "celeba64", _DENSEFLOW_64),
        (NEW_64, "imagenet64", _DENSEFLOW_64),
        (OLD_64, "imagenet64", _DENSEFLOW_64),
    ):
        tiny = evolve(model, {"net.width": 4, "net.growth": 4, "modules": (1, 1)})
        places[column] = _setups(DENSEFLOWS[f"denseflow-{name}"], model, tiny)
    return _row("denseflow", places)


def _added(
    name: str,
    on_32: Row,
    twin_64: Model,
    full: Sequence[Recipe],
    changes: Mapping[str, object] = MappingProxyType({}),
) -> Row:
    """Make the row of a model of the table `added-dimensions`, of which twins at 32 pixels are.

    Args:
        name: the quoted name.
        on_32: the row of that table.
        twin_64: the twin at 64 pixels.
        full: recipes for CIFAR-10, ImageNet at 32 and at 64 pixels.
        changes: changes of the models of these.
    """
    small = on_32.in_column[CIFAR10]
    twin, tiny, train = small["time"].model, small["tiny"].model, small["time"].train
    own = {each: getattr(train, each) for each in ("optimizer", "lr", "betas", "clip")}
    places = {}
    for column in COLUMNS:
        recipe = full[0 if column == CIFAR10 else 1 if column in _SIDE_32 else 2]
        at_here = twin if column in _SIDE_32 else twin_64
        paper = evolve(recipe.model, dict(changes))
        places[column] = setups(paper, recipe.train, at_here, tiny, steps=STEPS, **own)
    return _row(name, places)


def _survae(on_32: Row, pooling: Pooling) -> Row:
    names = ("cifar10", "imagenet32", "imagenet64")
    full = [SURVAES[f"survae-{name}"] for name in names]
    twin = SURVAES["survae-imagenet64-tiny"].model
    twin_64 = evolve(twin, {"net.width": 52, "net.growth": 51, "pooling": pooling})
    return _added("survae", on_32, twin_64, full, {"pooling": pooling})


def _twin_of(row: Row) -> Model:
    return row.in_column[CIFAR10]["time"].model


_FLOWPP_FULL = FLOWPPS["flowpp-cifar10"], *(FLOWPPS["flowpp-imagenet32"],) * 2
FLOWPP = _added(
    "flow++",
    added.FLOWPP,
    evolve(_twin_of(added.FLOWPP), {"net.width": 54}),
    _FLOWPP_FULL,
)
VFLOW = _added(
    "vflow",
    added.VFLOW,
    evolve(_twin_of(added.VFLOW), {"net.width": 46}),
    (FLOWPPS["vflow-cifar10"],) * 3,
)
ANF = _added(
    "anf",
    added.ANF,
    evolve(ANFS["anf-imagenet64-tiny"].model, {"net.width": 120}),
    (ANFS["anf-cifar10"], ANFS["anf-imagenet32"], ANFS["anf-imagenet64"]),
)
SURVAE = _survae(added.SURVAE_SLICE, "slice")  # the slides quote its figures
POOLED = replace(  # and the distance of samples of this one
    _survae(added.SURVAE_MAX, "max"),
    label="SurVAE Flow with max pooling",
    published={CIFAR10: published(SURVAES["survae-cifar10"])},
)
REALNVP, MACOW, DENSEFLOW = _realnvp(), _macow(), _denseflow()
RESIDUAL = _row(
    "residual-flow",
    dict.fromkeys(_SIDE_32, residual.SETUPS["residual"])
    | dict.fromkeys(_SIDE_64, residual.RESIDUAL_64),
)
IDENSENET = _row(
    "i-densenet",
    dict.fromkeys(_SIDE_32, residual.SETUPS["idensenet"])
    | dict.fromkeys(_SIDE_64, residual.IDENSENET_64),
)
IRESNET = Row("i-resnet", "i-ResNet", setups=residual.SETUPS["iresnet"])
GLOW = _row(
    "glow",
    dict.fromkeys(_SIDE_32, _KNOWN["glow"].setups)
    | dict.fromkeys(_SIDE_64, _KNOWN_64["glow"].setups),
)
MIXER = replace(
    field.MIXER,
    published={
        column: published(MIXERFLOWS[f"mixerflow-{name}"])
        for column, name in ((CIFAR10, "cifar10"), (OLD_32, "imagenet32"), (OLD_64, "imagenet64"))
    },
)
_OLD_AND_NEW = (
    "DenseFlow's figures on ImageNet are on the new version, all others' on the old one, and each "
    "version has its own column."
)

TABLE_1 = Table(
    "denseflow-table-1",
    "DenseFlow's slides: density estimation",
    "Negative log-likelihood in bits per dimension. Rows are trained here; what is quoted is the "
    "slides', each with its kind as far as the model's paper says it. Figures of two kinds are not "
    f"comparable, and no claim is about quoted ones. {_OLD_AND_NEW} Twins, of the budgets cpu and "
    "time, have as many parameters as MixerFlow's, without learned dequantisers. At the budget gpu "
    "MaCow, and Glow on ImageNet, are smaller than the models of the quoted figures, and ANF's "
    "sizes are ours; models of faces other than DenseFlow and Real NVP have settings for other "
    "images, "
    "residual flows and VFlow everywhere those for CIFAR-10, and Flow++ outside of CIFAR-10 those "
    "for ImageNet at 32 pixels. The SurVAE flow has slices, as that of the quoted figures.",
    columns=tuple(COLUMNS.values()),
    rows=(
        *(REALNVP, GLOW, RESIDUAL, IDENSENET, FLOWPP, ANF, VFLOW),
        *(MACOW, SURVAE, DENSEFLOW, MIXER),
    ),
    claims=(
        Claim("glow", "realnvp", "Glow is better than Real NVP"),
        Claim("macow", "glow", "MaCow is better than Glow"),
        Claim("mixer", "realnvp", "MixerFlow is better than Real NVP"),
        Claim("flow++", "glow", "Flow++ is better than Glow", kinds="any"),
        Claim("vflow", "flow++", "VFlow is better than Flow++", kinds="any"),
    ),
    quoted=tuple(DENSITY.values()),
)

TABLE_2 = Table(
    "denseflow-table-2",
    "DenseFlow's slides: the cost of training",
    "GPUs and hours are quoted from the slides; what the full models would take here is computed "
    f"from their measured speed. {_OLD_AND_NEW} MixerFlow on faces has its settings for anime "
    "faces, and VFlow everywhere its settings for CIFAR-10.",
    columns=tuple(COLUMNS[name] for name in (CIFAR10, OLD_32, NEW_32, CELEBA)),
    rows=(VFLOW, DENSEFLOW, MIXER),
    quoted=tuple(COSTS.values()),
    costs=True,
)

TABLE_3 = Table(
    "denseflow-table-3",
    "DenseFlow's slides: Frechet distances of samples",
    "FID on CIFAR-10, quoted from the slides; and of the models trained here, which are those of "
    "denseflow-table-1, and an i-ResNet; but the SurVAE flow has max pooling, as that of the "
    "quoted distance.",
    columns=(field.CIFAR10_COLUMN,),
    rows=(IRESNET, GLOW, RESIDUAL, POOLED, DENSEFLOW, MIXER),
    quoted=tuple(DISTANCES.values()),
    distances=True,
)

TABLES = (TABLE_1, TABLE_2, TABLE_3)
