"""Runs of Glow and of the models that change one part of it, and their twins.

Glow, Neural Spline Flow and their kin are the baselines of Tables 1, 2, 4, 5 and 6. Their settings
are those of Lu, Huang: Woodbury transformations for deep generative flows (2020),
https://arxiv.org/abs/2002.12229: batches of 16, Adam at 1e-3. In that paper the rate falls by 5 %
an epoch, and gradients are also clipped by value; here a cosine takes the rate to 0, and gradients
are clipped by their norm.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.butterfly import ButterflyFlow
from mixerflow.models.emerging import Emerging
from mixerflow.models.glow import Glow
from mixerflow.models.macow import MaCow
from mixerflow.models.nsf import NSF
from mixerflow.models.periodic import Periodic
from mixerflow.models.recipe import ANIME64, CIFAR10, TWIN, Recipe
from mixerflow.models.woodbury import WoodburyGlow
from mixerflow.parts.image_nets import GlowConv, PlainConv, PreactivationConv, ZeroConvolution
from mixerflow.parts.images import ConvolutionPrior
from mixerflow.parts.linear import PLUMap, UnpackedPLUMap
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import RationalQuadratic

_ONE_BIAS = ZeroConvolution(factor=3.0, second_bias=False)
_LARGE_GLOW = Glow(
    linear=UnpackedPLUMap(),
    net=GlowConv(factor=3.0, second_bias=False),
    split=_ONE_BIAS,
    prior=ConvolutionPrior(_ONE_BIAS),
)
_LARGE_NSF = NSF(
    elementwise=RationalQuadratic(bins=8, tail=3.0),
    net=PreactivationConv(),
    linear=PLUMap(),
    bias=True,
    split=None,
    last_map=True,
)
_TRAINING = TrainConfig(steps=312_500, batch=16, lr=1e-3)

_GLOW_TWIN = Glow(scales=2, steps=4, net=GlowConv(64))
_MACOW_TWIN = MaCow(scales=2, steps=2, units=1, net=PlainConv(64, zero=True))
_LARGE_GLOW_TWIN = replace(
    _LARGE_GLOW, scales=2, steps=4, net=GlowConv(64, factor=3.0, second_bias=False)
)
_LARGE_NSF_TWIN = replace(
    _LARGE_NSF,
    scales=2,
    steps=4,
    elementwise=RationalQuadratic(bins=4, tail=3.0),
    net=PreactivationConv(32, depth=1),
)
_NSF_TWIN = NSF(scales=2, steps=4, net=PlainConv(64))
_WOODBURY = WoodburyGlow(steps=8, channel_ranks=(8, 8, 16), spatial_ranks=(16, 8, 8))
_WOODBURY_TWIN = replace(_WOODBURY, scales=2, steps=4, net=GlowConv(64), channel_ranks=(8, 16))
_BUTTERFLY_TWIN = ButterflyFlow(scales=2, steps=4, net=GlowConv(64))
_EMERGING_TWIN = Emerging(scales=2, steps=4, net=GlowConv(64))
_PERIODIC_TWIN = Periodic(scales=2, steps=4, net=GlowConv(64))

RECIPES: dict[str, Recipe] = {
    "glow-cifar10": Recipe(
        "Table 1's baseline: Glow, 3 scales of 8 steps", Glow(steps=8), _TRAINING, *CIFAR10
    ).reported(3.51, 11.02, "Table 1"),
    "glow-anime64": Recipe(
        "Table 2's baseline: Glow, 4 scales of 16 steps",
        Glow(scales=4, steps=16),
        _TRAINING,
        *ANIME64,
    ).reported(3.21, 37.04, "Table 2"),
    "glow-large-cifar10": Recipe(
        "the baseline of Tables 4 and 5: Glow, 3 scales of 32 steps",
        _LARGE_GLOW,
        replace(_TRAINING, steps=200_000, batch=64, lr=5e-4),
        *CIFAR10,
    ).reported(None, 44.24, "Tables 4 and 5", "the tables' images are shuffled, these are not"),
    "glow-cifar10-tiny": Recipe("Glow on CIFAR-10", _GLOW_TWIN, TWIN, *CIFAR10),
    "glow-anime64-tiny": Recipe(
        "Glow on anime faces", replace(_GLOW_TWIN, scales=3), TWIN, *ANIME64
    ),
    "glow-large-cifar10-tiny": Recipe(
        "Glow as the shuffled images' baseline is stored", _LARGE_GLOW_TWIN, TWIN, *CIFAR10
    ),
    "nsf-cifar10": Recipe(
        "Table 1's baseline: neural splines, 3 scales of 8 steps", NSF(steps=8), _TRAINING, *CIFAR10
    ).reported(3.50, 10.91, "Table 1"),
    "nsf-anime64": Recipe(
        "Table 2's baseline: neural splines, 4 scales of 16 steps",
        NSF(scales=4, steps=16, net=PlainConv(224)),
        _TRAINING,
        *ANIME64,
    ).reported(3.23, 38.31, "Table 2"),
    "nsf-cifar10-tiny": Recipe("neural splines on CIFAR-10", _NSF_TWIN, TWIN, *CIFAR10),
    "nsf-anime64-tiny": Recipe(
        "neural splines on anime faces", replace(_NSF_TWIN, scales=3), TWIN, *ANIME64
    ),
    "woodbury-cifar10": Recipe(
        "Table 1's baseline: memory-efficient Woodbury, 3 scales of 8 steps",
        _WOODBURY,
        _TRAINING,
        *CIFAR10,
    ).reported(3.48, 11.02, "Table 1"),
    "woodbury-cifar10-tiny": Recipe(
        "memory-efficient Woodbury on CIFAR-10", _WOODBURY_TWIN, TWIN, *CIFAR10
    ),
    "butterfly-cifar10": Recipe(
        "ButterflyFlow, 3 scales of 32 steps",
        ButterflyFlow(),
        replace(_TRAINING, steps=200_000, batch=128),
        *CIFAR10,
    ),
    "butterfly-cifar10-tiny": Recipe("ButterflyFlow on CIFAR-10", _BUTTERFLY_TWIN, TWIN, *CIFAR10),
    "nsf-large-cifar10": Recipe(
        "the baseline of Tables 4 and 5: neural splines, 3 scales of 32 steps",
        _LARGE_NSF,
        replace(_TRAINING, steps=200_000, batch=64, lr=5e-4),
        *CIFAR10,
    ).reported(None, 89.9, "Tables 4 and 5", "the tables' images are shuffled, these are not"),
    "nsf-large-cifar10-tiny": Recipe(
        "neural splines with residual nets on CIFAR-10", _LARGE_NSF_TWIN, TWIN, *CIFAR10
    ),
    "macow-cifar10": Recipe(
        "Table 1's baseline: masked convolutions, 3 scales of 8 steps", MaCow(), _TRAINING, *CIFAR10
    ).reported(3.48, 11.43, "Table 1"),
    "macow-cifar10-tiny": Recipe("masked convolutions on CIFAR-10", _MACOW_TWIN, TWIN, *CIFAR10),
    "emerging-cifar10": Recipe(
        "Table 1's baseline: emerging convolutions, 3 scales of 8 steps",
        Emerging(steps=8),
        _TRAINING,
        *CIFAR10,
    ).reported(3.48, 11.43, "Table 1"),
    "periodic-cifar10": Recipe(
        "Table 1's baseline: periodic convolutions, 3 scales of 8 steps",
        Periodic(steps=8),
        _TRAINING,
        *CIFAR10,
    ).reported(3.49, 11.21, "Table 1"),
    "emerging-cifar10-tiny": Recipe(
        "emerging convolutions on CIFAR-10", _EMERGING_TWIN, TWIN, *CIFAR10
    ),
    "periodic-cifar10-tiny": Recipe(
        "periodic convolutions on CIFAR-10", _PERIODIC_TWIN, TWIN, *CIFAR10
    ),
}
