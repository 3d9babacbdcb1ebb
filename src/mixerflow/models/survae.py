"""SurVAE flow with max pooling: an image flow that goes on with the largest number of each cell.

    pixels -> variational dequantisation -> squeeze -> K steps -> pooling -> K steps -> ...
    -> learned Gaussian

A step is a 1x1 convolution and an affine coupling whose net is a dense block; no norm stands
between the steps. Pooling of 2x2 cells leaves the channels as they are: with "max" it is a
surjection, `MaxPool`, whose density of what it forgets is fixed; with "slice" the image is
squeezed, the first quarter of the channels goes on, and the others are latents, as in other models
of several scales. Parameters are as many with both.

Max pooling is exact: all of the gap to the density of pixels is that of the dequantisation. Latents
are fewer than an image's numbers, ``1 / 4^(scales - 1)`` of them with two axes, and `Flow.decode`
of an image's latents gives another image.

References:
    Nielsen, Jaini, Hoogeboom, Winther, Welling: SurVAE flows: surjections to bridge the gap between
    VAEs and flows (2020), sections 3 and 5, arXiv:2007.02731.
    The defaults are those of the paper's models of images of 32 pixels, 105,023,968 parameters at
    3x32x32; 64 pixels have 3 scales of 8 steps, and as many parameters.

Departs from the paper:
    - nets' outputs are all scales, then all shifts; in the paper's code these alternate;
    - a learned Gaussian is an affine map ``x exp(s) + b`` before N(0, I): the same densities.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from mixerflow.core import Chain, Layer, MultiScale, Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.image_nets import ImageNet, ResidualDense
from mixerflow.parts.images import image_coupling, require_halvable
from mixerflow.parts.linear import LinearMap, MatrixMap
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import Pixels, ScaledPixels, VariationalDequantizer
from mixerflow.registry import register
from mixerflow.transforms import Affine, DiagonalAffine, Elementwise, MaxPool, Squeeze

Pooling = Literal["max", "slice"]

_NET = ResidualDense(64, growth=64, depth=10)


@register("survae")
@dataclass(frozen=True)
class SurVAE(PositiveCounts, Model):
    """Settings of a SurVAE flow."""

    scales: int = 2
    """Number of scales; each has half as many pixels a side as the one before."""
    steps: int = 12
    """Steps of each scale, K."""
    pooling: Pooling = "max"
    """What goes on to the next scale: the largest number of each cell of each channel ("max"), or
    the first quarter of the squeezed image's channels ("slice")."""
    linear: LinearMap = MatrixMap()
    """The 1x1 convolution of a step."""
    elementwise: Elementwise = Affine(2.0)
    """Transform of the changed half of the channels in couplings."""
    net: ImageNet = _NET
    """Net of the couplings, which reads the other half."""
    pixels: Pixels = field(
        default=ScaledPixels(
            -0.5, 0.5, dequantizer=VariationalDequantizer(context=32, width=64, net=_NET)
        ),
        kw_only=True,
    )
    """How an image's values become real numbers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in get_args(Pooling):
            what = f"pooling must be one of {', '.join(get_args(Pooling))}; got {self.pooling!r}"
            raise ValueError(f"SurVAE: {what}")

    def compose(self, shape: Shape) -> Transform:
        require_halvable(shape, self.scales, f"{self.scales} scales")
        squeeze = Squeeze(shape)
        inner, steps, scales, kept = squeeze.latent_shape, [squeeze], [], []
        for number in range(self.scales):
            steps += [self.step(inner) for _ in range(self.steps)]
            if number == self.scales - 1:
                steps.append(DiagonalAffine((inner[0], *(1,) * (len(inner) - 1))))
                break
            pool = MaxPool(inner) if self.pooling == "max" else Squeeze(inner)
            steps.append(pool)
            inner = (inner[0], *pool.latent_shape[1:])
            if self.pooling == "slice":
                scales.append(Chain(*steps))
                kept.append(inner[0])
                steps = []
        if self.pooling == "max":
            return Chain(*steps)
        return Chain(MultiScale(shape, [*scales, Chain(*steps)], kept=kept))

    def step(self, shape: Shape) -> Transform:
        """Return a step of events `shape` as one layer."""
        coupling = image_coupling(self.net, self.elementwise, shape, context=self.context)
        return Layer(*self.linear.on_image(shape, bias=False), coupling)
