"""Surjections: maps that forget a part of the data, and draw it again in the other direction.

``z = f(x)`` is a function of x, and what it leaves open has a density given z. By
``log p(x) = log p(z) + log p(x | z)`` the density through a surjection is exact, and no bound.
`forward` returns ``log p(x | z)`` as its log-det; `inverse` draws x from p(x | z), and returns
minus that number at the x drawn, so that ``f(x) = z`` and the log-dets of the two are opposite.

The density has its whole mass only if what follows is a density over the values that z can have:
numbers of at least 0 for `AbsoluteValue`, sorted vectors for `Sort`, integers for `Round`. Those of
`MaxPool` are all images.

A surjection inside an `Inverse` is turned round: it adds what it forgets, and makes the density a
lower bound. Tensor slicing, the other surjection of the paper, needs no class of its own: `Augment`
is the one direction, and a `MultiScale` that keeps some channels the other, which lists what is
sliced off among the latents and scores it under the same ``N(0, I)``.

Reference: Nielsen et al., SurVAE flows: surjections to bridge the gap between VAEs and flows
    (2020), section 3, arXiv:2007.02731.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape, Transform, constant, total
from mixerflow.registry import register
from mixerflow.transforms.layout import Squeeze

_HALF = 2.0**-25
"""Half of the distance of two uniform draws: the middle of what a draw stands for."""


def _uniform(like: Tensor, noise: Noise | None, stream: int) -> Tensor:
    """Draw uniform numbers in ``(0, 1)`` in float64, with the shape of `like`."""
    like = like.to(torch.float64)
    if noise is None:
        return torch.rand_like(like).clamp(_HALF, 1 - _HALF)
    return noise.uniform(like, stream) + _HALF


class _Surjection(Transform):
    """A transform that forgets: its inverse draws."""

    inverse_draws = True
    invertible = False


@register
class MaxPool(FixedShape, _Surjection):
    """The largest number of each cell of each channel: ``(C, *sides)`` to ``(C, *(sides / f))``.

    A cell has n places, ``f x f`` of them in images of two axes. The place of the largest number is
    uniform, and the others' distances from it are half-normal, ``d = |e|`` with ``e ~ N(0, 1)``:

    ``log p(x | z) = sum over cells of [-log n + sum over the others of log (2 N(d; 0, 1))]``

    If places tie, any of them may count as the largest: the density is the same.

    Args:
        shape: of the images, ``(C, *sides)`` with one to three sides.
        factor: side f of the cells, at least 2; it divides each side, else ValueError.
    """

    def __init__(self, shape: Shape, factor: int = 2) -> None:
        if type(factor) is not int or factor < 2:
            raise ValueError(f"MaxPool: factor must be a whole number from 2; got {factor!r}")
        cells = Squeeze(shape, factor)
        super().__init__(shape, (shape[0], *cells.latent_shape[1:]))
        self.factor, self.cells = factor, cells
        self.places = cells.latent_shape[0] // shape[0]
        each = 0.5 * (self.places - 1) * math.log(2 / math.pi) - math.log(self.places)
        self._constant = each * math.prod(self.latent_shape)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        members = self.cells(x)[0].unflatten(1, (self.shape[0], self.places))
        z = members.amax(2)
        # the largest number's own distance is 0, and adds nothing to the sum
        distances = z[:, :, None] - members
        return z, self._log_density(distances)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        wide = z[:, :, None].expand(-1, -1, self.places, *z.shape[2:])
        u = _uniform(wide, noise, self.stream)
        place = (u[:, :, :1] * self.places).long()
        # u of place 0 has chosen the largest number's place, whose own u goes to place 0
        distances = torch.special.ndtri(0.5 + 0.5 * u)
        distances = torch.cat([distances.gather(2, place), distances[:, :, 1:]], 2)
        distances = distances.scatter(2, place, 0.0).to(z.dtype)
        members = z[:, :, None] - distances
        return self.cells.inverse(members.flatten(1, 2))[0], -self._log_density(distances)

    def _log_density(self, distances: Tensor) -> Tensor:
        return constant(self._constant, distances) - 0.5 * total(distances.square())

    def extra_repr(self) -> str:
        return f"{self.shape}, factor={self.factor}"


@register
class AbsoluteValue(_Surjection):
    """``z = |x|``; the sign of each number is drawn: ``log p(x | z) = sum log p(sign | z)``.

    Args:
        net: maps z, and the context, to the logit of the probability that x is positive, of z's
            shape. None for signs of probability 1/2, ``log p(x | z) = -D log 2``: a density that is
            the same at x and -x, number by number.
    """

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z = x.abs()
        return z, self._log_density(self._logit(z, context), x >= 0, z)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        logit = self._logit(z, context)
        positive = _uniform(z, noise, self.stream) < (0.5 if logit is None else logit.sigmoid())
        positive = positive | (z == 0)  # as in `forward`
        return torch.where(positive, z, -z), -self._log_density(logit, positive, z)

    def _logit(self, z: Tensor, context: Context) -> Tensor | None:
        if self.net is None:
            return None
        logit = self.net(z, context).to(z.dtype)
        if logit.shape != z.shape:
            got = f"{tuple(logit.shape[1:])} for events {tuple(z.shape[1:])}"
            raise ValueError(f"AbsoluteValue: the net gives a logit for each number; got {got}")
        return logit

    def _log_density(self, logit: Tensor | None, positive: Tensor, z: Tensor) -> Tensor:
        if logit is None:
            return constant(-math.prod(z.shape[1:]) * math.log(2), z)
        return total(logsigmoid(torch.where(positive, logit, -logit)))


@register
class Sort(_Surjection):
    """Each line of an event along an axis in ascending order; its order is drawn uniformly.

    ``log p(x | z) = -log n!`` for each line of n numbers: a density that is the same for all orders
    of a line.

    Args:
        dim: axis of the event, 0 the first, -1 the last.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        if type(dim) is not int:
            raise ValueError(f"Sort: dim must be a whole number; got {dim!r}")
        self.dim = dim

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        axis, log_density = self._axis(tuple(x.shape[1:]))
        return x.sort(axis).values, constant(log_density, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        axis, log_density = self._axis(tuple(z.shape[1:]))
        order = _uniform(z, noise, self.stream).argsort(axis)
        return z.gather(axis, order), constant(-log_density, z)

    def _axis(self, shape: Shape) -> tuple[int, float]:
        """The axis of batches of events, and ``log p(x | z)``."""
        self.out_shape(shape)
        n = shape[self.dim]
        lines = math.prod(shape) // max(n, 1)
        return self.dim % len(shape) + 1, -lines * math.lgamma(n + 1)

    def out_shape(self, shape: Shape) -> Shape:
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"Sort: no axis {self.dim} in events of shape {tuple(shape)}")
        return shape

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


@register
class Round(_Surjection):
    """``z = floor(x)``; the rest ``x - z`` is uniform on ``[0, 1)``, so ``log p(x | z) = 0``.

    It makes a density of a probability of integers. Turned round it is uniform dequantisation, for
    which `Dequantize` checks pixels.
    """

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return x.floor(), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        x = z + _uniform(z, noise, self.stream).to(z.dtype)
        # beside large z the rest has few bits, and must not round up to 1
        return torch.minimum(x, torch.nextafter(z + 1, z)), constant(0.0, z)
