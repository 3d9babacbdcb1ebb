"""MADE and MAF over whole images: the autoregressive baselines that MixerFlow is compared with.

    pixels -> dequantise -> unit interval -> logit -> one long vector -> layers -> N(0, I)

A layer is an affine autoregressive map by a masked net, and batch norm where there are several
layers. One layer is MADE with Gaussian conditionals.

References:
    Papamakarios et al., Masked autoregressive flow for density estimation (2017), sections 3.1 and
    4, appendices B and D, arXiv:1705.07057.
    Germain et al., MADE: masked autoencoder for distribution estimation (2015), arXiv:1502.03509.

Departs from the paper:
    - ``(x - mu) exp(alpha)`` is ``x exp(s) + t`` here, and nets' outputs start at 0: layers start
      as the identity;
    - hidden degrees are spread evenly; in the papers they are drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from mixerflow.core import Along, Chain, Layer, Shape, Transform
from mixerflow.nets import MaskedMLP
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import LogitPixels, Pixels
from mixerflow.registry import register
from mixerflow.transforms import Affine, Autoregressive, BatchNorm, Elementwise, Patchify


@register("maf")
@dataclass(frozen=True)
class MAF(PositiveCounts, Model):
    """Settings of a MAF; the defaults are the paper's for MNIST."""

    layers: int = 5
    """Autoregressive layers; one is MADE."""
    width: int = 1024
    """Hidden units of the masked nets."""
    depth: int = 1
    """Hidden layers of each masked net."""
    order: Literal["sequential", "random"] = "sequential"
    """Order of an image's numbers: by channel, reversed from layer to layer; or drawn at random."""
    batch_norm: bool = True
    """Whether each layer ends in batch norm."""
    squash: bool = False
    """Whether the nets read sign(x) log(1 + |x|); the paper's nets read x."""
    elementwise: Elementwise = Affine()
    """Transform of each number."""
    pixels: Pixels = field(default=LogitPixels(1e-6), kw_only=True)
    """How an image's values become real numbers; the paper's alpha is 0.05 for CIFAR-10."""

    def compose(self, shape: Shape) -> Transform:
        """As `Model.compose`; random orders come from torch's generator, and are in the state."""
        flat = Patchify(shape, shape[1:])
        layers = [self.layer(flat.matrix[1], number) for number in range(self.layers)]
        return Chain(flat, *layers)

    def layer(self, n: int, number: int) -> Transform:
        """Return the layer of that number, from 0, over one row of n numbers."""
        order: Sequence[int] | None = range(n)[::-1] if number % 2 else None
        if self.order == "random":
            order = torch.randperm(n, device="cpu").tolist()
        net = MaskedMLP(
            n,
            self.elementwise.params,
            width=self.width,
            layers=self.depth,
            squash=self.squash,
            context=self.context,
            order=order,
        )
        steps = [Along(-1, Autoregressive(net, self.elementwise))]
        return Layer(*steps, *([BatchNorm(n)] if self.batch_norm else []))
