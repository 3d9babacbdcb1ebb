"""Invertible linear maps of vectors: triangles whose log-det is a sum, and a full matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import (
    Chain,
    Context,
    Mapped,
    Noise,
    Shape,
    Transform,
    constant,
    expect,
    floating,
)
from mixerflow.registry import register


@register
class Linear(Transform):
    """``z = W x + b`` with W, its inverse and ``log|det W|`` at hand: what linear maps fold into.

    All of them are buffers: nothing here can be trained. Neighbours that are affine maps of each
    number, as ActNorm, merge into it.

    Args:
        transform: any affine transform of vectors; W and b are read off at the unit vectors.
        n: length of the vectors.
    """

    affine = True
    weight: Tensor
    inverted: Tensor
    bias: Tensor
    log_det: Tensor

    @torch.no_grad()
    def __init__(self, transform: Transform, n: int) -> None:
        super().__init__()
        self.n = n
        unit = torch.eye(n).to(floating(transform))
        bias, log_det = transform(torch.zeros_like(unit[:1]))
        origin = transform.inverse(torch.zeros_like(unit[:1]))[0]
        self.register_buffer("weight", (transform(unit)[0] - bias).mT.contiguous())
        self.register_buffer("inverted", (transform.inverse(unit)[0] - origin).mT.contiguous())
        self.register_buffer("bias", bias[0].clone())
        self.register_buffer("log_det", log_det[0].to(bias.dtype, copy=True))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), (self.n,))
        with torch.autocast(x.device.type, enabled=False):
            z = nn.functional.linear(x, self.weight, self.bias)
        return z, constant(self.log_det, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), (self.n,))
        with torch.autocast(z.device.type, enabled=False):
            x = nn.functional.linear(z - self.bias, self.inverted)
        return x, constant(-self.log_det, z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.n,))
        return shape

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        """One dense map of this one and an affine neighbour."""
        return Linear(Chain(before, after), self.n) if before.affine and after.affine else None

    def extra_repr(self) -> str:
        """The width, in ``print(flow)``."""
        return f"{self.n}"


@register
class LU(Transform):
    """``z = L U x + b`` with L unit lower and U upper triangular; starts as the identity.

    ``log|det dz/dx| = sum_i log U_ii``; U's diagonal is an exponential, so the map is always
    invertible and keeps the orientation. Both triangles live in one matrix parameter, as LAPACK
    packs them: L strictly below the diagonal, U above it, ``log U_ii`` on it: n^2 + n numbers.

    Args:
        n: length of the vectors.
        bias: whether to add b.

    References:
        English, Kirchler, Lippert: MixerFlow: MLP-Mixer meets Normalising Flows (2023), section 4.
        https://arxiv.org/abs/2310.16777
    """

    def __init__(self, n: int, *, bias: bool = True) -> None:
        super().__init__()
        self.n = n
        self.packed = nn.Parameter(torch.zeros(n, n))
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def both(self) -> Float[Tensor, "n n"]:
        """L and U in one matrix, as they are stored."""
        return self.packed

    def triangles(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        """L and U."""
        both = self.both()
        lower = both.tril(-1) + torch.diag_embed(torch.ones_like(both[0]))
        upper = both.triu(1) + torch.diag_embed(both.diagonal().exp())
        return lower, upper

    def _arrange(self, x: Tensor) -> Tensor:
        """What happens to the data before L U; the identity here."""
        return x

    def _restore(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), (self.n,))
        lower, upper = self.triangles()
        with torch.autocast(x.device.type, enabled=False):
            z = nn.functional.linear(self._arrange(x), lower @ upper, self.bias)
        return z, constant(self.both().diagonal().sum(), x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), (self.n,))
        lower, upper = self.triangles()
        x = z if self.bias is None else z - self.bias
        # rows are multiplied from the right: x (LU)^T = z, so U^T x^T comes off last
        x = torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper.mT, x, upper=False, left=False)
        return self._restore(x), constant(-self.both().diagonal().sum(), z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.n,))
        return shape

    def folded(self) -> Transform:
        """The product and its inverse."""
        return Linear(self, self.n)

    def extra_repr(self) -> str:
        """The width, in ``print(flow)``."""
        return f"{self.n}, bias={self.bias is not None}"


@register
class RLU(LU):
    """``z = L U R x + b``, where R reverses the order of the dimensions.

    The paper's choice where there are no shift layers: an even number of these restores the order.
    """

    def _arrange(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    _restore = _arrange


@register
class PLU(LU):
    """``z = P L U x + b`` with fixed permutation P and signs; starts as a random rotation.

    ``log|det dz/dx| = sum_i log|U_ii|``. As Glow's 1x1 convolution when applied along the channels.

    Args:
        n: length of the vectors.
        bias: whether to add b.
        generator: of the random rotation.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018), eq. 11.
        https://arxiv.org/abs/1807.03039
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
        upper = upper - torch.diag_embed(upper.diagonal() * (1 - self.signs))
        return lower[self.permutation], upper

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), (self.n,))
        lower, upper = super().triangles()
        x = z if self.bias is None else z - self.bias
        x = x[..., self.permutation.argsort()]
        x = torch.linalg.solve_triangular(lower.mT, x, upper=True, left=False, unitriangular=True)
        upper = upper - torch.diag_embed(upper.diagonal() * (1 - self.signs))
        x = torch.linalg.solve_triangular(upper.mT, x, upper=False, left=False)
        return x, constant(-self.both().diagonal().sum(), z)


@register
class Matrix(Transform):
    """``z = W x`` with any invertible matrix W; starts as a random rotation.

    ``log|det dz/dx| = log|det W|`` costs a factorisation of W in each pass, and nothing keeps W
    invertible but that the density rewards it; `LU` and `PLU` have neither fault. As Glow's 1x1
    convolution when applied along the channels.

    Args:
        n: length of the vectors.
        generator: of the random rotation.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018), eq. 9.
        https://arxiv.org/abs/1807.03039
    """

    def __init__(self, n: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.n = n
        rotation = _rotation(n, generator).to(torch.get_default_dtype())
        self.weight = nn.Parameter(rotation.contiguous())  # LAPACK's order is not safetensors'

    def _log_det(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return torch.linalg.slogdet(self.weight.to(wide))[1]

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), (self.n,))
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x, self.weight), constant(self._log_det(), x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), (self.n,))
        with torch.autocast(z.device.type, enabled=False):
            # rows are multiplied from the right
            x = torch.linalg.solve(self.weight.mT, z, left=False)
            return x, constant(-self._log_det(), z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.n,))
        return shape

    def folded(self) -> Transform:
        """W and its inverse at hand."""
        return Linear(self, self.n)

    def extra_repr(self) -> str:
        """The width, in ``print(flow)``."""
        return f"{self.n}"


def _rotation(n: int, generator: torch.Generator | None) -> Float[Tensor, "n n"]:
    """A random orthogonal matrix in float64."""
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]


@register
class UnpackedPLU(PLU):
    """`PLU` whose triangles are stored as two full matrices, of which the other halves idle.

    As published code stores it: 2 n^2 + n numbers, for counts and weights that follow it.

    Args:
        n: length of the vectors.
        generator: of the random rotation.
    """

    def __init__(self, n: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(n, generator=generator)
        packed = self.packed.detach()
        del self.packed
        self.lower, self.upper = nn.Parameter(packed.tril(-1)), nn.Parameter(packed.triu(1))
        self.log_diagonal = nn.Parameter(packed.diagonal().clone())

    def both(self) -> Float[Tensor, "n n"]:
        """L and U in one matrix; what idles has a gradient, of zeros."""
        return self.lower.tril(-1) + self.upper.triu(1) + torch.diag_embed(self.log_diagonal)
