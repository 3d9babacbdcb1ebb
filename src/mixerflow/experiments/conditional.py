"""What the class of a digit is worth: flows with classes beside the same flows without."""

from __future__ import annotations

from mixerflow.experiments.base import MNIST, STEPS, TIME, column, setups
from mixerflow.experiments.table import Claim, Row, Table
from mixerflow.models.glow_recipes import RECIPES as GLOW
from mixerflow.models.mixerflow_recipes import PAPER_MNIST, TWIN_MNIST
from mixerflow.parts import Classes
from mixerflow.registry import evolve

_INITIAL = 512  # images of the start from data, which takes a slow model a tenth of its time
_CLASSES = {"classes": Classes(10)}
_GLOW = evolve(GLOW["glow-cifar10"].model, {"scales": 2, "steps": 32})
_GLOW_TWIN = evolve(GLOW["glow-cifar10-tiny"].model, {"net.width": 186})
_TINY_MIXER = {"layers": 2, "flow_layers": 2, "flow.net.width": 8}
_TINY_GLOW = {"steps": 1, "net.width": 4}


def _rows(name: str, label: str, *models: object) -> tuple[Row, Row]:
    """Make the rows of a model without classes and with them; `models` are full, twin, smallest."""
    rows = []
    for suffix, words, changes in (("", "", {}), ("-classes", ", given the class", _CLASSES)):
        full, twin, tiny = (evolve(model, changes) for model in models)
        train = MNIST if name == "mixer" else GLOW["glow-cifar10"].train
        own = setups(full, train, twin, tiny, steps=STEPS, minutes=TIME, initial=_INITIAL)  # pyright: ignore[reportArgumentType]
        rows.append(Row(name + suffix, label + words, setups=own))
    return rows[0], rows[1]


CONDITIONAL = Table(
    "conditional",
    "The class of a digit, given to a flow: MNIST",
    "Negative log-likelihood in bits per dimension, -log2 p(x) / D without the class, and "
    "-log2 p(x | y) / D given it. Between perfect models the means differ by the mutual "
    "information of image and class over D: at most log2(10) / 784 = 0.0042 bits/dim for 10 "
    "equally likely classes. The twins without classes have as many parameters as each other, to "
    "5 %; the classes' embedding and the maps that read it come on top.",
    columns=(column("mnist", PAPER_MNIST, MNIST, TWIN_MNIST, twin_steps=STEPS),),
    rows=(
        *_rows("mixer", "MixerFlow", PAPER_MNIST, TWIN_MNIST, evolve(TWIN_MNIST, _TINY_MIXER)),
        *_rows("glow", "Glow", _GLOW, _GLOW_TWIN, evolve(_GLOW_TWIN, _TINY_GLOW)),
    ),
    claims=(
        Claim("mixer-classes", "mixer", "the class helps MixerFlow"),
        Claim("glow-classes", "glow", "the class helps Glow"),
    ),
)
