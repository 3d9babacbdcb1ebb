"""Linear maps and convolutions whose norm in the 2-norm is bounded, whatever their weights.

Each map is divided by an upper bound of its spectral norm, computed from its present weight.

Reference: Delattre et al., Efficient bound of Lipschitz constant for convolutional layers by Gram
    iteration (2023), algorithm 1, arXiv:2305.16173.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, linear

from mixerflow.nets.conv import convolution
from mixerflow.precision import widen, without_autocast
from mixerflow.units import unit_of

_TINY = 1e-18
"""Lower bound of the norms in divisions; its square is still a float32."""
_CONVOLVE = (linear, conv1d, conv2d, conv3d)
"""The function that applies a weight, by its number of spatial axes."""


def _root_of_largest(gram: Tensor, squarings: int) -> Tensor:
    """``(sum_i l_i^p)^(1/(2p)) >= max_i l_i^(1/2)``, ``p = 2^(squarings + 1)``, of each matrix.

    Matrices ``(*, n, n)`` are Hermitian, with eigenvalues l of 0 or more; the result is ``(*)``.
    """
    logs = []
    for i in range(squarings + 1):
        parts = torch.view_as_real(gram) if gram.is_complex() else gram[..., None]
        # for small matrices, and complex ones, ten times as fast as torch.linalg's norm
        size = parts.square().sum((-3, -2, -1)).clamp_min(_TINY**2).sqrt()
        logs.append(size.log() * 0.5 ** (i + 1))
        gram = gram / size[..., None, None]
        if i < squarings:
            gram = gram @ gram
    return torch.stack(logs).sum(0).exp()


def spectral_bound(weight: Float[Tensor, "out in"], squarings: int = 8) -> Float[Tensor, ""]:
    """``(sum_i s_i^p)^(1/p) >= max_i s_i`` of the singular values, ``p = 2^(squarings + 2)``.

    The bound is too large by at most the factor ``min(out, in)^(1/p)``: 0.5 % for 128 singular
    values by default. Each squaring of the Gram matrix doubles p. Rounding may make the bound too
    small, by 1e-5 in float32. The bound is differentiable everywhere, at a zero matrix too.
    """
    with without_autocast(weight):
        wide = widen(weight)
        unit = unit_of(wide)
        wide = wide / unit
        gram = wide @ wide.mT if wide.shape[0] <= wide.shape[1] else wide.mT @ wide
        return (_root_of_largest(gram, squarings) * unit).to(weight.dtype)


def spectral_bound_of_convolution(
    weight: Float[Tensor, "out in *kernel"], sides: tuple[int, ...], squarings: int = 6
) -> Float[Tensor, ""]:
    """Bound the 2-norm of the convolution of images ``(in, *sides)`` with a border of zeros.

    Kernels have odd sides ``2 r + 1`` and keep the images' sides. On a torus of ``side + r`` points
    an axis, the same kernel does with an image and r zeros what the convolution does with the
    image: its norm is not smaller. There, the Fourier transform makes one matrix ``(out, in)`` of
    each frequency, and the bound is the largest of their bounds; see `spectral_bound`.
    """
    kernel = weight.shape[2:]
    if max(kernel) == 1:
        return spectral_bound(weight.flatten(1), squarings)
    with without_autocast(weight):
        wide = widen(weight)
        unit = unit_of(wide)
        gram = _gram_symbols(wide / unit, sides)
        return (_root_of_largest(gram, squarings).amax() * unit).to(weight.dtype)


def _gram_symbols(weight: Tensor, sides: tuple[int, ...]) -> Tensor:
    """``A^H A``, or ``A A^H`` if that is smaller, of each frequency's matrix A, ``(F, n, n)``."""
    kernel = weight.shape[2:]
    if weight.shape[0] < weight.shape[1]:  # the adjoint, whose kernel is turned round
        weight = weight.transpose(0, 1)
    taps = weight.flatten(2)  # (m, n, taps), m >= n
    _, n, count = taps.shape
    pairs = taps.flatten(1)
    pairs = (pairs.mT @ pairs).reshape(n, count, n, count).permute(1, 3, 0, 2)
    places = torch.cartesian_prod(*(torch.arange(k) for k in kernel)).reshape(count, -1)
    apart = (places[None] - places[:, None]).flatten(0, 1).to(weight.device)  # of tap b from tap a
    sums, index = apart.unique(dim=0, return_inverse=True)
    gram = torch.zeros(len(sums), n, n, dtype=weight.dtype, device=weight.device)
    gram = gram.index_add(0, index, pairs.flatten(0, 1))
    waves = _waves(sums, [side + k // 2 for side, k in zip(sides, kernel, strict=True)], gram)
    return (waves @ gram.to(waves.dtype).flatten(1)).reshape(-1, n, n)


def _waves(places: Tensor, torus: list[int], like: Tensor) -> Tensor:
    """``exp(i w . p)`` of places p ``(S, axes)`` and one of each two opposite frequencies w."""
    last = torus[-1] // 2 + 1  # of a real kernel, opposite frequencies have equal norms
    counts = [*torus[:-1], last]
    turns = [torch.arange(n, dtype=torch.float64) / m for n, m in zip(counts, torus, strict=True)]
    grid = torch.cartesian_prod(*turns).reshape(-1, len(torus)).to(like.device)
    angle = 2 * math.pi * (grid @ places.mT.double())
    return torch.polar(torch.ones_like(angle), angle).to(like.dtype.to_complex())


class SpectralLinear(nn.Linear):
    """``min(1, coefficient / |W|) W x + b``: a linear map whose 2-norm is at most `coefficient`."""

    def __init__(self, in_features: int, out_features: int, *, coefficient: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        self.coefficient = coefficient

    def bounded(self) -> Float[Tensor, "out in"]:
        """``min(1, coefficient / |W|) W``."""
        return _bounded(self.weight, self.coefficient, spectral_bound)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.bounded(), self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The same map as a plain `nn.Linear`."""
        return _filled(nn.Linear(self.in_features, self.out_features), self)


class SpectralConv(nn.Module):
    """A convolution of images ``(in_channels, *sides)`` whose 2-norm is at most `coefficient`.

    ``min(1, coefficient / |K|) K x + b``, with a border of zeros and a kernel of an odd side.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        sides: tuple[int, ...],
        coefficient: float = 1.0,
    ) -> None:
        super().__init__()
        start = convolution(len(sides), in_channels, out_channels, kernel)
        self.weight, self.bias = start.weight, start.bias
        self.sides, self.coefficient = tuple(sides), coefficient

    def bounded(self) -> Float[Tensor, "out in *kernel"]:
        """``min(1, coefficient / |K|) K``, of images with these sides."""
        return _bounded(
            self.weight, self.coefficient, lambda w: spectral_bound_of_convolution(w, self.sides)
        )

    def forward(self, input: Tensor) -> Tensor:
        assert self.bias is not None
        return applied(self.bounded(), self.bias)(input)

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The same map as a plain convolution."""
        out, inner, *kernel = self.weight.shape
        return _filled(convolution(len(kernel), inner, out, kernel[0]), self)


def _bounded(weight: Tensor, coefficient: float, bound: Callable[[Tensor], Tensor]) -> Tensor:
    unit = unit_of(weight)  # so that no bound overflows
    scaled = weight / unit
    return scaled * (coefficient / bound(scaled)).clamp(max=unit)


M = TypeVar("M", bound=nn.Module)


def _filled(plain: M, of: SpectralLinear | SpectralConv) -> M:
    plain = plain.to(of.weight)
    for name, value in (("weight", of.bounded()), ("bias", of.bias)):
        getattr(plain, name).copy_(value)
    return plain


def applied(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return the function of x that applies a weight, of a linear map or of a convolution."""
    function = _CONVOLVE[weight.dim() - 2]
    padding = {"padding": weight.shape[2] // 2} if weight.dim() > 2 else {}
    return functools.partial(function, weight=weight, bias=bias, **padding)
