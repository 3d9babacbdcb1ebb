"""Bits per dimension of a set of images under a flow."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from mixerflow.core import Flow, as_tensor, checked_context, is_estimated
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.evaluate.draws import MARKS, Draws, Estimates, Passes, advance
from mixerflow.evaluate.figure import Bits, Bound
from mixerflow.means import mean_and_error
from mixerflow.processes import SINGLE, Processes
from mixerflow.registry import plain

PROBES = 2
"""Probes an image where the density is an estimate: the fewest that tell the estimate's error."""


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
    if is_estimated(flow.density):
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
