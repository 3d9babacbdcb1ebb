"""MixerFlow beside other flows: Tables 1, 2, 4, 5 and 6, and the number of training images.

Every twin of a baseline has as many parameters as MixerFlow's twin, to 2 %, and its learning rate,
5e-3: Glow and Neural Spline learn faster with it in their first steps than with 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from mixerflow.experiments.base import CIFAR10, STEPS, TWIN, column, setups
from mixerflow.experiments.table import Claim, Column, PublishedResult, Row, Setup, Table
from mixerflow.models import MixerFlow
from mixerflow.models.glow_recipes import RECIPES as GLOWS
from mixerflow.models.mixerflow_recipes import PAPER_64, RECIPES, TWIN_64
from mixerflow.parts import GlobalShuffle, LocalShuffle, Shuffle
from mixerflow.registry import evolve

_TWIN_64 = replace(TWIN_64, patching=replace(TWIN_64.patching, shift=(0, 2)))
_OLD = "imagenet32-old"


def _full(name: str) -> Setup:
    """Return the model and the training of a recipe."""
    return Setup(GLOWS[name].model, GLOWS[name].train)


def _baseline(
    name: str, label: str, full: str, twin: str, *, width: int = 64, lr: float = 5e-3
) -> Row:
    """Make a row of a recipe `full`, and of a recipe `twin` with nets of a width."""
    model = evolve(GLOWS[twin].model, {"net.width": width})
    tiny, recipe = evolve(model, {"steps": 1, "net.width": 4}), GLOWS[full]
    own = setups(recipe.model, recipe.train, model, tiny, steps=STEPS, lr=lr)
    return Row(name, label, setups=own)


MIXER = Row("mixer", "MixerFlow")
_GLOW, _SPLINE = "Glow", "Neural Spline"
GLOW_32 = _baseline("glow", _GLOW, "glow-cifar10", "glow-cifar10-tiny", width=160)
NSF_32 = _baseline("nsf", _SPLINE, "nsf-cifar10", "nsf-cifar10-tiny")
ROWS_32 = (MIXER, GLOW_32, NSF_32)
_KIN = tuple(
    _baseline(name, label, f"{name}-cifar10", f"{name}-cifar10-tiny", width=width)
    for name, label, width in (
        ("macow", "MaCow", 156),
        ("woodbury", "Woodbury", 160),
        ("emerging", "Emerging", 150),
        ("periodic", "Periodic", 156),
    )
)
ROWS_64 = (
    MIXER,
    _baseline("glow", _GLOW, "glow-anime64", "glow-anime64-tiny", width=188),
    _baseline("nsf", _SPLINE, "nsf-anime64", "nsf-anime64-tiny", width=68),
)
LARGE = (  # larger at the budget `gpu` alone: twins are those of Table 1
    MIXER,
    replace(GLOW_32, setups={**GLOW_32.setups, "gpu": _full("glow-large-cifar10")}),
    replace(NSF_32, setups={**NSF_32.setups, "gpu": _full("nsf-large-cifar10")}),
)
_ROTATED = {"linear.rotated": True}
_BUTTERFLY = _baseline(
    "butterfly", "Butterfly", "butterfly-cifar10", "butterfly-cifar10-tiny", width=68
)
BUTTERFLY = replace(  # as its own paper has it for permuted images
    _BUTTERFLY,
    setups={
        budget: replace(each, model=evolve(each.model, _ROTATED | stacks))
        for budget, each in _BUTTERFLY.setups.items()
        for stacks in ({"linear.stacks": 10} if budget == "gpu" else {},)
    },
)


def _reported(
    rows: Iterable[Row], columns: Iterable[str], figures: Mapping[str, tuple[float | None, ...]]
) -> tuple[Row, ...]:
    """Give rows the paper's figures: millions of parameters, then bits/dim in each column."""
    made = []
    for row in rows:
        count, *bits = figures.get(row.name, (None,))
        pairs = zip(columns, bits, strict=False)
        results = {column: PublishedResult(value, count) for column, value in pairs}
        made.append(replace(row, published=results))
    return tuple(made)


def _better(rows: Iterable[Row], *, column: str = "", against: str = "") -> tuple[Claim, ...]:
    """Claim that the first row is better than each other, or loses less against a column."""
    first, *others = rows
    verb = "loses less than" if against else "is better than"
    return tuple(
        Claim(first.name, row.name, f"{first.label} {verb} {row.label}", against, column)
        for row in others
    )


_CAPTION = (
    "Negative log-likelihood in bits per dimension. Twins, of the budgets cpu and time, have as "
    "many parameters as MixerFlow's."
)
CIFAR10_COLUMN = column("cifar10", MixerFlow(), CIFAR10, TWIN, twin_steps=STEPS)
IMAGENET_COLUMN = column(
    _OLD, MixerFlow(), RECIPES["mixerflow-imagenet32"].train, TWIN, twin_steps=STEPS
)
_COLUMNS_32 = (CIFAR10_COLUMN, IMAGENET_COLUMN)
_FACES, _IMAGENET64 = "anime-faces", "imagenet64-old"

TABLE_1 = Table(
    "table-1",
    "Table 1: 32 pixels",
    _CAPTION,
    columns=_COLUMNS_32,
    rows=_reported(
        ROWS_32 + _KIN,
        ("cifar10", _OLD),
        {
            "mixer": (11.34, 3.46, 4.20),
            "glow": (11.02, 3.51, 4.32),
            "nsf": (10.91, 3.50, 4.24),
            "macow": (11.43, 3.48, 4.34),
            "woodbury": (11.02, 3.48, 4.22),
            "emerging": (11.43, 3.48, 4.26),
            "periodic": (11.21, 3.49, 4.28),
        },
    ),
    claims=_better(ROWS_32 + _KIN),
)

TABLE_2 = Table(
    "table-2",
    "Table 2: 64 pixels",
    _CAPTION,
    columns=tuple(
        column(name, PAPER_64, RECIPES[recipe].train, _TWIN_64, twin_steps=STEPS)
        for name, recipe in (
            (_FACES, "mixerflow-anime64"),
            (_IMAGENET64, "mixerflow-imagenet64"),
        )
    ),
    rows=_reported(
        ROWS_64,
        (_FACES, _IMAGENET64),
        {"mixer": (18.90, 3.17, 3.92), "glow": (37.04, 3.21, 3.94), "nsf": (38.31, 3.23, 3.95)},
    ),
    claims=_better(ROWS_64),
)

_GALAXY = RECIPES["mixerflow-galaxy32"]
TABLE_6 = Table(
    "table-6",
    "Table 6: galaxies at 32 pixels",
    f"{_CAPTION} Figures are of the step that is best on the held-out images: few images.",
    columns=(column("galaxy", _GALAXY.model, _GALAXY.train, TWIN, twin_steps=STEPS, which="best"),),
    rows=_reported(
        ROWS_32, ("galaxy",), {"mixer": (None, 2.22), "glow": (None, 2.27), "nsf": (None, 2.25)}
    ),
    claims=_better(ROWS_32),
)


def _shuffled(
    number: int,
    kind: str,
    shuffle: Shuffle,
    rows: tuple[Row, ...],
    figures: Mapping[str, tuple[float | None, ...]],
) -> Table:
    """Make the table of a kind of shuffling: images in order, and with their pixels in another."""
    columns: list[Column] = []
    claims: list[Claim] = []
    for each in _COLUMNS_32:
        name = f"{each.name}-{kind}"
        columns += [each, replace(each, name=name, data=each.name, shuffle=shuffle)]
        claims += _better(rows, column=name)
        claims += _better(rows, column=name, against=each.name)
    names = [each.name for each in columns if each.shuffle]
    return Table(
        f"table-{number}",
        f"Table {number}: {kind} shuffling",
        f"{_CAPTION} The images are the same in order, and with their pixels in one random order; "
        "what a row has more then is its loss.",
        columns=tuple(columns),
        rows=_reported(rows, names, figures),
        claims=tuple(claims),
    )


TABLE_4 = _shuffled(
    4,
    "global",
    GlobalShuffle(),
    (*LARGE, BUTTERFLY),
    {
        "mixer": (11.43, 4.09, 4.91),
        "glow": (44.24, 5.18, 5.27),
        "nsf": (89.9, 5.01, 5.32),
        "butterfly": (None, 5.11, 6.18),
    },
)
TABLE_5 = _shuffled(
    5,
    "local",
    LocalShuffle(),
    LARGE,
    {"mixer": (11.43, 3.49, 4.24), "glow": (44.24, 4.06, 4.49), "nsf": (89.9, 3.99, 4.54)},
)

_COUNTS = (500, 2000, 8000)
FEW_IMAGES = Table(
    "few-images",
    "Section 6: few training images",
    f"{_CAPTION} Section 6 expects a mixer to suffer more from few images than convolutions do; it "
    "has no figures. Figures are of the step that is best on held-out images. A loss is what a row "
    "has more than with all images, 48,000 of CIFAR-10.",
    columns=(
        replace(CIFAR10_COLUMN, which="best"),
        *(
            replace(CIFAR10_COLUMN, name=f"cifar10-{n}", data="cifar10", images=n, which="best")
            for n in _COUNTS
        ),
    ),
    rows=ROWS_32,
    claims=tuple(
        Claim(row.name, "mixer", f"{row.label} {verb} MixerFlow", against, f"cifar10-{n}")
        for n in _COUNTS
        for row in (GLOW_32, NSF_32)
        for verb, against in (("is better than", ""), ("loses less than", "cifar10"))
    ),
)

TABLES = (TABLE_1, TABLE_2, TABLE_4, TABLE_5, TABLE_6, FEW_IMAGES)
