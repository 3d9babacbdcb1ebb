"""Monotone maps whose Cayley operator is a contraction: both directions by iteration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Transform, fixed_point, report
from mixerflow.registry import register
from mixerflow.transforms.residual import (
    REMEDY,
    differentiated,
    log_det_of,
    newton,
    prepared,
    tolerance_of,
    wide,
)


@register
class Monotone(Transform):
    """``z = (I + G)^-1 (2 x) - x``: ``x = (u + G(u)) / 2, z = (u - G(u)) / 2`` for one u.

    A contraction G makes a monotone z(x), whose slopes lie between ``(1 - L) / (1 + L)`` and its
    inverse, where a residual map's lie between ``1 - L`` and ``1 + L``. ``u <- 2 x - G(u)`` finds
    u; ``log|det dz/dx| = log det(I - J) - log det(I + J)`` with J the Jacobian of G at u, by n
    backward passes. The inverse is the same with -G. The identity where G is 0.

    Args:
        net: G, which maps ``(B, *event)`` and the context to the same shape, with a Lipschitz
            constant below 1 in the 2-norm.
        most: steps.

    References:
        Ahn, Kim, Hong, Kim: Invertible monotone operators for normalizing flows (2022), section 4.
        https://arxiv.org/abs/2210.08176
    Departs from the paper:
        - the end of the iteration is a step of Newton's method, through which gradients flow.
    """

    invertible = False

    def __init__(self, net: nn.Module, *, most: int = 2000) -> None:
        super().__init__()
        self.net = net
        self.most = most

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._cayley(x, context, 1.0)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._cayley(z, context, -1.0)

    def _cayley(self, x: Tensor, context: Tensor | None, sign: float) -> tuple[Tensor, Tensor]:
        """The map of ``sign G``."""
        with torch.autocast(x.device.type, enabled=False):
            x = wide(x)
            g = prepared(self.net, context)
            tolerance = tolerance_of(x)
            with torch.no_grad():
                u, error = fixed_point(
                    lambda u: 2 * x - sign * g(u),
                    2 * x.detach(),
                    tolerance=tolerance,
                    most=self.most,
                )
            report(self, error, tolerance, REMEDY)
            value, jacobian = differentiated(g, u)
            unit = torch.eye(jacobian.shape[-1], dtype=x.dtype, device=x.device)
            u = newton(u, u + sign * value - 2 * x, unit + sign * jacobian)
            if torch.is_grad_enabled():  # the log-det's gradient goes through u too
                jacobian = differentiated(g, u)[1]
            return u - x, log_det_of(jacobian, -sign) - log_det_of(jacobian, sign)
