"""Bits per dimension of a set of images under a flow."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from mixerflow.core import Density, Dequantization, Flow, as_tensor, checked_context
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.evaluate.draws import MARKS, Draws, advance
from mixerflow.means import mean_and_error
from mixerflow.processes import SINGLE, Processes
from mixerflow.registry import plain

_DENSITIES = {
    "exact": "exact density",
    "bound": "lower bound of the density",
    "estimate": "estimated density",
}


@dataclass(frozen=True)
class Bound:
    """The figure of the first draws of every image.

    Attributes:
        importance_samples: n, the number of draws.
        bits_per_dim: mean over the images of ``-log2 mean_{k<n} p(x, noise_k) / D``.
        standard_error: of that mean, over images; NaN for a single one.
        gain: mean over the images of the single-sample figure minus this one. Both have the first
            draw in common, and the gain's error is far smaller than that of either.
        gain_error: standard error of the gain, over images; NaN for a single one.
        per_image: each image's bits/dim, in order.
    """

    importance_samples: int
    bits_per_dim: float
    standard_error: float
    gain: float
    gain_error: float
    per_image: np.ndarray = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `per_image`, for JSON."""
        return _plain(self)


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
        importance_samples: K, the number of noise draws an image. With one, the figure is the
            single-sample bound that papers quote; with more it is importance-weighted,
            ``-log2 mean_k p(x, noise_k) / D``, a tighter bound.
        dataset_id: the data; comparable with published values only if the name has no suffix.
        split: the part of the data.
        seed: seed of the noise.
        per_image: each image's bits/dim, in order.
        curve: the figures of the first 1, 10, 100, ... draws of each image, and of all K.
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
    curve: tuple[Bound, ...] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `per_image`, for JSON; the curve only where it has several."""
        curve = [bound.as_dict() for bound in self.curve]
        return _plain(self) | ({"curve": curve} if len(curve) > 1 else {})

    @property
    def kind(self) -> str:
        """The kind of figure in words: only figures of one kind are comparable."""
        return kind_of(self.as_dict())

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        plural = "" if self.images == 1 else "s"
        images = f"on {self.images} image{plural}"
        return f"{self.bits_per_dim:.3f}{error} bits/dim {images} ({self.kind})"


def _plain(record: Bits | Bound) -> dict[str, Any]:
    """Return a record's numbers and words; None for NaN, which JSON does not have."""
    names = [each.name for each in dataclasses.fields(record)]
    values = {name: getattr(record, name) for name in names if name not in ("per_image", "curve")}
    errors = {k: None for k, v in values.items() if k.endswith("_error") and math.isnan(v)}
    return values | errors


def kind_of(figure: Mapping[str, Any]) -> str:
    """Return the kind of figure in words, from the dict that `Bits.as_dict` made."""
    return ", ".join(filter(None, (density_of(figure), estimator_of(figure))))


def density_of(figure: Mapping[str, Any]) -> str:
    """Return the density that was scored in words: how exact, of which dequantised data."""
    noise = figure["dequantization"]
    return f"{_DENSITIES[figure['density']]}, {'no' if noise == 'none' else noise} dequantisation"


def estimator_of(figure: Mapping[str, Any]) -> str:
    """Return "single-sample" or "importance-weighted (K = n)"; "" where no noise is drawn."""
    if figure["dequantization"] == "none" and figure["density"] == "exact":
        return ""
    draws = figure.get("importance_samples", 1)
    return "single-sample" if draws == 1 else f"importance-weighted (K = {draws:,})"


def bits(
    flow: Flow,
    images: Images | np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 128,
    importance_samples: int = 1,
    seed: int = 0,
    dataset_id: str = "",
    split: str = "",
    draws: Draws | None = None,
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE,
) -> Bits:
    """Score images ``(N, *shape)``, integers as the flow's levels say or floats, in eval mode.

    An image's noise is a function of `seed` and its own pixels: its value does not depend on the
    other images, on `batch`, nor on the number of processes. With K > 1 the figures of the first 1,
    10, 100, ... draws come from the same pass, see `Bits.curve`. Besides a batch in memory,
    an image takes 200 bytes, whatever K.

    Args:
        flow: the model.
        images: the images; of an `Images`, its labels and its name are used if none are given.
        labels: class numbers ``(N,)`` or vectors ``(N, K)`` for a conditional flow.
        batch: images at a time, in each process.
        importance_samples: K noise draws an image, which cost K passes: the value is
            ``-log2 mean_k p(x, noise_k) / D``, a bound that K tightens.
        seed: seed of the noise.
        dataset_id: recorded in the result.
        split: recorded in the result.
        draws: draws of the same images, flow and seed to go on from, the same in all processes. It
            is advanced in place: after an error or a call of fewer draws, a call with the same
            object does only what is missing.
        on_batch: called after each draw of a batch with the number of draws, one an image, by all
            processes.
        processes: the processes that share the images; each is given all images, and returns the
            result for all.

    Raises:
        ValueError: no images, or images of the wrong shape; labels that are no classes, or vectors
            that do not fit, or not one for each image; `draws` of another number of images,
            or of more than K draws.
        ConfigError: a seed that is no whole number; less than one draw; several of a log-density
            that is itself an estimate, or of a flow that draws no noise.

    References:
        Burda, Grosse, Salakhutdinov: Importance weighted autoencoders (2016), eq. 8.
        https://arxiv.org/abs/1509.00519
    """
    if isinstance(images, Images):
        labels = images.labels if labels is None and flow.context_net is not None else labels
        images, dataset_id = images.pixels, dataset_id or images.dataset_id
    images = np.asarray(images) if isinstance(images, (list, tuple)) else images
    if len(images) == 0:
        raise ValueError("bits: no images to score")
    if not batch >= 1:
        raise ValueError(f"bits: batch must be at least 1; got {batch}")
    if labels is not None:
        labels = as_tensor(labels)
        if labels.shape[:1] != (len(images),):
            raise ValueError(f"bits: labels {tuple(labels.shape)} for {len(images)} images")
        if flow.context_net is not None:
            labels = checked_context(flow.context_net, labels)
    if type(seed := plain(seed)) is not int:
        raise ConfigError(f"seed {seed!r}", "--seed", "give a whole number")
    _require_sense(flow, importance_samples)
    draws = Draws.none(len(images)) if draws is None else draws
    if len(draws) != len(images) or draws.count.max() > importance_samples:
        done = f"up to {draws.count.max()} draws of {len(draws)} images"
        raise ValueError(f"bits: {done} do not lead to {importance_samples} of {len(images)}")
    advance(
        flow,
        images,
        draws,
        until=importance_samples,
        labels=labels,
        batch=batch,
        seed=seed,
        on_batch=on_batch,
        processes=processes,
    )
    curve = _curve(draws, importance_samples, flow.dims)
    return Bits(
        bits_per_dim=curve[-1].bits_per_dim,
        standard_error=curve[-1].standard_error,
        images=len(images),
        density=flow.density,
        dequantization=flow.dequantization,
        importance_samples=importance_samples,
        dataset_id=dataset_id,
        split=split,
        seed=seed,
        per_image=curve[-1].per_image,
        curve=curve,
    )


def _require_sense(flow: Flow, draws: int) -> None:
    """Raise a ConfigError where so many draws mean nothing."""
    if draws < 1:
        raise ConfigError(f"{draws} draws an image", "--importance-samples", "give at least 1")
    if draws > 1 and flow.density == "estimate":  # E exp(log p + error) exceeds p
        what = "the mean over draws would overstate a density whose log-det is an estimate"
        raise ConfigError(what, "--importance-samples", "use 1, or a model with an exact log-det")
    if draws > 1 and flow.density == "exact" and flow.dequantization == "none":
        what = "this flow draws no noise: its figure is exact"
        raise ConfigError(what, "--importance-samples", "use 1")


def _curve(draws: Draws, last: int, dims: int) -> tuple[Bound, ...]:
    """Return the figures at 1, 10, 100, ... draws and at the last."""
    single = -draws.log_mean(1) / (dims * math.log(2))
    curve = []
    for number in (*(mark for mark in MARKS if mark < last), last):
        scores = -draws.log_mean(number) / (dims * math.log(2))
        mean, error = _mean_and_error(scores)
        gain, gain_error = _mean_and_error(single - scores)
        curve.append(Bound(number, mean, error, gain, gain_error, scores))
    return tuple(curve)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean over images and its standard error, NaN for a single image."""
    mean, error = mean_and_error(values)
    assert mean is not None, "there are images"
    return mean, math.nan if error is None else error
