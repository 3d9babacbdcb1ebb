"""MADE and MAF over whole images: the autoregressive baselines that MixerFlow is compared with.

    pixels -> dequantise -> unit interval -> logit -> one long vector -> layers -> N(0, I)

A layer is an affine autoregressive map by a masked net, and batch norm where there are several.
One layer is MADE with Gaussian conditionals.

References:
    Papamakarios, Pavlakou, Murray: Masked autoregressive flow for density estimation (2017),
    sections 3.1 and 4, appendices B and D. https://arxiv.org/abs/1705.07057
    Germain, Gregor, Murray, Larochelle: MADE: masked autoencoder for distribution estimation
    (2015). https://arxiv.org/abs/1502.03509

Departs from the paper:
    - ``(x - mu) exp(alpha)`` is ``x exp(s) + t`` here, and nets end in zeros: layers start as the
      identity;
    - hidden degrees are spread evenly, in the papers' random masks they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from mixerflow.core import Along, Chain, Flow, Layer, Shape, Transform
from mixerflow.nets import MaskedMLP
from mixerflow.transforms import (
    Affine,
    Autoregressive,
    BatchNorm,
    Dequantize,
    Logit,
    Patches,
    Rescale,
)


@dataclass(frozen=True)
class MAFConfig:
    """Everything that shapes a MAF; the defaults are the paper's for MNIST."""

    layers: int = 5
    """Autoregressive layers; one is MADE."""
    hidden: int = 1024
    """Width of the masked nets."""
    depth: int = 1
    """Hidden layers of each."""
    order: Literal["sequential", "random"] = "sequential"
    """Of the numbers of an image: channel by channel, reversed from layer to layer; or drawn."""
    batch_norm: bool = True
    """Whether each layer ends in batch norm."""
    alpha: float = 1e-6
    """Keeps the logit finite; 0.05 for CIFAR-10."""
    squash: bool = False
    """Whether the nets read sign(x) log(1 + |x|); the paper's read x."""
    scale_bound: float | None = None
    """Bound of the log-scales; None is the paper's plain exponential."""
    levels: int | None = 256
    """Values a pixel can have; None for float data, taken as it is, without a logit."""
    classes: int = 0
    """Number of classes of a class-conditional model; 0 for none."""
    class_width: int = 32
    """Length of a class's embedding."""


def build(config: MAFConfig, shape: Shape) -> Flow:
    """A MAF over images ``(C, *spatial)``.

    Random orders are drawn from torch's generator, and are in the state dict.

    Raises:
        ValueError: settings that cannot be.
    """
    _check(config, shape)
    context_net = nn.Embedding(config.classes, config.class_width) if config.classes else None
    steps: list[Transform] = []
    if config.levels is not None:
        steps += [Dequantize(config.levels), Rescale(1 / config.levels), Logit(config.alpha)]
    flat = Patches(shape, shape[1:])
    steps.append(flat)
    steps += [layer(config, flat.matrix[1], number) for number in range(config.layers)]
    return Flow(Chain(*steps), shape, context_net=context_net, levels=config.levels)


def layer(config: MAFConfig, n: int, number: int) -> Transform:
    """The layer of that number, from 0, over one row of n numbers."""
    law = Affine(config.scale_bound)
    net = MaskedMLP(
        n,
        law.params,
        width=config.hidden,
        layers=config.depth,
        squash=config.squash,
        context=config.class_width if config.classes else 0,
        order=_order(config, n, number),
    )
    steps: list[Transform] = [Along(-1, Autoregressive(net, law))]
    if config.batch_norm:
        steps.append(BatchNorm(n))
    return Layer(*steps)


def _order(config: MAFConfig, n: int, number: int) -> Sequence[int] | None:
    if config.order == "random":
        return torch.randperm(n, device="cpu").tolist()
    return None if number % 2 == 0 else range(n - 1, -1, -1)


def _check(config: MAFConfig, shape: Shape) -> None:
    for name in ("layers", "hidden", "depth", "class_width"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1; got {getattr(config, name)}")
    if config.classes < 0:
        raise ValueError(f"classes must be 0 or more; got {config.classes}")
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"images are (C, *spatial) with 1 to 3 spatial axes; got {shape}")
