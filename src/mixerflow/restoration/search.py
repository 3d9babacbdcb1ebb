"""Maximum a posteriori restoration: the image that prior and measurement make likeliest."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Context, Flow, as_tensor
from mixerflow.errors import ConfigError
from mixerflow.registry import register
from mixerflow.restoration.measurements import Measurement

MARGIN = 2.0**-8
"""Distance that real numbers keep from the ends of ``[0, levels]``, where a logit is infinite."""


@dataclass(frozen=True)
class Search:
    """How the maximum is searched: by Adam's steps, whose size falls to 0 along a cosine.

    The objective of each image is ``prior * log p + log N(y; A x, sigma^2 I)``; a subclass says of
    what variable it is a function, and which density p is.
    """

    steps: int
    """Number of steps."""
    rate: float
    """Size of the first steps, in the unit of the variable."""
    prior: float
    """Weight of the prior's log-density: 1 for Bayes' rule."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"{self.steps} steps", "--steps", "give at least 1")
        for name in ("rate", "prior"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"{value}", f"--{name}", "give more than 0, finite")

    def begin(self, flow: Flow, x: Tensor, context: Context) -> Tensor:
        """Return the variable of images ``(B, *shape)``."""
        raise NotImplementedError

    def images(self, flow: Flow, variable: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return images ``(B, *shape)`` of the variable, and the prior's log-density ``(B,)``."""
        raise NotImplementedError

    def step(self, top: float | None) -> float:
        """Return the size of the first steps for images in ``[0, top]``."""
        return self.rate

    def keep_inside(self, variable: Tensor, top: float | None) -> None:
        """Move the variable, in place, so that images lie in ``[0, top]``."""


@register("image")
@dataclass(frozen=True)
class ImageSearch(Search):
    """The variable is the image: the density is the flow's, ``log p(x)``, and x stays in range.

    The unit of `rate` is a pixel value of 256; where there are more or fewer, steps are larger or
    smaller in proportion.
    """

    steps: int = 200
    rate: float = 2.0
    prior: float = 1.0

    def begin(self, flow: Flow, x: Tensor, context: Context) -> Tensor:
        return x

    def images(self, flow: Flow, variable: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        return variable, flow.log_prob(variable, context)

    def step(self, top: float | None) -> float:
        return self.rate if top is None else self.rate * top / 256

    def keep_inside(self, variable: Tensor, top: float | None) -> None:
        if top is not None:
            variable.clamp_(MARGIN, top - MARGIN)


@register("latent")
@dataclass(frozen=True)
class LatentSearch(Search):
    """The variable is the latent z of the image ``x = f^-1(z)``, and the density ``log p_base(z)``.

    This is the maximum of the posterior of z. It has no log-det, so it is another image than that
    of `ImageSearch`, unless f is affine. It starts at ``z = 0``: the latents of a simple filling,
    which the flow finds improbable, are so large that small steps of z are large ones of x.
    """

    steps: int = 200
    rate: float = 0.1
    prior: float = 1.0

    def begin(self, flow: Flow, x: Tensor, context: Context) -> Tensor:
        return x.new_zeros(len(x), math.prod(flow.latent_shape))

    def images(self, flow: Flow, variable: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if flow.transform.inverse_draws:
            what = "latents of this flow leave a part of an image open"
            raise ConfigError(what, "--space latent", "use --space image")
        x, log_base = flow.invert(variable, context)
        if torch.is_grad_enabled() and not x.requires_grad:
            what = "the inverse of this flow has no gradient"
            raise ConfigError(what, "--space latent", "use --space image")
        return x, log_base


class Restored(NamedTuple):
    """Restored images.

    Attributes:
        images: ``(N, *shape)``, real numbers in the unit of pixel values, within ``[0, levels -
            1]``; round them for pixels.
        bits_per_dim: ``-log2 p(x) / D`` of each image as a real number ``(N,)``.
        gain: how much more the search found than its start has, in nats ``(N,)``.
    """

    images: Tensor
    bits_per_dim: Tensor
    gain: Tensor


def require_density(flow: Flow) -> None:
    """Raise a ConfigError for a flow whose log-density cannot be a prior.

    A bound is below the density by an amount that depends on the image and on a noise draw; an
    estimate is wrong by its own noise. A search would climb both rather than the density.
    """
    if flow.density != "exact":
        what = f"log p of this flow is {'a' if flow.density == 'bound' else 'an'} {flow.density}"
        remedy = "train a model with an exact density"
        raise ConfigError(f"{what}, which a search would exploit", "restore", remedy)
    flow.continuous()


def restore(
    flow: Flow,
    measured: Tensor | np.ndarray,
    measurement: Measurement,
    *,
    labels: Tensor | np.ndarray | None = None,
    search: Search | None = None,
    batch: int = 16,
    on_step: Callable[[int], None] | None = None,
    on_batch: Callable[[Restored], None] | None = None,
) -> Restored:
    """Restore images from measurements ``y = A x + sigma e``, with the flow as the prior.

    The result is the maximum of ``prior * log p(x) + log N(y; A x, sigma^2 I)`` that Adam reaches
    from a simple filling (or from ``z = 0``), or the best point on its way there. p is the density
    of real numbers of `Flow.continuous`, in which a pixel value k is at its centre, ``k + 1/2``.
    Each image has a search of its own: the others change it by rounding only.

    Args:
        flow: the model, of integer images or of floats; its density must be exact.
        measured: ``(N, *shape)`` as `measurement` gives them, in the unit of pixel values.
        measurement: A and sigma, such as ``Noisy(25.0)`` or ``Masked(mask=CentreMask(8))``.
        labels: ``(N,)``, the classes for a class-conditional flow.
        search: what is varied, and by which steps; `ImageSearch` unless given.
        batch: images at a time.
        on_step: called after each step with the number of images that took it.
        on_batch: called with the images of each batch.

    Raises:
        ValueError: measurements of another shape, or not finite.
        ConfigError: a flow whose log-density is a bound or an estimate, which a search would drive
            away from the density; a flow without a density of real numbers; a mask, or a factor,
            that does not fit the images; latents whose images have no gradient.

    References:
        Asim et al., Invertible generative models for inverse problems (2020), arXiv:1905.11672.
        Whang et al., Composing normalizing flows for inverse problems (2021), arXiv:2002.11743.
    """
    require_density(flow)
    if not batch >= 1:
        raise ConfigError(f"{batch} images at a time", "--batch", "give at least 1")
    measurement.check(flow.shape)
    y, wanted = as_tensor(measured), measurement.measured_shape(flow.shape)
    if tuple(y.shape[1:]) != tuple(wanted) or not bool(y.isfinite().all()):
        got = "values that are not finite" if tuple(y.shape[1:]) == wanted else tuple(y.shape)
        raise ValueError(
            f"restore: takes measurements (N, {', '.join(map(str, wanted))}); got {got}"
        )
    if labels is not None and len(as_tensor(labels)) != len(y):
        raise ValueError(f"restore: {len(as_tensor(labels))} labels for {len(y)} measurements")
    prior = copy.deepcopy(flow.continuous()).requires_grad_(False).eval()
    search = ImageSearch() if search is None else search
    parts = []
    for start in range(0, len(y), batch):
        part = slice(start, start + batch)
        context = None if labels is None else as_tensor(labels)[part]
        given = y[part].to(flow.device, flow.dtype)
        parts.append(_maximum(prior, given, measurement, search, context, flow.levels, on_step))
        if on_batch is not None:
            on_batch(parts[-1])
    if not parts:
        return Restored(y.new_empty(0, *flow.shape, dtype=flow.dtype), *y.new_empty(2, 0).float())
    return Restored(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _maximum(
    prior: Flow,
    y: Tensor,
    measurement: Measurement,
    search: Search,
    context: Context,
    levels: int | None,
    on_step: Callable[[int], None] | None,
) -> Restored:
    """Restore one batch, of measurements in the unit of pixel values."""
    half = 0.0 if levels is None else 0.5
    *_, filling = measurement.simple(y, prior.shape).values()
    x = filling + half
    if levels is not None:
        x.clamp_(MARGIN, levels - MARGIN)
    y = y + measurement.apply(torch.full_like(x, half))
    variable = search.begin(prior, x, context).detach().clone().requires_grad_(True)
    first = search.step(levels)
    adam = torch.optim.Adam([variable], lr=first, maximize=True)
    best, best_value, start = variable.detach().clone(), None, None
    for step in range(search.steps + 1):
        x, log_prior = search.images(prior, variable, context)
        value = search.prior * log_prior + measurement.log_likelihood(x, y)
        with torch.no_grad():
            if best_value is None or start is None:
                best_value = start = value.detach()
            better = value > best_value
            best_value = torch.where(better, value, best_value)
            best[better] = variable.detach()[better]
        if step == search.steps:
            break
        (variable.grad,) = torch.autograd.grad(value.sum(), variable)
        adam.param_groups[0]["lr"] = first * 0.5 * (1 + math.cos(math.pi * step / search.steps))
        adam.step()
        with torch.no_grad():
            search.keep_inside(variable, levels)
        if on_step is not None:
            on_step(len(y))
    assert best_value is not None and start is not None
    return _result(prior, search, best, context, levels, best_value - start)


@torch.no_grad()
def _result(
    prior: Flow, search: Search, best: Tensor, context: Context, levels: int | None, gain: Tensor
) -> Restored:
    x, _ = search.images(prior, best, context)
    if levels is None:
        images = x
    else:
        x = x.clamp(MARGIN, levels - MARGIN)
        images = (x - 0.5).clamp(0, levels - 1)
    bits = -prior.log_prob(x, context) / (prior.dims * math.log(2))
    return Restored(images.detach(), bits, gain)
