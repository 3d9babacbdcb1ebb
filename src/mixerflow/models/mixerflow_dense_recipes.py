"""Runs of MixerFlow in DenseFlow's frame, and their twins; all settings are ours.

The twins' dequantiser is that of DenseFlow's twins; their mixer layers are as narrow as MixerFlow's
twins, and learn at the same rate.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.denseflow_recipes import TWIN as DENSE_TWIN
from mixerflow.models.mixerflow_dense import MixerDenseFlow
from mixerflow.models.mixerflow_recipes import CIFAR10_TRAINING, TABLE_8
from mixerflow.models.recipe import CIFAR10, MNIST, TWIN, Recipe
from mixerflow.parts import MLP, DenseAttention, GlowSteps, Mixing, Patching, RowCoupling
from mixerflow.transforms import Affine

# patches of 2x2 squeezed pixels, then single ones: 7 pixels a side have no other divisor
_SMALLER = Patching((2, 1), shift=(0, 1))
# a block of twelve layers at 14 pixels a side, one of twelve at 7
_MNIST = MixerDenseFlow(units=(4, 1), modules=(3, 12), mixing=Mixing(patching=_SMALLER))

_TWIN = MixerDenseFlow(
    units=(3, 1),
    modules=(1, 1),
    mixing=Mixing(patching=_SMALLER, flow=RowCoupling(Affine(bound=2.0), MLP(46))),
    coupling=GlowSteps(
        elementwise=Affine(2.0), net=DenseAttention(16, growth=16, depth=2), squeeze=1
    ),
    pixels=DENSE_TWIN.pixels,
)
_LEARNING = replace(TWIN, lr=5e-3)

RECIPES: dict[str, Recipe] = {
    "mixerflow-dense-cifar10": Recipe(
        "MixerFlow in DenseFlow's frame on CIFAR-10", MixerDenseFlow(), CIFAR10_TRAINING, *CIFAR10
    ),
    "mixerflow-dense-mnist": Recipe(
        "MixerFlow in DenseFlow's frame on MNIST", _MNIST, TABLE_8, *MNIST
    ),
    "mixerflow-dense-cifar10-tiny": Recipe(
        "MixerFlow in DenseFlow's frame on CIFAR-10", _TWIN, _LEARNING, *CIFAR10
    ),
    "mixerflow-dense-mnist-tiny": Recipe(
        "MixerFlow in DenseFlow's frame on MNIST", _TWIN, _LEARNING, *MNIST
    ),
}
