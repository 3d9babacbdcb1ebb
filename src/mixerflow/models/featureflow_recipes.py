"""Runs of flows of feature maps, which the user brings: ``--data features.npy``.

The shape is that of a vision transformer's 28 x 28 tokens of 384 numbers; the images' own counts.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.core import Shape
from mixerflow.models.featureflow import FeatureFlow
from mixerflow.models.recipe import Recipe
from mixerflow.train_config import TrainConfig

FEATURES: tuple[str, Shape] = ("", (384, 28, 28))
_FLOW = FeatureFlow()
_TRAINING = TrainConfig(
    steps=2000, batch=16, lr=2e-3, betas=(0.9, 0.99), warmup=50, ema=0.99, initial=128
)

RECIPES: dict[str, Recipe] = {
    "feature-flow": Recipe("feature maps: the vector at each place", _FLOW, _TRAINING, *FEATURES),
    "feature-flow-tiny": Recipe(
        "feature maps: the vector at each place, two layers",
        replace(_FLOW, layers=2),
        replace(_TRAINING, steps=None, minutes=5, batch=8, initial=64),
        *FEATURES,
    ),
}
