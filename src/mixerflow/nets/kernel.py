"""A kernel machine in a net's place: a weighted sum of kernels around learned points."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.norm import Norm, norm_of, read_rows
from mixerflow.registry import register

Kernel = Callable[[Tensor], Tensor]
"""A stationary kernel as a function of the squared distance in length scales."""


def squared_exponential(square: Tensor) -> Tensor:
    """``exp(-r^2 / 2)``."""
    return (-square / 2).exp()


def matern(square: Tensor) -> Tensor:
    """``(1 + a + a^2 / 3) exp(-a)`` with ``a = sqrt(5) r``: Matérn's of smoothness 5/2."""
    # a has no slope at 0 where the kernel has one, -5/6; a little further out both have
    a = (5 * square + torch.finfo(square.dtype).eps).sqrt()
    return (1 + a + a * a / 3) * (-a).exp()


@register
class KernelNet(nn.Module):
    """``f(x) = A^T k(x, W) + b`` with `width` learned points W; starts as 0.

    ``k(x, w) = kernel(sum_i (x_i - w_i)^2 / l_i^2)``, l a learned length scale of each feature. Far
    from all points f is b: it never grows with x.

    Args:
        in_features: length of the conditioning vectors.
        out_features: numbers to give out.
        width: number of points.
        norm: "batch", "layer" or "none", of what is read: points and length scales start fit for
            rows of about unit variance.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of the context vectors, 0 for none; their entries are further features.
        kernel: `squared_exponential` or `matern`, or another function of the squared distance.

    References:
        English, Kirchler, Lippert: Kernelised normalising flows (2023), section 3 (auxiliary
        points). https://arxiv.org/abs/2307.14839

    Departs from the paper:
        - points start as standard normal draws; `place` puts them on data, once, where wanted;
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
        super().__init__()
        n = in_features + context
        self.squash, self.in_features, self.context = squash, in_features, context
        self.kernel = kernel
        self.norm = norm_of(norm, n)
        self.points = nn.Parameter(torch.randn(width, n))
        # two normal rows are sqrt(2n) apart; this makes that a kernel of about exp(-1)
        self.log_length = nn.Parameter(torch.full((n,), n**0.5).log())
        self.leave = nn.Linear(width, out_features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x: Float[Tensor, "rows in"], context: Float[Tensor, "rows k"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """``(rows, in_features)`` and ``(rows, K)`` to ``(rows, out_features)``."""
        return self.leave(self.kernel(self._squares(self._read(x, context))))

    def _read(self, x: Tensor, context: Tensor | None) -> Tensor:
        return self.norm(
            read_rows(self, x, context, self.in_features, self.context, squashed=self.squash)
        )

    def _squares(self, rows: Tensor) -> Float[Tensor, "rows points"]:
        """Squared distances in length scales, ``|x|^2 + |w|^2 - 2 x w``: one matrix product."""
        # the difference of large numbers must not be taken in bfloat16
        with torch.autocast(rows.device.type, enabled=False):
            length = self.log_length.exp()
            rows, points = rows.to(length.dtype) / length, self.points / length
            both = rows.square().sum(1, keepdim=True) + points.square().sum(1)
            return (both - 2 * (rows @ points.mT)).clamp(min=0)

    @torch.no_grad()
    def place(
        self,
        x: Float[Tensor, "rows in"],
        context: Float[Tensor, "rows k"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put the points on randomly chosen rows of a batch of what this net reads.

        Args:
            x: ``(rows, in_features)``, at least as many rows as there are points.
            context: ``(rows, K)``.
            generator: of the choice.

        Raises:
            ValueError: fewer rows than points.
        """
        rows, count = self._read(x, context), len(self.points)
        if len(rows) < count:
            raise ValueError(f"KernelNet: {count} points need as many rows; got {len(rows)}")
        order = torch.randperm(len(rows), generator=generator)[:count]
        self.points.copy_(rows[order.to(rows.device)])
