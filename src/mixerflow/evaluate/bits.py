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
from mixerflow.evaluate.draws import MARKS, Draws, Estimates, Passes, advance
from mixerflow.means import mean_and_error
from mixerflow.processes import SINGLE, Processes
from mixerflow.registry import plain

_DENSITIES = {
    "exact": "exact density",
    "bound": "lower bound of the density",
    "estimate": "estimated density",
}
PROBES = 2
"""Probes an image where the density is an estimate: the fewest that tell the estimate's error."""


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
        probes: R, the estimates of log p an image, whose mean the figure is made of; None where
            nothing is estimated.
        estimator_error: the part of `standard_error` that the probes cause, see
            `Estimates.error`; NaN for a single probe, and where nothing is estimated.
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
    probes: int | None = None
    estimator_error: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `per_image`, for JSON.

        The curve is there only if it has several figures, the probes and their error only if
        something is estimated.
        """
        curve = [bound.as_dict() for bound in self.curve]
        record = _plain(self) | ({"curve": curve} if len(curve) > 1 else {})
        left_out = ("probes", "estimator_error") if self.probes is None else ()
        return {name: value for name, value in record.items() if name not in left_out}

    @property
    def kind(self) -> str:
        """The kind of figure in words: only figures of one kind are comparable."""
        return kind_of(self.as_dict())

    def __str__(self) -> str:
        error = "" if math.isnan(self.standard_error) else f" ± {self.standard_error:.3f}"
        plural = "" if self.images == 1 else "s"
        images = f"on {self.images} image{plural}"
        kind = "; ".join(filter(None, (self.kind, probes_of(self.as_dict()))))
        return f"{self.bits_per_dim:.3f}{error} bits/dim {images} ({kind})"


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


def probes_of(figure: Mapping[str, Any]) -> str:
    """Return what is known of the error of an estimate, as in "estimate ± 0.002 by 2 probes".

    "" where nothing is estimated. Figures of other numbers of probes are of the same kind: their
    expectations are equal.
    """
    if figure["density"] != "estimate":
        return ""
    probes = figure.get("probes") or 1
    error = figure.get("estimator_error")
    told = "" if error is None else f" ± {error:.2g}"
    return f"estimate{told} by {probes:,} probe{'' if probes == 1 else 's'}"


def bits(
    flow: Flow,
    images: Images | np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    batch: int = 128,
    importance_samples: int = 1,
    probes: int | None = None,
    seed: int = 0,
    dataset_id: str = "",
    split: str = "",
    draws: Passes | None = None,
    on_batch: Callable[[int], None] | None = None,
    processes: Processes = SINGLE,
) -> Bits:
    """Score images ``(N, *shape)``, integers as the flow's levels say or floats, in eval mode.

    An image's noise is a function of `seed` and its own pixels: its value does not depend on the
    other images, on `batch`, nor on the number of processes. With K > 1 the figures of the first 1,
    10, 100, ... draws come from the same pass, see `Bits.curve`. Besides a batch in memory,
    an image takes 200 bytes, whatever K.

    Where the density is an estimate, an image's value is the mean of R estimates of
    ``-log2 p(x, noise_0) / D``, with the noise of the first draw and R independent probes. Each is
    unbiased for ``flow.exact()``, whose figure has no such error.

    Args:
        flow: the model.
        images: the images; of an `Images`, its labels and its name are used if none are given.
        labels: class numbers ``(N,)`` or vectors ``(N, K)`` for a conditional flow.
        batch: images at a time, in each process.
        importance_samples: K noise draws an image, which cost K passes: the value is
            ``-log2 mean_k p(x, noise_k) / D``, a bound that K tightens.
        probes: R estimates an image, which cost R passes, for a flow whose density is an estimate;
            None is `PROBES` for such a flow. With 2 or more the result has the estimate's error.
        seed: seed of the noise.
        dataset_id: recorded in the result.
        split: recorded in the result.
        draws: draws of the same images, flow and seed to go on from, the same in all processes, or
            `Estimates` if the density is one. It is advanced in place: after an error or a call of
            fewer draws, a call with the same object does only what is missing.
        on_batch: called after each draw, or probe, of a batch with their number, one an image, by
            all processes.
        processes: the processes that share the images; each is given all images, and returns the
            result for all.

    Raises:
        ValueError: no images, or images of the wrong shape; labels that are no classes, or vectors
            that do not fit, or not one for each image; `draws` of another number of images,
            of more than K draws, or of another class.
        ConfigError: a seed that is no whole number; less than one draw or probe; several draws of
            a log-density that is itself an estimate, or of a flow that draws no noise; several
            probes of one that is none.

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
    kind, until = passes_for(flow, importance_samples, probes)
    passes = kind.none(len(images)) if draws is None else draws
    if not isinstance(passes, kind):
        what = f"draws is {type(passes).__name__}, and the density of this flow is"
        raise ValueError(f"bits: {what} {flow.density}: give {kind.__name__}")
    if len(passes) != len(images) or passes.count.max() > until:
        done = f"up to {passes.count.max()} draws of {len(passes)} images"
        raise ValueError(f"bits: {done} do not lead to {until} of {len(images)}")
    advance(
        flow,
        images,
        passes,
        until=until,
        labels=labels,
        batch=batch,
        seed=seed,
        on_batch=on_batch,
        processes=processes,
    )
    unit = flow.dims * math.log(2)
    curve = _curve(passes, importance_samples, unit)
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
        probes=until if isinstance(passes, Estimates) else None,
        estimator_error=passes.error() / unit if isinstance(passes, Estimates) else math.nan,
    )


def passes_for(flow: Flow, draws: int, probes: int | None) -> tuple[type[Passes], int]:
    """Return what is kept of the passes over images, and how many each image has.

    Args:
        flow: the model.
        draws: K draws of noise an image.
        probes: R estimates an image; None is `PROBES` where the density is an estimate.

    Raises:
        ConfigError: so many draws, or probes, mean nothing.
    """
    if draws < 1:
        raise ConfigError(f"{draws} draws an image", "--importance-samples", "give at least 1")
    if probes is not None and probes < 1:
        raise ConfigError(f"{probes} probes an image", "--probes", "give at least 1")
    if flow.density == "estimate":
        if draws > 1:  # E exp(log p + error) exceeds p
            what = "the mean over draws would overstate a density whose log-det is an estimate"
            remedy = "use 1, or a model with an exact log-det"
            raise ConfigError(what, "--importance-samples", remedy)
        return Estimates, PROBES if probes is None else probes
    if probes is not None and probes > 1:
        what = f"{probes} probes, and no log-det of this flow is an estimate"
        raise ConfigError(what, "--probes", "leave it out")
    if draws > 1 and flow.density == "exact" and flow.dequantization == "none":
        what = "this flow draws no noise: its figure is exact"
        raise ConfigError(what, "--importance-samples", "use 1")
    return Draws, draws


def _curve(passes: Passes, last: int, unit: float) -> tuple[Bound, ...]:
    """Return the figures at 1, 10, 100, ... draws and at the last; `unit` is D ln 2."""

    def scored(number: int) -> np.ndarray:
        if isinstance(passes, Estimates):
            return -passes.means() / unit
        assert isinstance(passes, Draws)
        return -passes.log_mean(number) / unit

    single, curve = scored(1), []
    for number in (*(mark for mark in MARKS if mark < last), last):
        scores = scored(number)
        mean, error = _mean_and_error(scores)
        gain, gain_error = _mean_and_error(single - scores)
        curve.append(Bound(number, mean, error, gain, gain_error, scores))
    return tuple(curve)


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean over images and its standard error, NaN for a single image."""
    mean, error = mean_and_error(values)
    assert mean is not None, "there are images"
    return mean, math.nan if error is None else error
