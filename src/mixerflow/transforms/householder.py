"""Orthogonal maps as products of reflections."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant, expect
from mixerflow.registry import register
from mixerflow.transforms.linear import Linear


@register
class Householder(Transform):
    """``z = H_1 ... H_r x`` with reflections ``H_i = 1 - 2 v_i v_i' / |v_i|^2``; log-det 0.

    Orthogonal whatever the parameters are. n reflections reach every orthogonal matrix whose
    determinant is ``(-1)^r``; starts as a random one of those. Applied at once, by the product's
    compact form ``1 - V' T^-1 V``, with the unit vectors as the rows of V and T the upper triangle
    of ``V V'``, its diagonal halved.

    Args:
        n: length of the vectors.
        reflections: their number r; None for n.
        generator: of the random start.

    Raises:
        ValueError: fewer than one reflection.

    References:
        Tomczak, Welling: Improving variational auto-encoders using Householder flow (2016).
        https://arxiv.org/abs/1611.09630
        Joffrain, Low, Quintana-Orti, van de Geijn, Van Zee: Accumulating Householder
        transformations, revisited (2006). https://doi.org/10.1145/1141885.1141886
    """

    affine = True

    def __init__(
        self,
        n: int,
        reflections: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        reflections = n if reflections is None else reflections
        if reflections < 1:
            raise ValueError(f"Householder: needs one reflection at least; got {reflections}")
        self.n = n
        self.vectors = nn.Parameter(torch.randn(reflections, n, generator=generator))

    def _parts(self) -> tuple[Float[Tensor, "r n"], Float[Tensor, "r r"]]:
        """V and T."""
        unit = nn.functional.normalize(self.vectors, dim=1)
        half = torch.full_like(unit[:, 0], 0.5)
        return unit, (unit @ unit.mT).triu(1) + torch.diag_embed(half)

    def _apply_to(self, x: Tensor, *, back: bool) -> tuple[Tensor, Tensor]:
        expect(self, tuple(x.shape[1:]), (self.n,))
        with torch.autocast(x.device.type, enabled=False):
            unit, upper = self._parts()
            # rows: z' = x' - x' V' T^-T V
            triangle = upper if back else upper.mT
            inner = torch.linalg.solve_triangular(triangle, x @ unit.mT, upper=back, left=False)
            return x - inner @ unit, constant(0.0, x)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._apply_to(x, back=False)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._apply_to(z, back=True)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.n,))
        return shape

    def folded(self) -> Transform:
        """The product as a matrix."""
        return Linear(self, self.n)

    def extra_repr(self) -> str:
        """Width and number of reflections, in ``print(flow)``."""
        return f"{self.n}, reflections={len(self.vectors)}"
