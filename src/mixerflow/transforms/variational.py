"""Variational dequantisation: noise that is learned, in place of uniform noise on pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, expect, total
from mixerflow.registry import register
from mixerflow.transforms.augment import draw_normal, require_exact
from mixerflow.transforms.dequantize import Dequantize

_LEAST = 2.0**-24
"""Lowest noise, which keeps ``x + u`` above 0 for transforms that take a logarithm of it."""


@register
class VariationalDequantize(Dequantize):
    """``z = x + u``, u in ``(0, 1)`` from q(u | x), a flow: ``u = sigmoid(t(e; net(x)))``.

    With ``e ~ N(0, I)`` the log-det is ``-log q(u | x) = log|det dt/de| + sum log u (1 - u) - log
    N(e; 0, I)``, so that ``E [log p(x + u) - log q(u | x)]`` bounds ``log P(x)`` from below, more
    tightly than uniform noise does, whose q is 1. The inverse is the floor. As with uniform noise,
    the density that a flow has behind it is exact: it is that of ``x + u``.

    In float32, x + u has 24 bits: u is kept below the next level, and is rounded to 2^-8 for pixels
    of 16 bits, whose q is then that of the number before rounding.

    Args:
        shape: of the images, ``(C, *spatial)``.
        net: maps images scaled to ``[-1, 1]`` to the context of `transform`.
        transform: invertible, with an exact density, from normal noise of `noise_shape` to events
            of `shape`.
        noise_shape: shape of the noise e.
        levels: number of values a pixel can have.

    Reference: Ho et al., Flow++ (2019), section 3.1, eq. 11 to 14, arXiv:1902.00275.
    """

    dequantization = "variational"

    def __init__(
        self,
        shape: Shape,
        net: nn.Module,
        transform: Transform,
        noise_shape: Shape,
        levels: int = 256,
    ) -> None:
        super().__init__(levels)
        self.shape, self.noise_shape = tuple(shape), tuple(noise_shape)
        expect(self, transform.out_shape(self.noise_shape), self.shape)
        require_exact(self, transform)
        self.net, self.transform = net, transform
        # x + u must stay below x + 1 in float32, whose last bits a high level takes
        self.highest = 1 - 2.0 ** -(24 - math.ceil(math.log2(levels)))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), self.shape)
        values = self.integers(x)
        like = values.new_empty(len(values), *self.noise_shape)
        e, normal_term = draw_normal(like, noise, self.stream)
        logit, log_det = self.transform(e, self._features(values))
        log_slope = logsigmoid(logit) + logsigmoid(-logit)
        u = logit.sigmoid().clamp(_LEAST, self.highest)
        return values + u, normal_term + log_det + total(log_slope)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), self.shape)
        return super().inverse(z, context, noise)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, self.shape)
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        """Initialise the noise's flow, where it has norms that start from data."""
        values = self.integers(x)
        e, _ = draw_normal(values.new_empty(len(values), *self.noise_shape), None, self.stream)
        self.transform.initialize(e, self._features(values))
        return self(x, context)[0]

    def _features(self, values: Tensor) -> Tensor:
        return self.net(values * (2 / (self.levels - 1)) - 1)

    def extra_repr(self) -> str:
        return f"{self.shape}, {super().extra_repr()}"
