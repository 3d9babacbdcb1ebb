"""The paper's tables as data: a row is one entry, and so is a claim.

A column has three bases: the paper's (`gpu`), a twin that two CPU cores train in minutes (`cpu`),
and a smaller one that only shows that everything runs (`tiny`). A row is the same change of all
three. Twins have few layers, bound the couplings' log-scale and learn fast, as the ``-tiny``
recipes do.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.errors import ConfigError, nearest
from mixerflow.experiments import (
    added,
    dense,
    embeddings,
    field,
    hybrid,
    outlier_tables,
    profile,
    residual,
    slides,
)
from mixerflow.experiments.appendix import APPENDIX_D
from mixerflow.experiments.base import CIFAR10, MNIST, TWIN, changed, column, whole_image_maf
from mixerflow.experiments.conditional import CONDITIONAL
from mixerflow.experiments.table import Claim, PublishedResult, Row, Table
from mixerflow.models import MixerFlow
from mixerflow.models.mixerflow_recipes import PAPER_MNIST, TWIN_MNIST
from mixerflow.parts import KAN, LUMap, Model, NoMap, RowAutoregression
from mixerflow.registry import evolve
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import RationalQuadratic

_NO_NORM = changed(flow__net__norm="none")
_TABLE_1 = PublishedResult(3.46, 11.34, "Table 1")
_BASIC, _BASIC_TWIN = (
    evolve(model, {"linear": NoMap(), "patching.shift": (0,)}) for model in (MixerFlow(), TWIN)
)


def _double_layers(model: Model) -> Model:
    assert isinstance(model, MixerFlow)
    return replace(model, layers=2 * model.layers)


def _with_shifts(model: Model) -> Model:
    """Add the shift layers of the paper's model, or those of its twin."""
    assert isinstance(model, MixerFlow)
    full = model.layers == MixerFlow().layers
    return evolve(model, {"patching.shift": (0, 0, 0, 1) if full else (0, 1)})


def _baseline_rate(train: TrainConfig) -> TrainConfig:
    return replace(train, lr=1e-3)


TABLE_3 = Table(
    "table-3",
    "Table 3: MAF over whole images and in the mixer",
    "Negative log-likelihood in bits per dimension. The paper takes its baselines' figures from "
    "their own paper. It does not name the settings of MAF in the mixer on CIFAR-10: those here "
    "are our choice.",
    columns=(
        column("mnist", PAPER_MNIST, replace(MNIST, steps=400_000), TWIN_MNIST, twin_steps=800),
        column("cifar10", MixerFlow(), replace(CIFAR10, lr=5e-4), TWIN, twin_steps=800),
    ),
    rows=(
        Row(
            "made",
            "MADE",
            whole_image_maf(1),
            {"mnist": PublishedResult(2.04), "cifar10": PublishedResult(5.67)},
            _baseline_rate,
        ),
        Row(
            "maf",
            "MAF",
            whole_image_maf(5),
            {"mnist": PublishedResult(1.89), "cifar10": PublishedResult(4.31)},
            _baseline_rate,
        ),
        Row(
            "mixer",
            "MAF in the mixer",
            changed(flow=RowAutoregression),
            {
                "mnist": PublishedResult(1.22, 3.83, "count of Table 8"),
                "cifar10": PublishedResult(3.44),
            },
            full=_NO_NORM,
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
    columns=(column("mnist", PAPER_MNIST, MNIST, TWIN_MNIST, twin_steps=800),),
    rows=(
        Row("mlp", "MLP-coupling", published={"mnist": PublishedResult(1.57, 3.10)}),
        Row("kan", "KAN-coupling", changed(flow__net=KAN), {"mnist": PublishedResult(1.48, 7.45)}),
        Row(
            "spline",
            "Splines",
            changed(flow__elementwise=RationalQuadratic()),
            {"mnist": PublishedResult(1.21, 5.28)},
            full=_NO_NORM,
        ),
        Row(
            "maf",
            "MAF-based",
            changed(flow=RowAutoregression),
            {"mnist": PublishedResult(1.56, 3.83)},
            full=_NO_NORM,
        ),
        # batch norm in all twins or in none: the paper's splines and MAF seem to have had none
        Row("mlp-plain", "MLP-coupling, no batch norm", _NO_NORM),
        Row(
            "kan-plain",
            "KAN-coupling, no batch norm",
            changed(flow__net=KAN, flow__net__norm="none"),
        ),
        Row(
            "maf-plain",
            "MAF-based, no batch norm",
            changed(flow=RowAutoregression, flow__net__norm="none"),
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
    columns=(column("cifar10", _BASIC, CIFAR10, _BASIC_TWIN, twin_steps=1500),),
    rows=(
        Row("basic", "Basic", published={"cifar10": PublishedResult(3.81)}),
        Row("layers", "60 layers", _double_layers, {"cifar10": PublishedResult(3.52)}),
        Row("linear", "Linear blocks", changed(linear=LUMap()), {"cifar10": PublishedResult(3.49)}),
        Row("shift", "Shift layers", _with_shifts, {"cifar10": PublishedResult(3.58)}),
        Row(
            "all",
            "Linear blocks and shift layers",
            lambda model: _with_shifts(evolve(model, {"linear": LUMap()})),
            {"cifar10": _TABLE_1},
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


# Batch norm needs statistics over all rows of a batch; the other norms need one row.
NORMS = Table(
    "norms",
    "Norms in the conditioners",
    "Negative log-likelihood in bits per dimension on CIFAR-10. The paper has batch norm, and does "
    "not compare it with anything.",
    columns=(column("cifar10", MixerFlow(), CIFAR10, TWIN, twin_steps=1500),),
    rows=(
        Row("batch", "Batch norm", published={"cifar10": _TABLE_1}),
        Row("layer", "Each row by itself (layer norm)", changed(flow__net__norm="layer")),
        Row("rms", "Each row by its mean square", changed(flow__net__norm="rms")),
        Row("none", "No norm", _NO_NORM),
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

# Batch norm learns more slowly at first; this table shows the later difference.
NORMS_LONGER = Table(
    "norms-longer",
    "Norms in the conditioners, after five times the steps",
    "Negative log-likelihood in bits per dimension on CIFAR-10, of two rows of the table `norms`: "
    "the paper's norm, and the one that a GPU runs fastest.",
    columns=(column("cifar10", MixerFlow(), CIFAR10, TWIN, twin_steps=7500),),
    rows=tuple(row for row in NORMS.rows if row.name in ("batch", "rms")),
    claims=(Claim("rms", "batch", "the mean square of each row is better than batch norm"),),
)

_ALL = (TABLE_3, TABLE_8, TABLE_10, APPENDIX_D, NORMS, NORMS_LONGER, CONDITIONAL)
_MODULES = (field, residual, added, embeddings, hybrid, outlier_tables, dense, slides, profile)
TABLES = {table.name: table for table in (*(each for m in _MODULES for each in m.TABLES), *_ALL)}


def table(name: str) -> Table:
    """Look up a table by its name; an unknown name is a ConfigError that names the nearest."""
    if name not in TABLES:
        raise ConfigError("no such table", name, nearest(name, TABLES, cutoff=0.4))
    return TABLES[name]
