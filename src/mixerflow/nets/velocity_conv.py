"""A convolutional velocity field of images, and its derivative along a direction."""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, softplus

from mixerflow.nets.base import Conditioner, context_map, zeroed
from mixerflow.nets.conv import Axes, channels_last, convolution
from mixerflow.registry import register

Images = Float[Tensor, "batch channels *spatial"]
Time = Float[Tensor, "..."] | float
_LINEAR_FROM = 40.0
"""From here on softplus is the identity: then a sigmoid is its derivative in float64 too."""


@register
class ConvVelocity(Conditioner):
    """``h_0 = x; h_k = softplus(K_k [t, h_{k-1}]); f(t, x) = K_d [t, h_{d-1}]``, for `Continuous`.

    K are 3x3 convolutions, whose first input channel is the time t everywhere. The last one starts
    at 0, and the flow as the identity. A context c adds ``C c`` to each pixel before the first
    softplus. `along` carries a direction e through the net:
    ``e_k = sigmoid(K_k [t, h_{k-1}]) * K_k' [0, e_{k-1}]``, with K' for K without its bias, twice
    the work of f alone. The time's channel is a constant, so it is convolved once for all images.

    Args:
        channels: channels of the images ``(B, channels, *spatial)``.
        width: channels of the hidden layers.
        depth: number of hidden layers.
        context: length of the contexts ``(B, context)``, 0 for none.
        axes: number of spatial axes.

    Reference: Grathwohl et al., FFJORD (2019), section 4.2 and appendix B, arXiv:1810.01367.
    """

    def __init__(
        self, channels: int, *, width: int, depth: int = 3, context: int = 0, axes: Axes = 2
    ) -> None:
        super().__init__()
        self.channels = channels
        sizes = [channels, *[width] * depth, channels]
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(convolution(axes, n + 1, out, 3) for n, out in pairs)
        zeroed(self.layers[-1])
        self.context = context_map(context, sizes[1])

    def forward(self, t: Time, x: Images, context: Tensor | None = None) -> Images:
        self._require(x)
        x = channels_last(x)
        for number in range(len(self.layers)):
            x = self._convolved(number, t, x if number == 0 else softplus(x, 1, _LINEAR_FROM))
            x = self._told(x, context) if number == 0 else x
        return x

    def along(
        self, t: Time, x: Images, direction: Images, context: Tensor | None = None
    ) -> tuple[Images, Images]:
        """The velocity, and its Jacobian times `direction`, both ``(B, channels, *spatial)``."""
        self._require(x)
        x, direction = channels_last(x), channels_last(direction)
        for number in range(len(self.layers)):
            if number:
                slope = x.sigmoid()
                x, direction = softplus(x, 1, _LINEAR_FROM), slope * direction
            x = self._convolved(number, t, x)
            x = self._told(x, context) if number == 0 else x
            direction = self._convolved(number, None, direction)
        return x, direction

    def _require(self, x: Tensor) -> None:
        axes = self.layers[0].weight.dim() - 2  # pyright: ignore
        if x.dim() != axes + 2 or x.shape[1] != self.channels:
            what = f"{self.channels} channels and {axes} axes; got events {tuple(x.shape[1:])}"
            raise ValueError(f"ConvVelocity: reads {what}")

    def _told(self, h: Tensor, context: Tensor | None) -> Tensor:
        if self.context is None:
            return h
        told = self.context(self.require_context(context))
        return h + told.view(*told.shape, *[1] * (h.dim() - 2))

    def _convolved(self, number: int, t: Time | None, h: Tensor) -> Tensor:
        """A layer's convolution of ``[t, h]``; without t of ``[0, h]``, and without the bias."""
        layer = self.layers[number]
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        convolve = (conv1d, conv2d, conv3d)[h.dim() - 3]
        of_time, weight = layer.weight[:, :1], layer.weight[:, 1:]
        if t is None:
            return convolve(h, weight, padding=1)
        plane = convolve(h.new_ones(1, 1, *h.shape[2:]), of_time, padding=1)
        found = convolve(h, weight, layer.bias, padding=1)
        return torch.addcmul(found, plane, torch.as_tensor(t, dtype=h.dtype, device=h.device))
