"""Flow++, VFlow, ANF and SurVAE beside MixerFlow, Glow and DenseFlow, and their ideas in MixerFlow.

The flows of the twins have as many parameters as MixerFlow's twin, to 2 %; a learned dequantiser
comes on top, each model's own. MixerFlow, Glow and DenseFlow learn at MixerFlow's rate, as in
`mixer-dense`; the others at that of their recipes' twins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixerflow.experiments.base import STEPS, column
from mixerflow.experiments.dense import (
    LEARNED,
    MINUTES,
    ON_CIFAR10,
    ON_MNIST,
    UNIFORM,
    WEIGHTED,
    Entrant,
)
from mixerflow.experiments.table import Claim, Row, Table
from mixerflow.parts.added import ConditionalChannels
from mixerflow.transforms import LogisticMixture

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


def _claim(better: Row, worse: Row, words: str = "") -> Claim:
    said = words or f"{better.label} is better than {worse.label}"
    return Claim(better.name, worse.name, said, kinds="any")


_NEW: tuple[Row, ...] = ()
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
    rows=(MIXER, GLOW, DENSE, *_NEW, *_IDEAS),
    claims=(
        *(_claim(row, other) for row in _NEW for other in (GLOW, DENSE, MIXER)),
        _claim(MIXER_LEARNED, MIXER, "learned noise on the pixels helps MixerFlow"),
        _claim(MIXER_ADDED, MIXER, "added channels help MixerFlow"),
        _claim(MIXER_LOGISTIC, MIXER, "logistic couplings help MixerFlow"),
    ),
)

TABLES = (ADDED_DIMENSIONS,)
