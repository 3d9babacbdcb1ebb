"""Maps of images: where in an image a flow finds it unlikely. A larger value is more outlying."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mixerflow.core import Context, Flow, Shape, as_tensor, evaluating
from mixerflow.detection.classes import contexts, mixed
from mixerflow.errors import ConfigError
from mixerflow.registry import register
from mixerflow.restoration import blurred

OnBatch = Callable[[int], None]
_LEAST = 0.2
"""A blur of fewer pixels changes an image by rounding only."""


@dataclass(frozen=True)
class OutlierMap:
    """How outlying each pixel of images ``(C, H, W)`` is, by itself and with its surroundings.

    A subclass has the settings of one kind of map and defines `values`. The density is that of
    `Flow.continuous`: pixel values k stand at the centres of their bins, ``k + 1/2``, and no noise
    is drawn. A map of an image depends on no other image; a batch changes it by rounding only.
    """

    reads_flow: ClassVar[bool] = True
    """Whether the map is of the flow's density, which must be exact then."""

    def check_flow(self, flow: Flow) -> None:
        """Raise a ConfigError unless there are such maps of images of a flow."""
        self.check(flow.shape)
        if self.reads_flow and (kind := flow.continuous().density) != "exact":
            words = "a bound" if kind == "bound" else "an estimate"
            what = f"log p of this flow is {words}, whose noise a map would show"
            remedy = "use a flow with an exact density, or the map variance"
            raise ConfigError(what, "--maps", remedy)

    def check(self, shape: Shape) -> None:
        """Raise a ConfigError unless there are such maps of images of that event shape."""
        if len(shape) != 3:
            size = " x ".join(map(str, shape))
            what = f"a map is of images with two spatial axes (C, H, W), these are {size}"
            raise ConfigError(what, "--maps", "leave it out")

    def evaluations(self, shape: Shape) -> int:
        """Return how often the flow scores each image; a gradient counts as one."""
        raise NotImplementedError

    def values(
        self, density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch
    ) -> Tensor:
        """Return the maps ``(N, H, W)`` of real images ``(N, C, H, W)`` under their density."""
        raise NotImplementedError

    def map(
        self,
        flow: Flow,
        images: Tensor | np.ndarray,
        labels: Tensor | np.ndarray | None = None,
        *,
        batch: int = 128,
        on_batch: OnBatch | None = None,
    ) -> Tensor:
        """Return maps ``(N, H, W)`` of images ``(N, C, H, W)``, float64 on the CPU.

        Args:
            flow: the model, of integer images or of floats, whose density is exact.
            images: pixels as the flow takes them.
            labels: ``(N, ...)``, the context of a conditional flow. Without them a flow of K
                classes is their mixture, ``log p(x) = log 1/K sum_k p(x | k)``, in K passes.
            batch: images that the flow is given at a time.
            on_batch: called after each batch with the number of images in it; the sum is
                ``N * evaluations(shape)``.

        Raises:
            ConfigError: images of other than two spatial axes; a window that leaves no
                surroundings; a flow whose log-density is a bound or an estimate, or that has no
                density of real numbers.
            ValueError: images of another shape or range, or not finite; as many labels as there
                are images.
        """
        self.check_flow(flow)
        if batch < 1:
            raise ConfigError(f"{batch} images at a time", "--batch", "give at least 1")
        x, context = _checked(flow, images), None if labels is None else as_tensor(labels)
        if context is not None and (context.dim() == 0 or len(context) != len(x)):
            raise ValueError(f"map: labels {tuple(context.shape)} for {len(x)} images")
        density = flow.continuous()
        called = (lambda count: None) if on_batch is None else on_batch
        with evaluating(density) as scored:
            return self.values(scored, x, context, batch, called).double().cpu()


def _checked(flow: Flow, images: Tensor | np.ndarray) -> Tensor:
    """Return images as real numbers on the flow's device, at the centres of their bins."""
    x, wanted = as_tensor(images), ", ".join(map(str, flow.shape))
    if x.dim() == 0 or tuple(x.shape[1:]) != tuple(flow.shape):
        raise ValueError(f"map: takes images (N, {wanted}); got {tuple(x.shape)}")
    x = x.to(flow.device, flow.dtype)
    if not bool(x.isfinite().all()):
        raise ValueError("map: images have values that are not finite")
    if flow.levels is None:
        return x
    if len(x) and not (0 <= x.min() and x.max() <= flow.levels - 1):
        raise ValueError(f"map: pixels must lie in 0..{flow.levels - 1}")
    return x + 0.5


@register("gradient")
@dataclass(frozen=True)
class GradientMap(OutlierMap):
    """How steep log p is: ``sqrt(sum_c (d log p / d x_c)^2)`` at each pixel, smoothed.

    The unit is nats for each unit of the pixels' values. Where a region is smooth, a flow is steep:
    the smallest noise would make it unlikely. So the map is large in plain regions, too.

    Reference:
        Simonyan et al., Deep inside convolutional networks (2014), arXiv:1312.6034, for the
        gradient as a map.
    """

    width: float = 4.0
    """Standard deviation in pixels of the Gaussian under which the map is averaged; 0 for none."""

    def __post_init__(self) -> None:
        _require_width(self.width, least=0.0)

    def evaluations(self, shape: Shape) -> int:
        return 1

    def values(
        self, density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch
    ) -> Tensor:
        gradient = _gradient(density, x, context, batch, on_batch)
        return _smoothed(gradient.square().sum(1).sqrt(), self.width)


@dataclass(frozen=True)
class _OfABlur(OutlierMap):
    """A map that a blur b of the image makes, averaged under a wider Gaussian."""

    blur: float = 0.7
    """Standard deviation of b in pixels."""
    width: float = 4.0
    """Standard deviation in pixels of the Gaussian under which the map is averaged; 0 for none."""

    def __post_init__(self) -> None:
        _require_width(self.blur, least=_LEAST, name="blur")
        _require_width(self.width, least=0.0)


@register("slope")
@dataclass(frozen=True)
class SlopeMap(_OfABlur):
    """How fast log p rises as the image begins to blur, beside what the flow expects.

    With a Gaussian blur b and ``v = b(x) - x``, the rate of ``log p(x + t v)`` at t = 0 is a sum
    over pixels i and channels c. The map has each pixel's part, over its mean:

        s_i = sum_c v_ic d log p / d x_ic  /  sum_c (1 - k_i)

    k_i is the weight of pixel i in its own blur. Where p vanishes at the border of its range, the
    mean of s_i over images of the flow is 1 at each pixel, in smooth regions and in rough ones
    alike: Stein's identity, ``E[v . grad log p] = -E[div v]``, and ``div v = sum_i (k_i - 1)``. The
    map is smoothed by a Gaussian.

    Reference:
        Stein, Estimation of the mean of a multivariate normal distribution (1981),
        doi:10.1214/aos/1176345632, for the identity.
    """

    def evaluations(self, shape: Shape) -> int:
        return 1

    def values(
        self, density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch
    ) -> Tensor:
        gradient = _gradient(density, x, context, batch, on_batch).double()
        x = x.double()
        rise = (gradient * (blurred(x, self.blur) - x)).sum(1)
        tall, wide = (_own_weights(n, self.blur, x) for n in x.shape[2:])
        expected = x.shape[1] * (1 - tall[:, None] * wide)
        return _smoothed(rise / expected, self.width)


@register("variance")
@dataclass(frozen=True)
class VarianceMap(_OfABlur):
    """The local variance of the pixels' values, summed over channels: a baseline without a flow.

    ``sum_c (b(x_c^2) - b(x_c)^2)``, where b is a Gaussian blur, smoothed by another.
    """

    reads_flow: ClassVar[bool] = False

    def evaluations(self, shape: Shape) -> int:
        return 0

    def values(
        self, density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch
    ) -> Tensor:
        x = x.double()
        x = x - x.mean((2, 3), keepdim=True)  # the variance is the same, with less rounding
        means, squares = blurred(x, self.blur), blurred(x.square(), self.blur)
        return _smoothed((squares - means.square()).clamp_min(0).sum(1), self.width)


def log_density(density: Flow, x: Tensor, context: Context) -> Tensor:
    """Return ``log p(x)`` ``(B,)`` in float64; without a class, of the mixture of the classes."""
    every = [density.log_prob(x, each).double() for each in contexts(density, context, len(x))]
    return mixed(torch.stack(every))


def _gradient(density: Flow, x: Tensor, context: Context, batch: int, on_batch: OnBatch) -> Tensor:
    """Return ``d log p / d x`` of images ``(N, C, H, W)``, in nats for each unit of x."""
    gradient = torch.empty_like(x)
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        point = x[part].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            score = log_density(density, point, None if context is None else context[part]).sum()
            (gradient[part],) = torch.autograd.grad(score, point)
        on_batch(len(point))
    return gradient


def _own_weights(n: int, width: float, like: Tensor) -> Tensor:
    """Return the weight of each of n pixels in its own blur along one axis."""
    unit = torch.eye(n, dtype=like.dtype, device=like.device)
    return blurred(unit[:, None], width)[:, 0].diagonal()


def _smoothed(maps: Tensor, width: float) -> Tensor:
    """Return maps ``(N, H, W)`` with the mean under a Gaussian around each pixel, in the image."""
    if not width:
        return maps
    reach = math.ceil(4 * width)  # of the blur
    inside = slice(reach, -reach)
    padded, ones = (
        pad(each.double()[:, None], [reach] * 4) for each in (maps, torch.ones_like(maps[:1]))
    )
    return (blurred(padded, width) / blurred(ones, width))[:, 0, inside, inside]


def _require_width(width: float, *, least: float, name: str = "width") -> None:
    if not least <= width < math.inf:
        raise ConfigError(f"{width} pixels", name, f"give {least:g} or more, finite")
