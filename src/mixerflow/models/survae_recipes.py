"""Runs of SurVAE flows with max pooling and with slices, as in the paper's experiments, and twins.

The released command lines name a decay of the learning rate by epoch, but the warm-up sets the rate
after every step, and so undoes the decay: the rate is constant after the warm-up, until the last
epochs at a lower rate. These recipes train so.

Here, weights are averaged, very long gradients are clipped, and 4 % of the training images are held
out, as for all models; the released code does none of these, and judges by the test images.

The paper's ImageNet is the old, downsampled version. Its models with slices have 4.00 and 3.70
bits/dim there, and those with max pooling the figures below; ``--model.pooling slice`` makes one of
the other.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.augmentation import Augmentation
from mixerflow.models.recipe import CIFAR10, IMAGENET32, IMAGENET64, MNIST, Recipe
from mixerflow.models.survae import SurVAE
from mixerflow.optimizers import Adamax
from mixerflow.parts.image_nets import ResidualDense
from mixerflow.parts.pixels import ScaledPixels, VariationalDequantizer
from mixerflow.schedule import Constant
from mixerflow.train_config import TrainConfig

_PAPER = SurVAE()
_PAPER64 = SurVAE(scales=3, steps=8)

TWIN = SurVAE(
    steps=6,
    net=ResidualDense(16, growth=16, depth=2),
    pixels=ScaledPixels(
        -0.5,
        0.5,
        dequantizer=VariationalDequantizer(
            steps=1,
            context=8,
            width=12,
            growth=8,
            depth=2,
            net=ResidualDense(16, growth=8, depth=1),
        ),
    ),
)
_TWIN64 = replace(TWIN, scales=3, steps=4)

_SHIFT = Augmentation(flip=True, shift=1)
_TRAINING = TrainConfig(
    epochs=550,
    batch=32,
    lr=1e-3,
    warmup=5000,
    optimizer=Adamax(),
    schedule=Constant(cooldown=50 / 550),
    augmentation=_SHIFT,
)
_SHORT = replace(
    _TRAINING,
    epochs=27,
    schedule=Constant(cooldown=2 / 27, cooldown_lr=5e-5),
    augmentation=Augmentation(),
)
_SHORTER = replace(_SHORT, epochs=22, schedule=Constant(cooldown=2 / 22, cooldown_lr=5e-5))
_TINY = TrainConfig(
    minutes=10, batch=32, lr=1e-2, warmup=100, ema=0.99, initial=512, optimizer=Adamax()
)
_TINY_SHIFTED = replace(_TINY, augmentation=_SHIFT)
_WEIGHTED = "exact density, variational dequantisation, importance-weighted (K = 1,000)"
_SINGLE = "exact density, variational dequantisation, single-sample"
_OLD = f"{_SINGLE}; the old downsampled ImageNet, not comparable with the new"
_ITS_TABLE = "its own paper's Table 4"
_POOLED, _SLICED = "SurVAE flow with max pooling on", "SurVAE flow with slices on"

RECIPES: dict[str, Recipe] = {
    "survae-cifar10": Recipe(f"{_POOLED} CIFAR-10", _PAPER, _TRAINING, *CIFAR10).reported(
        3.09, None, _ITS_TABLE, _WEIGHTED
    ),
    "survae-slice-cifar10": Recipe(
        f"{_SLICED} CIFAR-10", replace(_PAPER, pooling="slice"), _TRAINING, *CIFAR10
    ).reported(3.08, None, _ITS_TABLE, _WEIGHTED),
    "survae-imagenet32": Recipe(
        f"{_POOLED} ImageNet at 32 pixels", _PAPER, _SHORT, *IMAGENET32
    ).reported(4.01, None, _ITS_TABLE, _OLD),
    "survae-imagenet64": Recipe(
        f"{_POOLED} ImageNet at 64 pixels", _PAPER64, _SHORTER, *IMAGENET64
    ).reported(3.74, None, _ITS_TABLE, _OLD),
    "survae-mnist": Recipe(
        f"{_POOLED} MNIST", _PAPER, replace(_TRAINING, augmentation=Augmentation()), *MNIST
    ),
    "survae-cifar10-tiny": Recipe(f"{_POOLED} CIFAR-10", TWIN, _TINY_SHIFTED, *CIFAR10),
    "survae-slice-cifar10-tiny": Recipe(
        f"{_SLICED} CIFAR-10", replace(TWIN, pooling="slice"), _TINY_SHIFTED, *CIFAR10
    ),
    "survae-imagenet32-tiny": Recipe(f"{_POOLED} ImageNet at 32 pixels", TWIN, _TINY, *IMAGENET32),
    "survae-imagenet64-tiny": Recipe(
        f"{_POOLED} ImageNet at 64 pixels", _TWIN64, _TINY, *IMAGENET64
    ),
    "survae-mnist-tiny": Recipe(f"{_POOLED} MNIST", TWIN, _TINY, *MNIST),
}
