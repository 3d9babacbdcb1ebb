"""The whole scorer of features as one function of tensors, for `torch.export` and ONNX.

An example: ``mixerflow.export.onnx(mixerflow.detection.scorer(flow, threshold=20.0), path)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.detection.places import POOLINGS, Pooling, require_places
from mixerflow.detection.threshold import Threshold
from mixerflow.errors import ConfigError, nearest
from mixerflow.export import Exported


class PlaceScorer(Exported):
    """Features to scores of places, a score of the image and whether it is an outlier."""

    outputs = ("places", "score", "outlier")

    def __init__(self, flow: Flow, pooling: Pooling, threshold: float) -> None:
        super().__init__(flow)
        self.pooling, self.threshold = pooling, threshold

    def forward(
        self, features: Tensor, threshold: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map features ``(B, *shape)`` to scores of places, of images, and flags.

        Scores of places are ``(B, *spatial)`` and those of images ``(B,)``, in nats; a flag
        ``(B,)`` says that the image's score is more than the `threshold` ``()``, or NaN.
        """
        places = -self.flow.log_prob_by_place(features, context)
        score = self.pooling.pool(places.flatten(1))
        return places, score, ~(score <= threshold)

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        """Return inputs that this flow's scorer takes, by name."""
        features = torch.zeros(batch, *self.flow.shape, dtype=self.flow.dtype)
        return {"features": features, **self.defaults(), **self._labels(batch)}

    def defaults(self) -> dict[str, Tensor]:
        """Return the threshold, which an ONNX model has where it is not given."""
        return {"threshold": torch.tensor(self.threshold, dtype=self.flow.dtype)}


def scorer(
    flow: Flow,
    *,
    threshold: Threshold | float,
    pooling: Pooling | str = "top",
) -> PlaceScorer:
    """Return the scorer of a flow of float features, with the flow's inference copy.

    In the ONNX model `threshold` is an input with this value as its default.

    Args:
        flow: a flow that maps each place by itself, of floats.
        threshold: images with a larger score are outliers; of the same `pooling`.
        pooling: how an image's score is made of those of its places, or its name in `POOLINGS`; by
            default that of the largest 2 %.

    Raises:
        ConfigError: a flow that mixes places or takes integers, or an unknown name.
    """
    require_places(flow)
    if flow.levels is not None:
        remedy = "export the density of images: mixerflow.export.density"
        raise ConfigError("the flow takes integers, which need noise", "scorer", remedy)
    if isinstance(pooling, str):
        if pooling not in POOLINGS:
            raise ConfigError(f"no pooling {pooling}", "pooling", nearest(pooling, POOLINGS))
        pooling = POOLINGS[pooling]
    value = threshold.value if isinstance(threshold, Threshold) else float(threshold)
    return PlaceScorer(flow.fused(), pooling, value)
