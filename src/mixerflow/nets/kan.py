"""A Kolmogorov-Arnold network: its edges are learned functions, and its nodes are sums."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.base import ConcatenatingNet, RowContext, RowsIn, RowsOut
from mixerflow.nets.norm import Norm, norm_of
from mixerflow.precision import widen
from mixerflow.registry import register


def cubic_basis(
    x: Float[Tensor, "rows n"], *, grid: int, extent: float
) -> Float[Tensor, "rows basis n"]:
    """The ``grid + 3`` cubic B-splines of ``[-extent, extent]``, continued in straight lines.

    With h = 2 extent / grid and u = (x + extent) / h, held to [0, grid], f its whole and t its
    fractional part, all are 0 but four:

        6 B_f     = (1 - t)^3                  6 B_{f+1} = 3 t^3 - 6 t^2 + 4
        6 B_{f+2} = 3 t (1 + t - t^2) + 1      6 B_{f+3} = t^3

    Outside the grid each B is a line with the value and slope of its end, (-1/2, 0, 1/2) / h: every
    combination of them is continuous with its derivative, they still add up to 1, and the gradient
    of an input far outside does not vanish.
    """
    u = (x + extent) * (grid / (2 * extent))
    # clamp has slope 1 at the ends of the grid, so the straight parts must have slope 0 there: relu
    low, high = (-u).relu() / -2, (u - grid).relu() / 2
    u = u.clamp(0, grid)
    first = u.detach().floor().clamp(max=grid - 1).nan_to_num(0.0)  # NaN is no index
    t = u - first
    s = 1 - t
    values = torch.stack(
        [
            s * s * s / 6 - low,
            (t * t * (3 * t - 6) + 4) / 6 - high,
            (3 * t * (1 + t - t * t) + 1) / 6 + low,
            t * t * t / 6 + high,
        ],
        1,
    )
    index = torch.arange(4, device=x.device)[:, None] + first.long()[:, None]
    return values.new_zeros(x.shape[0], grid + 3, x.shape[1]).scatter(1, index, values)


class Edges(nn.Module):
    """``out_j = sum_i base_ji silu(x_i) + scale_ji sum_k coefficient_jki B_k(x_i)``.

    This is one matrix product with silu and all B of every input, ``(rows, (grid + 4) n)``.

    With `zero`, base and scale start at 0, and the output with them. The coefficients do not: the
    scales have gradients at once, and all parameters have gradients after one step.
    """

    def __init__(
        self, in_features: int, out_features: int, *, grid: int, extent: float, zero: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.grid, self.extent = in_features, grid, extent
        self.base = nn.Parameter(torch.zeros(out_features, in_features))
        self.scale = nn.Parameter(torch.zeros(out_features, in_features))
        # the spline starts about as large as the base
        self.coefficients = nn.Parameter(torch.randn(out_features, grid + 3, in_features))
        if not zero:
            bound = in_features**-0.5  # as nn.Linear starts
            nn.init.uniform_(self.base, -bound, bound)
            nn.init.constant_(self.scale, bound / 2)

    def forward(self, x: RowsIn) -> RowsOut:
        # positions in the grid need more than bfloat16
        x = widen(x)
        basis = cubic_basis(x, grid=self.grid, extent=self.extent)
        read = torch.cat([nn.functional.silu(x)[:, None], basis], 1)
        splines = self.scale[:, None] * self.coefficients
        weight = torch.cat([self.base[:, None], splines], 1)
        return nn.functional.linear(read.flatten(1), weight.flatten(1))


@register
class SplineNet(ConcatenatingNet):
    """``out = Edges(norm(Edges(s(x), c)))``: a KAN of shape [in, width, out] with cubic splines.

    An edge is ``phi(x) = w_base silu(x) + w_scale sum_k c_k B_k(x)``: with five intervals eight
    coefficients, ten numbers an edge. The second layer starts at 0: whatever map reads the output
    starts as the identity. A context adds K inputs.

    Each layer is one matrix product over nine numbers an input; computing these numbers is most of
    the work. On one CPU core a step of 3136 rows, 8 to 64 to 16, takes 4 to 5 times as long as with
    a `ResidualMLP` of width 64.

    Args, besides those of `Conditioner`:
        grid: intervals of each spline.
        extent: the splines cover ``[-extent, extent]``.

    Reference: Liu et al., KAN: Kolmogorov-Arnold networks (2024), eq. 2.10 to 2.12,
        arXiv:2404.19756.

    Departs from the paper:
        - splines are straight lines outside the grid, see `cubic_basis`; the paper moves the
          grid to the data now and then, which would change a flow's density during training;
        - the last layer's scale starts at 0, not at 1.
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
        grid: int = 5,
        extent: float = 2.0,
    ) -> None:
        super().__init__(in_features, context, squash=squash)
        if grid < 1 or not extent > 0:
            raise ValueError(f"SplineNet: grid, extent must be positive; got {grid} and {extent}")
        self.enter = Edges(in_features + context, width, grid=grid, extent=extent)
        self.norm = norm_of(norm, width)
        self.leave = Edges(width, out_features, grid=grid, extent=extent, zero=True)

    def forward(self, x: RowsIn, context: RowContext = None) -> RowsOut:
        return self.leave(self.norm(self.enter(self.concatenate(x, context))))
