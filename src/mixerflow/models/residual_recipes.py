"""Runs of residual flows, i-ResNets, i-DenseNets and monotone flows, and their twins.

Settings are those of the papers and of the released code of residual flows: Adam with decay rates
0.9 and 0.99, a learning rate of 1e-3 after 1,000 steps, batches of 64, gradients clipped to norm 1,
averaged weights for evaluation, flips of photographs. Here the rate then falls by a cosine, and 4 %
of the training images are held out, as for all models.

The monotone flow and the i-ResNet have no published count at this size.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.augmentation import Augmentation
from mixerflow.core import Shape
from mixerflow.models.idensenet import IDenseNet
from mixerflow.models.iresnet import IResNet
from mixerflow.models.monotone_flow import MonotoneFlow
from mixerflow.models.recipe import CIFAR10, IMAGENET32, MNIST, TWIN, Recipe
from mixerflow.models.residual_flow import ResidualFlow
from mixerflow.parts.contractions import (
    ConvContraction,
    DenseConvContraction,
    DenseVectorContraction,
    VectorContraction,
)
from mixerflow.parts.pixels import LogitPixels
from mixerflow.train_config import TrainConfig

_CIFAR10 = ResidualFlow(spare=True)
_IMAGENET32 = replace(_CIFAR10, blocks=32)
_MNIST = replace(_CIFAR10, pixels=LogitPixels(1e-6))
_DENSE = IDenseNet(spare=True)
_IRESNET = IResNet()
_MONOTONE = MonotoneFlow()

_FLIP = Augmentation(flip=True)
_TRAINING = TrainConfig(
    steps=280_000, batch=64, lr=1e-3, betas=(0.9, 0.99), warmup=1000, clip=1.0, augmentation=_FLIP
)
_DIGITS = replace(_TRAINING, augmentation=Augmentation())
_LATE = replace(_TRAINING, late_epochs=25)

_KIND = "estimated density, uniform dequantisation, single-sample"
_OLD = f"{_KIND}; the old downsampled ImageNet, not comparable with the new"

_TWIN = replace(TWIN, batch=16, lr=1e-2, clip=1.0, augmentation=_FLIP)


def _small(model: ResidualFlow, blocks: int = 5) -> ResidualFlow:
    return replace(model, blocks=blocks, dense_blocks=1, eval_terms=10)


TWIN_RESIDUAL = _small(ResidualFlow(net=ConvContraction(16), dense=VectorContraction(32)))
_TWINS = {
    "residual": TWIN_RESIDUAL,
    "iresnet": _small(
        IResNet(
            net=ConvContraction(16, activation="elu", coefficient=0.9),
            dense=VectorContraction(32, activation="elu", coefficient=0.9),
        )
    ),
    "idensenet": _small(
        IDenseNet(net=DenseConvContraction(8), dense=DenseVectorContraction(8, enter=16)), blocks=4
    ),
    "monotone": _small(
        MonotoneFlow(
            net=ConvContraction(12, activation="concatenated-lipswish", coefficient=0.9),
            dense=VectorContraction(32, activation="concatenated-lipswish", coefficient=0.9),
        ),
        blocks=1,
    ),
}


def _twin(name: str, about: str, data: tuple[str, Shape]) -> Recipe:
    training = replace(_TWIN, late_epochs=0.1) if name == "idensenet" else _TWIN
    return Recipe(about, _TWINS[name], training, *data)


RECIPES: dict[str, Recipe] = {
    "residual-cifar10": Recipe("Residual Flow on CIFAR-10", _CIFAR10, _TRAINING, *CIFAR10).reported(
        3.28, 25.174233, "its own paper, Table 1", _KIND
    ),
    "residual-imagenet32": Recipe(
        "Residual Flow on ImageNet at 32 pixels", _IMAGENET32, _TRAINING, *IMAGENET32
    ).reported(4.01, 47.099289, "its own paper, Table 1", _OLD),
    "residual-mnist": Recipe("Residual Flow on MNIST", _MNIST, _DIGITS, *MNIST).reported(
        0.97, 16.608693, "its own paper, Table 1", _KIND
    ),
    "iresnet-cifar10": Recipe("i-ResNet on CIFAR-10", _IRESNET, _TRAINING, *CIFAR10).reported(
        3.45, None, "its own paper, Table 4", f"{_KIND}; of the truncated series, which is biased"
    ),
    "idensenet-cifar10": Recipe("i-DenseNet on CIFAR-10", _DENSE, _LATE, *CIFAR10).reported(
        3.25, 24.89469, "its own paper, Table 2", _KIND
    ),
    "monotone-cifar10": Recipe("Monotone flow on CIFAR-10", _MONOTONE, _TRAINING, *CIFAR10),
    "residual-cifar10-tiny": _twin("residual", "Residual Flow on CIFAR-10", CIFAR10),
    "residual-imagenet32-tiny": _twin(
        "residual", "Residual Flow on ImageNet at 32 pixels", IMAGENET32
    ),
    "residual-mnist-tiny": Recipe(
        "Residual Flow on MNIST",
        replace(TWIN_RESIDUAL, pixels=LogitPixels(1e-6)),
        replace(_TWIN, augmentation=Augmentation()),
        *MNIST,
    ),
    "iresnet-cifar10-tiny": _twin("iresnet", "i-ResNet on CIFAR-10", CIFAR10),
    "idensenet-cifar10-tiny": _twin("idensenet", "i-DenseNet on CIFAR-10", CIFAR10),
    "monotone-cifar10-tiny": _twin("monotone", "Monotone flow on CIFAR-10", CIFAR10),
}
