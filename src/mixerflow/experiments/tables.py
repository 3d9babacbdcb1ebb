"""The paper's tables as data: a row is one entry, and so is a claim.

Of each column there are three bases: the paper's (`gpu`), a twin that two CPU cores train in
minutes (`cpu`), and one that only shows that everything runs (`tiny`). A row is a change of the
base, the same in all three. Twins have few layers, bound the couplings' log-scale and learn fast,
as the ``-tiny`` recipes do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow.errors import ConfigError
from mixerflow.experiments.table import Budget, Claim, Column, Published, Row, Setup, Table, nearest
from mixerflow.models import Config, MAFConfig, MixerFlowConfig
from mixerflow.training import TrainConfig

# The CPU budgets: every row of a table trains this many steps.
TABLE_3_STEPS = 800
TABLE_8_STEPS = 800
TABLE_10_STEPS = 1500
APPENDIX_D_STEPS = 500

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
_MNIST_SHAPE, _CIFAR10_SHAPE = (1, 28, 28), (3, 32, 32)

_PAPER = MixerFlowConfig()
_TWIN = MixerFlowConfig(layers=4, hidden=64, shift_every=2, scale_bound=2.0)
_BASIC = replace(_PAPER, linear="none", shift=0)
_BASIC_TWIN = replace(_TWIN, linear="none", shift=0)
_PAPER_MNIST = MixerFlowConfig(hidden=64, shift=0, linear="RLU")
_TWIN_MNIST = replace(_TWIN, shift=0, linear="RLU")


def changed(**settings: object) -> Callable[[Config], Config]:
    """The base with some settings changed."""
    return lambda model: replace(model, **settings)  # pyright: ignore[reportArgumentType]


def deeper(model: Config) -> Config:
    """With twice the layers."""
    return replace(model, layers=2 * model.layers)


def shifted_twice_as_often(model: Config) -> Config:
    """With a shift layer where there was none between two."""
    assert isinstance(model, MixerFlowConfig)
    return replace(model, shift_every=model.shift_every // 2)


def whole(layers: int) -> Callable[[Config], Config]:
    """MAF over whole images, with nets eight times as wide as the mixer's."""

    def change(model: Config) -> Config:
        photographs = isinstance(model, MixerFlowConfig) and model.linear != "RLU"
        return MAFConfig(
            layers=layers,
            hidden=min(1024, 8 * model.hidden),
            batch_norm=layers > 1,
            order="random" if photographs else "sequential",
            alpha=0.05 if photographs else 1e-6,
        )

    return change


TABLE_3 = Table(
    "table-3",
    "Table 3: MAF over whole images and in the mixer",
    "Negative log-likelihood in bits per dimension. The paper takes its baselines' figures from "
    "their own paper; what they are on CIFAR-10 in the mixer it does not say: settings of ours.",
    columns=(
        Column(
            "mnist",
            "mnist",
            _MNIST_SHAPE,
            _setups(
                Setup(_PAPER_MNIST, replace(_MNIST, steps=400_000), 0, _GPU_TIME),
                _TWIN_MNIST,
                TABLE_3_STEPS,
            ),
        ),
        Column(
            "cifar10",
            "cifar10",
            _CIFAR10_SHAPE,
            _setups(
                Setup(_PAPER, replace(_CIFAR10, lr=5e-4), 0, _GPU_TIME),
                replace(_TWIN, shift=1),
                TABLE_3_STEPS,
            ),
        ),
    ),
    rows=(
        Row(
            "made",
            "MADE",
            whole(1),
            {"mnist": Published(2.04), "cifar10": Published(5.67)},
            lambda train: replace(train, lr=1e-3),
        ),
        Row(
            "maf",
            "MAF",
            whole(5),
            {"mnist": Published(1.89), "cifar10": Published(4.31)},
            lambda train: replace(train, lr=1e-3),
        ),
        Row(
            "mixer",
            "MAF in the mixer",
            changed(flow="maf"),
            {"mnist": Published(1.22, 3.83, "count of Table 8"), "cifar10": Published(3.44)},
            full=changed(norm="none"),
        ),
    ),
    claims=(
        Claim("maf", "made", "MAF is better than MADE"),
        Claim("mixer", "maf", "the mixer enhances MAF"),
        Claim("mixer", "made", "the mixer enhances MADE"),
    ),
)

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
            ),
        ),
    ),
    rows=(
        Row("mlp", "MLP-coupling", published={"mnist": Published(1.57, 3.10)}),
        Row("kan", "KAN-coupling", changed(net="kan"), {"mnist": Published(1.48, 7.45)}),
        Row(
            "spline",
            "Splines",
            changed(law="spline"),
            {"mnist": Published(1.21, 5.28)},
            full=changed(norm="none"),
        ),
        Row(
            "maf",
            "MAF-based",
            changed(flow="maf"),
            {"mnist": Published(1.56, 3.83)},
            full=changed(norm="none"),
        ),
    ),
    claims=(
        Claim("kan", "mlp", "KANs improve on MLPs"),
        Claim("spline", "mlp", "splines improve on affine couplings"),
        Claim("maf", "mlp", "MAF improves on couplings"),
        Claim("spline", "kan", "splines are better than KANs"),
        Claim("spline", "maf", "splines are better than MAF"),
        Claim("kan", "maf", "KANs are better than MAF"),
    ),
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
            deeper,
            {"cifar10": Published(3.52)},
        ),
        Row(
            "linear",
            "Linear blocks",
            changed(linear="LU"),
            {"cifar10": Published(3.49)},
        ),
        Row(
            "shift",
            "Shift layers",
            changed(shift=1),
            {"cifar10": Published(3.58)},
        ),
        Row(
            "all",
            "Linear blocks and shift layers",
            changed(linear="LU", shift=1),
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

_D_BASE = replace(_TWIN, shift=1, shift_every=4, scale_bound=None)

APPENDIX_D = Table(
    "appendix-d",
    "Appendix D and section 7: things that did not help, and things hoped for",
    "Negative log-likelihood in bits per dimension on CIFAR-10; the paper gives no figures for "
    "these. In the twin one layer of four is a shift layer, two in the row that shifts more often.",
    columns=(
        Column(
            "cifar10",
            "cifar10",
            _CIFAR10_SHAPE,
            _setups(Setup(_PAPER, _CIFAR10, 0, _GPU_TIME), _D_BASE, APPENDIX_D_STEPS),
        ),
    ),
    rows=(
        Row("base", "MixerFlow", published={"cifar10": Published(3.46, 11.34, "Table 1")}),
        Row("no-shift", "No shift layers", changed(shift=0)),
        Row("larger-shift", "Larger shifts, 2 pixels", changed(shift=2)),
        Row("frequent-shift", "Shift layers twice as often", shifted_twice_as_often),
        Row("stripes", "Stripes", changed(cut="stripes")),
        Row("bands", "Bands", changed(cut="bands")),
        Row("dilated", "Dilated patches", changed(cut="dilated")),
        Row("growing-patches", "Patches of 2, then 4 pixels", changed(patches=(2, 4))),
        Row("shrinking-patches", "Patches of 4, then 2 pixels", changed(patches=(4, 2))),
        Row("squeeze", "Squeezed first", changed(squeeze=2)),
        Row("floored", "Scales bounded away from 0", changed(law="floored")),
        Row("cauchy", "Cauchy base", changed(base="cauchy")),
        Row("student", "Student-t base", changed(base="student-t")),
        Row("mixture", "Gaussian-mixture base", changed(base="mixture")),
        Row("slab", "Spike-and-slab base", changed(base="spike-and-slab")),
        Row("learned-positions", "Learned positions", changed(positions="learned")),
        Row("sinusoidal-positions", "Sinusoidal positions", changed(positions="sinusoidal")),
        Row("scales", "Two scales", changed(scales=2)),
        Row("glow", "Glow's steps first", changed(glow=1)),
        Row("convolution", "Convolutional couplings in each layer", changed(extra="convolution")),
        Row("attention", "Attention between patches in each layer", changed(extra="attention")),
    ),
    claims=(
        Claim("larger-shift", "no-shift", "larger shifts are better than none"),
        Claim("frequent-shift", "no-shift", "more frequent shifts are better than none"),
        Claim("base", "larger-shift", "larger shifts do not help beyond 1 pixel"),
        Claim("base", "frequent-shift", "more frequent shifts do not help"),
        Claim("base", "stripes", "stripes do not help"),
        Claim("base", "bands", "bands do not help"),
        Claim("base", "dilated", "dilated patches do not help"),
        Claim("base", "growing-patches", "patches that grow with depth do not help"),
        Claim("base", "shrinking-patches", "patches that shrink with depth do not help"),
        Claim("base", "squeeze", "squeezing does not help"),
        Claim("base", "floored", "scales bounded away from 0 do not help"),
        Claim("base", "cauchy", "a Cauchy base does not help"),
        Claim("base", "student", "fat-tailed bases do not help (here Student's)"),
        Claim("base", "mixture", "a Gaussian mixture does not help"),
        Claim("base", "slab", "a spike-and-slab base does not help"),
        Claim("base", "learned-positions", "learned positions do not help"),
        Claim("base", "sinusoidal-positions", "sinusoidal positions do not help"),
        Claim("scales", "base", "several scales might help (section 7)"),
        Claim("glow", "base", "Glow-like layers first might help (section 7)"),
        Claim("convolution", "base", "convolutional layers might help (section 7)"),
        Claim("attention", "base", "attention might help (section 7)"),
    ),
)

TABLES = {table.name: table for table in (TABLE_3, TABLE_8, TABLE_10, APPENDIX_D)}


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in TABLES:
        raise ConfigError("no such table", name, nearest(name, TABLES))
    return TABLES[name]
