"""Named runs: a model, settings and data, with the figures published for them.

A recipe is what ``mixerflow train NAME`` runs. The full ones have Table 9's values and want a GPU;
each has a ``-tiny`` twin that says something true on two CPU cores in minutes. The twins have a few
layers, bound the couplings' log-scale and learn fast (Adam at 5e-3 to 1e-2, second decay 0.99).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from mixerflow.core import Flow, Shape
from mixerflow.errors import ConfigError
from mixerflow.models import Config, MAFConfig, MixerFlowConfig
from mixerflow.models import build as build_model
from mixerflow.training import TrainConfig


@dataclass(frozen=True)
class Published:
    """What the paper reports for a recipe; which comparisons hold is in `note`."""

    parameters: float | None
    """In millions, where it says."""
    bits_per_dim: float
    where: str
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """A named run."""

    about: str
    model: Config
    train: TrainConfig
    data: str
    """What `mixerflow.data.load` takes, unless ``--data`` says otherwise."""
    shape: Shape
    """Of that data's images: what ``mixerflow info`` draws."""
    published: Published | None = None


_UNIFORM = "uniform dequantisation, one draw an image"
_OLD = f"{_UNIFORM}; the old downsampled ImageNet, not comparable with the new"

_PAPER_32 = MixerFlowConfig()
_PAPER_64 = replace(_PAPER_32, patch=8, shift=2)
# Table 8 takes each part with its own paper's defaults: splines and MAF have no batch norm there
_PAPER_MNIST = MixerFlowConfig(hidden=64, shift=0, linear="RLU")
_TABLE_8 = TrainConfig(steps=50_000, batch=512, lr=5e-4)
_TINY = TrainConfig(
    minutes=20, batch=32, lr=5e-3, betas=(0.9, 0.99), warmup=20, ema=0.99, initial=1000
)
_TINY_28 = MixerFlowConfig(layers=3, hidden=64, shift=2, shift_every=2, scale_bound=2.0)
_TINY_32 = replace(_TINY_28, layers=4)
_TINY_64 = replace(_TINY_32, patch=8, shift=4)
_TINY_MNIST = replace(_TINY_28, layers=4, shift=0, linear="RLU")

_MADE_MNIST = MAFConfig(layers=1, batch_norm=False)
_MADE_CIFAR10 = replace(_MADE_MNIST, order="random", alpha=0.05)
_MAF_MNIST = MAFConfig(layers=5)
_MAF_CIFAR10 = MAFConfig(layers=10, depth=2, order="random", alpha=0.05)
_WHOLE = TrainConfig(steps=100_000, batch=100, lr=1e-4)
_WHOLE_TINY = TrainConfig(
    minutes=10, batch=100, lr=1e-3, betas=(0.9, 0.99), warmup=20, ema=0.99, initial=1000
)

RECIPES: dict[str, Recipe] = {
    "mixerflow-tiny": Recipe(
        "the demonstration: 4,000 embedded images of clothes",
        _TINY_28,
        replace(_TINY, minutes=3, lr=1e-2),
        "fashion-mini",
        (1, 28, 28),
    ),
    "mixerflow-cifar10": Recipe(
        "Table 1: CIFAR-10",
        _PAPER_32,
        TrainConfig(steps=400_000, batch=512, lr=1e-3),
        "cifar10",
        (3, 32, 32),
        Published(11.34, 3.46, "Table 1", _UNIFORM),
    ),
    # batch norm needs all rows before any can go on; a norm of each row does as well
    "mixerflow-cifar10-gpu": Recipe(
        "Table 1: CIFAR-10, as one GPU runs it fastest",
        replace(_PAPER_32, norm="rms"),
        TrainConfig(steps=400_000, batch=512, lr=1e-3, precision="bfloat16", graph=True),
        "cifar10",
        (3, 32, 32),
        Published(11.34, 3.46, "Table 1", f"{_UNIFORM}; with batch norm and in float32"),
    ),
    "mixerflow-imagenet32": Recipe(
        "Table 1: ImageNet at 32 pixels",
        _PAPER_32,
        TrainConfig(steps=500_000, batch=512, lr=1e-3),
        "imagenet32-old",
        (3, 32, 32),
        Published(11.34, 4.20, "Table 1", _OLD),
    ),
    "mixerflow-imagenet64": Recipe(
        "Table 2: ImageNet at 64 pixels",
        _PAPER_64,
        TrainConfig(steps=400_000, batch=200, lr=5e-4),
        "imagenet64-old",
        (3, 64, 64),
        Published(18.90, 3.92, "Table 2", _OLD),
    ),
    "mixerflow-anime64": Recipe(
        "Table 2: anime faces at 64 pixels",
        _PAPER_64,
        TrainConfig(steps=400_000, batch=200, lr=5e-4, betas=(0.9, 0.99)),
        "anime-faces",
        (3, 64, 64),
        Published(18.90, 3.17, "Table 2", _UNIFORM),
    ),
    "mixerflow-galaxy32": Recipe(
        "galaxies at 32 pixels",
        replace(_PAPER_32, hidden=64),
        TrainConfig(steps=50_000, batch=512, lr=1e-3),
        "galaxy",
        (3, 32, 32),
        Published(None, 2.22, "Table 6", _UNIFORM),
    ),
    # Table 9's column MNIST is the autoregressive model; this is Table 8's row MLP-coupling
    "mixerflow-mnist": Recipe(
        "Table 8: MNIST, coupling layers with MLPs",
        _PAPER_MNIST,
        _TABLE_8,
        "mnist",
        (1, 28, 28),
        Published(3.10, 1.57, "Table 8", _UNIFORM),
    ),
    "mixerflow-kan-mnist": Recipe(
        "Table 8: MNIST, coupling layers with KANs",
        replace(_PAPER_MNIST, net="kan"),
        _TABLE_8,
        "mnist",
        (1, 28, 28),
        Published(7.45, 1.48, "Table 8", f"{_UNIFORM}; its text does not say how to get its count"),
    ),
    "mixerflow-spline-mnist": Recipe(
        "Table 8: MNIST, coupling layers with splines of 4 bins",
        replace(_PAPER_MNIST, law="spline", norm="none"),
        _TABLE_8,
        "mnist",
        (1, 28, 28),
        Published(5.28, 1.21, "Table 8", _UNIFORM),
    ),
    # eight times Table 8's steps, where the same model has 1.56
    "mixerflow-maf-mnist": Recipe(
        "Tables 3 and 9: MNIST, masked autoregressive flows in the mixer",
        replace(_PAPER_MNIST, flow="maf", norm="none"),
        TrainConfig(steps=400_000, batch=512, lr=5e-4),
        "mnist",
        (1, 28, 28),
        Published(3.83, 1.22, "Table 3, and Table 8 for the count", _UNIFORM),
    ),
    "mixerflow-maf-cifar10": Recipe(
        "Table 3: CIFAR-10, masked autoregressive flows in the mixer; settings of ours",
        replace(_PAPER_32, flow="maf", norm="none"),
        TrainConfig(steps=400_000, batch=512, lr=5e-4),
        "cifar10",
        (3, 32, 32),
        Published(None, 3.44, "Table 3", f"{_UNIFORM}; the paper does not give the settings"),
    ),
    "mixerflow-profile": Recipe(
        "CIFAR-10, an earlier variant: batch-norm flows; another cut after every layer",
        MixerFlowConfig(
            layers=24,
            flow_layers=2,
            patch=2,
            cut=("patches", "stripes", "bands"),
            shifts=(0, 1),
            actnorm="batch",
        ),
        TrainConfig(steps=400_000, batch=512, lr=1e-3),
        "cifar10",
        (3, 32, 32),
    ),
    "mixerflow-cifar10-tiny": Recipe("CIFAR-10", _TINY_32, _TINY, "cifar10", (3, 32, 32)),
    "mixerflow-cifar10-gpu-tiny": Recipe(
        "CIFAR-10 with the norm that GPUs' kernels know",
        replace(_TINY_32, norm="rms"),
        _TINY,
        "cifar10",
        (3, 32, 32),
    ),
    "mixerflow-imagenet32-tiny": Recipe(
        "ImageNet at 32 pixels",
        _TINY_32,
        _TINY,
        "imagenet32-old",
        (3, 32, 32),
    ),
    "mixerflow-imagenet64-tiny": Recipe(
        "ImageNet at 64 pixels",
        _TINY_64,
        _TINY,
        "imagenet64-old",
        (3, 64, 64),
    ),
    "mixerflow-anime64-tiny": Recipe(
        "anime faces at 64 pixels",
        _TINY_64,
        _TINY,
        "anime-faces",
        (3, 64, 64),
    ),
    "mixerflow-galaxy32-tiny": Recipe(
        "galaxies at 32 pixels", _TINY_32, _TINY, "galaxy", (3, 32, 32)
    ),
    "mixerflow-mnist-tiny": Recipe(
        "MNIST", replace(_TINY_28, layers=4), replace(_TINY, lr=1e-2), "mnist", (1, 28, 28)
    ),
    "mixerflow-kan-mnist-tiny": Recipe(
        "MNIST, coupling layers with KANs",
        replace(_TINY_MNIST, net="kan"),
        _TINY,
        "mnist",
        (1, 28, 28),
    ),
    "mixerflow-spline-mnist-tiny": Recipe(
        "MNIST, coupling layers with splines",
        replace(_TINY_MNIST, law="spline"),
        _TINY,
        "mnist",
        (1, 28, 28),
    ),
    "mixerflow-maf-mnist-tiny": Recipe(
        "MNIST, masked autoregressive flows in the mixer",
        replace(_TINY_MNIST, flow="maf"),
        _TINY,
        "mnist",
        (1, 28, 28),
    ),
    "mixerflow-maf-cifar10-tiny": Recipe(
        "CIFAR-10, masked autoregressive flows in the mixer",
        replace(_TINY_32, flow="maf"),
        _TINY,
        "cifar10",
        (3, 32, 32),
    ),
    "mixerflow-profile-tiny": Recipe(
        "CIFAR-10, the earlier variant",
        replace(
            _TINY_32,
            flow_layers=2,
            patch=2,
            cut=("patches", "stripes", "bands"),
            shift=1,
            shifts=(0, 1),
            actnorm="batch",
        ),
        _TINY,
        "cifar10",
        (3, 32, 32),
    ),
    # the baselines' settings; how deep and how long is not in the table, nor which of MAF's two
    "made-mnist": Recipe(
        "Table 3's baseline: MADE on whole digits",
        _MADE_MNIST,
        replace(_WHOLE, lr=1e-3),
        "mnist",
        (1, 28, 28),
        Published(None, 2.04, "Table 3", _UNIFORM),
    ),
    "made-cifar10": Recipe(
        "Table 3's baseline: MADE on whole photographs",
        _MADE_CIFAR10,
        replace(_WHOLE, lr=1e-3),
        "cifar10",
        (3, 32, 32),
        Published(None, 5.67, "Table 3", _UNIFORM),
    ),
    "maf-mnist": Recipe(
        "Table 3's baseline: MAF of 5 layers on whole digits",
        _MAF_MNIST,
        _WHOLE,
        "mnist",
        (1, 28, 28),
        Published(None, 1.89, "Table 3", _UNIFORM),
    ),
    "maf-cifar10": Recipe(
        "Table 3's baseline: MAF of 10 layers on whole photographs",
        _MAF_CIFAR10,
        _WHOLE,
        "cifar10",
        (3, 32, 32),
        Published(None, 4.31, "Table 3", _UNIFORM),
    ),
    "made-mnist-tiny": Recipe(
        "MADE on MNIST", replace(_MADE_MNIST, hidden=256), _WHOLE_TINY, "mnist", (1, 28, 28)
    ),
    "made-cifar10-tiny": Recipe(
        "MADE on CIFAR-10", replace(_MADE_CIFAR10, hidden=256), _WHOLE_TINY, "cifar10", (3, 32, 32)
    ),
    "maf-mnist-tiny": Recipe(
        "MAF on MNIST", replace(_MAF_MNIST, hidden=256), _WHOLE_TINY, "mnist", (1, 28, 28)
    ),
    "maf-cifar10-tiny": Recipe(
        "MAF on CIFAR-10",
        replace(_MAF_CIFAR10, layers=5, hidden=256, depth=1),
        _WHOLE_TINY,
        "cifar10",
        (3, 32, 32),
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
    remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(RECIPES)}"
    raise ConfigError("no such recipe", name, remedy)


def build(model: str | Config, shape: Shape | None = None) -> Flow:
    """A flow, untrained, over images of `shape`.

    Args:
        model: a recipe's name or a config.
        shape: ``(C, *spatial)``; by default that of the recipe's own data.

    Raises:
        ConfigError: no such recipe, or settings that do not fit the images.
    """
    if isinstance(model, str):
        named = recipe(model)
        return build_model(named.model, named.shape if shape is None else shape)
    if shape is None:
        raise ConfigError("no shape", "build", "pass the images' shape (C, H, W)")
    return build_model(model, shape)
