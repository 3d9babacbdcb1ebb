"""Runs of MADE, MAF and RealNVP over whole images, and their twins.

MADE and MAF over whole images are baselines of Table 3. The table says neither how deep the models
are and how long they train, nor which of MAF's two versions it has.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.maf import MAF
from mixerflow.models.realnvp import RealNVP
from mixerflow.models.recipe import CIFAR10, MNIST, TWIN, Recipe
from mixerflow.parts.image_nets import ResidualConv
from mixerflow.parts.pixels import LogitPixels
from mixerflow.train_config import TrainConfig

_MADE_MNIST = MAF(layers=1, batch_norm=False)
_MADE_CIFAR10 = replace(_MADE_MNIST, order="random", pixels=LogitPixels(0.05))
_MAF_MNIST = MAF(layers=5)
_MAF_CIFAR10 = MAF(layers=10, depth=2, order="random", pixels=LogitPixels(0.05))
_MAF_TRAINING = TrainConfig(steps=100_000, batch=100, lr=1e-4)
_MADE_TRAINING = replace(_MAF_TRAINING, lr=1e-3)

_TWIN_MAF = replace(TWIN, batch=100, lr=1e-3, warmup=20, initial=1000)

RECIPES: dict[str, Recipe] = {
    "made-mnist": Recipe(
        "Table 3's baseline: MADE on whole digits", _MADE_MNIST, _MADE_TRAINING, *MNIST
    ).reported(2.04, None, "Table 3"),
    "made-cifar10": Recipe(
        "Table 3's baseline: MADE on whole photographs", _MADE_CIFAR10, _MADE_TRAINING, *CIFAR10
    ).reported(5.67, None, "Table 3"),
    "maf-mnist": Recipe(
        "Table 3's baseline: MAF of 5 layers on whole digits", _MAF_MNIST, _MAF_TRAINING, *MNIST
    ).reported(1.89, None, "Table 3"),
    "maf-cifar10": Recipe(
        "Table 3's baseline: MAF of 10 layers on whole photographs",
        _MAF_CIFAR10,
        _MAF_TRAINING,
        *CIFAR10,
    ).reported(4.31, None, "Table 3"),
    "made-mnist-tiny": Recipe("MADE on MNIST", replace(_MADE_MNIST, width=256), _TWIN_MAF, *MNIST),
    "made-cifar10-tiny": Recipe(
        "MADE on CIFAR-10", replace(_MADE_CIFAR10, width=256), _TWIN_MAF, *CIFAR10
    ),
    "maf-mnist-tiny": Recipe("MAF on MNIST", replace(_MAF_MNIST, width=256), _TWIN_MAF, *MNIST),
    "maf-cifar10-tiny": Recipe(
        "MAF on CIFAR-10", replace(_MAF_CIFAR10, layers=5, width=256, depth=1), _TWIN_MAF, *CIFAR10
    ),
    "realnvp-cifar10": Recipe(
        "RealNVP of 2 scales, nets of 8 residual blocks",
        RealNVP(),
        TrainConfig(steps=200_000, batch=64, lr=1e-3),
        *CIFAR10,
    ).reported(3.49, None, "its own paper, Table 1"),
    "realnvp-cifar10-tiny": Recipe(
        "RealNVP on CIFAR-10",
        RealNVP(net=ResidualConv(16, depth=1)),
        replace(TWIN, lr=8e-3),
        *CIFAR10,
    ),
}
