"""Power series of a log-determinant, estimated without bias from a finite number of terms.

``log det f(J) = sum_k a_k tr(J^k)`` for a Jacobian J of norm below 1. With K terms in every draw, a
random number N of further ones and a probe v of independent signs,

    sum_k a_k w_k v^T J^k v,    w_k = 1[k <= K + N] / P(K + N >= k),

has that expectation. Its gradient's is ``sum_k k a_k tr(J^(k-1) dJ)``, of which

    v^T dJ q,    q = sum_k k a_k w_k J^(k-1) v,

is an estimate without bias: one differentiated product in place of all (Neumann's series).

References:
    Chen et al., Residual flows (2019), eq. 6 and 8, arXiv:1906.02735.
    Kahn, Use of different Monte Carlo sampling techniques (1955).

Departs from the papers:
    - signs instead of normal probes: less variance, none where n is 1;
    - the value given with Neumann's gradient is the likelihood's, not the surrogate's, and the
      product that carries the gradient is the value's last term: it costs no pass of its own;
    - the gradient has the terms of the value, one fewer than the released code's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mixerflow.registry import register

Product = Callable[[Tensor], Tensor]
"""``t -> J t``, or ``t -> J^T t``, of tensors ``(B, *event)``."""
_STEP = 2.0**-24
"""Uniform draws are multiples of this."""


class Tail:
    """The distribution of N, the number of further terms.

    Draws have 24 bits: probabilities are rounded down to multiples of 2^-24, so that weights are
    those of what is drawn, and N ends where they are 0.
    """

    def survival(self, j: int) -> float:
        """``P(N >= j)``."""
        raise NotImplementedError

    def probabilities(self) -> list[float]:
        """``P(N >= 1), P(N >= 2), ...`` until they are 0."""
        found: list[float] = []
        while rounded := math.floor(self.survival(len(found) + 1) / _STEP) * _STEP:
            found.append(rounded)
        return found

    def further(self, uniform: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """N for each uniform number in [0, 1)."""
        limits = torch.tensor(self.probabilities(), dtype=torch.float64, device=uniform.device)
        return ((1 - uniform.double())[..., None] <= limits).sum(-1)


@register("geometric")
@dataclass(frozen=True)
class GeometricTail(Tail):
    """N ends at each further term with the same probability."""

    stop: float = 0.5
    """That probability."""

    def __post_init__(self) -> None:
        if not 0 < self.stop < 1:
            raise ValueError(f"GeometricTail: stop between 0 and 1; got {self.stop}")

    def survival(self, j: int) -> float:
        return (1 - self.stop) ** j


@register("poisson")
@dataclass(frozen=True)
class PoissonTail(Tail):
    """N has a Poisson distribution: terms far out are rarer than a geometric tail's."""

    mean: float = 2.0
    """Its mean."""

    def __post_init__(self) -> None:
        if not 0 < self.mean <= 100:
            what = f"mean more than 0 and at most 100; got {self.mean}"
            raise ValueError(f"PoissonTail: {what}")

    def survival(self, j: int) -> float:
        # the terms from j on, not 1 minus those before, which would round to multiples of 1e-16
        term = math.exp(j * math.log(self.mean) - self.mean - math.lgamma(j + 1))
        whole, k = 0.0, j
        while term > 1e-20 or k < self.mean:
            whole, k = whole + term, k + 1
            term *= self.mean / k
        return whole


def estimate(
    product: Product,
    probe: Float[Tensor, "batch *event"],
    coefficient: Callable[[int], float],
    *,
    terms: int,
    tail: Tail | None = None,
    further: Tensor | None = None,
) -> Float[Tensor, " batch"]:
    """Return the series' estimate, whose gradient is Neumann's.

    The product that carries the gradient is also the value's last term where all rows have the
    same N. Where each has its own, no row's value may depend on the others' N, not by a rounding:
    there is one pass more.

    Args:
        product: products with the Jacobian, that can be differentiated once.
        probe: v, signs.
        coefficient: ``a_k``, for k from 1.
        terms: K.
        tail: distribution of N; None for the first K terms alone, which are biased.
        further: N of all rows ``()``, or of each ``(B,)``, which `tail` drew.
    """
    probabilities = [1.0] * terms + (tail.probabilities() if tail is not None else [])
    further = torch.zeros((), device=probe.device) if further is None else further
    if torch.compiler.is_compiling() and tail is not None:
        last = len(probabilities)
    else:
        last = terms + int(further.max()) if further.numel() else terms
    shared = further.dim() == 0

    def weight(k: int) -> Tensor:
        """``k a_k w_k``, one for each row."""
        present = further >= k - terms
        return (present * (k * coefficient(k) / probabilities[k - 1])).to(probe.dtype)

    def by_row(of: Tensor) -> Tensor:
        return of.view(-1, *[1] * (probe.dim() - 1))

    live = torch.is_grad_enabled()
    with torch.no_grad():
        power, mixed = probe, by_row(weight(1)) * probe
        whole = known = probe.new_zeros(len(probe))
        for k in range(1, last + (not (shared and live))):
            power = product(power)
            term = weight(k) * (power * probe).flatten(1).sum(1)
            whole, known = whole + term / k, known + term
            if live and k < last:
                mixed = torch.addcmul(mixed, by_row(weight(k + 1)), power)
    if not live:
        return whole
    carried = (product(mixed) * probe).flatten(1).sum(1)  # the sum of all terms times k
    value = carried.detach()
    if shared:
        whole = whole + (value - known) / last
    return whole + (carried - value)
