"""Runs of DenseFlow, with the settings of its paper and released code, and their twins.

The released command line names a decay of the learning rate by epoch, but its warm-up sets the rate
after every step, and so undoes the decay. The reported figures come from a rate that is constant
after the warm-up, until the last epochs at a lower rate; these recipes train so.

Here, weights are averaged, very long gradients are clipped, and 4 % of the training images are held
out, as for all models; the released code does none of these, and judges by the test images.

The paper's ImageNet is the new, anti-aliased version: its figures are not comparable with those on
the old one, which MixerFlow's paper and most others use.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.augmentation import Augmentation
from mixerflow.core import Shape
from mixerflow.models.denseflow import DenseFlow
from mixerflow.models.recipe import (
    CELEBA64,
    CIFAR10,
    MNIST,
    NEW_IMAGENET32,
    NEW_IMAGENET64,
    Recipe,
)
from mixerflow.optimizers import Adamax
from mixerflow.parts.image_nets import DenseAttention, ResidualDense
from mixerflow.parts.pixels import ScaledPixels, VariationalDequantizer
from mixerflow.schedule import Constant
from mixerflow.train_config import TrainConfig

_PAPER = DenseFlow()
# 28 pixels a side can be halved twice
_MNIST = DenseFlow(units=(6, 4), modules=(5, 6))

TWIN = DenseFlow(
    units=(3, 1),
    modules=(2, 4),
    growth=4,
    net=DenseAttention(16, growth=16, depth=2),
    pixels=ScaledPixels(
        -0.5,
        0.5,
        dequantizer=VariationalDequantizer(
            steps=2, context=16, growth=8, depth=2, net=ResidualDense(16, growth=8, depth=2)
        ),
    ),
)

_FLIP = Augmentation(flip=True)
_SHIFT = Augmentation(flip=True, shift=1)
_TRAINING = TrainConfig(
    epochs=420,
    batch=64,
    lr=1e-3,
    warmup=5000,
    optimizer=Adamax(),
    schedule=Constant(cooldown=20 / 420),
    augmentation=_SHIFT,
)
_SHORT = replace(_TRAINING, epochs=22, schedule=Constant(cooldown=2 / 22))
_SHORTER = replace(
    _TRAINING,
    epochs=11,
    batch=32,
    schedule=Constant(cooldown=1 / 11),
    augmentation=Augmentation(flip=True, shift=3),
)
_FACES = replace(_SHORTER, epochs=55, schedule=Constant(cooldown=5 / 55), augmentation=_FLIP)
_TINY = TrainConfig(
    minutes=20, batch=32, lr=1e-2, warmup=100, ema=0.99, initial=512, optimizer=Adamax()
)
_TINY_FLIPPED = replace(_TINY, augmentation=_FLIP)
_WEIGHTED = "lower bound of the density, variational dequantisation, importance-weighted (K = {:,})"
_NEW = f"{_WEIGHTED.format(200)}; the new ImageNet, not comparable with the old"
_ITS_TABLE = "its own paper's table"


def _published(about: str, data: tuple[str, Shape], train: TrainConfig) -> Recipe:
    return Recipe(f"DenseFlow-74-10 on {about}", _PAPER, train, *data)


RECIPES: dict[str, Recipe] = {
    "denseflow-cifar10": _published("CIFAR-10", CIFAR10, _TRAINING).reported(
        2.98, 130.65, _ITS_TABLE, _WEIGHTED.format(1000)
    ),
    "denseflow-imagenet32": _published("ImageNet at 32 pixels", NEW_IMAGENET32, _SHORT).reported(
        3.63, 130.65, _ITS_TABLE, _NEW
    ),
    "denseflow-imagenet64": _published("ImageNet at 64 pixels", NEW_IMAGENET64, _SHORTER).reported(
        3.35, 130.65, _ITS_TABLE, _NEW
    ),
    "denseflow-celeba64": _published("faces at 64 pixels", CELEBA64, _FACES).reported(
        1.99, 130.65, _ITS_TABLE, _WEIGHTED.format(200)
    ),
    "denseflow-mnist": Recipe(
        "DenseFlow of two blocks on MNIST",
        _MNIST,
        replace(_TRAINING, augmentation=Augmentation()),
        *MNIST,
    ),
    "denseflow-cifar10-tiny": Recipe("DenseFlow on CIFAR-10", TWIN, _TINY_FLIPPED, *CIFAR10),
    "denseflow-imagenet32-tiny": Recipe(
        "DenseFlow on ImageNet at 32 pixels", TWIN, _TINY_FLIPPED, *NEW_IMAGENET32
    ),
    "denseflow-imagenet64-tiny": Recipe(
        "DenseFlow on ImageNet at 64 pixels", TWIN, _TINY_FLIPPED, *NEW_IMAGENET64
    ),
    "denseflow-celeba64-tiny": Recipe("DenseFlow on faces", TWIN, _TINY_FLIPPED, *CELEBA64),
    "denseflow-mnist-tiny": Recipe("DenseFlow on MNIST", TWIN, _TINY, *MNIST),
}
