"""Maps whose weights are a norm for each output times a direction.

Reference: Salimans, Kingma, Weight normalization (2016), eq. 2, arXiv:1602.07868.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class _WeightNormed(nn.Module):
    """``y = g v / |v| * x + b``: `weight` is v, and `gain` has g of each output."""

    weight: Tensor
    gain: Tensor

    def product(self) -> Tensor:
        """Return the weight ``g v / |v|``, with the norm over all that an output reads."""
        norm = torch.linalg.vector_norm(self.weight.flatten(1), dim=1)
        return self.weight * (self.gain / norm).view(-1, *[1] * (self.weight.dim() - 1))

    def folded(self) -> nn.Module:
        """The plain map with the product as its weight."""
        plain = next(kind for kind, normed in _NORMED.items() if type(self) is normed)
        self.weight = nn.Parameter(self.product())
        del self.gain
        self.__class__ = plain  # pyright: ignore[reportAttributeAccessIssue]
        return self


class NormedLinear(_WeightNormed, nn.Linear):
    """A linear map."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.product(), self.bias)


class _NormedConvolution(_WeightNormed):
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.product(), self.bias)  # pyright: ignore[reportCallIssue]


class NormedConv1d(_NormedConvolution, nn.Conv1d):
    """A convolution of signals."""


class NormedConv2d(_NormedConvolution, nn.Conv2d):
    """A convolution of images."""


class NormedConv3d(_NormedConvolution, nn.Conv3d):
    """A convolution of volumes."""


_NORMED: dict[type[nn.Module], type[_WeightNormed]] = {
    nn.Linear: NormedLinear,
    nn.Conv1d: NormedConv1d,
    nn.Conv2d: NormedConv2d,
    nn.Conv3d: NormedConv3d,
}


def normalise_weights(module: nn.Module) -> None:
    """Give each linear map and convolution in a module a norm and a direction for its weight.

    Maps compute what they did: g starts as the norm of the weight.
    """
    for part in module.modules():
        if type(part) in _NORMED:
            part.__class__ = _NORMED[type(part)]
            assert isinstance(part, _WeightNormed)
            norm = torch.linalg.vector_norm(part.weight.detach().flatten(1), dim=1)
            part.gain = nn.Parameter(norm)


def start_at_zero(part: nn.Module) -> None:
    """Set a map's output to 0; a weight with a norm keeps its direction."""
    scale = part.gain if isinstance(part, _WeightNormed) else part.weight
    for parameter in (scale, part.bias):
        assert isinstance(parameter, Tensor)
        nn.init.zeros_(parameter)
