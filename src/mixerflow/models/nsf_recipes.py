"""Neural Spline Flow's runs: the baselines of Tables 1 and 2 of the MixerFlow paper, and twins."""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.glow_recipes import TINY, TRAINING
from mixerflow.models.nsf import NSF
from mixerflow.models.recipe import ANIME64, CIFAR10, UNIFORM, PublishedResult, Recipe
from mixerflow.parts.conditioners import PlainConv

PAPER_32 = NSF(steps=8)
PAPER_64 = NSF(scales=4, steps=16, net=PlainConv(224))
TWIN = NSF(scales=2, steps=4, net=PlainConv(64))

RECIPES: dict[str, Recipe] = {
    "nsf-cifar10": Recipe(
        "Table 1's baseline: neural splines, 3 scales of 8 steps",
        PAPER_32,
        TRAINING,
        *CIFAR10,
        PublishedResult(3.50, 10.91, "Table 1", UNIFORM),
    ),
    "nsf-anime64": Recipe(
        "Table 2's baseline: neural splines, 4 scales of 16 steps",
        PAPER_64,
        TRAINING,
        *ANIME64,
        PublishedResult(3.23, 38.31, "Table 2", UNIFORM),
    ),
    "nsf-cifar10-tiny": Recipe("neural splines on CIFAR-10", TWIN, TINY, *CIFAR10),
    "nsf-anime64-tiny": Recipe(
        "neural splines on anime faces", replace(TWIN, scales=3), TINY, *ANIME64
    ),
}
