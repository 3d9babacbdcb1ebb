"""MixerFlow's runs: Tables 1 to 3, 6, 8 and 9 of its paper, an earlier variant, and their twins.

Full runs have Table 9's values and need a GPU. Twins have a few layers, bound the couplings'
log-scale and learn fast (Adam at 5e-3 to 1e-2, second decay 0.99).
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.mixerflow import MixerFlow
from mixerflow.models.recipe import (
    ANIME64,
    CIFAR10,
    GALAXY32,
    IMAGENET32,
    IMAGENET64,
    MNIST,
    OLD_IMAGENET,
    UNIFORM,
    Recipe,
)
from mixerflow.parts import KAN, MLP, MaskedNet, Patching, RLUMap, RowAutoregression, RowCoupling
from mixerflow.registry import evolve
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import Affine, RationalQuadratic

PAPER_32 = MixerFlow()
PAPER_64 = MixerFlow(patching=Patching(8, shift=(0, 0, 0, 2)))
# Table 8 has each part with its own paper's defaults: splines and MAF without batch norm
PAPER_MNIST = MixerFlow(flow=RowCoupling(net=MLP(64)), linear=RLUMap(), patching=Patching(shift=0))
_SPLINES = RowCoupling(RationalQuadratic(), MLP(64, norm="none"))

_TINY_FLOW = RowCoupling(Affine(bound=2.0), MLP(64))
TWIN_32 = MixerFlow(layers=4, patching=Patching(shift=(0, 2)), flow=_TINY_FLOW)
TWIN_28 = replace(TWIN_32, layers=3)
TWIN_64 = replace(TWIN_32, patching=Patching(8, shift=(0, 4)))
TWIN_MNIST = replace(TWIN_32, linear=RLUMap(), patching=Patching(shift=0))
_TINY_MAF = RowAutoregression(Affine(bound=2.0), MaskedNet(64))

_EARLIER = {"flow_layers": 2, "actnorm": "batch"} | {
    "patching": Patching(2, shift=(0, 1), cut=("patches", "stripes", "bands"))
}

TABLE_8 = TrainConfig(steps=50_000, batch=512, lr=5e-4)
CIFAR10_TRAINING = TrainConfig(steps=400_000, batch=512, lr=1e-3)
_SLOWER = replace(CIFAR10_TRAINING, lr=5e-4)
TINY = TrainConfig(
    minutes=20, batch=32, lr=5e-3, betas=(0.9, 0.99), warmup=20, ema=0.99, initial=1000
)

RECIPES: dict[str, Recipe] = {
    "mixerflow-tiny": Recipe(
        "the demonstration: 4,000 embedded images of clothes",
        TWIN_28,
        replace(TINY, minutes=3, lr=1e-2),
        "fashion-mini",
        (1, 28, 28),
    ),
    "mixerflow-cifar10": Recipe("Table 1: CIFAR-10", PAPER_32, CIFAR10_TRAINING, *CIFAR10).reported(
        3.46, 11.34, "Table 1"
    ),
    # batch norm needs statistics of all rows first; a norm of each row is as good
    "mixerflow-cifar10-gpu": Recipe(
        "Table 1: CIFAR-10, as one GPU runs it fastest",
        evolve(PAPER_32, {"flow.net.norm": "rms"}),
        replace(CIFAR10_TRAINING, precision="bfloat16", graph=True),
        *CIFAR10,
    ).reported(3.46, 11.34, "Table 1", f"{UNIFORM}; with batch norm and in float32"),
    "mixerflow-imagenet32": Recipe(
        "Table 1: ImageNet at 32 pixels",
        PAPER_32,
        replace(CIFAR10_TRAINING, steps=500_000),
        *IMAGENET32,
    ).reported(4.20, 11.34, "Table 1", OLD_IMAGENET),
    "mixerflow-imagenet64": Recipe(
        "Table 2: ImageNet at 64 pixels", PAPER_64, replace(_SLOWER, batch=200), *IMAGENET64
    ).reported(3.92, 18.90, "Table 2", OLD_IMAGENET),
    "mixerflow-anime64": Recipe(
        "Table 2: anime faces at 64 pixels",
        PAPER_64,
        replace(_SLOWER, batch=200, betas=(0.9, 0.99)),
        *ANIME64,
    ).reported(3.17, 18.90, "Table 2"),
    "mixerflow-galaxy32": Recipe(
        "galaxies at 32 pixels",
        evolve(PAPER_32, {"flow.net.width": 64}),
        replace(CIFAR10_TRAINING, steps=50_000),
        *GALAXY32,
    ).reported(2.22, None, "Table 6"),
    # Table 9's column MNIST is the autoregressive model; this is Table 8's row MLP-coupling
    "mixerflow-mnist": Recipe(
        "Table 8: MNIST, coupling layers with MLPs", PAPER_MNIST, TABLE_8, *MNIST
    ).reported(1.57, 3.10, "Table 8"),
    "mixerflow-kan-mnist": Recipe(
        "Table 8: MNIST, coupling layers with KANs",
        evolve(PAPER_MNIST, {"flow.net": KAN}),
        TABLE_8,
        *MNIST,
    ).reported(1.48, 7.45, "Table 8", f"{UNIFORM}; its text does not say how to get its count"),
    "mixerflow-spline-mnist": Recipe(
        "Table 8: MNIST, coupling layers with splines of 4 bins",
        replace(PAPER_MNIST, flow=_SPLINES),
        TABLE_8,
        *MNIST,
    ).reported(1.21, 5.28, "Table 8"),
    # eight times Table 8's steps, where the same model has 1.56
    "mixerflow-maf-mnist": Recipe(
        "Tables 3 and 9: MNIST, masked autoregressive flows in the mixer",
        replace(PAPER_MNIST, flow=RowAutoregression(net=MaskedNet(64, norm="none"))),
        _SLOWER,
        *MNIST,
    ).reported(1.22, 3.83, "Table 3, and Table 8 for the count"),
    "mixerflow-maf-cifar10": Recipe(
        "Table 3: CIFAR-10, masked autoregressive flows in the mixer; settings of ours",
        replace(PAPER_32, flow=RowAutoregression(net=MaskedNet(norm="none"))),
        _SLOWER,
        *CIFAR10,
    ).reported(3.44, None, "Table 3", f"{UNIFORM}; the paper does not give the settings"),
    "mixerflow-profile": Recipe(
        "CIFAR-10, an earlier variant: batch-norm flows; another cut after every layer",
        evolve(PAPER_32, {"layers": 24, **_EARLIER}),
        CIFAR10_TRAINING,
        *CIFAR10,
    ),
    "mixerflow-cifar10-tiny": Recipe("CIFAR-10", TWIN_32, TINY, *CIFAR10),
    "mixerflow-cifar10-gpu-tiny": Recipe(
        "CIFAR-10 with the norm that GPUs' kernels know",
        evolve(TWIN_32, {"flow.net.norm": "rms"}),
        TINY,
        *CIFAR10,
    ),
    "mixerflow-imagenet32-tiny": Recipe("ImageNet at 32 pixels", TWIN_32, TINY, *IMAGENET32),
    "mixerflow-imagenet64-tiny": Recipe("ImageNet at 64 pixels", TWIN_64, TINY, *IMAGENET64),
    "mixerflow-anime64-tiny": Recipe("anime faces at 64 pixels", TWIN_64, TINY, *ANIME64),
    "mixerflow-galaxy32-tiny": Recipe("galaxies at 32 pixels", TWIN_32, TINY, *GALAXY32),
    "mixerflow-mnist-tiny": Recipe(
        "MNIST", replace(TWIN_28, layers=4), replace(TINY, lr=1e-2), *MNIST
    ),
    "mixerflow-kan-mnist-tiny": Recipe(
        "MNIST, coupling layers with KANs", evolve(TWIN_MNIST, {"flow.net": KAN}), TINY, *MNIST
    ),
    "mixerflow-spline-mnist-tiny": Recipe(
        "MNIST, coupling layers with splines",
        evolve(TWIN_MNIST, {"flow.elementwise": RationalQuadratic()}),
        TINY,
        *MNIST,
    ),
    "mixerflow-maf-mnist-tiny": Recipe(
        "MNIST, masked autoregressive flows in the mixer",
        replace(TWIN_MNIST, flow=_TINY_MAF),
        TINY,
        *MNIST,
    ),
    "mixerflow-maf-cifar10-tiny": Recipe(
        "CIFAR-10, masked autoregressive flows in the mixer",
        replace(TWIN_32, flow=_TINY_MAF),
        TINY,
        *CIFAR10,
    ),
    "mixerflow-profile-tiny": Recipe(
        "CIFAR-10, the earlier variant", evolve(TWIN_32, _EARLIER), TINY, *CIFAR10
    ),
}
