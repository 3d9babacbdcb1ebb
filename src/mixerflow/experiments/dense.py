"""MixerFlow beside and inside DenseFlow: the combination, its parts, and where noise is added.

The flows of the twins have as many parameters as MixerFlow's twin, to 2 %, and learn at its rate;
the learned dequantiser is the same for all, and comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mixerflow.experiments.base import CIFAR10, MNIST, STEPS, TWIN, column, setups
from mixerflow.experiments.table import Claim, Row, Table
from mixerflow.models import MixerFlow
from mixerflow.models.denseflow_recipes import RECIPES as DENSE
from mixerflow.models.denseflow_recipes import TWIN as DENSE_TWIN
from mixerflow.models.glow_recipes import RECIPES as GLOW
from mixerflow.models.mixerflow_dense_recipes import RECIPES as COMBINED
from mixerflow.models.mixerflow_recipes import PAPER_MNIST, RECIPES
from mixerflow.parts import DenseNet, Model, UniformDequantizer, VariationalDequantizer
from mixerflow.registry import evolve
from mixerflow.train_config import TrainConfig

MINUTES = 4.0
WEIGHTED = (20, 200)
_DEQUANTIZER = "pixels.dequantizer"
UNIFORM: dict[str, Any] = {_DEQUANTIZER: UniformDequantizer()}
LEARNED: dict[str, Any] = {_DEQUANTIZER: DENSE_TWIN.pixels.dequantizer}
INITIAL = 512  # images of the start from data, which takes a slow model a tenth of its time
_TINY_MIXER = {"layers": 2, "flow_layers": 2, "flow.net.width": 8}
_TINY_GLOW = {"steps": 1, "net.width": 4}
_TINY_DENSE = {"net.width": 4, "net.growth": 4}
_TINY_COMBINED = {"mixing.flow.net.width": 4}


DENSEFLOW_32 = evolve(DENSE_TWIN, {"net.width": 33, "net.growth": 32})
"""DenseFlow's twin with as many parameters as MixerFlow's, but for the dequantiser."""

_COMPARED = (
    "Figures are of several kinds: all bound the code length of the images from above in "
    "expectation, uniform noise and noise inside the flow less tightly. Claims compare them across "
    "kinds: which model has the shorter guaranteed code. The flows of the twins have as many "
    "parameters as MixerFlow's, to 2 %; the learned dequantiser comes on top, the same for all. At "
    "the budget gpu each model trains as its own recipe does, for unequal work."
)


@dataclass(frozen=True)
class Entrant:
    """A model of the tables on one set of images; its rows change the full model and its twin."""

    name: str
    label: str
    full: Model
    train: TrainConfig
    twin: Model
    tiny: dict[str, Any]
    """Changes of the twin that make a model of a few numbers."""

    def row(
        self,
        suffix: str = "",
        label: str = "",
        changes: dict[str, Any] = UNIFORM,
        width: dict[str, Any] | None = None,
    ) -> Row:
        """Make a row of `changes`, and of a `width` of the twin that keeps its parameters equal."""
        twin = evolve(self.twin, changes | (width or {}))
        uniform = changes[_DEQUANTIZER] == UniformDequantizer()
        full = UniformDequantizer() if uniform else VariationalDequantizer()
        own = setups(
            evolve(self.full, {**changes, _DEQUANTIZER: full}),
            self.train,
            twin,
            evolve(twin, self.tiny),
            steps=STEPS,
            minutes=MINUTES,
            initial=INITIAL,
        )
        return Row(f"{self.name}{suffix}", f"{self.label}{label}", setups=own)


def _entrants(
    data: str, mixer: Model, train: TrainConfig, mixer_twin: Model, glow: Model, twins: list[Model]
) -> tuple[Entrant, ...]:
    """Return the four models on a set of images; `twins` are the last three's."""
    dense, combined = DENSE[f"denseflow-{data}"], COMBINED[f"mixerflow-dense-{data}"].model
    return (
        Entrant("mixer", "MixerFlow", mixer, train, mixer_twin, _TINY_MIXER),
        Entrant("glow", "Glow", glow, GLOW["glow-cifar10"].train, twins[0], _TINY_GLOW),
        Entrant("dense", "DenseFlow", dense.model, dense.train, twins[1], _TINY_DENSE),
        Entrant("combined", "MixerFlow in DenseFlow", combined, train, twins[2], _TINY_COMBINED),
    )


_GLOW, _GLOW_TWIN = GLOW["glow-cifar10"].model, GLOW["glow-cifar10-tiny"].model
_COMBINED_TWIN = COMBINED["mixerflow-dense-cifar10-tiny"].model
ON_CIFAR10 = _entrants(
    "cifar10",
    MixerFlow(),
    CIFAR10,
    TWIN,
    _GLOW,
    [evolve(_GLOW_TWIN, {"net.width": 160}), DENSEFLOW_32, _COMBINED_TWIN],
)
ON_MNIST = _entrants(
    "mnist",
    PAPER_MNIST,
    MNIST,
    RECIPES["mixerflow-mnist-tiny"].model,
    evolve(_GLOW, {"scales": 2, "steps": 32}),
    [
        evolve(_GLOW_TWIN, {"net.width": 186}),
        evolve(DENSE_TWIN, {"net.width": 29, "net.growth": 30}),
        evolve(_COMBINED_TWIN, {"mixing.flow.net.width": 48}),
    ],
)


def _table(name: str, title: str, entrants: tuple[Entrant, ...], images: str) -> Table:
    """Make the table of four models, each with uniform and with learned noise on the pixels."""
    mixer, glow, dense, combined = (each.name for each in entrants)
    claims = []
    for suffix, noise in (("", "uniform"), ("-variational", "learned")):
        for other, what in ((mixer, "MixerFlow"), (glow, "Glow"), (dense, "DenseFlow")):
            words = f"the combination is better than {what}, {noise} noise on the pixels"
            claims.append(Claim(combined + suffix, other + suffix, words, kinds="any"))
    for each in entrants:
        words = f"learned noise on the pixels helps {each.label}"
        claims.append(Claim(f"{each.name}-variational", each.name, words, kinds="any"))
    first = entrants[0]
    return Table(
        name,
        title,
        f"Negative log-likelihood in bits per dimension. {_COMPARED}",
        columns=(
            column(
                images,
                first.full,
                first.train,
                first.twin,
                twin_steps=STEPS,
                twin_minutes=MINUTES,
                weighted=WEIGHTED,
            ),
        ),
        rows=tuple(
            row
            for each in entrants
            for row in (each.row(), each.row("-variational", ", learned noise", LEARNED))
        ),
        claims=tuple(claims),
    )


MIXER_DENSE = _table(
    "mixer-dense", "MixerFlow beside and inside DenseFlow: CIFAR-10", ON_CIFAR10, "cifar10"
)
MIXER_DENSE_MNIST = _table(
    "mixer-dense-mnist", "MixerFlow beside and inside DenseFlow: MNIST", ON_MNIST, "mnist"
)

_DENSE, _COMBINED = ON_CIFAR10[2:]
_BLOCK_ALONE = DenseNet(16, growth=16, depth=2, squash=False)


def _part(entrant: Entrant, suffix: str, label: str, width: int, **changes: object) -> Row:
    """Make a row of changes, two underscores for a dot; nets of this width keep the count."""
    paths = {name.replace("__", "."): value for name, value in changes.items()}
    name = "net.width" if entrant is _DENSE else "mixing.flow.net.width"
    return entrant.row(f"-{suffix}", f", {label}", {**UNIFORM, **paths}, {name: width})


MIXER_DENSE_PARTS = Table(
    "mixer-dense-parts",
    "What DenseFlow's ideas bring, and where noise is added: CIFAR-10",
    f"Negative log-likelihood in bits per dimension. {_COMPARED}",
    columns=tuple(replace(each, weighted=None) for each in MIXER_DENSE.columns),
    rows=(
        _COMBINED.row(),
        _part(_COMBINED, "no-noise", "no noise added", 55, growth=0),
        _part(_COMBINED, "normal", "noise that nothing conditions", 49, noise_net=None),
        _part(_COMBINED, "block", "no attention", 47, coupling__net=_BLOCK_ALONE),
        _part(_COMBINED, "mixers", "no image couplings", 57, coupling=None),
        _part(_COMBINED, "bare", "neither noise nor couplings", 64, coupling=None, growth=0),
        _COMBINED.row("-variational", ", learned noise", LEARNED),
        _DENSE.row(),
        _part(_DENSE, "no-noise", "no noise added", 36, growth=0),
        _part(_DENSE, "input", "noise all at the input", 35, place="input"),
        _part(_DENSE, "last", "noise all before the last block", 33, place="last"),
    ),
    claims=(
        Claim("combined", "combined-no-noise", "the added noise helps", kinds="any"),
        Claim("combined", "combined-normal", "conditioning the noise on earlier units helps"),
        Claim("combined", "combined-block", "attention helps"),
        Claim("combined", "combined-mixers", "image couplings help"),
        Claim("combined", "combined-bare", "both together help", kinds="any"),
        Claim("combined-variational", "combined", "learned noise on pixels helps", kinds="any"),
        Claim("dense", "dense-no-noise", "the added noise helps DenseFlow", kinds="any"),
        Claim("dense", "dense-input", "noise between the units is better than at the input"),
        Claim(
            "dense", "dense-last", "noise between the units is better than before the last block"
        ),
        Claim(
            "dense-input", "dense-last", "noise at the input is better than before the last block"
        ),
    ),
)

TABLES = (MIXER_DENSE, MIXER_DENSE_MNIST, MIXER_DENSE_PARTS)
