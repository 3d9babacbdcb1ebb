"""Measurements of images as values: ``y = A x + sigma e``, for a linear map A and normal noise e.

All images and measurements are in the unit of pixel values, ``0..levels - 1``. A keeps constant
images constant where it measures them, so it maps any shift of the values to the same shift.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mixerflow.core import Noise, Shape, constant, total
from mixerflow.errors import ConfigError
from mixerflow.registry import register
from mixerflow.restoration.fillings import blurred, harmonic, means, repeated, upsampled
from mixerflow.restoration.masks import Mask

ROUNDING = 1 / math.sqrt(12)
"""Standard deviation of what rounding to whole pixel values adds: uniform noise of width 1."""
_STREAM = 0


@dataclass(frozen=True)
class Measurement:
    """How an image x ``(C, *spatial)`` became a measurement y: ``y = A x + sigma e, e ~ N(0, I)``.

    A subclass has the settings of A and defines `apply`; A acts on each image by itself.
    """

    sigma: float = ROUNDING
    """Standard deviation of the noise, in pixel values."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            what = f"noise of {self.sigma} pixel values"
            raise ConfigError(what, "--noise", "give more than 0, finite")

    def check(self, shape: Shape) -> None:
        """Raise a ConfigError unless images ``(C, *spatial)`` can be measured like this."""

    def apply(self, x: Tensor) -> Tensor:
        """Return ``A x`` of images ``(B, C, *spatial)``; it is linear and differentiable."""
        return x

    def measured_shape(self, shape: Shape) -> Shape:
        """Return the event shape of y for images of that shape."""
        return shape

    def values(self, shape: Shape) -> int:
        """Return the number of values that are measured of an image."""
        return math.prod(self.measured_shape(shape))

    def measure(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        """Return measurements ``y = A x + sigma e`` of images ``(B, C, *spatial)``.

        `noise` is as in `Flow.forward`; ``Noise.of(seed, x)`` makes e a function of the image.
        """
        y = self.apply(x)
        return y + self.sigma * (torch.randn_like(y) if noise is None else noise.normal(y, _STREAM))

    def taken(self, y: Tensor) -> Tensor:
        """Return measurements that somebody took, as `measure` would give them."""
        return y

    def log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``log N(y; A x, sigma^2 I)`` of each image ``(B,)``, in nats."""
        count = self.values(tuple(x.shape[1:]))
        peak = -0.5 * count * math.log(2 * math.pi * self.sigma**2)
        return constant(peak, x) - 0.5 * total(((y - self.apply(x)) / self.sigma).square())

    def simple(self, y: Tensor, shape: Shape) -> dict[str, Tensor]:
        """Return images ``(B, *shape)`` that measurements give without a model, by their names.

        The last one is where a search starts.
        """
        return {"measurement": y}

    def shown(self, y: Tensor, shape: Shape, *, unknown: float) -> Tensor:
        """Return images ``(B, *shape)`` of y to look at, with the value `unknown` if hidden."""
        return y

    def __str__(self) -> str:
        return f"noise {self.sigma:.3g}"


@register("noisy")
@dataclass(frozen=True)
class Noisy(Measurement):
    """The image with noise: A is the identity."""

    sigma: float = 25.0


@register("masked")
@dataclass(frozen=True, kw_only=True)
class Masked(Measurement):
    """Some pixels are missing: A is 1 on measured pixels, and 0 on hidden ones, where y is 0."""

    mask: Mask
    """Which ones."""

    def check(self, shape: Shape) -> None:
        self.known(tuple(shape))

    def known(self, shape: Shape) -> Tensor:
        """Return ``(*spatial)`` bool: True where a pixel is measured."""
        if shape not in self._known:
            self._known[shape] = ~self.mask.hidden(shape)
        return self._known[shape]

    @functools.cached_property
    def _known(self) -> dict[Shape, Tensor]:
        """The pixels measured of images of each shape: a picture is read once."""
        return {}

    def apply(self, x: Tensor) -> Tensor:
        return x * self.known(tuple(x.shape[1:])).to(x.device)

    def values(self, shape: Shape) -> int:
        return shape[0] * int(self.known(shape).sum())

    def measure(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return self.apply(super().measure(x, noise))

    def taken(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def simple(self, y: Tensor, shape: Shape) -> dict[str, Tensor]:
        known = self.known(shape).to(y.device)
        return {"mean": means(y, known), "harmonic": harmonic(y, known)}

    def shown(self, y: Tensor, shape: Shape, *, unknown: float) -> Tensor:
        return torch.where(self.known(shape).to(y.device), y, unknown)

    def __str__(self) -> str:
        return f"mask {self.mask}, {super().__str__()}"


@register("blurred")
@dataclass(frozen=True, kw_only=True)
class Blurred(Measurement):
    """A Gaussian blur: each value is a mean of its neighbours with normal weights.

    Along each axis ``(A x)_i = sum_j w_ij x_j`` with ``w_ij ~ exp(-(i - j)^2 / (2 width^2))``, of
    sum 1, for j up to 4 widths away, also outside of the image, where the edge's pixel repeats.
    """

    sigma: float = 1.0
    width: float
    """Standard deviation of the weights, in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width <= 1000:
            what = f"a blur of {self.width} pixels"
            raise ConfigError(what, "--blur", "give more than 0, at most 1000")

    def apply(self, x: Tensor) -> Tensor:
        return blurred(x, self.width)

    def __str__(self) -> str:
        return f"blur {self.width:g}, {super().__str__()}"


@register("downsampled")
@dataclass(frozen=True, kw_only=True)
class Downsampled(Measurement):
    """Fewer, larger pixels: each measured value is the mean of a block of pixels."""

    factor: int
    """Side of the blocks along each axis; it divides the images' sides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor < 2:
            raise ConfigError(f"a factor of {self.factor}", "--downsample", "give 2 or more")

    def check(self, shape: Shape) -> None:
        if any(side % self.factor for side in shape[1:]):
            size = " x ".join(map(str, shape[1:]))
            what = f"{self.factor} does not divide the sides of images of {size}"
            raise ConfigError(what, "--downsample", "give a factor that does")

    def apply(self, x: Tensor) -> Tensor:
        for axis in range(2, x.dim()):
            n = x.shape[axis] // self.factor
            x = x.unflatten(axis, (n, self.factor)).mean(axis + 1)
        return x

    def measured_shape(self, shape: Shape) -> Shape:
        return (shape[0], *(side // self.factor for side in shape[1:]))

    def simple(self, y: Tensor, shape: Shape) -> dict[str, Tensor]:
        return {"repeated": repeated(y, self.factor), "linear": upsampled(y, self.factor)}

    def shown(self, y: Tensor, shape: Shape, *, unknown: float) -> Tensor:
        return repeated(y, self.factor)

    def __str__(self) -> str:
        return f"downsample {self.factor}, {super().__str__()}"
