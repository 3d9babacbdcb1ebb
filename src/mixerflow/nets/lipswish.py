"""Activations whose slope is never above 1, each with its slopes beside its values.

A map ``x + g(x)`` needs products of g's Jacobian with vectors. Where an activation gives its slopes
once, each product takes one multiplication by them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import elu, softplus

from mixerflow.moments import Saved
from mixerflow.registry import register

_STEEPEST = 1.1
"""Largest slope of ``x sigmoid(x)``, rounded up."""


@register
class LipSwish(nn.Module):
    """``x sigmoid(softplus(beta) x) / 1.1``, whose slope is never above 1 (0.99985).

    Reference: Chen et al., Residual flows (2019), section 3.3, arXiv:1906.02735.
    """

    copies = 1
    """Output numbers for each input number."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(softplus(self.beta) * x) / _STEEPEST

    def with_slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values ``(B, C, *)`` and their slopes; of the shape of the output both.

        Both can be differentiated once.
        """
        return _Swish.apply(x, softplus(self.beta))  # pyright: ignore[reportReturnType]


@register
class CLipSwish(LipSwish):
    """``[f(x), f(-x)] / 1.004`` with f LipSwish, along axis 1: 1-Lipschitz.

    The slopes of the second half are those with respect to x, of the other sign.

    Reference: Perugachi-Diaz et al., Invertible DenseNets with concatenated LipSwish (2021),
        section 3.3, arXiv:2102.02694.
    """

    copies = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), super().forward(-x)], 1) / 1.004

    def with_slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = super().with_slopes(x)
        # x s(-b x) = x - x s(b x): f(-x) = f(x) - x / 1.1, and its slope in x is f' - 1 / 1.1
        other = torch.sub(value, x, alpha=1 / _STEEPEST), slope - 1 / _STEEPEST
        return torch.cat([value, other[0]], 1) / 1.004, torch.cat([slope, other[1]], 1) / 1.004


@register
class LipELU(nn.Module):
    """``x`` for ``x > 0``, else ``exp(x) - 1``: ELU, whose slope is at most 1."""

    copies = 1

    def forward(self, x: Tensor) -> Tensor:
        return elu(x)

    def with_slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = elu(x)
        return value, value.clamp(max=0) + 1


Activation = type[LipSwish] | type[LipELU]


class _Swish(torch.autograd.Function):
    """``x s / 1.1`` and its slope, ``s (1 + u (1 - s)) / 1.1``, with ``u = b x, s = sigmoid(u)``.

    Written out, since autograd would keep and read some ten tensors of x's size.
    """

    @staticmethod
    def forward(ctx: Saved, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, b)
        u = x * b
        s = torch.sigmoid(u)
        value = (x * s).div_(_STEEPEST)
        slope = u.addcmul_(u, s, value=-1).add_(1).mul_(s).div_(_STEEPEST)
        return value, slope

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Saved, by_value: Tensor, by_slope: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        x, b = ctx.saved_tensors
        u = x * b
        s = torch.sigmoid(u)
        rest = s - s * s
        # the slope's derivative by u, times 1.1: s (1 - s) (2 + u (1 - 2 s))
        bent = (1 - 2 * s).mul_(u).add_(2).mul_(rest).mul_(by_slope)
        by_b = None
        if ctx.needs_input_grad[1]:
            by_b = (x * rest).mul_(by_value).add_(bent).mul_(x).sum() / _STEEPEST
            by_b = by_b.reshape(b.shape)
        by_x = rest.mul_(u).add_(s).mul_(by_value).add_(bent.mul_(b)).div_(_STEEPEST)
        return by_x, by_b
