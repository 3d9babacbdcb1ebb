"""Gaussianization flow: every number of an image made normal, the image rotated, and so again.

    pixels -> dequantise -> normal scores -> one long vector -> each number made normal
    -> layers times [rotation of the vector -> each number made normal] -> N(0, I)

Each number is made normal through the CDF of a mixture of logistic distributions of its own, and
then the normal quantile function. A rotation is a product of Householder reflections. No number
reads another but by the rotations, and there are no nets: a layer has parameters, not conditioners.
Density and samples cost one pass each; samples solve an equation for each number of each layer.

The model starts from data. The first images go through the layers one by one; each rotation turns
their principal components into the first axes, and each mixture takes their quantiles. Before
training this is iterative Gaussianization, which is a density already.

References:
    Meng et al., Gaussianization flows (2020), arXiv:2003.01941.
    Laparra et al., Iterative Gaussianization: from ICA to random rotations (2011),
    arXiv:1602.00229.

Departs from the paper:
    - rotations are of the whole image, by fewer reflections than it has numbers: after 64 of them
      the first 64 principal components are axes, and the rest is rotated somehow; the paper rotates
      patches of images;
    - pixels begin as their normal scores, and the first layer has no rotation;
    - mixtures have trained weights and few components, see `mixerflow.transforms.Gaussianize`;
    - the sizes of the recipes are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mixerflow.core import Chain, Layer, Shape, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.model import Model
from mixerflow.parts.pixels import NormalScorePixels, Pixels
from mixerflow.registry import register
from mixerflow.transforms import Gaussianize, Householder, Reshape
from mixerflow.transforms.low_rank import RotationStart


@register("gaussianization")
@dataclass(frozen=True)
class GaussianizationFlow(PositiveCounts, Model):
    """Settings of a Gaussianization flow."""

    layers: int = 10
    """Layers: a rotation, and each number made normal."""
    components: int = 8
    """Logistic distributions in the mixture of each number, at least 2."""
    reflections: int | None = 64
    """Reflections in a rotation; None for as many as an image has numbers."""
    start: RotationStart = "principal"
    """Rotations before training: to the principal components of the first images, or random."""
    pixels: Pixels = field(default=NormalScorePixels(), kw_only=True)
    """How an image's values become real numbers."""

    def compose(self, shape: Shape) -> Transform:
        if self.context:
            what = "classes and vectors: a Gaussianization flow has no nets that could read them"
            raise ValueError(what)
        vector = Reshape(shape, (math.prod(shape),))
        first = [vector, self.marginals(shape)]
        layers = [self.layer(shape) for _ in range(self.layers)]
        return Chain(*first, *layers)

    def layer(self, shape: Shape) -> Transform:
        """Return a layer of the numbers of images ``(C, *spatial)`` as one vector."""
        n = math.prod(shape)
        reflections = n if self.reflections is None else min(self.reflections, n)
        return Layer(Householder(n, reflections, start=self.start), self.marginals(shape))

    def marginals(self, shape: Shape) -> Transform:
        """Return the transform that makes each number of such a vector normal by itself."""
        return Gaussianize(math.prod(shape), self.components)
