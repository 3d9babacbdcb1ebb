"""A kernel machine as a conditioner: a weighted sum of kernels around learned points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.base import ConcatenatingNet, RowContext, RowsIn, RowsOut, zeroed
from mixerflow.nets.norm import Norm, norm_of
from mixerflow.precision import without_autocast
from mixerflow.registry import register

Kernel = Callable[[Tensor], Tensor]
"""A stationary kernel: a function of the squared distance in length scales."""


def squared_exponential(square: Tensor) -> Tensor:
    """``exp(-r^2 / 2)``."""
    return (-square / 2).exp()


def matern(square: Tensor) -> Tensor:
    """``(1 + a + a^2 / 3) exp(-a)`` with ``a = sqrt(5) r``: Matérn's kernel of smoothness 5/2."""
    # sqrt has no derivative at 0, where the kernel has slope -5/6: eps keeps the argument positive
    a = (5 * square + torch.finfo(square.dtype).eps).sqrt()
    return (1 + a + a * a / 3) * (-a).exp()


@register
class KernelNet(ConcatenatingNet):
    """``f(x) = A^T k(x, W) + b`` with `width` learned points W; A and b start at 0.

    ``k(x, w) = kernel(sum_i (x_i - w_i)^2 / l_i^2)``, where l has a learned length scale for each
    feature, those of the context included. `norm` is of x: points and length scales start suitable
    for rows of about unit variance. Far from all points f is b: it never grows with x.

    Args, besides those of `Conditioner`:
        kernel: `squared_exponential` or `matern`, or another function of the squared distance.

    Reference: English et al., Kernelised normalising flows (2023), section 3 (auxiliary points),
        arXiv:2307.14839.

    Departs from the paper:
        - points start as standard normal draws; `place` puts them on data;
        - one kernel and one set of points for all outputs, scales and shifts alike.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        norm: Norm = "none",
        squash: bool = True,
        context: int = 0,
        kernel: Kernel = squared_exponential,
    ) -> None:
        super().__init__(in_features, context, squash=squash)
        n = in_features + context
        self.kernel = kernel
        self.norm = norm_of(norm, n)
        self.points = nn.Parameter(torch.randn(width, n))
        # the kernel of two normal rows, which are sqrt(2n) apart, is then about exp(-1)
        self.log_length = nn.Parameter(torch.full((n,), n**0.5).log())
        self.leave = zeroed(nn.Linear(width, out_features))

    def forward(self, x: RowsIn, context: RowContext = None) -> RowsOut:
        rows = self.norm(self.concatenate(x, context))
        return self.leave(self.kernel(self.squared_distances(rows)))

    def squared_distances(self, rows: Tensor) -> Float[Tensor, "rows points"]:
        """Squared distances in length scales, ``|x|^2 + |w|^2 - 2 x w``: one matrix product."""
        # a difference of large numbers is too inexact in bfloat16
        with without_autocast(rows):
            length = self.log_length.exp()
            rows, points = rows.to(length.dtype) / length, self.points / length
            both = rows.square().sum(1, keepdim=True) + points.square().sum(1)
            return (both - 2 * (rows @ points.mT)).clamp(min=0)

    @torch.no_grad()
    def place(
        self, x: RowsIn, context: RowContext = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Put the points on rows of a batch of conditioning vectors, which `generator` chooses.

        A batch with fewer rows than there are points is a ValueError.
        """
        rows, count = self.norm(self.concatenate(x, context)), len(self.points)
        if len(rows) < count:
            raise ValueError(f"KernelNet: {count} points need as many rows; got {len(rows)}")
        order = torch.randperm(len(rows), generator=generator)[:count]
        self.points.copy_(rows[order.to(rows.device)])
