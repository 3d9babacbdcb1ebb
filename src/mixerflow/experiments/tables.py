"""The paper's tables as data: a row is one entry, and so is a claim.

Of each column there are three bases: the paper's (`gpu`), a twin that two CPU cores train in
minutes (`cpu`), and one that only shows that everything runs (`tiny`). A row is a change of the
base, the same in all three. Twins have few layers, bound the couplings' log-scale and learn fast,
as the ``-tiny`` recipes do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow.errors import ConfigError, nearest
from mixerflow.experiments.appendix import APPENDIX_D
from mixerflow.experiments.base import (
    BASIC,
    BASIC_TWIN,
    CIFAR10,
    GPU_TIME,
    MNIST,
    NORMS_STEPS,
    TABLE_3_STEPS,
    TABLE_8_STEPS,
    TABLE_10_STEPS,
    TWIN,
    changed,
    deeper,
    setups,
    whole,
)
from mixerflow.experiments.table import Claim, Column, PublishedResult, Row, Setup, Table
from mixerflow.models import MixerFlow, recipe
from mixerflow.models.mixerflow_recipes import PAPER_MNIST, TWIN_MNIST
from mixerflow.parts import KAN, LUMap, Model, RowAutoregression
from mixerflow.registry import evolve
from mixerflow.transforms import RationalQuadratic


def _shifted(model: Model) -> Model:
    """With shift layers as the paper's model, or its twin, has them."""
    assert isinstance(model, MixerFlow)
    full = model.layers == MixerFlow().layers
    return evolve(model, {"patching.shift": (0, 0, 0, 1) if full else (0, 1)})


def _plain(**settings: object) -> Callable[[Model], Model]:
    """With some settings changed, and no norm in the nets."""
    return changed(**settings, flow__net__norm="none")


TABLE_3 = Table(
    "table-3",
    "Table 3: MAF over whole images and in the mixer",
    "Negative log-likelihood in bits per dimension. The paper takes its baselines' figures from "
    "their own paper; what they are on CIFAR-10 in the mixer it does not say: settings of ours.",
    columns=(
        Column(
            "mnist",
            *recipe.MNIST,
            setups(
                Setup(PAPER_MNIST, replace(MNIST, steps=400_000), 0, GPU_TIME),
                TWIN_MNIST,
                TABLE_3_STEPS,
            ),
        ),
        Column(
            "cifar10",
            *recipe.CIFAR10,
            setups(
                Setup(MixerFlow(), replace(CIFAR10, lr=5e-4), 0, GPU_TIME),
                TWIN,
                TABLE_3_STEPS,
            ),
        ),
    ),
    rows=(
        Row(
            "made",
            "MADE",
            whole(1),
            {"mnist": PublishedResult(2.04), "cifar10": PublishedResult(5.67)},
            lambda train: replace(train, lr=1e-3),
        ),
        Row(
            "maf",
            "MAF",
            whole(5),
            {"mnist": PublishedResult(1.89), "cifar10": PublishedResult(4.31)},
            lambda train: replace(train, lr=1e-3),
        ),
        Row(
            "mixer",
            "MAF in the mixer",
            changed(flow=RowAutoregression),
            {
                "mnist": PublishedResult(1.22, 3.83, "count of Table 8"),
                "cifar10": PublishedResult(3.44),
            },
            full=changed(flow__net__norm="none"),
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
            *recipe.MNIST,
            setups(
                Setup(PAPER_MNIST, MNIST, 0, GPU_TIME),
                TWIN_MNIST,
                TABLE_8_STEPS,
            ),
        ),
    ),
    rows=(
        Row("mlp", "MLP-coupling", published={"mnist": PublishedResult(1.57, 3.10)}),
        Row("kan", "KAN-coupling", changed(flow__net=KAN), {"mnist": PublishedResult(1.48, 7.45)}),
        Row(
            "spline",
            "Splines",
            changed(flow__elementwise=RationalQuadratic()),
            {"mnist": PublishedResult(1.21, 5.28)},
            full=changed(flow__net__norm="none"),
        ),
        Row(
            "maf",
            "MAF-based",
            changed(flow=RowAutoregression),
            {"mnist": PublishedResult(1.56, 3.83)},
            full=changed(flow__net__norm="none"),
        ),
        # batch norm in all twins or in none: the paper's splines and MAF seem to have had none
        Row("mlp-plain", "MLP-coupling, no batch norm", changed(flow__net__norm="none")),
        Row(
            "kan-plain",
            "KAN-coupling, no batch norm",
            _plain(flow__net=KAN),
        ),
        Row(
            "maf-plain",
            "MAF-based, no batch norm",
            _plain(flow=RowAutoregression),
        ),
    ),
    claims=(
        Claim("kan", "mlp", "KANs improve on MLPs"),
        Claim("spline", "mlp", "splines improve on affine couplings"),
        Claim("maf", "mlp", "MAF improves on couplings"),
        Claim("spline", "kan", "splines are better than KANs"),
        Claim("spline", "maf", "splines are better than MAF"),
        Claim("kan", "maf", "KANs are better than MAF"),
        Claim("kan", "maf-plain", "the same where MAF has no batch norm"),
        Claim("kan-plain", "mlp-plain", "KANs improve on MLPs, both without batch norm"),
        Claim("maf-plain", "mlp", "MAF without batch norm improves on couplings with it"),
    ),
)

TABLE_10 = Table(
    "table-10",
    "Table 10: what the parts of MixerFlow bring",
    "Negative log-likelihood in bits per dimension on CIFAR-10.",
    columns=(
        Column(
            "cifar10",
            *recipe.CIFAR10,
            setups(Setup(BASIC, CIFAR10, 0, GPU_TIME), BASIC_TWIN, TABLE_10_STEPS),
        ),
    ),
    rows=(
        Row("basic", "Basic", published={"cifar10": PublishedResult(3.81)}),
        Row(
            "layers",
            "60 layers",
            deeper,
            {"cifar10": PublishedResult(3.52)},
        ),
        Row(
            "linear",
            "Linear blocks",
            changed(linear=LUMap()),
            {"cifar10": PublishedResult(3.49)},
        ),
        Row(
            "shift",
            "Shift layers",
            _shifted,
            {"cifar10": PublishedResult(3.58)},
        ),
        Row(
            "all",
            "Linear blocks and shift layers",
            lambda model: _shifted(evolve(model, {"linear": LUMap()})),
            {"cifar10": PublishedResult(3.46, 11.34, "Table 1")},
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


def _norms_columns(steps: int) -> tuple[Column, ...]:
    """The paper's model on CIFAR-10, its twin for so many steps."""
    budgets = setups(Setup(MixerFlow(), CIFAR10, 0, GPU_TIME), TWIN, steps)
    return (Column("cifar10", *recipe.CIFAR10, budgets),)


# Batch norm needs statistics over all rows before a row can go on; these do not.
NORMS = Table(
    "norms",
    "Norms in the conditioners",
    "Negative log-likelihood in bits per dimension on CIFAR-10. The paper has batch norm, and does "
    "not compare it with anything.",
    columns=_norms_columns(NORMS_STEPS),
    rows=(
        Row("batch", "Batch norm", published={"cifar10": PublishedResult(3.46, 11.34, "Table 1")}),
        Row("layer", "Each row by itself (layer norm)", changed(flow__net__norm="layer")),
        Row("rms", "Each row by its mean square", changed(flow__net__norm="rms")),
        Row("none", "No norm", changed(flow__net__norm="none")),
        Row(
            "layer-bfloat16",
            "Layer norm, nets in bfloat16",
            changed(flow__net__norm="layer"),
            training=lambda train: replace(train, precision="bfloat16"),
        ),
    ),
    claims=(
        Claim("layer", "batch", "a norm of each row is better than batch norm"),
        Claim("none", "batch", "no norm is better than batch norm"),
        Claim("rms", "batch", "the mean square of each row is better than batch norm"),
        Claim("layer", "none", "a norm of each row is better than none"),
        Claim("layer", "rms", "mean, scale and shift are worth their time"),
        Claim("rms", "none", "the mean square is better than none"),
        Claim("layer-bfloat16", "layer", "bfloat16 is better than float32"),
    ),
)

# Batch norm learns more slowly at first: what becomes of the difference later.
NORMS_LONGER = Table(
    "norms-longer",
    "Norms in the conditioners, after five times the steps",
    "Negative log-likelihood in bits per dimension on CIFAR-10, of two rows of the table `norms`: "
    "the paper's norm, and the one that a GPU runs fastest.",
    columns=_norms_columns(5 * NORMS_STEPS),
    rows=tuple(row for row in NORMS.rows if row.name in ("batch", "rms")),
    claims=tuple(
        claim for claim in NORMS.claims if (claim.better, claim.worse) == ("rms", "batch")
    ),
)

TABLES = {
    table.name: table for table in (TABLE_3, TABLE_8, TABLE_10, APPENDIX_D, NORMS, NORMS_LONGER)
}


def table(name: str) -> Table:
    """The table of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name not in TABLES:
        raise ConfigError("no such table", name, nearest(name, TABLES, cutoff=0.4))
    return TABLES[name]
