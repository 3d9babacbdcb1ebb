"""Image models with exact likelihood: train, score, sample and look, from one run folder.

    import mixerflow

    flow = mixerflow.load("runs/mixerflow-tiny")  # a run folder that `mixerflow train` made
    flow.bits_per_dim(images)                     # (N,) bits per dimension of uint8 (N, C, H, W)
    flow.sample(16)                               # (16, C, H, W) new images
    flow = mixerflow.build("mixerflow-tiny", (1, 28, 28))
    mixerflow.train(flow, images, config=mixerflow.recipe("mixerflow-tiny").train)

The names below are imported when they are first used: ``import mixerflow`` alone is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from mixerflow.version import __version__

if TYPE_CHECKING:
    from mixerflow.compression import Codec
    from mixerflow.core import Flow, Noise, Transform
    from mixerflow.data import Images
    from mixerflow.detection import fit_outliers, outliers
    from mixerflow.errors import MixerFlowError
    from mixerflow.evaluate import Bits, bits
    from mixerflow.models import (
        ANF,
        FFJORD,
        MAF,
        NSF,
        AttentionGlow,
        ButterflyFlow,
        DenseFlow,
        Emerging,
        FeatureFlow,
        FlowPP,
        GaussianizationFlow,
        Glow,
        IDenseNet,
        IResNet,
        MaCow,
        MixerDenseFlow,
        MixerFlow,
        MonotoneFlow,
        Periodic,
        RealNVP,
        ResidualFlow,
        SurVAE,
        VFlow,
        WoodburyGlow,
    )
    from mixerflow.parts import Model
    from mixerflow.recipes import RECIPES, build, recipe
    from mixerflow.registry import register
    from mixerflow.restoration import restore
    from mixerflow.runs import load
    from mixerflow.scoring import Scorer
    from mixerflow.train_config import TrainConfig
    from mixerflow.training import Trained, train

_HOME = {
    "ANF": "models",
    "AttentionGlow": "models",
    "Bits": "evaluate",
    "ButterflyFlow": "models",
    "Codec": "compression",
    "DenseFlow": "models",
    "Emerging": "models",
    "FFJORD": "models",
    "FeatureFlow": "models",
    "Flow": "core",
    "FlowPP": "models",
    "VFlow": "models",
    "GaussianizationFlow": "models",
    "Images": "data",
    "Glow": "models",
    "ResidualFlow": "models",
    "MonotoneFlow": "models",
    "IResNet": "models",
    "IDenseNet": "models",
    "MAF": "models",
    "MixerDenseFlow": "models",
    "MixerFlow": "models",
    "MixerFlowError": "errors",
    "Model": "parts",
    "NSF": "models",
    "Noise": "core",
    "Periodic": "models",
    "RECIPES": "recipes",
    "MaCow": "models",
    "RealNVP": "models",
    "Scorer": "scoring",
    "TrainConfig": "train_config",
    "Trained": "training",
    "Transform": "core",
    "SurVAE": "models",
    "WoodburyGlow": "models",
    "bits": "evaluate",
    "build": "recipes",
    "fit_outliers": "detection",
    "load": "runs",
    "outliers": "detection",
    "recipe": "recipes",
    "register": "registry",
    "restore": "restoration",
    "train": "training",
}

__all__ = [
    "ANF",
    "FFJORD",
    "MAF",
    "NSF",
    "RECIPES",
    "AttentionGlow",
    "Bits",
    "ButterflyFlow",
    "Codec",
    "DenseFlow",
    "Emerging",
    "FeatureFlow",
    "Flow",
    "FlowPP",
    "GaussianizationFlow",
    "Glow",
    "IDenseNet",
    "IResNet",
    "Images",
    "MaCow",
    "MixerDenseFlow",
    "MixerFlow",
    "MixerFlowError",
    "Model",
    "MonotoneFlow",
    "Noise",
    "Periodic",
    "RealNVP",
    "ResidualFlow",
    "Scorer",
    "SurVAE",
    "TrainConfig",
    "Trained",
    "Transform",
    "VFlow",
    "WoodburyGlow",
    "__version__",
    "bits",
    "build",
    "fit_outliers",
    "load",
    "outliers",
    "recipe",
    "register",
    "restore",
    "train",
]


_MODULES = (
    "compression",
    "core",
    "data",
    "detection",
    "errors",
    "evaluate",
    "export",
    "kernels",
    "pictures",
    "models",
    "nets",
    "parts",
    "restoration",
    "runs",
    "scoring",
    "transforms",
)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"mixerflow.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'mixerflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mixerflow.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_MODULES]
