"""Monotone rational-quadratic splines, which bend a density where an affine map cannot."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise

_FLOOR = 1e-3
"""Least share of the interval that a bin has, and least derivative at a knot."""

_STEEPEST = 1e4
"""Largest derivative at a knot: squares of it are summed."""


@register("spline")
@dataclass(frozen=True)
class RationalQuadratic(Elementwise):
    """A monotone rational-quadratic spline on ``[-tail, tail]``, the identity outside.

    In a bin of width w and height h, with slope ``s = h / w``, derivatives d_0 and d_1 at its
    knots, ``t = (x - x_k) / w`` and ``q = 1 - t``::

        z  = y_k + h (t + t q ((d_0 - s) q - (d_1 - s) t) / D)
        D  = s (1 - 2 t q) + (d_0 + d_1) t q
        z' = s^2 (d_1 t^2 + 2 s t q + d_0 q^2) / D^2

    which is the paper's fraction with its straight line taken out: all-zero raw parameters give
    back x itself and a log-derivative of 0, bit for bit. Raw parameters are K widths, K heights
    and K - 1 derivatives at the inner knots; the derivatives at the two ends are 1, as the tails'.

    Reference: Durkan et al., Neural spline flows (2019), arXiv:1906.04032.

    Departs from the paper:
        Derivatives are ``1e-3 + 0.999 log2(1 + 2^raw)``, which is 1 at 0, and at most 10^4. The
        inverse's quadratic equation is solved by sums of positive terms only: nothing cancels, and
        its discriminant cannot become negative.
    """

    bins: int = 4
    """Number K of bins, 2 to 999: the least widths must not fill the interval."""
    tail: float = 3.0
    """Half the length of the interval; positive."""

    def __post_init__(self) -> None:
        most = 1 / _FLOOR - 1
        if not 2 <= self.bins <= most:
            raise ValueError(f"RationalQuadratic: bins must be 2..{most:g}; got {self.bins}")
        if not 0 < self.tail < math.inf:
            what = f"tail must be positive and finite; got {self.tail}"
            raise ValueError(f"RationalQuadratic: {what}")

    @property
    def params(self) -> int:
        return 3 * self.bins - 1

    def knots(self, raw: Tensor) -> Tensor:
        """The K + 1 knots' x, z and derivatives: ``(3, K + 1, *shape)``."""
        k, shape = self.bins, raw.shape[1:]
        share = raw[: 2 * k].unflatten(0, (2, k)).softmax(1)[:, :-1].cumsum(1)
        # measured from the middle: the interval's halves are equally exact
        least = torch.arange(1, k, dtype=raw.dtype, device=raw.device) * _FLOOR - 0.5
        places = (least.view(-1, *[1] * len(shape)) + (1 - k * _FLOOR) * share) * (2 * self.tail)
        slope = _FLOOR + (1 - _FLOOR) * nn.functional.softplus(raw[2 * k :], beta=math.log(2))
        slope = slope.clamp(max=_STEEPEST)
        inner = torch.cat([places, slope[None]])
        one = torch.ones_like(inner[:, :1])
        ends = torch.stack([-self.tail * one[:2], self.tail * one[:2]])
        first, last = (torch.cat([end, one[2:]]) for end in ends)
        return torch.cat([first, inner, last], 1)

    def _bin(self, x: Tensor, raw: Tensor, axis: int) -> tuple[Tensor, ...]:
        """x_k, y_k, w, h, d_0 and d_1 of each element's bin, found by the knots' `axis` (0: x)."""
        knots = self.knots(raw)
        number = (x >= knots[axis, 1:-1]).sum(0)
        index = torch.stack([number, number + 1]).expand(3, 2, *x.shape)
        (x0, x1), (y0, y1), (d0, d1) = (pair.unbind() for pair in knots.gather(1, index))
        return x0, y0, x1 - x0, y1 - y0, d0, d1

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        inside, clipped = self._inside(x)
        x0, y0, w, h, d0, d1 = self._bin(clipped, raw, 0)
        t, s = ((clipped - x0) / w).clamp(0, 1), h / w
        q = 1 - t
        bend = t * q * ((d0 - s) * q - (d1 - s) * t) / _denominator(t, q, s, d0, d1)
        added = (y0 - x0) + (h - w) * t + h * bend
        log_slope = _log_slope(t, q, s, d0, d1)
        return x + added.where(inside, 0.0), log_slope.where(inside, 0.0)

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse and its log-derivative.

        With ``v = (z - y_k) / h`` and ``g = d_0 (1 - v) - d_1 v``, t is ``a / (a + r + g)`` for
        ``a = 2 s v``, ``b = 2 s (1 - v)`` and ``r = sqrt(g^2 + a b)``; the smaller one of r + g and
        r - g comes from ``(r + g) (r - g) = a b``, without a difference.
        """
        inside, clipped = self._inside(z)
        x0, y0, w, h, d0, d1 = self._bin(clipped, raw, 1)
        v, s = ((clipped - y0) / h).clamp(0, 1), h / w
        u = 1 - v
        a, b, g = 2 * s * v, 2 * s * u, d0 * u - d1 * v
        large = (g * g + a * b).sqrt() + torch.where(g >= 0, g, -g)  # abs has no slope at 0
        small = a * b / large
        plus, minus = torch.where(g >= 0, large, small), torch.where(g >= 0, small, large)
        t = a / (a + plus)
        bend = 2 * a * u * ((s - d0) * u - (s - d1) * v) / ((a + plus) * (b + minus))
        added = (x0 - y0) + (w - h) * v + w * bend
        log_slope = _log_slope(t, 1 - t, s, d0, d1)
        return z + added.where(inside, 0.0), -log_slope.where(inside, 0.0)

    def _inside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mask of the values inside the interval, and x clipped to the interval."""
        # gradients of unused results count: 0 times infinity is NaN, so far values are clipped
        return x.abs() < self.tail, x.clamp(-self.tail, self.tail)


def _denominator(t: Tensor, q: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    return s * (1 - 2 * t * q) + (d0 + d1) * (t * q)


def _log_slope(t: Tensor, q: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """``log z'`` in sums of positive terms, grouped so that all ones make exactly 1."""
    top = (d1 * t + s * q) * t + (s * t + d0 * q) * q
    return 2 * (s / _denominator(t, q, s, d0, d1)).log() + top.log()
