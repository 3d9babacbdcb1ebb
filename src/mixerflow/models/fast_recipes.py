"""Recipes that two CPU cores train: the fewest bits/dim in minutes, found by search.

`docs/fast.md` has what was tried, and what each change brought. Beside MixerFlow's other small
recipes:
    - the couplings' nets read squares too: how much varies beside tells how much varies here;
    - latents have Student's t, whose degrees of freedom are learned: what is left has long tails;
    - of photographs, linear maps start by whitening, shifts are cyclic and go in four directions,
      patch flows are less deep than channel flows, and layers are more and narrower;
    - images of which much is one value, as a black background, come with normal scores, and have
      splines in their couplings;
    - the demonstration is given the class, so that its samples look like clothes.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.mixerflow import MixerFlow
from mixerflow.models.mixerflow_recipes import TINY
from mixerflow.models.recipe import ANIME64, CIFAR10, GALAXY32, MNIST, Recipe
from mixerflow.parts import (
    MLP,
    Classes,
    LUMap,
    NormalScorePixels,
    Patching,
    RowCoupling,
    StudentTBase,
)
from mixerflow.transforms import Affine, RationalQuadratic

_FOUR_WAYS = Patching(4, shift=((0, 0), (2, 2), (0, 2), (2, 0)), cyclic=True)
_FAST = MixerFlow(
    layers=8,
    patch_flow_layers=2,
    patching=_FOUR_WAYS,
    flow=RowCoupling(Affine(bound=2.0), MLP(32, squares=True)),
    linear=LUMap(start="whitening"),
    base=StudentTBase(),
)
_SCORED = MixerFlow(
    layers=4,
    patching=Patching(4, shift=(0, 2)),
    flow=RowCoupling(RationalQuadratic(), MLP(32, squares=True)),
    base=StudentTBase(),
    pixels=NormalScorePixels(),
)
_LARGE = replace(_FAST, layers=6, patch_flow_layers=1)
_TRAINING = replace(TINY, minutes=10, lr=1e-2)

RECIPES: dict[str, Recipe] = {
    "fast-clothes": Recipe(
        "the demonstration: 4,000 embedded images of clothes, given their class",
        replace(_SCORED, classes=Classes(count=10)),
        replace(_TRAINING, minutes=3),
        "fashion-mini",
        (1, 28, 28),
    ),
    "fast-mnist": Recipe("MNIST in minutes on two CPU cores", _SCORED, _TRAINING, *MNIST),
    "fast-cifar10": Recipe("CIFAR-10 in minutes on two CPU cores", _FAST, _TRAINING, *CIFAR10),
    "fast-galaxy32": Recipe("galaxies in minutes on two CPU cores", _FAST, _TRAINING, *GALAXY32),
    "fast-faces64": Recipe(
        "anime faces of 64 pixels in minutes on two CPU cores", _LARGE, _TRAINING, *ANIME64
    ),
}
