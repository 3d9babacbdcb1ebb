"""FeatureFlow: a flow of the vector at each place of a feature map, which is told the place.

    features -> standardise channels -> ActNorm -> whiten -> (linear map, coupling) ... -> N(0, I)

No step mixes places. So ``log p(x) = sum_places log p(x_place | place)`` exactly, and each place
has an exact score of its own: `mixerflow.detection.place_scores`. Weights are shared by the places,
which couplings tell apart by a positional encoding, and the ActNorm by numbers of its own.

Reference: Gudovskiy et al., CFLOW-AD: real-time unsupervised anomaly detection with localization
    via conditional normalizing flows (2022), sections 4.1 to 4.3, arXiv:2107.12571.

Departs from the paper:
    - the first batch standardises and whitens the channels, around its mean at each place; there
      the couplings read features as they come;
    - each layer has a linear map of low rank, where the paper permutes the channels;
    - a flow of several feature maps is one flow for each, or one of maps put on each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mixerflow.core import Along, Base, Chain, Shape, Transform
from mixerflow.parts import (
    MLP,
    BaseChoice,
    LearnedEncoding,
    LinearMap,
    Model,
    NormalBase,
    Pixels,
    PositionalEncoding,
    PositiveCounts,
    RowCoupling,
    RowFlow,
    ScaledPixels,
    WhiteMap,
    WoodburyMap,
)
from mixerflow.registry import register
from mixerflow.transforms import ActNorm, Affine, KernelChain, Standardize


@register("feature-flow")
@dataclass(frozen=True)
class FeatureFlow(PositiveCounts, Model):
    """Settings of a FeatureFlow, of float events ``(C, *spatial)``."""

    layers: int = 4
    """Layers: a linear map of the channels and a flow, which changes one half of them."""
    first: LinearMap = WhiteMap()
    """Linear map behind the standardised channels: whitening, or another."""
    actnorm: Literal["place", "channel"] = "place"
    """One scale and shift for each channel at each place, or for each channel."""
    flow: RowFlow = RowCoupling(Affine(bound=1.0), MLP(64, norm="none", squash=False))
    """Flow after each linear map."""
    linear: LinearMap = WoodburyMap(16)
    """Linear map of the channels, the same at all places."""
    positions: PositionalEncoding | None = LearnedEncoding(32)
    """Positional encoding of the places, which the flows read; None for none."""
    base: BaseChoice = NormalBase()
    """Distribution of the latents."""
    pixels: Pixels = field(default=ScaledPixels(levels=None), kw_only=True)
    """How an image's values become real numbers; features are taken as they are."""

    def latents(self) -> Base:
        return self.base.build()

    def compose(self, shape: Shape) -> Transform:
        channels, *spatial = shape
        channel = (channels, *(1 for _ in spatial))
        norm = ActNorm(shape if self.actnorm == "place" else channel)
        first = [Standardize(channel), norm, *self.first.on_image(shape)]
        layers = [self.layer(shape, flip=number % 2 == 1) for number in range(self.layers)]
        return Chain(*first, *layers)

    def layer(self, shape: Shape, *, flip: bool) -> Transform:
        """Return a layer of the vectors at the places, each with its positional encoding."""
        channels, *spatial = shape
        encoding = self.positions
        context = self.context + (encoding.width if encoding else 0)
        mix = self.linear.build(channels)
        flow = self.flow.build(channels, flip=flip, reversed=self.linear.reverses, context=context)
        steps = [step for step in (mix, flow) if step is not None]
        rows = encoding.on_grid(tuple(spatial)) if encoding else None
        return Along(0, KernelChain(*steps), rows=rows)
