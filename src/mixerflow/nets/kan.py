"""A Kolmogorov-Arnold network: its edges are learned functions, its nodes add."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.norm import Norm, norm_of, read_rows
from mixerflow.registry import register


def cubic_basis(
    x: Float[Tensor, "rows n"], *, grid: int, extent: float
) -> Float[Tensor, "rows basis n"]:
    """The ``grid + 3`` cubic B-splines of ``[-extent, extent]``, continued in straight lines.

    With h = 2 extent / grid and u = (x + extent) / h, held to [0, grid], f its whole and t its
    fractional part, all are 0 but four:

        6 B_f     = (1 - t)^3                  6 B_{f+1} = 3 t^3 - 6 t^2 + 4
        6 B_{f+2} = 3 t (1 + t - t^2) + 1      6 B_{f+3} = t^3

    Outside the grid each B goes on with the value and the slope of its end, (-1/2, 0, 1/2) / h:
    every combination of them is continuous with its derivative, they still add up to 1, and an
    input far out still moves the output.
    """
    u = (x + extent) * (grid / (2 * extent))
    # relu has no slope at 0, where clamp has one: at the very end only one of them may count
    low, high = (-u).relu() / -2, (u - grid).relu() / 2
    u = u.clamp(0, grid)
    first = u.detach().floor().clamp(max=grid - 1)
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

    One matrix product: silu and all B of every input side by side, ``(rows, (grid + 4) n)``.

    Args:
        in_features: nodes that it reads.
        out_features: nodes that it gives.
        grid: intervals of the splines.
        extent: they cover ``[-extent, extent]``; see `cubic_basis` for what is outside.
        zero: base and scale start at 0, which makes the output 0; coefficients do not, so that
            scales have gradients at once and everything has after a step.
    """

    def __init__(
        self, in_features: int, out_features: int, *, grid: int, extent: float, zero: bool = False
    ) -> None:
        super().__init__()
        self.in_features, self.grid, self.extent = in_features, grid, extent
        self.base = nn.Parameter(torch.zeros(out_features, in_features))
        self.scale = nn.Parameter(torch.zeros(out_features, in_features))
        # knots next to each other start independent: about as large as the base
        self.coefficients = nn.Parameter(torch.randn(out_features, grid + 3, in_features))
        if not zero:
            bound = in_features**-0.5  # as nn.Linear starts
            nn.init.uniform_(self.base, -bound, bound)
            nn.init.constant_(self.scale, bound / 2)

    def forward(self, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """``(rows, in_features)`` to ``(rows, out_features)``."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # eight bits are no place on a grid
        basis = cubic_basis(x, grid=self.grid, extent=self.extent)
        read = torch.cat([nn.functional.silu(x)[:, None], basis], 1)
        splines = self.scale[:, None] * self.coefficients
        weight = torch.cat([self.base[:, None], splines], 1)
        return nn.functional.linear(read.flatten(1), weight.flatten(1))


@register
class SplineNet(nn.Module):
    """``out = Edges(norm(Edges(s(x), c)))``: a KAN of shape [in, width, out] with cubic splines.

    An edge is ``phi(x) = w_base silu(x) + w_scale sum_k c_k B_k(x)``: with five intervals eight
    coefficients, ten numbers an edge. The second layer starts at 0: whatever map reads the output
    starts as the identity.

    Each layer is one matrix product over nine numbers an input; making those is most of the work.
    On one CPU core a step of 3136 rows, 8 to 64 to 16, takes 4 to 5 times as long as a
    `ResidualMLP` of width 64.

    Args:
        in_features: length of the conditioning vectors.
        out_features: numbers to give out.
        width: hidden nodes.
        norm: "batch", "layer" or "none", of the hidden nodes, before their functions.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of the context vectors, 0 for none; their entries are further inputs.
        grid: intervals of each spline.
        extent: the splines cover ``[-extent, extent]``.

    References:
        Liu, Wang, Vaidya, Ruehle, Halverson, Soljačić, Hou, Tegmark: KAN: Kolmogorov-Arnold
        networks (2024), eq. 2.10 to 2.12. https://arxiv.org/abs/2404.19756

    Departs from the paper:
        - splines go on in straight lines outside the grid, see `cubic_basis`; the paper moves the
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
        super().__init__()
        if grid < 1 or not extent > 0:
            raise ValueError(f"SplineNet: grid, extent must be positive; got {grid} and {extent}")
        self.squash, self.in_features, self.context = squash, in_features, context
        self.enter = Edges(in_features + context, width, grid=grid, extent=extent)
        self.norm = norm_of(norm, width)
        self.leave = Edges(width, out_features, grid=grid, extent=extent, zero=True)

    def forward(
        self, x: Float[Tensor, "rows in"], context: Float[Tensor, "rows k"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """``(rows, in_features)`` and ``(rows, K)`` to ``(rows, out_features)``."""
        x = read_rows(self, x, context, self.in_features, self.context, squashed=self.squash)
        return self.leave(self.norm(self.enter(x)))
