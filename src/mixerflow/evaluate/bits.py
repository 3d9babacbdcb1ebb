"""Bits per dimension of a set of images under a flow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Density, Dequantization, Flow, Noise, as_tensor
from mixerflow.errors import ConfigError
from mixerflow.processes import SINGLE, Processes


@dataclass(frozen=True)
class Bits:
    """Bits per dimension, with all that decides which other values are comparable.

    Attributes:
        bits_per_dim: mean over the images of ``-log2 p(x) / D``.
        standard_error: of that mean, over images; NaN for a single one.
        images: their number.
        density: whether log p is exact, a lower bound or an estimate.
        dequantization: "uniform" or "variational" noise on integer images, or "none" for float data
            (whose figure depends on the unit of the data).
        importance_samples: K, the number of noise draws an image. With one, the value is the bound
            that papers quote; with more, ``-log2 mean_k p(x + u_k) / D``, a tighter bound.
        dataset_id: the data; comparable with published values only if the name has no suffix.
        split: the part of the data.
        seed: seed of the dequantization noise.
        per_image: each image's bits/dim, in order.
    """

    bits_per_dim: float
    standard_error: float
    images: int
    density: Density
    dequantization: Dequantization
    importance_samples: int
    dataset_id: str
    split: str
    seed: int
    per_image: np.ndarray = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `per_image`, for JSON."""
        fields = dataclasses.asdict(self)
        del fields["per_image"]
        if math.isnan(self.standard_error):
            fields["standard_error"] = None  # JSON has no NaN
        return fields

    @property
    def kind(self) -> str:
        """The kind of value in words: only values of one kind are comparable."""
        return kind_of(self.as_dict())

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        plural = "" if self.images == 1 else "s"
        return f"{self.bits_per_dim:.3f}{error} bits/dim on {self.images} image{plural}"


def kind_of(figure: dict[str, Any]) -> str:
    """Return the kind of value in words, from the dict that `Bits.as_dict` made."""
    kind = f"{figure['density']} density, {figure['dequantization']} dequantisation"
    draws = figure["importance_samples"]
    if figure["dequantization"] == "none" and draws == 1:
        return kind
    return f"{kind}, {'one draw' if draws == 1 else f'{draws} draws'} an image"


def bits(
    flow: Flow,
    images: np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 128,
    importance_samples: int = 1,
    seed: int = 0,
    dataset_id: str = "",
    split: str = "",
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE,
) -> Bits:
    """Score images ``(N, *shape)``, integers as the flow's levels say or floats, in eval mode.

    An image's noise is a function of `seed` and its own pixels: its value does not depend on the
    other images, on `batch`, nor on the number of processes.

    Args:
        flow: the model.
        images: the images.
        labels: ``(N,)`` for a class-conditional flow.
        batch: images at a time, in each process.
        importance_samples: K noise draws an image, which cost K passes: the value is
            ``-log2 mean_k p(x + u_k) / D``, a bound that K tightens.
        seed: seed of the dequantization noise.
        dataset_id: recorded in the result.
        split: recorded in the result.
        on_batch: called with the number of images scored, by all processes, after each batch.
        processes: the processes that share the images; each is given all images, and returns the
            result for all.

    Raises:
        ValueError: no images, or images of the wrong shape.
        ConfigError: less than one draw, or several of a log-density that is itself an estimate.

    References:
        Burda, Grosse, Salakhutdinov: Importance weighted autoencoders (2016), eq. 8.
        https://arxiv.org/abs/1509.00519
    """
    if len(images) == 0:
        raise ValueError("bits: no images to score")
    if importance_samples < 1:
        what = f"{importance_samples} draws an image"
        raise ConfigError(what, "--importance-samples", "give at least 1")
    if importance_samples > 1 and flow.density == "estimate":  # E exp(log p + error) exceeds p
        what = "the mean over draws would overstate a density whose log-det is an estimate"
        raise ConfigError(what, "--importance-samples", "use 1, or a model with an exact log-det")
    scores = np.zeros(len(images))
    for start in range(0, len(images), batch * processes.world):
        count = min(batch * processes.world, len(images) - start)
        # with sharded layers all processes must call the flow alike, with an empty part if need be
        own = processes.share(count)
        rows = slice(start + own.start, start + own.stop)
        context = None if labels is None else as_tensor(labels[rows])
        scores[rows] = _score(
            flow, as_tensor(images[rows]), context, seed=seed, draws=importance_samples
        )
        if on_batch is not None:
            on_batch(count)
    # an image's score comes from one process and is 0 in the others
    scores = processes.sum(torch.from_numpy(scores)).numpy()
    error = scores.std(ddof=1) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan
    return Bits(
        bits_per_dim=float(scores.mean()),
        standard_error=float(error),
        images=len(scores),
        density=flow.density,
        dequantization=flow.dequantization,
        importance_samples=importance_samples,
        dataset_id=dataset_id,
        split=split,
        seed=seed,
        per_image=scores,
    )


def _score(
    flow: Flow, images: Tensor, context: Tensor | None, *, seed: int, draws: int
) -> np.ndarray:
    """Return ``-log2 mean_k p(x + u_k) / D`` of images ``(B,)``, float64; memory constant in k."""
    keys = Noise.of(seed, images).keys
    unit = flow.dims * math.log(2)
    one = total = np.zeros(0)
    for draw in range(draws):
        noise = Noise(seed, keys, draw=draw)
        one = flow.bits_per_dim(images, context, noise, batch=max(len(images), 1))
        one = one.double().cpu().numpy()
        total = np.logaddexp(total, -one * unit) if draw else -one * unit
    return one if draws == 1 else (math.log(draws) - total) / unit
