"""The posterior over the classes: of a head, of a Gaussian for each, or by Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, as_tensor, evaluating
from mixerflow.errors import ConfigError

_ROUNDING = 1e-6


def class_count(flow: Flow) -> int:
    """Return the number of classes that a flow tells, K.

    Raises:
        ConfigError: a flow with neither a head nor classes.
    """
    if flow.classifies:
        z = torch.zeros(1, math.prod(flow.latent_shape), dtype=flow.dtype, device=flow.device)
        with torch.no_grad(), evaluating(flow) as still:
            return still.logits(z).shape[1]
    if isinstance(flow.context_net, nn.Embedding):
        return flow.context_net.num_embeddings
    what = "this flow tells no classes: it has no head and no classes"
    raise ConfigError(what, "classify", "train with --objective hybrid, or with --model.classes")


def class_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the names of `count` classes; their numbers where there are not as many names."""
    return tuple(names) if len(names) == count else tuple(map(str, range(count)))


@torch.no_grad()
def class_log_probs(
    flow: Flow,
    x: Tensor | np.ndarray,
    prior: Tensor | np.ndarray | None = None,
    *,
    seed: int = 0,
    batch: int = 128,
) -> Float[Tensor, "images classes"]:
    """Return ``log p(k | x)`` ``(N, K)`` float64 of images, in nats, in eval mode.

    A flow with a head, or with a Gaussian of the latents for each class, tells it in one pass. For
    a class-conditional flow it is Bayes' rule, in K passes:

    ``log p(k | x) = log p(x | k) + log p(k) - log sum_j exp(log p(x | j) + log p(j))``

    Noise, of dequantisation for example, is a function of `seed` and of the
    image's own pixels, as in `mixerflow.bits`, and the same for all classes: the result is the
    posterior given the noisy image. Where the flow's density is a lower bound or an estimate, so is
    each ``log p(x | k)``, and the posterior is approximate.

    Args:
        flow: a flow with a head, with a Gaussian for each class, or class-conditional.
        x: images ``(N, *shape)``, integers as the flow's levels say or floats.
        prior: of a class-conditional flow, probabilities ``p(k)`` ``(K,)``, at least 0, whose sum
            is 1; equal ones by default.
        seed: seed of the noise.
        batch: images at a time.

    Raises:
        ConfigError: a flow without classes, a prior that is no distribution over them, a prior for
            a head, which has learned its own, or a batch below 1.
        ValueError: images of the wrong shape or range.
    """
    count = class_count(flow)
    if batch < 1:
        raise ConfigError(f"{batch} images at a time", "batch", "give at least 1")
    if flow.classifies and prior is not None:
        what = "a head has learned how frequent classes are"
        raise ConfigError(what, "prior", "leave it out, or give a class-conditional flow")
    log_prior = _log_prior(prior, count).to(flow.device)
    images, rows = as_tensor(x), []
    with evaluating(flow) as scored:
        for start in range(0, max(len(images), 1), batch):
            part = images[start : start + batch]
            noise, part = Noise.of(seed, part), part.to(flow.device)
            scores = _scores(scored, part, noise, count)
            rows.append((scores.double() + log_prior).log_softmax(1))
    return torch.cat(rows)


def _scores(flow: Flow, x: Tensor, noise: Noise, count: int) -> Tensor:
    """Return ``log p(x | k)``, or what differs from ``log p(k | x)`` by a constant, ``(B, K)``."""
    if flow.classifies:
        return flow.logits(flow(x, None, noise).z)
    classes = torch.arange(count).unsqueeze(1).expand(count, len(x))
    return torch.stack([flow.log_prob(x, labels, noise).double() for labels in classes], 1)


def _log_prior(prior: Tensor | np.ndarray | None, count: int) -> Tensor:
    """Return the logarithms of a prior's probabilities ``(K,)`` float64."""
    if prior is None:
        return torch.zeros(count, dtype=torch.float64)
    given = as_tensor(prior).double()
    if given.shape != (count,):
        what = f"a prior of shape {tuple(given.shape)} over {count} classes"
        raise ConfigError(what, "prior", f"give one probability for each class, ({count},)")
    if not bool((given >= 0).all()) or not abs(float(given.sum()) - 1) <= _ROUNDING:
        what = f"a prior that sums to {float(given.sum()):g}, its smallest entry {given.min():g}"
        raise ConfigError(what, "prior", "give probabilities of at least 0 whose sum is 1")
    return given.log()
