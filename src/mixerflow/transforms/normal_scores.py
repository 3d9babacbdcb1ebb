"""The normal scores of pixels: their values' own distribution made normal, once and for all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape
from mixerflow.precision import wide, without_autocast
from mixerflow.registry import register

_MARGIN = 2.0**-14
"""Probability that is left beyond either end, so that the scores stay finite: |z| < 3.9."""


@register
class NormalScores(FixedShape):
    """``z = Phi^-1(m + (1 - 2 m) F_c(x))``, F_c the distribution of channel c's dequantised values.

    F_c is piecewise linear: level k of a pixel, ``[k, k + 1)``, has its share p_k of the first
    batch's pixels in that channel, of all places; of the shares a part `smoothing` is spread evenly
    over the levels. So the map is exact for uniform noise: whatever level is frequent, such as the
    background's, becomes a wide range of z in place of a narrow spike, in which the density is
    smooth. m is 2^-14. ``log|det dz/dx| = sum log((1 - 2 m) p_k) - log phi(z)``. Nothing here is
    trained; until `initialize` all levels are alike. Computed in float64.

    Values outside of ``[0, levels)`` continue the line of the first or the last level: a latent
    beyond the scores of all pixels becomes a value outside the levels.

    Args:
        shape: ``(C, *spatial)``.
        levels: values that a pixel can have.
        smoothing: the part of the probability that all levels share, in (0, 1].

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
        seen = counts / level.shape[1]
        self.shares.copy_((1 - self.smoothing) * seen + self.smoothing / self.levels)
        return self(x, context)[0]

    def _level(self, x: Tensor) -> Tensor:
        return x.detach().floor().clamp(0, self.levels - 1).long()

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
            level = self._level(x)
            below, above = (self._at(each, level) for each in self._ends())
            share, inside = self._at(self.shares.double(), level), x.double() - level
            # from the nearer end, whose probability is exact
            low = (below + share * inside) * (1 - 2 * _MARGIN) + _MARGIN
            high = (above + share * (1 - inside)) * (1 - 2 * _MARGIN) + _MARGIN
            upper = high < low
            tail = torch.where(upper, high, low).clamp(min=1e-300)
            z = torch.special.ndtri(tail)
            slope = (share * (1 - 2 * _MARGIN)).log() + (z.square() + math.log(2 * math.pi)) / 2
            return torch.where(upper, -z, z), slope

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, slope = self._score(x)
        return z.to(x.dtype), slope.flatten(1).sum(1).to(wide(x.dtype))

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, slope = self._score(x)
        return z.to(x.dtype), slope.flatten(2).sum(1).to(wide(x.dtype))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        with without_autocast(z):
            wanted = (torch.special.ndtr(z.double()) - _MARGIN) / (1 - 2 * _MARGIN)
            below, above = self._ends()
            ordered = wanted.movedim(1, 0).flatten(1).contiguous()
            found = torch.searchsorted(below, ordered, right=True) - 1
            level = found.view(len(below), len(z), *self.shape[1:]).movedim(0, 1)
            level = level.clamp(min=0)
            share = self._at(self.shares.double(), level)
            from_top = (torch.special.ndtr(-z.double()) - _MARGIN) / (1 - 2 * _MARGIN)
            low = (wanted - self._at(below, level)) / share
            high = 1 - (from_top - self._at(above, level)) / share
            x = level + torch.where(z > 0, high, low)
        x = x.to(z.dtype)
        return x, -self(x)[1]

    def extra_repr(self) -> str:
        return f"{self.shape}, levels={self.levels}, smoothing={self.smoothing:g}"
