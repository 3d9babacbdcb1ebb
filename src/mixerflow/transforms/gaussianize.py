"""Gaussianisation: each feature through its own CDF, then through the normal quantile function."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Context, FixedShape, Mapped, Noise, total
from mixerflow.registry import register
from mixerflow.transforms.logistic import Mixture

_LOG_2 = math.log(2)
_ROOT = math.sqrt(0.5)


def _log_mills(z: Tensor) -> Tensor:
    """``log(Phi(-z) / phi(z))`` for z >= 0: the logarithm of Mills' ratio."""
    return torch.special.erfcx(z * _ROOT).log() + 0.5 * math.log(math.pi / 2)


def probit(log_tail: Tensor) -> Tensor:
    """The z >= 0 with ``log Phi(-z) = log_tail``, for log-probabilities up to ``log 1/2``.

    Newton's method starts from `torch.special.ndtri`, or from the tail's asymptotics where the
    probability underflows. Exact to rounding for all of the dtype's exponents. Larger
    log-probabilities give 0.
    """
    given = log_tail.detach().clamp(max=-_LOG_2)
    central = -torch.special.ndtri(given.clamp(min=-20).exp())
    double = -2 * given.clamp(max=-3)
    far = (double - (2 * math.pi * double).log()).sqrt()
    z = torch.where(given > -20, central, far)
    for _ in range(3):
        mills = _log_mills(z)
        # log Phi(-z) = log mills - z^2 / 2 - log(2 pi) / 2, and its slope is -1 / mills
        residual = mills - z * z / 2 - 0.5 * math.log(2 * math.pi) - given
        z = (z + residual * mills.exp()).clamp(min=0)
    return z - (log_tail - log_tail.detach()) * _log_mills(z).exp()  # adds 0, and the gradient


@register
class Gaussianize(FixedShape):
    """``z_i = Phi^-1(sum_k pi_ik sigmoid((x_i - mu_ik) / h_ik))`` for each feature i.

    Phi is the standard normal's CDF; each feature has its own mixture of K logistic distributions.
    With f a feature's mixture density, ``log|det dz/dx| = sum_i log f_i - log phi(z_i)``. Both are
    computed from the nearer tail's log-probability and hazard: z grows as the root of ``2 |x| / h``
    in the tails and stays finite and monotone where probabilities underflow.

    Starts near the identity: anchors mu at the standard normal's quantiles, bandwidths h half of
    the distance to the nearest other anchor; with 8 components z is within 0.05 of x for
    ``|x| <= 3``, within 0.16 for ``|x| <= 4``. `initialize` does the same with a batch's quantiles.
    Put a rotation, `Householder`, between two of these.

    Args:
        components: number K of anchors of a feature, at least 2.
        floor: least bandwidth that `initialize` sets, in the data's own unit.

    References:
        Meng et al., Gaussianization flows (2020), arXiv:2003.01941.
        Laparra et al., Iterative Gaussianization: from ICA to random rotations (2011),
        arXiv:1602.00229.

    Departs from the paper:
        The mixture's weights are trained, and anchors start at K quantiles, not at data points.
    """

    def __init__(self, n: int, components: int = 8, *, floor: float = 0.05) -> None:
        super().__init__(n)
        if components < 2:
            raise ValueError(f"Gaussianize: needs two components at least; got {components}")
        self.n, self.components, self.floor = n, components, floor
        self.logits = nn.Parameter(torch.zeros(components, n))
        self.anchors = nn.Parameter(torch.zeros(components, n))
        self.log_bandwidth = nn.Parameter(torch.zeros(components, n))
        start = torch.special.ndtri(self._probabilities()).to(self.anchors.dtype)
        self._set_anchors(start[:, None].expand(-1, n))

    def _probabilities(self) -> Float[Tensor, " k"]:
        """The middles of K equal parts of (0, 1); the anchors start at their quantiles."""
        return (torch.arange(self.components, dtype=torch.float64) + 0.5) / self.components

    @torch.no_grad()
    def _set_anchors(self, anchors: Float[Tensor, "k n"]) -> None:
        """Set all parameters by the anchors, sorted along the first axis."""
        gap = anchors.diff(dim=0)
        # to the nearer neighbour: an anchor beside a gap between modes must not fill the gap
        gap = torch.cat([gap[:1], torch.minimum(gap[1:], gap[:-1]), gap[-1:]])
        self.logits.zero_()
        self.anchors.copy_(anchors)
        self.log_bandwidth.copy_((gap / 2).clamp(min=self.floor).log())

    def _mixture(self) -> Mixture:
        return Mixture(*(p[:, None] for p in (self.logits, self.anchors, self.log_bandwidth)))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        tails = self._mixture().tails(x)
        upper = tails.log_above < tails.log_below
        z = probit(torch.where(upper, tails.log_above, tails.log_below))
        log_rate = torch.where(upper, tails.log_rate_above, tails.log_rate_below)
        return torch.where(upper, z, -z), total(log_rate + _log_mills(z))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        """Map to data; a `ConvergenceWarning` tells of x that are not the inverse to rounding."""
        self.check_latent(z)
        logit = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
        x = self._mixture().quantile(logit, self)
        return x, -self(x)[1]

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        self.check_data(x)
        if x.shape[0] == 0:
            raise ValueError("Gaussianize: cannot be initialised from an empty batch")
        values = x.sort(0).values
        # quantiles: fractional indices of sorted rows, linear between rows
        index = (self._probabilities() * len(x) - 0.5).clamp(0, len(x) - 1).to(x.device)
        low = index.floor().long()
        fraction = (index - low).to(x.dtype)[:, None]
        self._set_anchors(values[low].lerp(values[(low + 1).clamp(max=len(x) - 1)], fraction))
        return self(x, context)[0]

    def extra_repr(self) -> str:
        return f"{self.n}, components={self.components}"
