"""Velocities of rows that move in time, with their divergence in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.registry import register


@register
class Velocity(nn.Module):
    """``f(t, x) = W3 tanh(W2 tanh(W1 x + C c + t u1 + b1) + t u2 + b2) + b3``, for `Continuous`.

    W3 and b3 start at zero: nothing moves. The velocity is bounded and smooth, so that no row is
    flung away and few steps suffice. With D1 and D2 the diagonal slopes of the two tanh, its
    divergence is

    ``tr(W3 D2 W2 D1 W1) = d2^T (W2 * (W1 W3)^T) d1``:

    exact, for about the price of the velocity itself, however long the rows are.

    Args:
        features: length of the rows.
        width: of the two hidden layers.
        context: length K of the context vectors, 0 for none.

    Departs from the paper (FFJORD): two hidden layers rather than three, and time enters both of
    them, but not the last map, as a learned vector times t.
    """

    def __init__(self, features: int, *, width: int, context: int = 0) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.time1, self.time2 = (nn.Parameter(torch.randn(width) * width**-0.5) for _ in range(2))
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def _hidden(
        self, t: Tensor | float, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if x.dim() != 2 or x.shape[1] != self.enter.in_features:
            wanted = (self.enter.in_features,)
            raise ValueError(f"Velocity: reads events {wanted}; got {tuple(x.shape[1:])}")
        entered = self.enter(x) + t * self.time1
        if self.context is not None:
            if context is None:
                raise ValueError("Velocity: built for a context, and got none")
            entered = entered + self.context(context)
        first = entered.tanh()
        return first, (self.middle(first) + t * self.time2).tanh()

    def forward(
        self,
        t: Float[Tensor, ""] | float,
        x: Float[Tensor, "rows n"],
        context: Float[Tensor, "rows k"] | None = None,
    ) -> Float[Tensor, "rows n"]:
        """The velocity of rows ``(rows, n)`` at time t."""
        return self.leave(self._hidden(t, x, context)[1])

    def divergence(
        self,
        t: Float[Tensor, ""] | float,
        x: Float[Tensor, "rows n"],
        context: Float[Tensor, "rows k"] | None = None,
    ) -> tuple[Float[Tensor, "rows n"], Float[Tensor, " rows"]]:
        """The velocity and the trace of its Jacobian ``(rows,)``."""
        first, second = self._hidden(t, x, context)
        through = self.middle.weight * (self.enter.weight @ self.leave.weight).T
        slope1, slope2 = 1 - first.square(), 1 - second.square()
        return self.leave(second), (slope2 * (slope1 @ through.T)).sum(1)
