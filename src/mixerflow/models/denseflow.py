"""DenseFlow: noise added between the units of a flow, and densely connected couplings.

    pixels -> variational dequantisation -> squeeze -> block -> squeeze -> factor out half
    -> block -> squeeze -> factor out half -> block -> learned Gaussian

A block is a number of units, between which noise widens the image; all earlier units of the block
condition it (cross-unit coupling). A unit is a number of modules: ActNorm, 1x1 convolution, an
affine coupling whose net has a dense block beside Nyström attention (intra-unit coupling), and a
swap of the two halves of the channels.

References:
    Grcić, Grubišić, Šegvić: Densely connected normalizing flows (2021), arXiv:2106.04627.
    The defaults are DenseFlow-74-10's: 74 modules, growth 10, 130,647,294 parameters at 3x32x32.

Departs from the paper:
    - ActNorm is ``x exp(s) + b``, the paper's ``(x - m) exp(-s)``: the same maps;
    - nets' outputs are all scales, then all shifts; in the paper's code these alternate, and the
      noise's means come first;
    - attention is over pixels, with the softmax over keys; the released model's computation, which
      differs, is `DenseAttention.transposed`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mixerflow.core import Chain, Layer, Shape, Transform
from mixerflow.models.cross_units import CrossUnitFlow
from mixerflow.parts.image_nets import DenseAttention, ImageNet
from mixerflow.parts.images import glow_step
from mixerflow.parts.linear import LinearMap, MatrixMap
from mixerflow.registry import register
from mixerflow.transforms import Affine, Elementwise, SwapHalves


@register("denseflow")
@dataclass(frozen=True)
class DenseFlow(CrossUnitFlow):
    """Settings of a DenseFlow."""

    net: ImageNet = DenseAttention()
    """Net of the couplings, which reads one half of the channels."""
    elementwise: Elementwise = Affine(2.0)
    """Transform of the other half of the channels."""
    linear: LinearMap = MatrixMap()
    """The 1x1 convolution."""
    floor: float = 0.01
    """Lower bound of the standard deviations that ActNorm's start from data divides by."""
    noise_elementwise: Elementwise | None = None
    """Transform of the noise, given its net; None for that of the couplings."""

    @property
    def of_noise(self) -> Elementwise:
        return self.elementwise if self.noise_elementwise is None else self.noise_elementwise

    def unit(self, shape: Shape, block: int, numbers: range) -> Transform:
        """Return the modules: ActNorm, 1x1 convolution, coupling and swap, each as one layer."""
        step = functools.partial(glow_step, linear=self.linear, bias=False, floor=self.floor)
        modules = []
        for _ in numbers:
            steps = step(self.net, self.elementwise, shape, context=self.context)
            modules.append(Layer(*steps, SwapHalves()))
        return Chain(*modules)
