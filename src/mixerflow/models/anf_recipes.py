"""Runs of augmented normalizing flows, and their twins.

The paper reports figures and has no released code, counts of parameters or settings of training:
sizes and training are ours. Its figures stand beside the recipes of the images that it has.

On CIFAR-10 the twin with 4 steps a scale and Adam at 2e-3 was worse by 0.1 bits/dim after 3 minutes
than that with 2 steps and a higher rate.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.augmentation import Augmentation
from mixerflow.models.anf import ANF
from mixerflow.models.recipe import (
    CIFAR10,
    IMAGENET32,
    IMAGENET64,
    MNIST,
    TWIN,
    PublishedResult,
    Recipe,
)
from mixerflow.optimizers import Adamax
from mixerflow.parts.added import NormalChannels
from mixerflow.parts.image_nets import GlowConv, ResidualDense
from mixerflow.parts.pixels import ScaledPixels, VariationalDequantizer
from mixerflow.train_config import TrainConfig

_MODEL = ANF()
# 28 pixels a side can be halved twice
_MNIST = ANF(scales=2, added=NormalChannels(1))
_TWIN = ANF(
    scales=2,
    steps=2,
    net=GlowConv(64),
    pixels=ScaledPixels(
        -0.5,
        0.5,
        dequantizer=VariationalDequantizer(
            steps=2, context=16, growth=8, depth=2, net=ResidualDense(16, growth=8, depth=2)
        ),
    ),
)
_TRAINING = TrainConfig(steps=200_000, batch=64, lr=5e-4, augmentation=Augmentation(flip=True))
_TINY = replace(TWIN, lr=1e-2, warmup=100, optimizer=Adamax())
_KIND = "lower bound of the density, variational dequantisation, importance-weighted (K unknown)"
_OLD = f"{_KIND}; the old downsampled ImageNet, not comparable with the new"
_TABLE = "its own paper's table"

RECIPES: dict[str, Recipe] = {
    "anf-cifar10": Recipe(
        "ANF on CIFAR-10, 3 scales of 8 steps",
        _MODEL,
        _TRAINING,
        *CIFAR10,
        PublishedResult(3.05, None, _TABLE, f"{_KIND}; another size of model"),
    ),
    "anf-imagenet32": Recipe(
        "ANF on ImageNet at 32 pixels",
        _MODEL,
        replace(_TRAINING, steps=400_000),
        *IMAGENET32,
        PublishedResult(3.92, None, _TABLE, f"{_OLD}; another size of model"),
    ),
    "anf-imagenet64": Recipe(
        "ANF on ImageNet at 64 pixels, 4 scales",
        replace(_MODEL, scales=4),
        replace(_TRAINING, steps=400_000),
        *IMAGENET64,
        PublishedResult(3.66, None, _TABLE, f"{_OLD}; another size of model"),
    ),
    "anf-mnist": Recipe(
        "ANF on MNIST, 2 scales of 8 steps",
        _MNIST,
        replace(_TRAINING, steps=100_000, augmentation=Augmentation()),
        *MNIST,
    ),
    "anf-cifar10-tiny": Recipe("ANF on CIFAR-10", _TWIN, _TINY, *CIFAR10),
    "anf-imagenet32-tiny": Recipe("ANF on ImageNet at 32 pixels", _TWIN, _TINY, *IMAGENET32),
    "anf-imagenet64-tiny": Recipe(
        "ANF on ImageNet at 64 pixels", replace(_TWIN, scales=3), _TINY, *IMAGENET64
    ),
    "anf-mnist-tiny": Recipe(
        "ANF on MNIST", replace(_TWIN, added=NormalChannels(1)), _TINY, *MNIST
    ),
}
