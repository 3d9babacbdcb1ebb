"""Runs of the models that the MixerFlow paper compares with, and their twins.

- MADE and MAF over whole images are baselines of Table 3. The table says neither how deep the
  models are and how long they train, nor which of MAF's two versions it has.
- Glow and Neural Spline Flow are baselines of Tables 1, 2, 4 and 5. Their settings are those of Lu,
  Huang: Woodbury transformations for deep generative flows (2020),
  https://arxiv.org/abs/2002.12229: batches of 16, Adam at 1e-3. In that paper the rate falls by 5 %
  an epoch, and gradients are also clipped by value; here a cosine takes the rate to 0, and
  gradients are clipped by their norm.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.glow import Glow
from mixerflow.models.maf import MAF
from mixerflow.models.nsf import NSF
from mixerflow.models.realnvp import RealNVP
from mixerflow.models.recipe import ANIME64, CIFAR10, MNIST, Recipe
from mixerflow.parts.image_nets import GlowConv, PlainConv, ResidualConv, ZeroConvolution
from mixerflow.parts.images import ConvolutionPrior
from mixerflow.parts.linear import UnpackedPLUMap
from mixerflow.parts.pixels import LogitPixels
from mixerflow.train_config import TrainConfig

_MADE_MNIST = MAF(layers=1, batch_norm=False)
_MADE_CIFAR10 = replace(_MADE_MNIST, order="random", pixels=LogitPixels(0.05))
_MAF_MNIST = MAF(layers=5)
_MAF_CIFAR10 = MAF(layers=10, depth=2, order="random", pixels=LogitPixels(0.05))
_MAF_TRAINING = TrainConfig(steps=100_000, batch=100, lr=1e-4)
_MADE_TRAINING = replace(_MAF_TRAINING, lr=1e-3)

_ONE_BIAS = ZeroConvolution(factor=3.0, second_bias=False)
_LARGE_GLOW = Glow(
    linear=UnpackedPLUMap(),
    net=GlowConv(factor=3.0, second_bias=False),
    split=_ONE_BIAS,
    prior=ConvolutionPrior(_ONE_BIAS),
)
_TRAINING = TrainConfig(steps=312_500, batch=16, lr=1e-3)

_GLOW_TWIN = Glow(scales=2, steps=4, net=GlowConv(64))
_LARGE_GLOW_TWIN = replace(
    _LARGE_GLOW, scales=2, steps=4, net=GlowConv(64, factor=3.0, second_bias=False)
)
_NSF_TWIN = NSF(scales=2, steps=4, net=PlainConv(64))
_TINY = TrainConfig(
    minutes=10, batch=32, lr=2e-3, betas=(0.9, 0.99), warmup=50, ema=0.99, initial=512
)
_TINY_MAF = replace(_TINY, batch=100, lr=1e-3, warmup=20, initial=1000)

RECIPES: dict[str, Recipe] = {
    "made-mnist": Recipe(
        "Table 3's baseline: MADE on whole digits", _MADE_MNIST, _MADE_TRAINING, *MNIST
    ).reported(2.04, None, "Table 3"),
    "made-cifar10": Recipe(
        "Table 3's baseline: MADE on whole photographs", _MADE_CIFAR10, _MADE_TRAINING, *CIFAR10
    ).reported(5.67, None, "Table 3"),
    "maf-mnist": Recipe(
        "Table 3's baseline: MAF of 5 layers on whole digits", _MAF_MNIST, _MAF_TRAINING, *MNIST
    ).reported(1.89, None, "Table 3"),
    "maf-cifar10": Recipe(
        "Table 3's baseline: MAF of 10 layers on whole photographs",
        _MAF_CIFAR10,
        _MAF_TRAINING,
        *CIFAR10,
    ).reported(4.31, None, "Table 3"),
    "made-mnist-tiny": Recipe("MADE on MNIST", replace(_MADE_MNIST, width=256), _TINY_MAF, *MNIST),
    "made-cifar10-tiny": Recipe(
        "MADE on CIFAR-10", replace(_MADE_CIFAR10, width=256), _TINY_MAF, *CIFAR10
    ),
    "maf-mnist-tiny": Recipe("MAF on MNIST", replace(_MAF_MNIST, width=256), _TINY_MAF, *MNIST),
    "maf-cifar10-tiny": Recipe(
        "MAF on CIFAR-10", replace(_MAF_CIFAR10, layers=5, width=256, depth=1), _TINY_MAF, *CIFAR10
    ),
    "realnvp-cifar10": Recipe(
        "RealNVP of 2 scales, nets of 8 residual blocks",
        RealNVP(),
        TrainConfig(steps=200_000, batch=64, lr=1e-3),
        *CIFAR10,
    ).reported(3.49, None, "its own paper, Table 1"),
    "realnvp-cifar10-tiny": Recipe(
        "RealNVP on CIFAR-10",
        RealNVP(net=ResidualConv(16, depth=1)),
        replace(_TINY, lr=8e-3),
        *CIFAR10,
    ),
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
    "glow-cifar10-tiny": Recipe("Glow on CIFAR-10", _GLOW_TWIN, _TINY, *CIFAR10),
    "glow-anime64-tiny": Recipe(
        "Glow on anime faces", replace(_GLOW_TWIN, scales=3), _TINY, *ANIME64
    ),
    "glow-large-cifar10-tiny": Recipe(
        "Glow as the shuffled images' baseline is stored", _LARGE_GLOW_TWIN, _TINY, *CIFAR10
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
    "nsf-cifar10-tiny": Recipe("neural splines on CIFAR-10", _NSF_TWIN, _TINY, *CIFAR10),
    "nsf-anime64-tiny": Recipe(
        "neural splines on anime faces", replace(_NSF_TWIN, scales=3), _TINY, *ANIME64
    ),
}
