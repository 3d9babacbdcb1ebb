"""Embeddings of many images: the features of a flow by depth, and pixels to hold them against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mixerflow.core import Flow, as_tensor, evaluating
from mixerflow.errors import ConfigError

LARGEST = 4096
"""Most features that are whitened: their covariance is a full matrix."""
_BYTES = 2**31
"""Memory for the features of several layers at once."""
_CHUNK = 4096


def embed(
    flow: Flow,
    images: np.ndarray,
    layers: Sequence[int],
    *,
    batch: int = 128,
    on_batch: Callable[[int], None] | None = None,
) -> dict[int, Float[Tensor, "images features"]]:
    """Return `Flow.features` of many images ``(N, *shape)`` for each layer, on the CPU.

    Args:
        flow: a flow without context.
        images: the pixels.
        layers: numbers as `Flow.features` takes them.
        batch: images at a time.
        on_batch: called with the number of images after each batch; an error that it raises stops.

    Raises:
        ConfigError: a class-conditional flow, whose features would hold the classes themselves.
        ValueError: no such layer, or images of another shape.
    """
    if flow.context_net is not None:
        what = "the flow is given the classes that a probe is to tell"
        raise ConfigError(what, "a class-conditional run", "name one without classes")
    found: dict[int, Tensor] = {}
    with evaluating(flow) as scored:
        for start in range(0, len(images), batch):
            part = as_tensor(images[start : start + batch])
            for layer, values in scored.features_by_layer(part, layers=layers).items():
                if start == 0:
                    found[layer] = torch.empty(len(images), values.shape[1])
                found[layer][start : start + len(part)] = values
            if on_batch is not None:
                on_batch(len(part))
    return found


def passes_of(flow: Flow, images: int, layers: Sequence[int]) -> Iterator[list[int]]:
    """Divide layers into groups whose features of so many images fit in 2 GiB, one at least."""
    largest = max(flow.dims, math.prod(flow.latent_shape))
    count = max(1, _BYTES // (4 * images * largest))
    for start in range(0, len(layers), count):
        yield list(layers[start : start + count])


class Whitening:
    """PCA-whitening, fitted to features ``(N, F)``: what a perfect linear flow would return.

    ``w_i = v_i . (f - mean) / sqrt(lambda_i)``, v and lambda the eigenvectors and eigenvalues of
    the covariance, largest first. Directions in which the features do not vary, to rounding, are
    left out.

    Raises:
        ValueError: more than 4096 features.
    """

    def __init__(self, features: Shaped[Tensor, "images features"]) -> None:
        size = features.shape[1]
        if size > LARGEST:
            raise ValueError(f"whitening: {size} features, at most {LARGEST} have a covariance")
        parts = features.split(_CHUNK)
        total = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0)
        mean = total / len(features)
        covariance = torch.zeros(size, size, dtype=torch.float64, device=features.device)
        for part in parts:
            centred = part.double() - mean
            covariance += centred.mT @ centred
        values, vectors = torch.linalg.eigh(covariance / len(features))
        varies = values > values[-1] * size * torch.finfo(torch.float32).eps ** 2
        values, vectors = values[varies].flip(0), vectors[:, varies].flip(1)
        self.mean, self.matrix = mean.float(), (vectors * values.rsqrt()).float()

    def __call__(self, features: Shaped[Tensor, "images features"]) -> Tensor:
        """Return whitened features ``(N, directions)``."""
        return torch.cat([(part - self.mean) @ self.matrix for part in features.split(_CHUNK)])
