"""Orthogonal maps as products of reflections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Transform
from mixerflow.registry import register
from mixerflow.transforms.linear import Linear, _LinearMap


@register
class Householder(_LinearMap):
    """``z = H_1 ... H_r x`` with reflections ``H_i = 1 - 2 v_i v_i' / |v_i|^2``; log-det 0.

    Orthogonal whatever the parameters are. n reflections reach every orthogonal matrix whose
    determinant is ``(-1)^r``; starts as a random one of them. The reflections are applied together,
    by the product's compact form ``1 - V' T^-1 V``, with the unit vectors as the rows of V and T
    the upper triangle of ``V V'``, its diagonal halved.

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
        self, n: int, reflections: int | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(n)
        reflections = n if reflections is None else reflections
        if reflections < 1:
            raise ValueError(f"Householder: needs one reflection at least; got {reflections}")
        self.bias = None
        self.vectors = nn.Parameter(torch.randn(reflections, n, generator=generator))

    def _apply_to(self, x: Tensor, *, transposed: bool) -> Tensor:
        """The product, or its inverse, applied to rows: ``x' - x' V' T^-T V``, or with ``T^-1``."""
        unit = nn.functional.normalize(self.vectors, dim=1)
        half = torch.full_like(unit[:, 0], 0.5)
        upper = (unit @ unit.mT).triu(1) + torch.diag_embed(half)
        triangle = upper if transposed else upper.mT
        inner = torch.linalg.solve_triangular(triangle, x @ unit.mT, upper=transposed, left=False)
        return x - inner @ unit

    def _multiply(self, x: Tensor) -> Tensor:
        return self._apply_to(x, transposed=False)

    def _solve(self, y: Tensor) -> Tensor:
        return self._apply_to(y, transposed=True)

    def _log_det(self) -> int:
        return 0

    def folded(self) -> Transform:
        return Linear(self, self.n)

    def extra_repr(self) -> str:
        return f"{self.n}, reflections={len(self.vectors)}"
