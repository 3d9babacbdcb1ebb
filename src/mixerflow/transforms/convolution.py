"""Convolutions that can be inverted: one is triangular in the order of pixels, one is periodic.

Reference: Hoogeboom, van den Berg, Welling, Emerging convolutions for generative normalizing flows
    (2019), arXiv:1901.11137.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant, expect
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.transforms.linear import _rotation

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_NOISE = 0.02
"""Standard deviation of the start of a kernel, around its centre's start."""


class _Convolution(Transform):
    """``z[p] = sum_t K[t] x[p + t] + b`` for images of any sides, outside of autocast.

    Args:
        channels: number of channels, C.
        kernel: side of the kernel K, odd; it may be larger than the image.
        axes: number of spatial axes, 1 to 3.
        bias: whether there is a number b for each channel, 0 at the start.
        centre: the start of K's centre, C x C; to it and to the rest comes N(0, 0.02^2).
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        *,
        axes: int,
        bias: bool,
        centre: Tensor,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if axes not in _CONVOLUTIONS or kernel < 1 or kernel % 2 == 0:
            what = f"{type(self).__name__}: takes 1 to 3 spatial axes and an odd kernel"
            raise ValueError(f"{what}; got {axes} axes, kernel {kernel}")
        self.channels, self.axes, self.reach = channels, axes, kernel // 2
        self.spatial = tuple(range(2, 2 + axes))
        self.centre = (..., *(self.reach,) * axes)
        weight = _NOISE * torch.randn(channels, channels, *(kernel,) * axes, generator=generator)
        weight[self.centre] += centre.to(weight.dtype)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(channels, *(1,) * axes)) if bias else None

    def _convolve(self, x: Tensor) -> Tensor:
        """``K * x`` for a batch ``(B, C, *spatial)``."""
        raise NotImplementedError

    def _solve(self, y: Tensor) -> Tensor:
        """The x whose convolution ``K * x`` is y, both ``(B, C, *spatial)``."""
        raise NotImplementedError

    def _log_det(self, sides: Shape) -> Tensor:
        """``log|det dz/dx|`` for images of these sides."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(x.shape[1:]))
        with without_autocast(x):
            z, log_det = self._convolve(x), self._log_det(tuple(x.shape[2:]))
            return z if self.bias is None else z + self.bias, constant(log_det, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(z.shape[1:]))
        with without_autocast(z):
            x = self._solve(z if self.bias is None else z - self.bias)
            return x, constant(-self._log_det(tuple(z.shape[2:])), z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.channels, *shape[-self.axes :]))
        return shape

    def extra_repr(self) -> str:
        kernel, bias = self.weight.shape[-1], self.bias is not None
        return f"{self.channels}, kernel={kernel}, axes={self.axes}, bias={bias}"


@register
class AutoregressiveConvolution(_Convolution):
    """``z = K * x + b``, zero-padded, where each number reads itself and later ones alone.

    Channel o of a pixel reads channels ``i <= o`` of the same pixel, and all channels of the pixels
    that lie at or behind it along every axis: a corner of the kernel. `reverse` flips all four axes
    of that pattern. The map is triangular, with the diagonal d of the centre of K, so

        ``log|det dz/dx| = pixels * sum_c log|d_c|``.

    Two of opposite directions are an emerging convolution, whose receptive field is a convolution's
    of both corners. The inverse goes line by line along the first spatial axis: one line is a
    triangular system of all its numbers, solved for the whole batch at once.

    K is stored in full, C^2 numbers a tap, as in the published code; the numbers outside of the
    pattern are not used, and their gradients are zeros. Nothing forbids a d_c of 0. The
    likelihood keeps training away from it: the log-det falls without bound there. At 0 itself the
    log-det is minus infinity, which training skips as not finite, and the inverse is not finite.
    Training may step across 0, which changes the orientation and does no harm.

    Args:
        channels: number of channels, C.
        kernel: side of the kernel, odd; it may be larger than the image.
        axes: number of spatial axes, 1 to 3.
        reverse: whether numbers read earlier ones, not later ones.
        bias: whether there is a number b for each channel, 0 at the start.
        generator: draws the start, the identity plus N(0, 0.02^2).

    Reference: Hoogeboom, van den Berg, Welling, Emerging convolutions for generative normalizing
        flows (2019), section 3.1, arXiv:1901.11137.
    """

    mask: Tensor

    def __init__(
        self,
        channels: int,
        kernel: int = 3,
        *,
        axes: int = 2,
        reverse: bool = False,
        bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        start = torch.eye(channels)
        super().__init__(channels, kernel, axes=axes, bias=bias, centre=start, generator=generator)
        self.reverse = reverse
        mask = torch.zeros_like(self.weight, requires_grad=False)
        mask[(..., *(slice(self.reach, None),) * axes)] = 1
        mask[self.centre] = torch.ones_like(start).tril()
        mask = mask.flip(tuple(range(mask.dim()))) if reverse else mask
        self.register_buffer("mask", mask, persistent=False)

    def kernel(self) -> Float[Tensor, "channels channels *kernel"]:
        """The kernel K, with zeros outside of the pattern."""
        return self.weight * self.mask

    def _convolve(self, x: Tensor) -> Tensor:
        return _zero_padded(x, self.kernel())

    def _solve(self, y: Tensor) -> Tensor:
        kernel, event = self.kernel(), tuple(range(1, y.dim()))
        if not self.reverse:
            return _back_substitute(y, kernel)
        return _back_substitute(y.flip(event), kernel.flip((0, *event))).flip(event)

    def _log_det(self, sides: Shape) -> Tensor:
        return math.prod(sides) * widen(self.weight[self.centre].diagonal()).abs().log().sum()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reverse={self.reverse}"


def _zero_padded(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve ``(B, C, *spatial)``, with zeros around, by a kernel of odd sides."""
    padding = [side // 2 for side in kernel.shape[2:]]
    return _CONVOLUTIONS[len(padding)](x, kernel, padding=padding)


def _back_substitute(y: Tensor, kernel: Tensor) -> Tensor:
    """Solve ``kernel * x = y`` for x ``(B, C, *spatial)``; the pattern is the one not reversed.

    With rows for the lines, ``y_i = sum_a x_(i+a) M_a``, where M_0 is triangular, so
    ``x_i = y_i M_0^-1 - sum_(a>0) x_(i+a) (M_a M_0^-1)``, from the last line to the first.
    """
    channels, lines, *rest = y.shape[1:]
    n, reach = channels * math.prod(rest), kernel.shape[2] // 2

    def rows(t: Tensor) -> Tensor:
        """Lines as rows ``(N, n)``; each number reads itself and later ones of its row."""
        return t.flip(1).movedim(1, -1).reshape(-1, n)

    def images(t: Tensor) -> Tensor:
        return t.unflatten(-1, (*rest, channels)).movedim(-1, -1 - len(rest)).flip(-1 - len(rest))

    unit = images(torch.eye(n, dtype=y.dtype, device=y.device))
    taps = [
        # one more axis, as no function convolves along none
        rows(_zero_padded(unit[..., None], kernel[:, :, reach + a, ..., None])[..., 0])
        for a in range(min(reach + 1, lines))
    ]
    known, *others = [
        torch.linalg.solve_triangular(taps[0], t, upper=False, left=False)
        for t in (rows(y.movedim(2, 0).flatten(0, 1)), *taps[1:])
    ]
    found: list[Tensor] = []  # the last line first
    for line in known.unflatten(0, (lines, -1)).unbind()[::-1]:
        for later, tap in zip(found[::-1], others, strict=False):
            line = torch.addmm(line, later, tap, alpha=-1)
        found.append(line)
    return images(torch.stack(found[::-1], 1)).movedim(1, 2)


@register
class PeriodicConvolution(_Convolution):
    """``z = K * x + b`` on a torus: behind the last pixel of an axis comes the first again.

    The discrete Fourier transform turns the map into one complex C x C matrix ``K^_f`` for each
    frequency f, so

        ``log|det dz/dx| = sum_f log|det K^_f|``,

    and the inverse solves one system for each frequency, in float32 or wider. Images are real, so
    half of the frequencies are computed and the others, their conjugates, are counted. A kernel
    larger than the image is wrapped around it, and taps that meet add up.

    Nothing forbids a singular ``K^_f``, as for `Matrix`: the likelihood keeps training away from
    it, its log-det is minus infinity, and its inverse is an error.

    Args:
        channels: number of channels, C.
        kernel: side of the kernel, odd; it may be larger than the image.
        axes: number of spatial axes, 1 to 3.
        bias: whether there is a number b for each channel, 0 at the start.
        generator: draws the start: a random rotation at the centre, plus N(0, 0.02^2).

    Reference: Hoogeboom, van den Berg, Welling, Emerging convolutions for generative normalizing
        flows (2019), section 3.2, arXiv:1901.11137.
    """

    def __init__(
        self,
        channels: int,
        kernel: int = 3,
        *,
        axes: int = 2,
        bias: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        start = _rotation(channels, generator)
        super().__init__(channels, kernel, axes=axes, bias=bias, centre=start, generator=generator)

    def _convolve(self, x: Tensor) -> Tensor:
        for axis in self.spatial:
            side = x.shape[axis]
            copies, more = divmod(self.reach, side)
            before, after = x.narrow(axis, side - more, more), x.narrow(axis, 0, more)
            x = torch.cat([before, *(x for _ in range(2 * copies + 1)), after], axis)
        return _CONVOLUTIONS[self.axes](x, self.weight)

    def _frequencies(self, sides: Shape) -> Complex[Tensor, "*frequencies channels channels"]:
        """The matrices ``K^_f``; along the last axis frequencies 0 to half of the side."""
        kernel = widen(self.weight)
        for axis, side in zip(self.spatial, sides, strict=True):
            taps = functional.pad(kernel.movedim(axis, -1), (0, -kernel.shape[axis] % side))
            kernel = taps.unflatten(-1, (-1, side)).sum(-2).movedim(-1, axis)
        kernel = kernel.roll((-self.reach,) * self.axes, self.spatial)  # the centre to 0
        # z[p] reads x[p + t], not x[p - t]: hence the conjugate
        return torch.fft.rfftn(kernel, dim=self.spatial).movedim((0, 1), (-2, -1)).conj()

    def _solve(self, y: Tensor) -> Tensor:
        if y.shape[0] == 0:  # MKL refuses to transform nothing
            return y
        wave = torch.fft.rfftn(widen(y), dim=self.spatial).movedim((1, 0), (-2, -1))
        wave = torch.linalg.solve(self._frequencies(tuple(y.shape[2:])), wave)
        return torch.fft.irfftn(wave.movedim((-2, -1), (1, 0)), y.shape[2:], self.spatial)

    def _log_det(self, sides: Shape) -> Tensor:
        logs = torch.linalg.slogdet(self._frequencies(sides))[1]
        # all columns once, and once more those whose conjugates are no columns of the half: all
        # but the first and, on an even side, the last, which have their conjugates in themselves
        return logs.sum() + logs[..., 1 : (sides[-1] + 1) // 2].sum()
