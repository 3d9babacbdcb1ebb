"""Scores of the places of an image, and of images by them, for flows of each place by itself.

Where no step of a flow mixes places, ``log p(x) = sum_places log p(x_place | place)`` exactly, and
a place's score is ``-log p(x_place | place)``, in nats: an image's scores add up to ``-log p(x)``.
A change of one place changes its score alone. A map of H x W scores goes to the size of the image
by ``torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear")[:, 0]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, MixesPlaces, Noise, as_tensor, evaluating, example_context
from mixerflow.detection.measured import Measured
from mixerflow.detection.scores import Need, Score
from mixerflow.errors import ConfigError
from mixerflow.registry import register


def factorises(flow: Flow) -> bool:
    """Whether a flow maps each place of an image by itself: it scores an image of zeros to see."""
    return _obstacle(flow) is None


def require_places(flow: Flow) -> None:
    """Raise a ConfigError, which names what mixes them, for a flow that has no scores of places."""
    obstacle = _obstacle(flow)
    if obstacle is not None:
        raise _mixed(obstacle)


def _mixed(obstacle: str) -> ConfigError:
    remedy = "take a flow of each place by itself, such as FeatureFlow"
    return ConfigError(f"no score of each place: {obstacle}", "places", remedy)


@torch.no_grad()
def _obstacle(flow: Flow) -> str | None:
    dtype = flow.dtype if flow.levels is None else torch.uint8
    x = torch.zeros(1, *flow.shape, dtype=dtype)
    net = flow.context_net
    context = None if net is None else example_context(net, 1)
    if net is not None and context is None:
        return "its context is of a net of your own"
    with evaluating(flow) as scored:
        try:
            scored.log_prob_by_place(x, context, Noise.of(0, x))
        except MixesPlaces as error:
            return str(error)
    return None


@torch.no_grad()
def place_scores(
    flow: Flow,
    features: np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 8,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Return ``-log p(x_place | place)`` of each place ``(N, *spatial)``, in nats, in eval mode.

    Args:
        flow: a flow that maps each place by itself; its `fused` copy is faster.
        features: ``(N, C, *spatial)``, floats, or integers as the flow's levels say.
        labels: class numbers or vectors, for a conditional flow.
        batch: images at a time; few of them stay in the processor's cache.
        seed: seed of the noise, for integers.
        on_batch: called with the number of images after each batch.

    Raises:
        ConfigError: a flow that mixes places, or a batch below 1.
        ValueError: features of another shape, or not one label for each.
    """
    if batch < 1:
        raise ConfigError(f"{batch} images at a time", "batch", "give at least 1")
    x, context = as_tensor(features), None if labels is None else as_tensor(labels)
    if context is not None and len(context) != len(x):
        raise ValueError(f"place_scores: {len(context)} labels for {len(x)} images")
    parts = [np.zeros((0, *flow.shape[1:]))]
    with evaluating(flow) as scored:
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            given = None if context is None else context[start : start + batch]
            noise = None if flow.levels is None else Noise.of(seed, part)
            try:
                log_prob = scored.log_prob_by_place(part.to(flow.device), given, noise)
            except MixesPlaces as error:
                raise _mixed(str(error)) from error
            parts.append(-log_prob.double().cpu().numpy())
            if on_batch is not None:
                on_batch(len(part))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Pooling(Score):
    """A score of an image that is made of those of its places."""

    needs: ClassVar[tuple[Need, ...]] = ("places",)

    def pool(self, places: Tensor) -> Tensor:
        """Return the scores ``(N,)`` of images by those of their places ``(N, places)``."""
        raise NotImplementedError

    def __call__(self, measured: Measured) -> np.ndarray:
        assert measured.places is not None
        return self.pool(torch.from_numpy(measured.places)).numpy()


@register("maximum")
@dataclass(frozen=True)
class MaximumPlace(Pooling):
    """``max_place -log p(x_place | place)``, in nats."""

    name: ClassVar[str] = "maximum"
    equation: ClassVar[str] = "max_place -log p(x_place | place)"
    source: ClassVar[str] = "Defard et al. 2021, arXiv:2011.08785"

    def pool(self, places: Tensor) -> Tensor:
        return places.amax(1)


@register("top")
@dataclass(frozen=True)
class TopPlaces(Pooling):
    """The mean over the share of the places with the largest scores, at least one, in nats."""

    share: float = 0.02
    """Share of the places, in (0, 1]."""
    name: ClassVar[str] = "top"
    equation: ClassVar[str] = "mean of the largest 2 % of -log p(x_place | place)"
    source: ClassVar[str] = "ours"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"TopPlaces: share must be in (0, 1]; got {self.share}")

    def pool(self, places: Tensor) -> Tensor:
        count = max(1, round(self.share * places.shape[1]))
        return places.topk(count, 1).values.mean(1)


@register("mean")
@dataclass(frozen=True)
class MeanPlaces(Pooling):
    """``-log p(x) / places``, in nats: bits/dim in another unit."""

    name: ClassVar[str] = "mean"
    equation: ClassVar[str] = "mean_place -log p(x_place | place)"
    source: ClassVar[str] = "Bishop 1994, doi:10.1049/ip-vis:19941330"

    def pool(self, places: Tensor) -> Tensor:
        return places.mean(1)


POOLINGS: dict[str, Pooling] = {
    each.name: each for each in (MaximumPlace(), TopPlaces(), MeanPlaces())
}
"""The scores of images by those of their places, by name."""
