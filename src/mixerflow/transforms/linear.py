"""Invertible linear maps of vectors: triangles whose log-det is a sum, and a full matrix.

Reference: Kingma, Dhariwal, Glow (2018), eq. 9 (matrix) and 11 (PLU), arXiv:1807.03039.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow import core
from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape, Transform, constant
from mixerflow.moments import ALL, Entries
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.transforms.covariance import covariance_of, inverse_root, mean_of

LinearStart = Literal["identity", "whitening"]

_RIDGE = 1e-3


class _LinearMap(FixedShape):
    """``z = A x + b`` for vectors ``(n,)``, outside of autocast; b may be None."""

    bias: Tensor | None

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.n = n

    def _multiply(self, x: Tensor) -> Tensor:
        """``A x + b`` for each row x of ``(B, n)``."""
        raise NotImplementedError

    def _solve(self, y: Tensor) -> Tensor:
        """``A^-1 y`` for each row y of ``(B, n)``."""
        raise NotImplementedError

    def _log_det(self) -> Tensor | int:
        """``log|det A|``."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        with without_autocast(x):
            return self._multiply(x), constant(self._log_det(), x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        with without_autocast(z):
            x = self._solve(z if self.bias is None else z - self.bias)
            return x, constant(-self._log_det(), z)

    def extra_repr(self) -> str:
        return f"{self.n}"

    def constants(self) -> Iterator[Entries]:
        if isinstance(self.bias, nn.Parameter):
            yield self.bias, ALL


class _DenseMap(_LinearMap):
    """``z = A x + b`` by one product with A, for vectors or for the columns of ``(B, n, m)``."""

    takes_columns = True

    def out_shape(self, shape: Shape) -> Shape:
        return shape if len(shape) == 2 and shape[0] == self.n else super().out_shape(shape)

    def _matrix(self) -> Float[Tensor, "n n"]:
        """A."""
        raise NotImplementedError

    def _multiply(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._matrix(), self.bias)

    def _multiply_columns(self, x: Float[Tensor, "batch n m"]) -> Float[Tensor, "batch n m"]:
        each = self._matrix().expand(x.shape[0], -1, -1)
        if self.bias is None:
            return torch.bmm(each, x)
        return torch.baddbmm(self.bias[:, None], each, x)

    def _solve_columns(self, y: Float[Tensor, "batch n m"]) -> Float[Tensor, "batch n m"]:
        rows = y.mT
        return self._solve(rows.flatten(0, 1)).reshape(rows.shape).mT

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        if x.dim() != 3:
            return super().forward(x, context, noise)
        self.check_data(x[..., 0])
        with without_autocast(x):
            return self._multiply_columns(x), constant(self._log_det() * x.shape[2], x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        if z.dim() != 3:
            return super().inverse(z, context, noise)
        self.check_latent(z[..., 0])
        with without_autocast(z):
            x = self._solve_columns(z if self.bias is None else z - self.bias[:, None])
            return x, constant(-self._log_det() * z.shape[2], z)


@register
class Linear(_DenseMap):
    """``z = W x + b`` with W, its inverse and ``log|det W|`` stored: linear maps fold into it.

    All of them are buffers: nothing here can be trained. W and b are the values of an affine
    `transform` of vectors ``(n,)`` at the unit vectors and 0. Affine maps of each number next to
    it, as `ActNorm`, merge into it.
    """

    affine = True
    weight: Tensor
    inverted: Tensor
    bias: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    log_det: Tensor

    @torch.no_grad()
    def __init__(self, transform: Transform, n: int) -> None:
        super().__init__(n)
        unit = torch.eye(n).to(core.floating(transform))
        bias, log_det = transform(torch.zeros_like(unit[:1]))
        origin = transform.inverse(torch.zeros_like(unit[:1]))[0]
        self.register_buffer("weight", (transform(unit)[0] - bias).mT.contiguous())
        self.register_buffer("inverted", (transform.inverse(unit)[0] - origin).mT.contiguous())
        self.register_buffer("bias", bias[0].clone())
        self.register_buffer("log_det", log_det[0].to(bias.dtype, copy=True))

    def _matrix(self) -> Tensor:
        return self.weight

    def _solve(self, y: Tensor) -> Tensor:
        return nn.functional.linear(y, self.inverted)

    def _solve_columns(self, y: Tensor) -> Tensor:
        return torch.bmm(self.inverted.expand(y.shape[0], -1, -1), y)

    def _log_det(self) -> Tensor:
        return self.log_det

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        return Linear(core.Chain(before, after), self.n) if before.affine and after.affine else None


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
            eigenvalue of C and r = 1e-3. Of all maps that whiten, this one changes the vectors
            least. As it is positive definite, it has triangles without a permutation.

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
            root = inverse_root(covariance_of(rows, mean), _RIDGE)
            factor = torch.linalg.cholesky(root)
            diagonal = factor.diagonal()
            upper = diagonal[:, None] * factor.mT
            log_diagonal = 2 * diagonal.log().diag()
            self.packed.copy_((factor / diagonal).tril(-1) + upper.triu(1) + log_diagonal)
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
        diagonal = upper.diagonal()
        packed = lower.tril(-1) + upper.triu(1) + torch.diag_embed(diagonal.abs().log())
        self.packed = nn.Parameter(packed.to(self.packed.dtype))
        self.register_buffer("permutation", p.argmax(-1))  # row i of P picks element permutation[i]
        self.register_buffer("signs", diagonal.sign().to(self.packed.dtype))

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


@register
class Matrix(_DenseMap):
    """``z = W x`` with any invertible matrix W; starts as a random rotation.

    ``log|det dz/dx| = log|det W|`` costs a factorisation of W in each pass, and only the density,
    which rewards it, keeps W invertible; `LU` and `PLU` have neither fault. As Glow's 1x1
    convolution when applied along the channels.
    """

    def __init__(self, n: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(n)
        rotation = _rotation(n, generator).to(torch.get_default_dtype())
        self.weight = nn.Parameter(rotation.contiguous())  # LAPACK's order is not safetensors'
        self.bias = None

    def _matrix(self) -> Tensor:
        return self.weight

    def _solve(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.weight.mT, y, left=False)  # rows: multiplied from the right

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(widen(self.weight))[1]

    def folded(self) -> Transform:
        return Linear(self, self.n)


def _rotation(n: int, generator: torch.Generator | None) -> Float[Tensor, "n n"]:
    """A random orthogonal matrix in float64."""
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
