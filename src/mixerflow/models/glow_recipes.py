"""Glow's runs: the baselines of Tables 1, 2, 4 and 5 of the MixerFlow paper, and their twins.

The baselines' settings are those of Lu, Huang: Woodbury transformations for deep generative flows
(2020), https://arxiv.org/abs/2002.12229: batches of 16, Adam at 1e-3. Its rate falls by 5 % an
epoch and its gradients are clipped by value too; here a cosine takes the rate to 0, and gradients
are clipped by their norm.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.glow import Glow
from mixerflow.models.recipe import ANIME64, CIFAR10, UNIFORM, PublishedResult, Recipe
from mixerflow.parts.conditioners import GlowConv, ZeroConvolution
from mixerflow.parts.images import ConvolutionPrior
from mixerflow.parts.linear import UnpackedPLUMap
from mixerflow.train_config import TrainConfig

PAPER_32 = Glow(steps=8)
PAPER_64 = Glow(scales=4, steps=16)
_ONE_BIAS = ZeroConvolution(factor=3.0, second_bias=False)
LARGE = Glow(
    linear=UnpackedPLUMap(),
    net=GlowConv(factor=3.0, second_bias=False),
    split=_ONE_BIAS,
    prior=ConvolutionPrior(_ONE_BIAS),
)
TRAINING = TrainConfig(steps=312_500, batch=16, lr=1e-3)
TWIN = Glow(scales=2, steps=4, net=GlowConv(64))
_LARGE_TWIN = replace(LARGE, scales=2, steps=4, net=GlowConv(64, factor=3.0, second_bias=False))
TINY = TrainConfig(
    minutes=10, batch=32, lr=2e-3, betas=(0.9, 0.99), warmup=50, ema=0.99, initial=512
)

RECIPES: dict[str, Recipe] = {
    "glow-cifar10": Recipe(
        "Table 1's baseline: Glow, 3 scales of 8 steps",
        PAPER_32,
        TRAINING,
        *CIFAR10,
        PublishedResult(3.51, 11.02, "Table 1", UNIFORM),
    ),
    "glow-anime64": Recipe(
        "Table 2's baseline: Glow, 4 scales of 16 steps",
        PAPER_64,
        TRAINING,
        *ANIME64,
        PublishedResult(3.21, 37.04, "Table 2", UNIFORM),
    ),
    "glow-large-cifar10": Recipe(
        "the baseline of Tables 4 and 5: Glow, 3 scales of 32 steps",
        LARGE,
        replace(TRAINING, steps=200_000, batch=64, lr=5e-4),
        *CIFAR10,
        PublishedResult(
            None, 44.24, "Tables 4 and 5", "the tables' images are shuffled, these are not"
        ),
    ),
    "glow-cifar10-tiny": Recipe("Glow on CIFAR-10", TWIN, TINY, *CIFAR10),
    "glow-anime64-tiny": Recipe("Glow on anime faces", replace(TWIN, scales=3), TINY, *ANIME64),
    "glow-large-cifar10-tiny": Recipe(
        "Glow as the shuffled images' baseline is stored", _LARGE_TWIN, TINY, *CIFAR10
    ),
}
