"""Mixtures of logistic distributions: their CDF in log space, and the logit of the CDF as a map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixerflow.core import monotone_root, report
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise

_CEILING = 16.0
"""Largest log-scale: the density of a component that is much wider underflows."""


@register("logistic")
@dataclass(frozen=True)
class LogisticMixture(Elementwise):
    """``z = logit(F(x)) * exp(a) + b``, with F the CDF of a mixture of K logistic distributions.

    ``F(x) = sum_k pi_k sigmoid((x - mu_k) / s_k)``; one logistic with location 0 and scale 1 has
    ``logit F(x) = x``, and so have all-zero raw parameters: r_a, r_b and K each of logits, means
    and log-scales. ``a = tanh(r_a)``. Everything is computed from ``log F`` and ``log(1 - F)``, so
    that far tails, where z is linear in x, stay finite.

    The inverse is found by Newton's steps inside a bracket: F lies between the least and the
    greatest of its components, whose inverses are closed forms.

    Reference: Ho et al., Flow++ (2019), arXiv:1902.00275.

    Departs from the paper:
        The k-th mean and log-scale are the raw ones times a gain between 1/2 and 3/2. Without
        gains, components that start alike get proportional gradients, and stay alike behind a
        zero-initialised last layer; with gains they part, and zero is still the identity.
    """

    components: int = 8
    """Number K of logistic distributions, at least 1."""
    _: KW_ONLY
    floor: float = -7.0
    """Least log-scale."""

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"LogisticMixture: needs a component at least; got {self.components}")

    @property
    def params(self) -> int:
        return 3 * self.components + 2

    def _read(self, raw: Tensor) -> tuple[Tensor, Tensor, Mixture]:
        k = self.components
        gain = torch.linspace(0.5, 1.5, k, dtype=raw.dtype, device=raw.device)
        logits, mean, log_scale = raw[2:].unflatten(0, (3, k)).unbind()
        gain = gain.view(-1, *[1] * (raw.dim() - 1))
        log_scale = (gain.flip(0) * log_scale).clamp(self.floor, _CEILING)
        return raw[0].tanh(), raw[1], Mixture(logits, gain * mean, log_scale)

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift, mixture = self._read(raw)
        logit, log_slope = mixture.logit(x)
        return logit * log_scale.exp() + shift, log_slope + log_scale

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Invert; a `ConvergenceWarning` tells of x that are not the inverse to rounding."""
        log_scale, shift, mixture = self._read(raw)
        x = mixture.quantile((z - shift) * (-log_scale).exp(), self)
        return x, -mixture.logit(x)[1] - log_scale


class Tails(NamedTuple):
    """``log F``, ``log(1 - F)``, and ``log(f / F)`` and ``log(f / (1 - F))`` of a CDF F, density f.

    The last one is the log-hazard.
    """

    log_below: Tensor
    log_above: Tensor
    log_rate_below: Tensor
    log_rate_above: Tensor


class Mixture(NamedTuple):
    """A mixture of logistic distributions an element, components on the first axis ``(K, ...)``."""

    logits: Tensor
    mean: Tensor
    log_scale: Tensor

    def tails(self, x: Tensor) -> Tails:
        """The mixture's tails at x ``(...)``.

        With weights ``w_k`` proportional to ``pi_k (1 - F_k)``, ``f / (1 - F)`` is the mean of the
        components' hazards ``F_k / s_k``: no difference of large logarithms. It is in logarithms
        because it underflows between components that are far apart.
        """
        log_weight, shrink = self.logits.log_softmax(0), (-self.log_scale).exp()
        u = (x - self.mean) * shrink
        log_below, log_above = logsigmoid(u), logsigmoid(-u)
        below, above = log_weight + log_below, log_weight + log_above
        return Tails(
            below.logsumexp(0),
            above.logsumexp(0),
            (below.log_softmax(0) + log_above - self.log_scale).logsumexp(0),
            (above.log_softmax(0) + log_below - self.log_scale).logsumexp(0),
        )

    def logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``log F - log(1 - F)`` at x, and its log-derivative ``log(f / F + f / (1 - F))``."""
        tails = self.tails(x)
        log_slope = torch.logaddexp(tails.log_rate_below, tails.log_rate_above)
        return tails.log_below - tails.log_above, log_slope

    def search(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return `logit` for many calls: several times as fast, as exact for a search.

        With U = 1 - F, which is a sum too, the slope is ``f / (F U)``. Where F, U or f are so small
        that they could underflow, it is `logit` itself.
        """
        weight, shrink = self.logits.softmax(0), (-self.log_scale).exp()
        slope = weight * shrink
        least = torch.finfo(weight.dtype).tiny ** 0.5

        def value(x: Tensor) -> tuple[Tensor, Tensor]:
            u = (x - self.mean) * shrink
            low, high = u.sigmoid(), (-u).sigmoid()
            below, above = (weight * low).sum(0), (weight * high).sum(0)
            density = (slope * low * high).sum(0)
            log_below, log_above = below.log(), above.log()
            logit, log_slope = log_below - log_above, density.log() - log_below - log_above
            far = torch.minimum(torch.minimum(below, above), density) < least
            if far.any():
                exact = self.logit(x)
                logit = torch.where(far, exact[0], logit)
                log_slope = torch.where(far, exact[1], log_slope)
            return logit, log_slope

        return value

    def quantile(self, logit: Tensor, transform: object) -> Tensor:
        """Solve ``logit F(x) = logit`` for x; a warning names `transform`.

        Gradients are the derivatives of the equation's solution, not of the search.
        """
        tolerance = 1e-12 if logit.dtype == torch.float64 else 1e-6
        target, mixture = logit.detach(), Mixture(*(part.detach() for part in self))
        each = mixture.mean + mixture.log_scale.exp() * target
        search = mixture.search()
        x, error = monotone_root(
            search, target, each.amin(0), each.amax(0), tolerance=tolerance, most=200
        )
        report(transform, error, tolerance, "look for values that are not finite, or use float64")
        if not torch.is_grad_enabled():
            return x
        value, log_slope = self.logit(x)
        gap = value - logit
        return x - (gap - gap.detach()) * (-log_slope.detach()).exp()
