"""The posterior over the classes of a class-conditional flow."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, as_tensor, evaluating
from mixerflow.errors import ConfigError

_ROUNDING = 1e-6


@torch.no_grad()
def class_log_probs(
    flow: Flow,
    x: Tensor | np.ndarray,
    prior: Tensor | np.ndarray | None = None,
    *,
    seed: int = 0,
    batch: int = 128,
) -> Float[Tensor, "images classes"]:
    """Return ``log p(k | x)`` ``(N, K)`` float64 of images, in nats, in eval mode, by Bayes' rule.

    ``log p(k | x) = log p(x | k) + log p(k) - log sum_j exp(log p(x | j) + log p(j))``

    It takes K passes. Noise, of dequantisation for example, is a function of `seed` and of the
    image's own pixels, as in `mixerflow.bits`, and the same for all classes: the result is the
    posterior given the noisy image. Where the flow's density is a lower bound or an estimate, so is
    each ``log p(x | k)``, and the posterior is approximate.

    Args:
        flow: a class-conditional flow.
        x: images ``(N, *shape)``, integers as the flow's levels say or floats.
        prior: probabilities ``p(k)`` ``(K,)``, at least 0, whose sum is 1; equal ones by default.
        seed: seed of the noise.
        batch: images at a time.

    Raises:
        ConfigError: a flow without classes, a prior that is no distribution over them, or a batch
            below 1.
        ValueError: images of the wrong shape or range.
    """
    if not isinstance(flow.context_net, nn.Embedding):
        remedy = "give a flow that was built with classes"
        raise ConfigError("the flow has no classes", "class_log_probs", remedy)
    if batch < 1:
        raise ConfigError(f"{batch} images at a time", "batch", "give at least 1")
    count = flow.context_net.num_embeddings
    log_prior = _log_prior(prior, count).to(flow.device)
    images, rows = as_tensor(x), []
    with evaluating(flow) as scored:
        for start in range(0, max(len(images), 1), batch):
            part = images[start : start + batch]
            noise, part = Noise.of(seed, part), part.to(flow.device)
            classes = torch.arange(count).unsqueeze(1).expand(count, len(part))
            each = [scored.log_prob(part, labels, noise).double() for labels in classes]
            rows.append((torch.stack(each, 1) + log_prior).log_softmax(1))
    return torch.cat(rows)


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
