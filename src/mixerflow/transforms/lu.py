"""Linear maps of vectors by triangles, whose log-det is a sum.

Reference: Kingma, Dhariwal, Glow (2018), eq. 11 (PLU), arXiv:1807.03039.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Context, Transform
from mixerflow.registry import register
from mixerflow.transforms.covariance import covariance_of, inverse_root, mean_of
from mixerflow.transforms.linear import Linear, _DenseMap, _rotation

LinearStart = Literal["identity", "whitening"]

_RIDGE = 1e-3
"""The least that a whitening start adds to the eigenvalues, relative to their mean."""


def packed(lower: Tensor, upper: Tensor) -> Float[Tensor, "n n"]:
    """Return triangles in one matrix, as `LU` stores them: L, U, and ``log |U_ii|``."""
    return lower.tril(-1) + upper.triu(1) + upper.diagonal().abs().log().diag()


@register
class LU(_DenseMap):
    """``z = L U x + b`` with L unit lower and U upper triangular; `start` says how it starts.

    ``log|det dz/dx| = sum_i log U_ii``; U's diagonal is an exponential, so the map is always
    invertible and keeps the orientation. Both triangles are stored in one matrix parameter, as
    LAPACK packs them: L strictly below the diagonal, U above it, ``log U_ii`` on it: n^2 + n
    numbers.

    Args:
        n: length of the vectors.
        bias: whether there is a b.
        start: "identity", or "whitening": `initialize` then sets ``L U = (C + r l I)^(-1/2)`` and
            ``b = -L U m`` for the mean m and the covariance C of a first batch, where l is the mean
            eigenvalue of C, and r the larger of 1e-3 and n over the number of vectors. Of all maps
            that whiten, this one changes the vectors least. As it is positive definite, it has
            triangles without a permutation.

    References:
        English et al., MixerFlow (2023), section 4, arXiv:2310.16777.
        Kessy, Lewin, Strimmer, Optimal whitening and decorrelation (2018), section 3.1: ZCA
        whitening, arXiv:1512.00809.
    """

    def __init__(self, n: int, *, bias: bool = True, start: LinearStart = "identity") -> None:
        super().__init__(n)
        if start not in get_args(LinearStart):
            raise ValueError(f"{type(self).__name__}: start must be identity or whitening")
        self.start = start
        self.packed = nn.Parameter(torch.zeros(n, n))
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def packed_triangles(self) -> Float[Tensor, "n n"]:
        """L and U in one matrix, with ``log |U_ii|`` on the diagonal."""
        return self.packed

    def triangles(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        packed = self.packed_triangles()
        lower = packed.tril(-1) + torch.diag_embed(torch.ones_like(packed[0]))
        upper = packed.triu(1) + torch.diag_embed(packed.diagonal().exp())
        return lower, upper

    def _matrix(self) -> Tensor:
        lower, upper = self.triangles()
        return lower @ upper

    def _solve(self, y: Tensor) -> Tensor:
        lower, upper = self.triangles()
        # rows are multiplied from the right: x (LU)^T = y, so U^T comes off last
        y = torch.linalg.solve_triangular(lower.mT, y, upper=True, left=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper.mT, y, upper=False, left=False)

    def _reordered(self, x: Tensor) -> Tensor:
        """The entries of vectors ``(..., n)`` in the order in which the triangles take them."""
        return x

    def _log_det(self) -> Tensor:
        return self.packed_triangles().diagonal().sum()

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        if self.start == "whitening":
            rows = self._reordered(x.movedim(1, -1).reshape(-1, self.n))
            mean = mean_of(rows)
            ridge = max(_RIDGE, self.n / len(rows))
            root = inverse_root(covariance_of(rows, mean), ridge)
            factor = torch.linalg.cholesky(root)
            diagonal = factor.diagonal()
            self.packed.copy_(packed(factor / diagonal, diagonal[:, None] * factor.mT))
            if self.bias is not None:
                self.bias.copy_(-(root @ mean))
        return self(x, context)[0]

    def folded(self) -> Transform:
        return Linear(self, self.n)

    def extra_repr(self) -> str:
        return f"{self.n}, bias={self.bias is not None}"


@register
class RLU(LU):
    """``z = L U R x + b``, where R reverses the order of the dimensions.

    The paper's choice where there are no shift layers: an even number of these restores the order.
    """

    def _matrix(self) -> Tensor:
        return super()._matrix().flip(-1)

    def _solve(self, y: Tensor) -> Tensor:
        return super()._solve(y).flip(-1)

    def _reordered(self, x: Tensor) -> Tensor:
        return x.flip(-1)


@register
class PLU(LU):
    """``z = P L U x + b`` with fixed permutation P and signs; starts as a random rotation.

    ``log|det dz/dx| = sum_i log|U_ii|``. As Glow's 1x1 convolution when applied along the channels.
    """

    permutation: Tensor
    signs: Tensor

    def __init__(
        self, n: int, *, bias: bool = False, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(n, bias=bias)
        p, lower, upper = torch.linalg.lu(_rotation(n, generator))
        self.packed = nn.Parameter(packed(lower, upper).to(self.packed.dtype))
        self.register_buffer("permutation", p.argmax(-1))  # row i of P picks element permutation[i]
        self.register_buffer("signs", upper.diagonal().sign().to(self.packed.dtype))

    def triangles(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        lower, upper = super().triangles()
        return lower, upper - torch.diag_embed(upper.diagonal() * (1 - self.signs))

    def _matrix(self) -> Tensor:
        lower, upper = self.triangles()
        return lower[self.permutation] @ upper

    def _solve(self, y: Tensor) -> Tensor:
        return super()._solve(y[..., self.permutation.argsort()])


@register
class UnpackedPLU(PLU):
    """`PLU` whose triangles are stored as two full matrices, whose other halves are not used.

    As published code stores it: 2 n^2 + n numbers, for counts and weights that follow it.
    """

    def __init__(self, n: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(n, generator=generator)
        packed = self.packed.detach()
        del self.packed
        self.lower, self.upper = nn.Parameter(packed.tril(-1)), nn.Parameter(packed.triu(1))
        self.log_diagonal = nn.Parameter(packed.diagonal().clone())

    def packed_triangles(self) -> Float[Tensor, "n n"]:
        """L and U in one matrix; the halves that are not used have gradients of zeros."""
        return self.lower.tril(-1) + self.upper.triu(1) + torch.diag_embed(self.log_diagonal)
