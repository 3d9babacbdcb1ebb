"""Flow++, VFlow, ANF and SurVAE beside MixerFlow, Glow and DenseFlow, and their ideas in MixerFlow.

The flows of the twins have as many parameters as MixerFlow's twin, to 2 %; a learned dequantiser
comes on top, each model's own. MixerFlow, Glow and DenseFlow learn at MixerFlow's rate, as in
`mixer-dense`; the others with the optimiser and the rate of their recipes' twins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from mixerflow.experiments.base import STEPS, column
from mixerflow.experiments.dense import (
    INITIAL,
    LEARNED,
    MINUTES,
    ON_CIFAR10,
    ON_MNIST,
    UNIFORM,
    WEIGHTED,
    Entrant,
)
from mixerflow.experiments.residual import twin_setups
from mixerflow.experiments.table import Claim, Row, Table
from mixerflow.models.anf_recipes import RECIPES as ANFS
from mixerflow.models.flowpp_recipes import RECIPES as FLOWPPS
from mixerflow.models.recipe import Recipe
from mixerflow.models.survae_recipes import RECIPES as SURVAES
from mixerflow.parts import GatedAttention, Model
from mixerflow.parts.added import ConditionalChannels
from mixerflow.registry import evolve
from mixerflow.transforms import Affine, LogisticMixture

COLUMNS = ("cifar10", "mnist")
_MIXER, _GLOW, _DENSE, _ = zip(ON_CIFAR10, ON_MNIST, strict=True)
_Widths = tuple[dict[str, Any], dict[str, Any]]


def _row(
    entrants: tuple[Entrant, Entrant],
    suffix: str = "",
    label: str = "",
    changes: Mapping[str, Any] = UNIFORM,
    widths: _Widths = ({}, {}),
) -> Row:
    """Make the row of a model on both sets; nets of these widths keep the count on each."""
    both = [
        each.row(suffix, label, dict(changes), width)
        for each, width in zip(entrants, widths, strict=True)
    ]
    in_column = {name: row.setups for name, row in zip(COLUMNS, both, strict=True)}
    return Row(both[0].name, both[0].label, in_column=in_column)


def _widths(setting: str, cifar10: int, mnist: int) -> _Widths:
    return {setting: cifar10}, {setting: mnist}


MIXER, GLOW = _row(_MIXER), _row(_GLOW)
DENSE = _row(_DENSE, "-variational", ", learned noise", LEARNED)
MIXER_LEARNED = _row(_MIXER, "-variational", ", learned noise", LEARNED)
MIXER_ADDED = _row(
    _MIXER,
    "-added",
    ", added channels",
    UNIFORM | {"added": ConditionalChannels(3)},
    _widths("flow.net.width", 47, 50),
)
MIXER_LOGISTIC = _row(
    _MIXER,
    "-logistic",
    ", logistic couplings",
    UNIFORM | {"flow.elementwise": LogisticMixture(4)},
    _widths("flow.net.width", 29, 37),
)
_IDEAS = (MIXER_LEARNED, MIXER_ADDED, MIXER_LOGISTIC)


def _new(
    name: str,
    label: str,
    recipes: Mapping[str, Recipe],
    widths: _Widths,
    tiny: dict[str, Any],
    changes: Mapping[str, Any] = MappingProxyType({}),
    **training: Any,  # noqa: ANN401
) -> Row:
    """Make the row of the recipes `NAME-SET` and their twins; `changes` are of both models."""
    kind = name.partition("-")[0]
    in_column = {}
    for place, width in zip(COLUMNS, widths, strict=True):
        pair = {
            each: replace(recipes[each], model=evolve(recipes[each].model, dict(changes)))
            for each in (f"{kind}-{place}", f"{kind}-{place}-tiny")
        }
        in_column[place] = twin_setups(
            pair, f"{kind}-{place}", width, tiny, minutes=MINUTES, initial=INITIAL, **training
        )
    return Row(name, label, in_column=in_column)


_TINY_SURVAE = {"steps": 1, "net.width": 4, "net.growth": 4, "net.depth": 1}
_SURVAE_WIDTHS = (
    {"net.width": 32, "net.growth": 33},
    {"net.width": 29, "net.growth": 28},
)
FLOWPP = _new(
    "flowpp",
    "Flow++",
    FLOWPPS,
    ({"net.width": 37, "net.heads": 1}, {"net.width": 40}),
    {"steps": ("columns", "squeeze", "channels"), "net.width": 4},
)
VFLOW = _new(
    "vflow",
    "VFlow",
    FLOWPPS,
    ({"net.width": 31, "net.heads": 1}, {"net.width": 31, "net.heads": 1}),
    {"steps": ("columns", "channels", "squeeze", "columns"), "net.width": 4},
)
ANF = _new("anf", "ANF", ANFS, _widths("net.width", 108, 156), {"steps": 1, "net.width": 4})
SURVAE_MAX = _new("survae-max", "SurVAE, max pooling", SURVAES, _SURVAE_WIDTHS, _TINY_SURVAE)
SURVAE_SLICE = _new(
    "survae-slice",
    "SurVAE, slice",
    SURVAES,
    _SURVAE_WIDTHS,
    _TINY_SURVAE,
    {"pooling": "slice"},
)
# DenseFlow's coupling against Flow++'s: the net and the map of both are exchanged, nothing else


def _with_couplings(dense: Entrant) -> Entrant:
    def changed(model: Model, net: GatedAttention, components: int) -> Model:
        couplings = {"net": net, "elementwise": LogisticMixture(components)}
        return evolve(model, couplings | {"noise_elementwise": Affine(2.0)})

    return replace(
        dense,
        full=changed(dense.full, GatedAttention(dropout=0.2), 32),
        twin=changed(dense.twin, GatedAttention(depth=1, heads=1, dropout=0.02), 4),
        tiny={"net.width": 4},
    )


DENSE_FLOWPP = _row(
    (_with_couplings(_DENSE[0]), _with_couplings(_DENSE[1])),
    "-flowpp",
    ", learned noise, Flow++'s couplings",
    LEARNED,
    _widths("net.width", 20, 23),
)
_NEW = (FLOWPP, VFLOW, ANF, SURVAE_MAX, SURVAE_SLICE)


def _claim(better: Row, worse: Row, words: str = "") -> Claim:
    said = words or f"{better.label} is better than {worse.label}"
    return Claim(better.name, worse.name, said, kinds="any")


ADDED_DIMENSIONS = Table(
    "added-dimensions",
    "Flow++, VFlow, ANF and SurVAE beside MixerFlow, Glow and DenseFlow",
    "Negative log-likelihood in bits per dimension. Figures are of several kinds: all bound the "
    "code length of the images from above in expectation, some more tightly than others. Claims "
    "compare them across kinds: which model has the shorter guaranteed code. The flows of the "
    "twins have as many parameters as MixerFlow's, to 2 %, nets of added noise included; a learned "
    "dequantiser comes on top, each model's own, and is not counted. At the budget gpu each model "
    "trains as its own recipe does, for unequal work.",
    columns=tuple(
        column(
            name,
            each.full,
            each.train,
            each.twin,
            twin_steps=STEPS,
            twin_minutes=MINUTES,
            weighted=WEIGHTED,
        )
        for name, each in zip(COLUMNS, _MIXER, strict=True)
    ),
    rows=(MIXER, GLOW, DENSE, DENSE_FLOWPP, *_NEW, *_IDEAS),
    claims=(
        *(_claim(row, other) for row in _NEW for other in (GLOW, DENSE, MIXER)),
        _claim(DENSE, DENSE_FLOWPP, "DenseFlow's couplings are better than Flow++'s in DenseFlow"),
        _claim(SURVAE_SLICE, SURVAE_MAX),
        _claim(MIXER_LEARNED, MIXER, "learned noise on the pixels helps MixerFlow"),
        _claim(MIXER_ADDED, MIXER, "added channels help MixerFlow"),
        _claim(MIXER_LOGISTIC, MIXER, "logistic couplings help MixerFlow"),
    ),
)

TABLES = (ADDED_DIMENSIONS,)
