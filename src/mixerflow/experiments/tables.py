"""The paper's tables as data: a row is one entry, and so is a claim.

Of each column there are three bases: the paper's (`gpu`), a twin that two CPU cores train in
minutes (`cpu`), and one that only shows that everything runs (`tiny`). A row is a change of the
base, the same in all three. Twins have few layers, bound the couplings' log-scale and learn fast,
as the ``-tiny`` recipes do.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.errors import ConfigError
from mixerflow.experiments.table import Budget, Claim, Column, Published, Row, Setup, Table, nearest
from mixerflow.models import MixerFlowConfig
from mixerflow.training import TrainConfig

# The CPU budgets: every row of a table trains this many steps.
TABLE_8_STEPS = 1500
TABLE_10_STEPS = 1500
APPENDIX_D_STEPS = 1500

_CPU = TrainConfig(
    batch=32,
    lr=5e-3,
    betas=(0.9, 0.99),
    warmup=20,
    ema=0.99,
    initial=1000,
    evaluate_images=500,
    keep=1,
)
_CPU_IMAGES, _CPU_TIME = 2000, "minutes"
_TINY = replace(_CPU, steps=6, batch=8, initial=8, warmup=1, evaluate_every=3, evaluate_images=8)
_TINY_IMAGES, _TINY_TIME = 20, "seconds"
_GPU_TIME = "days on one GPU"


def _setups(
    paper: Setup, twin: MixerFlowConfig, steps: int, cpu: TrainConfig = _CPU
) -> dict[Budget, Setup]:
    """The three budgets of a column."""
    tiny = replace(twin, layers=2, hidden=8, flow_layers=2)
    return {
        "tiny": Setup(tiny, _TINY, _TINY_IMAGES, _TINY_TIME),
        "cpu": Setup(twin, replace(cpu, steps=steps), _CPU_IMAGES, _CPU_TIME),
        "gpu": paper,
    }


_CIFAR10 = TrainConfig(steps=400_000, batch=512, lr=1e-3)
_MNIST = TrainConfig(steps=50_000, batch=512, lr=5e-4)

_PAPER = MixerFlowConfig()
_TWIN = MixerFlowConfig(layers=4, hidden=64, shift_every=2, scale_bound=2.0)
_BASIC = replace(_PAPER, linear="none", shift=0)
_BASIC_TWIN = replace(_TWIN, linear="none", shift=0)
_PAPER_MNIST = MixerFlowConfig(hidden=64, shift=0, linear="RLU")
_TWIN_MNIST = replace(_TWIN, shift=0, linear="RLU")

TABLE_8 = Table(
    "table-8",
    "Table 8: transformations in MixerFlow",
    "Negative log-likelihood in bits per dimension on MNIST.",
    columns=(
        Column(
            "mnist",
            "mnist",
            (1, 28, 28),
            _setups(
                Setup(_PAPER_MNIST, _MNIST, 0, _GPU_TIME),
                _TWIN_MNIST,
                TABLE_8_STEPS,
                replace(_CPU, lr=1e-2),
            ),
        ),
    ),
    rows=(Row("mlp", "MLP-coupling", published={"mnist": Published(1.57, 3.10)}),),
)

TABLE_10 = Table(
    "table-10",
    "Table 10: what the parts of MixerFlow bring",
    "Negative log-likelihood in bits per dimension on CIFAR-10.",
    columns=(
        Column(
            "cifar10",
            "cifar10",
            (3, 32, 32),
            _setups(Setup(_BASIC, _CIFAR10, 0, _GPU_TIME), _BASIC_TWIN, TABLE_10_STEPS),
        ),
    ),
    rows=(
        Row("basic", "Basic", published={"cifar10": Published(3.81)}),
        Row(
            "layers",
            "60 layers",
            lambda model: replace(model, layers=2 * model.layers),
            {"cifar10": Published(3.52)},
        ),
        Row(
            "linear",
            "Linear blocks",
            lambda model: replace(model, linear="LU"),
            {"cifar10": Published(3.49)},
        ),
        Row(
            "shift",
            "Shift layers",
            lambda model: replace(model, shift=1),
            {"cifar10": Published(3.58)},
        ),
        Row(
            "all",
            "Linear blocks and shift layers",
            lambda model: replace(model, linear="LU", shift=1),
            {"cifar10": Published(3.46, 11.34, "Table 1")},
        ),
    ),
    claims=(
        Claim("layers", "basic", "twice the layers help"),
        Claim("linear", "basic", "linear blocks help"),
        Claim("shift", "basic", "shift layers help"),
        Claim("linear", "shift", "linear blocks help more than shift layers"),
        Claim("all", "linear", "shift layers help beside linear blocks"),
        Claim("all", "shift", "linear blocks help beside shift layers"),
    ),
)

APPENDIX_D = Table(
    "appendix-d",
    "Appendix D: things that did not help",
    "Negative log-likelihood in bits per dimension on CIFAR-10; the paper gives no figures.",
    columns=(
        Column(
            "cifar10",
            "cifar10",
            (3, 32, 32),
            _setups(
                Setup(_PAPER, _CIFAR10, 0, _GPU_TIME), replace(_TWIN, shift=1), APPENDIX_D_STEPS
            ),
        ),
    ),
    rows=(
        Row("base", "MixerFlow", published={"cifar10": Published(3.46, 11.34, "Table 1")}),
        Row("no-shift", "No shift layers", lambda model: replace(model, shift=0)),
        Row("larger-shift", "Larger shifts, 2 pixels", lambda model: replace(model, shift=2)),
        Row(
            "frequent-shift",
            "Shift layers twice as often",
            lambda model: replace(model, shift_every=max(1, model.shift_every // 2)),
        ),
        Row("stripes", "Stripes", lambda model: replace(model, cut="stripes")),
        Row("bands", "Bands", lambda model: replace(model, cut="bands")),
        Row("dilated", "Dilated patches", lambda model: replace(model, cut="dilated")),
    ),
    claims=(
        Claim("larger-shift", "no-shift", "larger shifts are better than none"),
        Claim("frequent-shift", "no-shift", "more frequent shifts are better than none"),
        Claim("base", "larger-shift", "larger shifts do not help beyond 1 pixel"),
        Claim("base", "frequent-shift", "more frequent shifts do not help"),
        Claim("base", "stripes", "stripes do not help"),
        Claim("base", "bands", "bands do not help"),
        Claim("base", "dilated", "dilated patches do not help"),
    ),
)

TABLES = {table.name: table for table in (TABLE_8, TABLE_10, APPENDIX_D)}


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in TABLES:
        raise ConfigError("no such table", name, nearest(name, TABLES))
    return TABLES[name]
