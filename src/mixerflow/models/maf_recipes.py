"""MADE's and MAF's runs over whole images: the baselines of Table 3, and their twins.

How deep they are and how long they train is not in the table, nor which of MAF's two.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.maf import MAF
from mixerflow.models.recipe import CIFAR10, MNIST, UNIFORM, PublishedResult, Recipe
from mixerflow.parts.model import LogitPixels
from mixerflow.train_config import TrainConfig

_MADE_MNIST = MAF(layers=1, batch_norm=False)
_MADE_CIFAR10 = replace(_MADE_MNIST, order="random", pixels=LogitPixels(0.05))
_MAF_MNIST = MAF(layers=5)
_MAF_CIFAR10 = MAF(layers=10, depth=2, order="random", pixels=LogitPixels(0.05))
_WHOLE = TrainConfig(steps=100_000, batch=100, lr=1e-4)
_TINY = TrainConfig(
    minutes=10, batch=100, lr=1e-3, betas=(0.9, 0.99), warmup=20, ema=0.99, initial=1000
)

RECIPES: dict[str, Recipe] = {
    "made-mnist": Recipe(
        "Table 3's baseline: MADE on whole digits",
        _MADE_MNIST,
        replace(_WHOLE, lr=1e-3),
        *MNIST,
        PublishedResult(2.04, None, "Table 3", UNIFORM),
    ),
    "made-cifar10": Recipe(
        "Table 3's baseline: MADE on whole photographs",
        _MADE_CIFAR10,
        replace(_WHOLE, lr=1e-3),
        *CIFAR10,
        PublishedResult(5.67, None, "Table 3", UNIFORM),
    ),
    "maf-mnist": Recipe(
        "Table 3's baseline: MAF of 5 layers on whole digits",
        _MAF_MNIST,
        _WHOLE,
        *MNIST,
        PublishedResult(1.89, None, "Table 3", UNIFORM),
    ),
    "maf-cifar10": Recipe(
        "Table 3's baseline: MAF of 10 layers on whole photographs",
        _MAF_CIFAR10,
        _WHOLE,
        *CIFAR10,
        PublishedResult(4.31, None, "Table 3", UNIFORM),
    ),
    "made-mnist-tiny": Recipe("MADE on MNIST", replace(_MADE_MNIST, width=256), _TINY, *MNIST),
    "made-cifar10-tiny": Recipe(
        "MADE on CIFAR-10", replace(_MADE_CIFAR10, width=256), _TINY, *CIFAR10
    ),
    "maf-mnist-tiny": Recipe("MAF on MNIST", replace(_MAF_MNIST, width=256), _TINY, *MNIST),
    "maf-cifar10-tiny": Recipe(
        "MAF on CIFAR-10", replace(_MAF_CIFAR10, layers=5, width=256, depth=1), _TINY, *CIFAR10
    ),
}
