"""The normal scores of pixels: their values' own distribution made normal, once and for all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape
from mixerflow.precision import wide, without_autocast
from mixerflow.registry import register

_MARGIN = 2.0**-14
"""Probability that is left beyond either end, so that the scores stay finite."""
_FURTHEST = -float(torch.special.ndtri(torch.tensor(_MARGIN, dtype=torch.float64)))
"""The score of the upper end of the levels, 3.84; that of the lower end is as far from 0."""


@register
class NormalScores(FixedShape):
    """``z = Phi^-1(m + (1 - 2 m) F_c(x))``, F_c the distribution of channel c's dequantised values.

    F_c is piecewise linear: level k of a pixel, ``[k, k + 1)``, has its share p_k of the first
    batch's pixels in that channel, of all places; of the shares a part `smoothing` is spread evenly
    over the levels. So the map is exact for uniform noise: whatever level is frequent, such as the
    background's, becomes a wide range of z in place of a narrow spike, in which the density is
    smooth. m is 2^-14. ``log|det dz/dx| = sum log((1 - 2 m) p_k) - log phi(z)``. Nothing here is
    trained; until `initialize` all levels are alike. Computed in float64.

    Outside of ``[0, levels]`` the map goes on as a line of the slope that it has there: a latent
    beyond the scores of all pixels becomes a value outside the levels, and the density integrates
    to one. Of a few values, fewer than there are levels, the histogram counts little: the part that
    all levels share is then ``levels / (levels + values)``.

    Args:
        shape: ``(C, *spatial)``.
        levels: values that a pixel can have.
        smoothing: the least part of the probability that all levels share, in (0, 1].

    Reference: Chen, Gopinath, Gaussianization (2000), section 2: marginal Gaussianization; here
        once, at the pixels, from a histogram.
    """

    shares: Tensor

    def __init__(self, shape: Shape, levels: int = 256, *, smoothing: float = 0.01) -> None:
        super().__init__(shape)
        if not 2 <= levels <= 2**16:
            raise ValueError(f"NormalScores: levels must be 2 to 65536; got {levels}")
        if not 0 < smoothing <= 1:
            raise ValueError(f"NormalScores: smoothing must be in (0, 1]; got {smoothing}")
        self.levels, self.smoothing = levels, smoothing
        even = torch.full((self.shape[0], levels), 1 / levels, dtype=torch.float64)
        self.register_buffer("shares", even)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        self.check_data(x)
        if len(x) == 0:
            raise ValueError("NormalScores: cannot be initialised from an empty batch")
        level = self._level(x).movedim(1, 0).flatten(1)
        counts = torch.stack([each.bincount(minlength=self.levels) for each in level]).double()
        smoothing = max(self.smoothing, self.levels / (self.levels + level.shape[1]))
        seen = counts / level.shape[1]
        self.shares.copy_((1 - smoothing) * seen + smoothing / self.levels)
        return self(x, context)[0]

    def _level(self, x: Tensor) -> Tensor:
        """The level of each number; the nearest of those outside, and any of NaN."""
        return x.detach().nan_to_num().floor().clamp(0, self.levels - 1).long()

    def _ends(self) -> tuple[Tensor, Tensor]:
        """For each channel and level, the probabilities below it and above it, ``(C, levels)``."""
        shares = self.shares.double()
        return shares.cumsum(1) - shares, shares.flip(1).cumsum(1).flip(1) - shares

    def _at(self, table: Tensor, level: Tensor) -> Tensor:
        """Each channel's entry of a table ``(C, levels)`` at the levels ``(B, C, *spatial)``."""
        first = torch.arange(len(table), device=table.device) * self.levels
        return table.flatten()[level + first.view(-1, *(1,) * (level.dim() - 2))]

    def _score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Z and ``log dz/dx`` of each number, in float64."""
        self.check_data(x)
        with without_autocast(x):
            given = x.double()
            within = given.clamp(0, self.levels)
            level = self._level(x)
            below, above = (self._at(each, level) for each in self._ends())
            share, inside = self._at(self.shares.double(), level), within - level
            # from the nearer end, whose probability is exact
            low = (below + share * inside) * (1 - 2 * _MARGIN) + _MARGIN
            high = (above + share * (1 - inside)) * (1 - 2 * _MARGIN) + _MARGIN
            upper = high < low
            z = torch.special.ndtri(torch.where(upper, high, low))
            log_slope = _log_slope(share, z)
            z = torch.where(upper, -z, z)
            return z + (given - within) * log_slope.exp(), log_slope

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_slope = self._score(x)
        return z.to(x.dtype), log_slope.flatten(1).sum(1).to(wide(x.dtype))

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_slope = self._score(x)
        return z.to(x.dtype), log_slope.flatten(2).sum(1).to(wide(x.dtype))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        with without_autocast(z):
            given = z.double()
            within = given.clamp(-_FURTHEST, _FURTHEST)
            under, over = (
                (torch.special.ndtr(each) - _MARGIN) / (1 - 2 * _MARGIN)
                for each in (within, -within)
            )
            below, above = self._ends()
            # of each channel's numbers, the last level that begins below
            ordered = under.movedim(1, 0).flatten(1).contiguous()
            found = torch.searchsorted(below, ordered, right=True).sub(1).clamp(0, self.levels - 1)
            level = found.reshape(len(below), -1, *self.shape[1:]).movedim(0, 1)
            share = self._at(self.shares.double(), level)
            low = (under - self._at(below, level)) / share
            high = 1 - (over - self._at(above, level)) / share
            log_slope = _log_slope(share, within)
            x = level + torch.where(within > 0, high, low)
            x = x + (given - within) * (-log_slope).exp()
            return x.to(z.dtype), -log_slope.flatten(1).sum(1).to(wide(z.dtype))

    def extra_repr(self) -> str:
        return f"{self.shape}, levels={self.levels}, smoothing={self.smoothing:g}"


def _log_slope(share: Tensor, z: Tensor) -> Tensor:
    """``log dz/dx`` at the score z, in a level of that share."""
    return (share * (1 - 2 * _MARGIN)).log() + (z.square() + math.log(2 * math.pi)) / 2
