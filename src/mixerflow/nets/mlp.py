"""Multi-layer perceptrons: the residual net of the paper's couplings, and a velocity field."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from mixerflow.moments import ALL, Entries
from mixerflow.nets.base import (
    Conditioner,
    RowContext,
    RowsIn,
    RowsOut,
    context_map,
    squash,
    zeroed,
)
from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of
from mixerflow.registry import register

Time = Float[Tensor, ""] | float


@register
class ResidualMLP(Conditioner):
    """``h = A r(x) + C c;  h = h + W2 gelu(norm(W1 gelu(norm(h))));  out = B h``.

    One pre-activation residual block of two ``width x width`` linears, between a linear map A and a
    linear map B that starts at 0: whatever map reads the output starts as the identity. `norm` is
    before each GELU.

    The net reads ``r(x) = s(x)``, the squash, or ``(s(x), s(x)^2)`` with `squares`: how much an
    image varies somewhere tells how much it varies beside, and s(x) is an odd function, of which a
    narrow net makes few even ones. `docs/fast.md` has what it brings.

    Raises:
        ValueError: squares of numbers that are not squashed, which would grow from net to net.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        norm: Norm = "none",
        squash: bool = True,
        squares: bool = False,
        context: int = 0,
    ) -> None:
        super().__init__()
        if squares and not squash:
            raise ValueError("ResidualMLP: squares are of squashed numbers; use squash with them")
        self.in_features, self.squash, self.squares = in_features, squash, squares
        self.enter = nn.Linear(2 * in_features if squares else in_features, width)
        self.context = context_map(context, width)
        self.norm1, self.norm2 = norm_of(norm, width), norm_of(norm, width)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.leave = zeroed(nn.Linear(width, out_features))

    def forward(self, x: RowsIn, context: RowContext = None) -> RowsOut:
        self.require_vectors(x, self.in_features)
        read = squash(x) if self.squash else x
        read = torch.cat((read, read.square()), 1) if self.squares else read
        h = self.add_context(self.enter(read), context)
        h = h + self.linear2(gelu(self.norm2(self.linear1(gelu(self.norm1(h))))))
        return self.leave(h)

    def idle(self) -> Iterator[Entries]:
        if isinstance(self.norm2, SyncedBatchNorm):
            yield self.linear1.bias, ALL

    def folded(self) -> ResidualMLP:
        """Replace batch norms by `Scale`, and fold the second one into the linear map before it.

        The first one cannot be folded: the block also adds its output to the first one's input.
        """
        for name, norm in (("norm1", self.norm1), ("norm2", self.norm2)):
            setattr(self, name, norm.folded() if isinstance(norm, SyncedBatchNorm) else norm)
        if isinstance(self.norm2, Scale) and type(self.linear1) is nn.Linear:
            self.linear1.weight *= self.norm2.weight[:, None]
            self.linear1.bias.copy_(self.norm2(self.linear1.bias))
            self.norm2 = nn.Identity()
        return self


@register
class Velocity(Conditioner):
    """``f(t, x) = W3 tanh(W2 tanh(W1 x + C c + t u1 + b1) + t u2 + b2) + b3``, for `Continuous`.

    W3 and b3 start at 0, and the flow as the identity. The velocity is bounded and smooth, so that
    few steps suffice. With D1 and D2 the diagonal slopes of the two tanh, its divergence is

    ``tr(W3 D2 W2 D1 W1) = d2^T (W2 * (W1 W3)^T) d1``.

    This is exact and costs about as much as the velocity itself, however long the rows are.

    Departs from the paper (FFJORD): there are two hidden layers rather than three, and a learned
    vector times t is added to both of them, but not to the last map.
    """

    def __init__(self, features: int, *, width: int, context: int = 0) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.context = context_map(context, width)
        self.time1, self.time2 = (nn.Parameter(torch.randn(width) * width**-0.5) for _ in range(2))
        self.middle = nn.Linear(width, width)
        self.leave = zeroed(nn.Linear(width, features))

    def _hidden(self, t: Time, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self.require_vectors(x, self.enter.in_features)
        first = self.add_context(self.enter(x) + t * self.time1, context).tanh()
        return first, (self.middle(first) + t * self.time2).tanh()

    def forward(self, t: Time, x: RowsIn, context: RowContext = None) -> RowsIn:
        return self.leave(self._hidden(t, x, context)[1])

    def divergence(
        self, t: Time, x: RowsIn, context: RowContext = None
    ) -> tuple[RowsIn, Float[Tensor, " rows"]]:
        """The velocity and the trace of its Jacobian ``(rows,)``."""
        first, second = self._hidden(t, x, context)
        through = self.middle.weight * (self.enter.weight @ self.leave.weight).T
        slope1, slope2 = 1 - first.square(), 1 - second.square()
        return self.leave(second), (slope2 * (slope1 @ through.T)).sum(1)
