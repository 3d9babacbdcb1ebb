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
    """A bits/dim figure with all that decides what it may be compared with.

    Attributes:
        bits_per_dim: mean over the images of ``-log2 p(x) / D``.
        standard_error: of that mean, over images; NaN for a single one.
        images: how many.
        density: whether log p is exact, a lower bound or an estimate.
        dequantization: "uniform" or "variational" noise on integer images, or "none" for float data
            (whose figure depends on the unit of the data).
        importance_samples: K, the draws of noise an image. With one, the figure is the bound that
            papers quote; with more, ``-log2 mean_k p(x + u_k) / D``, lower and nearer the truth.
        dataset_id: the data; comparable with published figures only where the name is bare.
        split: which part of it.
        seed: of the dequantisation noise.
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
        """Everything but the images' own figures, for JSON."""
        fields = dataclasses.asdict(self)
        del fields["per_image"]
        if math.isnan(self.standard_error):
            fields["standard_error"] = None  # JSON has no NaN
        return fields

    @property
    def kind(self) -> str:
        """What the figure is, in words: only equal kinds compare."""
        return kind_of(self.as_dict())

    def __str__(self) -> str:
        """The figure, its standard error and the number of images, in words."""
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        plural = "" if self.images == 1 else "s"
        return f"{self.bits_per_dim:.3f}{error} bits/dim on {self.images} image{plural}"


def kind_of(figure: dict[str, Any]) -> str:
    """What a figure is, in words, from what `Bits.as_dict` kept of it."""
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
    """Score images ``(N, *shape)`` in eval mode.

    An image's noise is a function of `seed` and its own pixels: its figure does not depend on the
    other images, on `batch`, nor on the number of processes.

    Args:
        flow: the model.
        images: integer images as the flow's levels say, or floats.
        labels: ``(N,)`` for a class-conditional flow.
        batch: images at a time, in each process.
        importance_samples: K draws of noise an image, which cost K passes: the figure is
            ``-log2 mean_k p(x + u_k) / D``, a bound that K tightens.
        seed: of the dequantisation noise.
        dataset_id: recorded in the result.
        split: recorded in the result.
        on_batch: called with the number of images done, by all processes, after each batch.
        processes: that share the images; each is given all of them, and gets the figure of all.

    Raises:
        ValueError: no images, or images of the wrong shape.
        ConfigError: less than one draw, or several of a log-density that is itself an estimate.

    References:
        Burda, Grosse, Salakhutdinov: Importance weighted autoencoders (2016), eq. 8.
        https://arxiv.org/abs/1509.00519
    """
    if len(images) == 0:
        raise ValueError("bits: no images to score")
    _check(flow, importance_samples)
    each = np.zeros(len(images))
    for start in range(0, len(images), batch * processes.world):
        count = min(batch * processes.world, len(images) - start)
        # every process scores as often as the others, if only an empty part: layers may be sharded
        own = processes.share(count)
        rows = slice(start + own.start, start + own.stop)
        context = None if labels is None else as_tensor(labels[rows])
        each[rows] = _weighted(
            flow, as_tensor(images[rows]), context, seed=seed, draws=importance_samples
        )
        if on_batch is not None:
            on_batch(count)
    # each image was scored by one process and is 0 in the others
    each = processes.sum(torch.from_numpy(each)).numpy()
    error = each.std(ddof=1) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Bits(
        bits_per_dim=float(each.mean()),
        standard_error=float(error),
        images=len(each),
        density=flow.density,
        dequantization=flow.dequantization,
        importance_samples=importance_samples,
        dataset_id=dataset_id,
        split=split,
        seed=seed,
        per_image=each,
    )


def _check(flow: Flow, draws: int) -> None:
    flag = "--importance-samples"
    if draws < 1:
        raise ConfigError(f"{draws} draws an image", flag, "give at least 1")
    if draws > 1 and flow.density == "estimate":  # E exp(log p + error) is more than p
        what = "the mean over draws would overstate a density whose log-det is an estimate"
        raise ConfigError(what, flag, "use 1, or a model with an exact log-det")


def _weighted(
    flow: Flow, images: Tensor, context: Tensor | None, *, seed: int, draws: int
) -> np.ndarray:
    """``-log2 mean_k p(x + u_k) / D`` of each image ``(B,)``, float64, in memory constant in k."""
    keys = Noise.of(seed, images).keys
    unit = flow.dims * math.log(2)
    one = total = np.zeros(0)
    for draw in range(draws):
        noise = Noise(seed, keys, draw=draw)
        one = flow.bits_per_dim(images, context, noise, batch=max(len(images), 1))
        one = one.double().cpu().numpy()
        total = np.logaddexp(total, -one * unit) if draw else -one * unit
    return one if draws == 1 else (math.log(draws) - total) / unit
