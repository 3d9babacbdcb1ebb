"""The identity plus a map of low rank: linear in the vectors' length, not quadratic."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant, expect
from mixerflow.registry import register


@register
class Woodbury(Transform):
    """``z = (I + U V) x + b`` with U of n x rank and V of rank x n; starts as the identity.

    ``log|det dz/dx| = log|det(I + V U)|``, of a matrix rank x rank, and by the Woodbury identity
    ``x = y - U (I + V U)^-1 V y`` with ``y = z - b``. 2 n rank numbers, and as many
    multiplications a vector.

    Nothing in the published form forbids a singular ``I + V U``. What keeps training away is the
    likelihood: its log-det falls without bound there. A step that lands on the spot has a log-det
    of minus infinity, which training skips as not finite; one that leaps across changes the
    orientation, which does no harm. The map has no scale of its own along each of the n axes, as
    LU's diagonal has; leave that to an `ActNorm` next to it.

    Args:
        n: length of the vectors.
        rank: of U V, 1 to n; from n / 2 on `LU` has fewer numbers.
        bias: whether to add b.
        generator: of V, which starts as N(0, 1 / n); U starts at 0.

    Raises:
        ValueError: no such rank.

    References:
        Lu, Huang: Woodbury transformations for deep generative flows (2020), eq. 4 to 6.
        https://arxiv.org/abs/2002.12229

    Departs from the paper:
        - U and V start at N(0, 0.01) there, so near the identity; this is the identity.
        - No second such map from the right: `Along` another axis is that.
    """

    def __init__(
        self,
        n: int,
        rank: int = 16,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= n:
            raise ValueError(f"Woodbury: rank {rank} must lie in 1..{n}, the vectors' length")
        self.n, self.rank = n, rank
        self.left = nn.Parameter(torch.zeros(n, rank))
        self.right = nn.Parameter(torch.randn(rank, n, generator=generator) * n**-0.5)
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def core(self) -> Float[Tensor, "rank rank"]:
        """``I + V U``, which has the whole map's determinant."""
        return self.right @ self.left + torch.diag_embed(torch.ones_like(self.right[:, 0]))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), (self.n,))
        with torch.autocast(x.device.type, enabled=False):
            z = x + nn.functional.linear(x @ self.right.mT, self.left, self.bias)
            return z, constant(torch.linalg.slogdet(self.core())[1], x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), (self.n,))
        with torch.autocast(z.device.type, enabled=False):
            x, core = z if self.bias is None else z - self.bias, self.core()
            # rows are multiplied from the right, so the small system is transposed too
            small = torch.linalg.solve(core.mT, x @ self.right.mT, left=False)
            return x - small @ self.left.mT, constant(-torch.linalg.slogdet(core)[1], z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.n,))
        return shape

    def extra_repr(self) -> str:
        """The width and rank, in ``print(flow)``."""
        return f"{self.n}, rank={self.rank}, bias={self.bias is not None}"
