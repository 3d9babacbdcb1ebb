"""Runs of Flow++ and VFlow, with the settings of their released code, and their twins.

The lengths of the runs are ours: the papers train for weeks, until nothing improves. Dropout, the
rates, the clipped norm of 1 and the weights' average are the code's. Here 4 % of the training
images are held out, as for all models.

The released code for ImageNet differs from that for CIFAR-10: no 1x1 convolutions, weights with a
norm for each output, a nonlinearity before each net's last map, and a deep dequantiser. Its count,
168,955,724, is the one in that code's header.
"""

from __future__ import annotations

from dataclasses import replace

from mixerflow.models.flowpp import FlowPP, times
from mixerflow.models.recipe import CIFAR10, IMAGENET32, MNIST, TWIN, Recipe
from mixerflow.models.vflow import VFlow
from mixerflow.parts.columns import ColumnChannels, ColumnDequantizer
from mixerflow.parts.image_nets import GatedAttention
from mixerflow.parts.linear import NoMap
from mixerflow.parts.pixels import LogitPixels
from mixerflow.schedule import Constant, Exponential
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import LogisticMixture

_FLOWPP, _VFLOW = FlowPP(), VFlow()
_NORMED = GatedAttention(128, 20, weight_norm=True, last_elu=True)
_IMAGENET32 = FlowPP(
    steps=(*times("columns", 7), "squeeze", *times("channels", 3), *times("columns", 3)),
    net=_NORMED,
    linear=NoMap(),
    pixels=LogitPixels(
        0.05,
        dequantizer=ColumnDequantizer(
            steps=8, blocks=8, attention=True, net=replace(_NORMED, depth=8), linear=NoMap()
        ),
    ),
)

_NET = GatedAttention(32, 1, heads=2, dropout=0.02)
_NOISE_NET = replace(_NET, width=8, heads=1)
_NOISE = {"steps": 2, "context": 8, "blocks": 1, "net": _NOISE_NET}
_PIXELS = LogitPixels(0.05, dequantizer=ColumnDequantizer(**_NOISE, elementwise=LogisticMixture(4)))
TWIN_FLOWPP = FlowPP(
    steps=(*times("columns", 2), "squeeze", *times("channels", 2), *times("columns", 2)),
    net=_NET,
    elementwise=LogisticMixture(4),
    pixels=_PIXELS,
)
TWIN_VFLOW = VFlow(
    steps=(*times("columns", 2), "squeeze", *times("channels", 2), "columns"),
    net=replace(_NET, width=24),
    elementwise=LogisticMixture(4),
    pixels=_PIXELS,
    added=ColumnChannels(3, **_NOISE, elementwise=LogisticMixture(4)),
)

_TRAINING = TrainConfig(
    steps=400_000,
    batch=64,
    lr=3e-4,
    warmup=2000,
    clip=1.0,
    schedule=Constant(),
    initial=128,
)
_WIDER = replace(_TRAINING, lr=1.2e-3, schedule=Exponential(), initial=64)
_LARGE = replace(
    _TRAINING,
    steps=800_000,
    batch=32,
    lr=1e-3,
    warmup=5000,
    ema=0.999222,
    schedule=Exponential(decay=0.99995),
)
_TINY = replace(TWIN, lr=2e-3)
_SLIDES = "Table 1 of DenseFlow's slides"
_EXACT = "exact density, variational dequantisation, importance-weighted (K = 4,096)"
_ADDED = "lower bound of the density, variational dequantisation, importance-weighted (K unknown)"


RECIPES: dict[str, Recipe] = {
    "flowpp-cifar10": Recipe("Flow++", _FLOWPP, _TRAINING, *CIFAR10).reported(
        3.08, 31.44, _SLIDES, _EXACT
    ),
    "flowpp-imagenet32": Recipe(
        "Flow++ of 13 couplings with 20 blocks each", _IMAGENET32, _LARGE, *IMAGENET32
    ).reported(
        3.86,
        168.96,
        _SLIDES,
        f"{_EXACT}; the old downsampled ImageNet, not comparable with the new",
    ),
    "flowpp-mnist": Recipe("Flow++ on MNIST", _FLOWPP, _TRAINING, *MNIST),
    "vflow-cifar10": Recipe("VFlow, with three added channels", _VFLOW, _WIDER, *CIFAR10).reported(
        2.98, None, _SLIDES, _ADDED
    ),
    "vflow-mnist": Recipe("VFlow on MNIST", _VFLOW, _WIDER, *MNIST),
    "flowpp-cifar10-tiny": Recipe("Flow++ on CIFAR-10", TWIN_FLOWPP, _TINY, *CIFAR10),
    "flowpp-imagenet32-tiny": Recipe(
        "Flow++ as on ImageNet, at 32 pixels",
        replace(TWIN_FLOWPP, net=replace(_NET, weight_norm=True, last_elu=True), linear=NoMap()),
        _TINY,
        *IMAGENET32,
    ),
    "flowpp-mnist-tiny": Recipe("Flow++ on MNIST", TWIN_FLOWPP, _TINY, *MNIST),
    "vflow-cifar10-tiny": Recipe("VFlow on CIFAR-10", TWIN_VFLOW, _TINY, *CIFAR10),
    "vflow-mnist-tiny": Recipe("VFlow on MNIST", TWIN_VFLOW, _TINY, *MNIST),
}
