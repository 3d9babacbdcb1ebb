"""Runs of FFJORD on images, and their twins.

The paper has one model for CIFAR-10 and MNIST, and trains both alike; see appendix B of
arXiv:1810.01367.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mixerflow.augmentation import Augmentation
from mixerflow.models.ffjord import FFJORD
from mixerflow.models.recipe import CIFAR10, MNIST, TWIN, Recipe
from mixerflow.parts.image_nets import ConvVelocityNet
from mixerflow.parts.pixels import LogitPixels
from mixerflow.train_config import TrainConfig

_ESTIMATE = "estimated density, uniform dequantisation, single-sample"
_TABLE = "its own paper, Table 2"
_CIFAR10 = FFJORD()
_MNIST = FFJORD(pixels=LogitPixels(1e-6))
_TRAINING = TrainConfig(
    steps=100_000, batch=200, lr=1e-3, warmup=1000, memory="checkpoint", accumulate=8
)
_SMALL: dict[str, Any] = {
    "scales": 3,
    "blocks": 1,
    "net": ConvVelocityNet(32, depth=1),
    "train_tolerance": 1e-2,
    "tolerance": 1e-3,
}
_TWIN = replace(TWIN, batch=8, lr=1e-2)

RECIPES: dict[str, Recipe] = {
    "ffjord-cifar10": Recipe(
        "continuous flows of convolutions at 4 scales",
        _CIFAR10,
        replace(_TRAINING, augmentation=Augmentation(flip=True)),
        *CIFAR10,
    ).reported(3.40, None, _TABLE, _ESTIMATE),
    "ffjord-mnist": Recipe(
        "continuous flows of convolutions at 3 scales", _MNIST, _TRAINING, *MNIST
    ).reported(0.99, None, _TABLE, _ESTIMATE),
    "ffjord-cifar10-tiny": Recipe(
        "continuous flows of convolutions on CIFAR-10", replace(_CIFAR10, **_SMALL), _TWIN, *CIFAR10
    ),
    "ffjord-mnist-tiny": Recipe(
        "continuous flows of convolutions on MNIST", replace(_MNIST, **_SMALL), _TWIN, *MNIST
    ),
}
