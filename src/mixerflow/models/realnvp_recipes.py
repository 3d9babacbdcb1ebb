"""RealNVP's run on CIFAR-10, and its twin."""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.glow_recipes import TINY
from mixerflow.models.realnvp import RealNVP
from mixerflow.models.recipe import CIFAR10, UNIFORM, PublishedResult, Recipe
from mixerflow.parts.conditioners import ResidualConv
from mixerflow.train_config import TrainConfig

RECIPES: dict[str, Recipe] = {
    "realnvp-cifar10": Recipe(
        "RealNVP of 2 scales, nets of 8 residual blocks",
        RealNVP(),
        TrainConfig(steps=200_000, batch=64, lr=1e-3),
        *CIFAR10,
        PublishedResult(3.49, None, "its own paper, Table 1", UNIFORM),
    ),
    "realnvp-cifar10-tiny": Recipe(
        "RealNVP on CIFAR-10",
        RealNVP(net=ResidualConv(16, depth=1)),
        replace(TINY, lr=8e-3),
        *CIFAR10,
    ),
}
