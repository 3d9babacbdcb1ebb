"""Runs of models beside which MixerFlow's paper places itself, and their twins.

The paper's section 2 names them and compares none in a table. Sizes and training are ours.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.attention_glow import AttentionGlow
from mixerflow.models.gaussianization import GaussianizationFlow
from mixerflow.models.recipe import CIFAR10, MNIST, TWIN, Recipe
from mixerflow.parts.image_nets import GlowConv
from mixerflow.train_config import TrainConfig

_ATTENTION = AttentionGlow(steps=8)
_ATTENTION_TWIN = replace(_ATTENTION, scales=2, steps=4, net=GlowConv(64), tokens=16)
_GAUSSIANIZATION = GaussianizationFlow()
_GAUSSIANIZATION_TWIN = replace(_GAUSSIANIZATION, layers=5)

RECIPES: dict[str, Recipe] = {
    "attention-glow-cifar10": Recipe(
        "Glow with invertible attention, 3 scales of 8 steps",
        _ATTENTION,
        TrainConfig(steps=312_500, batch=16, lr=1e-3),
        *CIFAR10,
    ),
    "attention-glow-cifar10-tiny": Recipe(
        "Glow with invertible attention on CIFAR-10", _ATTENTION_TWIN, TWIN, *CIFAR10
    ),
    "gaussianization-mnist": Recipe(
        "Gaussianization flow of whole digits, 10 layers",
        _GAUSSIANIZATION,
        TrainConfig(steps=100_000, batch=100, lr=1e-3, initial=5000),
        *MNIST,
    ),
    "gaussianization-mnist-tiny": Recipe(
        "Gaussianization flow on MNIST",
        _GAUSSIANIZATION_TWIN,
        replace(TWIN, batch=100, initial=2000),
        *MNIST,
    ),
}
