"""Invertible linear maps of vectors: their base, a map that others fold into, and a full matrix.

Reference: Kingma, Dhariwal, Glow (2018), eq. 9, arXiv:1807.03039.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow import core
from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape, Transform, constant
from mixerflow.moments import ALL, Entries
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register


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
