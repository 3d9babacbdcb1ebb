"""The identity plus a product of two thin matrices: a free one, or a product of reflections."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Transform, constant
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.transforms.covariance import covariance_of, mean_of
from mixerflow.transforms.linear import Linear, _LinearMap
from mixerflow.units import unit_rows

RotationStart = Literal["random", "principal"]


@register
class Woodbury(_LinearMap):
    """``z = (I + U V) x + b`` with U of n x rank and V of rank x n; starts as the identity.

    ``log|det dz/dx| = log|det(I + V U)|``, of a matrix rank x rank, and by the Woodbury identity
    ``x = y - U (I + V U)^-1 V y`` with ``y = z - b``. 2 n rank numbers, and as many
    multiplications a vector.

    Nothing in the published form forbids a singular ``I + V U``. The likelihood keeps training away
    from one: the log-det falls without bound there. A step to a singular matrix has a log-det of
    minus infinity, which training skips as not finite; a step across changes the orientation, which
    does no harm. The map has no scale of its own along each of the n axes, as LU's diagonal has;
    leave the scales to an `ActNorm` next to it.

    Args:
        rank: columns of U and rows of V; from n / 2 on `LU` has fewer numbers. Above n, as in some
            published models, U V has rank n, and there are more numbers than its maps need.
        generator: draws V, which starts as N(0, 1 / n); U starts at 0.

    Reference: Lu, Huang, Woodbury transformations for deep generative flows (2020), eq. 4 to 6,
        arXiv:2002.12229.

    Departs from the paper:
        - U and V start at N(0, 0.01) there, so near the identity; this is the identity.
        - There is no second map from the right: a Woodbury `Along` another axis does the same.
    """

    def __init__(
        self, n: int, rank: int = 16, *, bias: bool = True, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(n)
        if rank < 1:
            raise ValueError(f"Woodbury: rank must be at least 1; got {rank}")
        self.rank = rank
        self.left = nn.Parameter(torch.zeros(n, rank))
        self.right = nn.Parameter(torch.randn(rank, n, generator=generator) * n**-0.5)
        self.bias = nn.Parameter(torch.zeros(n)) if bias else None

    def _small(self) -> Float[Tensor, "rank rank"]:
        """``I + V U``, which has the whole map's determinant."""
        return self.right @ self.left + torch.diag_embed(torch.ones_like(self.right[:, 0]))

    def _multiply(self, x: Tensor) -> Tensor:
        return x + nn.functional.linear(x @ self.right.mT, self.left, self.bias)

    def _log_det(self) -> Tensor:
        return torch.linalg.slogdet(widen(self._small()))[1]

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        with without_autocast(z):
            y, small = z if self.bias is None else z - self.bias, self._small()
            # rows are multiplied from the right, so the small system is transposed too
            inner = torch.linalg.solve(small.mT, y @ self.right.mT, left=False)
            return y - inner @ self.left.mT, constant(-self._log_det(), z)

    def folded(self) -> Transform:
        return FixedWoodbury(self)

    def extra_repr(self) -> str:
        return f"{self.n}, rank={self.rank}, bias={self.bias is not None}"


@register
class FixedWoodbury(_LinearMap):
    """A `Woodbury` for inference: ``(I + V U)^-1`` and the log-det are stored, all as buffers."""

    left: Tensor
    right: Tensor
    inner: Tensor
    log_det: Tensor

    @torch.no_grad()
    def __init__(self, source: Woodbury) -> None:
        super().__init__(source.n)
        small = source._small()
        unit = torch.eye(source.rank).to(small)
        self.register_buffer("left", source.left.detach().clone())
        self.register_buffer("right", source.right.detach().clone())
        self.register_buffer("inner", torch.linalg.solve(small, unit).contiguous())
        self.register_buffer("log_det", source._log_det())
        shift = source.left.new_zeros(source.n) if source.bias is None else source.bias.detach()
        self.register_buffer("bias", shift.clone())

    def _multiply(self, x: Tensor) -> Tensor:
        return x + nn.functional.linear(x @ self.right.mT, self.left, self.bias)

    def _solve(self, y: Tensor) -> Tensor:
        return y - y @ self.right.mT @ self.inner.mT @ self.left.mT

    def _log_det(self) -> Tensor:
        return self.log_det


@register
class Householder(_LinearMap):
    """``z = H_1 ... H_r x`` with reflections ``H_i = 1 - 2 v_i v_i' / |v_i|^2``; log-det 0.

    The map is orthogonal whatever the parameters are. n reflections reach every orthogonal matrix
    with determinant ``(-1)^r``. The reflections are applied together, by the product's compact form
    ``1 - V' T^-1 V``, with the unit vectors as the rows of V and T the upper triangle of ``V V'``,
    its diagonal halved.

    Args:
        n: length of the vectors.
        reflections: their number r; None for n.
        start: "random", or "principal": `initialize` then takes the reflections that turn the first
            r principal components of a first batch, the largest first, into the first r axes; r is
            at most n. The first r numbers are then uncorrelated with each other and with the rest.

    References:
        Tomczak, Welling, Improving variational auto-encoders using Householder flow (2016),
        arXiv:1611.09630.
        Joffrain et al., Accumulating Householder transformations, revisited (2006),
        doi:10.1145/1141885.1141886.
        Laparra et al., Iterative Gaussianization: from ICA to random rotations (2011), for
        rotations to principal components, arXiv:1602.00229.
    """

    affine = True

    def __init__(
        self,
        n: int,
        reflections: int | None = None,
        *,
        start: RotationStart = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(n)
        reflections = n if reflections is None else reflections
        if reflections < 1:
            raise ValueError(f"Householder: needs one reflection at least; got {reflections}")
        if start not in get_args(RotationStart):
            raise ValueError(f"Householder: start must be random or principal; got {start!r}")
        if start == "principal" and reflections > n:
            what = f"{n} numbers have {n} principal components"
            raise ValueError(f"Householder: {what}; got {reflections} reflections")
        self.bias, self.start = None, start
        self.vectors = nn.Parameter(torch.randn(reflections, n, generator=generator))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        self.check_data(x)
        if self.start == "principal":
            components = torch.linalg.eigh(covariance_of(x, mean_of(x)))[1].flip(1)
            # Q R of orthogonal columns: R has only signs, and Q is the product of the reflections
            found = torch.geqrf(components[:, : len(self.vectors)])[0].tril(-1)
            found.diagonal().fill_(1.0)
            # in the order of the product's transpose, as long as random vectors are
            self.vectors.copy_(unit_rows(found.mT.flip(0)) * self.n**0.5)
        return self(x, context)[0]

    def _apply_to(self, x: Tensor, *, transposed: bool) -> Tensor:
        """The product, or its inverse, applied to rows: ``x' - x' V' T^-T V``, or with ``T^-1``."""
        unit = unit_rows(self.vectors)
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
