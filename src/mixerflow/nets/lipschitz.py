"""Nets with a Lipschitz constant below one in the 2-norm, whatever their weights.

What holds is ``|g(a) - g(b)| <= coefficient |a - b|`` for every a, b and one context: each linear
map is divided by an upper bound of its spectral norm, computed from the weight as it is.

References:
    Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen: Invertible residual networks (2019), eq. 3.
    https://arxiv.org/abs/1811.00995
    Delattre, Barthelemy, Araujo, Allauzen: Efficient bound of Lipschitz constant for convolutional
    layers by Gram iteration (2023), algorithm 1. https://arxiv.org/abs/2305.16173
Departs from the papers:
    - the norm is bounded from above by Gram iteration; the power iteration of residual flows
      approaches it from below, and its vector is stale once the weights move.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.registry import register

_TINY = 1e-18
"""Below every norm that matters; its square is still a float32."""

KernelChain = Callable[[Tensor], Tensor]


def spectral_bound(weight: Float[Tensor, "out in"], squarings: int = 8) -> Float[Tensor, ""]:
    """``(sum_i s_i^p)^(1/p) >= max_i s_i`` of the singular values, ``p = 2^(squarings + 2)``.

    Too large by at most the factor ``min(out, in)^(1/p)``: 0.5 % for 128 of them by default. Each
    squaring of the Gram matrix doubles p. Never too small but for rounding, 1e-5 in float32.
    Differentiable everywhere, at a zero matrix too.
    """
    with torch.autocast(weight.device.type, enabled=False):
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        gram = wide @ wide.mT if wide.shape[0] <= wide.shape[1] else wide.mT @ wide
        log_bound = torch.zeros_like(gram[0, 0])
        for i in range(squarings + 1):
            size = torch.linalg.vector_norm(gram).clamp_min(_TINY)
            log_bound = log_bound + size.log() * 0.5 ** (i + 1)
            gram = gram / size
            if i < squarings:
                gram = gram @ gram
        return log_bound.exp().to(weight.dtype)


class SpectralLinear(nn.Linear):
    """``min(1, coefficient / |W|) W x + b``: a linear map whose 2-norm is at most `coefficient`.

    Args:
        in_features: length of the rows.
        out_features: of what comes out.
        coefficient: the largest norm.
    """

    def __init__(self, in_features: int, out_features: int, *, coefficient: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        self.coefficient = coefficient

    def bounded(self) -> Float[Tensor, "out in"]:
        """The weight as it acts."""
        return self.weight * (
            self.coefficient / spectral_bound(self.weight).clamp_min(self.coefficient)
        )

    def forward(self, input: Tensor) -> Tensor:
        """``(rows, in)`` to ``(rows, out)``."""
        return nn.functional.linear(input, self.bounded(), self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """A plain linear map."""
        plain = nn.Linear(self.in_features, self.out_features).to(self.weight)
        plain.weight.copy_(self.bounded())
        plain.bias.copy_(self.bias)
        return plain


@register
class LipSwish(nn.Module):
    """``x sigmoid(softplus(beta) x) / 1.1``, whose slope is never above 1 (0.99985).

    References:
        Chen, Behrmann, Duvenaud, Jacobsen: Residual flows for invertible generative modeling
        (2019), section 3.3. https://arxiv.org/abs/1906.02735
    """

    copies = 1
    """Numbers that come out for each that goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """``(rows, n)`` to ``(rows, copies n)``."""
        return x * torch.sigmoid(nn.functional.softplus(self.beta) * x) / 1.1


@register
class CLipSwish(LipSwish):
    """``[f(x), f(-x)] / 1.004`` with f LipSwish: twice the numbers, 1-Lipschitz.

    References:
        Perugachi-Diaz, Tomczak, Bhulai: Invertible DenseNets with concatenated LipSwish (2021),
        section 3.3. https://arxiv.org/abs/2102.02694
    """

    copies = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), super().forward(-x)], -1) / 1.004


Activation = type[LipSwish]


class _Lipschitz(nn.Module):
    """Linear maps and activations; `prepare` computes once what all rows share."""

    def __init__(self, in_features: int, coefficient: float, context: int, width: int) -> None:
        super().__init__()
        if not 0 < coefficient < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: coefficient must lie between 0 and 1; got {coefficient}")
        self.in_features = in_features
        self.coefficient = coefficient
        self.context = nn.Linear(context, width, bias=False) if context else None

    def _leave(self, features: int, out_features: int) -> SpectralLinear:
        """The last map, which has the net's constant and starts at zero."""
        leave = SpectralLinear(features, out_features, coefficient=self.coefficient)
        nn.init.zeros_(leave.weight)
        nn.init.zeros_(leave.bias)
        return leave

    def _added(self, context: Tensor | None) -> Tensor | float:
        if self.context is None:
            return 0.0
        if context is None:
            raise ValueError(f"{type(self).__name__}: built for a context, and got none")
        return self.context(context)

    def _expect(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[1] != self.in_features:
            name, wanted = type(self).__name__, (self.in_features,)
            raise ValueError(f"{name}: reads events {wanted}; got {tuple(x.shape[1:])}")

    def prepare(self, context: Float[Tensor, "rows k"] | None = None) -> KernelChain:
        """The net as a function of rows, its weights bounded and its context read."""
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "rows in"], context: Float[Tensor, "rows k"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """``(rows, in_features)`` and ``(rows, K)`` to ``(rows, out_features)``."""
        return self.prepare(context)(x)


@register
class LipschitzMLP(_Lipschitz):
    """``g(x) = W_d a(... a(W_0 x + C c))``, every factor 1-Lipschitz, W_d the `coefficient`.

    Args:
        in_features: length of the rows.
        out_features: numbers to give out, zeros at the start.
        width: of the hidden rows.
        depth: hidden layers.
        coefficient: the net's Lipschitz constant, below 1.
        activation: `LipSwish` or `CLipSwish`.
        context: length K of the context vectors, 0 for none; c may act on g as it likes.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        depth: int = 2,
        coefficient: float = 0.97,
        activation: Activation = LipSwish,
        context: int = 0,
    ) -> None:
        super().__init__(in_features, coefficient, context, width)
        if depth < 1:
            raise ValueError(f"LipschitzMLP: depth must be at least 1; got {depth}")
        inner = activation.copies * width
        maps = [SpectralLinear(inner if i else in_features, width) for i in range(depth)]
        self.linears = nn.ModuleList([*maps, self._leave(inner, out_features)])
        self.activations = nn.ModuleList(activation() for _ in range(depth))

    def prepare(self, context: Tensor | None = None) -> KernelChain:
        first, *later = (_weights(linear) for linear in self.linears)
        added = self._added(context)

        def net(x: Tensor) -> Tensor:
            self._expect(x)
            h = nn.functional.linear(x, *first) + added
            for activation, linear in zip(self.activations, later, strict=True):
                h = nn.functional.linear(activation(h), *linear)
            return h

        return net


@register
class LipschitzDense(_Lipschitz):
    """``h <- [eta_1 h, eta_2 a(W_i h)]`` with ``eta_1^2 + eta_2^2 = 1``, depth times; ``W h``.

    The learned concatenation of an i-DenseNet: eta is ``softplus(raw) + 0.1``, normalised.

    Args:
        in_features: length of the rows.
        out_features: numbers to give out, zeros at the start.
        width: of each layer's linear map; with `CLipSwish` it adds twice as many features.
        depth: dense layers.
        coefficient: the net's Lipschitz constant, below 1.
        activation: `CLipSwish` or `LipSwish`.
        context: length K of the context vectors, 0 for none; added to ``W_0 x``.

    References:
        Perugachi-Diaz, Tomczak, Bhulai: Invertible DenseNets with concatenated LipSwish (2021),
        section 3. https://arxiv.org/abs/2102.02694
    Departs from the paper:
        - the last map alone has the coefficient, all before it constant 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        depth: int = 3,
        coefficient: float = 0.97,
        activation: Activation = CLipSwish,
        context: int = 0,
    ) -> None:
        super().__init__(in_features, coefficient, context, width)
        if depth < 1:
            raise ValueError(f"LipschitzDense: depth must be at least 1; got {depth}")
        lengths = [in_features + i * activation.copies * width for i in range(depth + 1)]
        maps = [SpectralLinear(length, width) for length in lengths[:-1]]
        self.linears = nn.ModuleList([*maps, self._leave(lengths[-1], out_features)])
        self.activations = nn.ModuleList(activation() for _ in range(depth))
        self.eta = nn.Parameter(torch.full((depth, 2), math.log(math.expm1(0.9))))

    def shares(self) -> Float[Tensor, "depth 2"]:
        """``(eta_1, eta_2)`` of each layer, of norm 1."""
        return nn.functional.normalize(nn.functional.softplus(self.eta) + 0.1, dim=1)

    def prepare(self, context: Tensor | None = None) -> KernelChain:
        *dense, leave = (_weights(linear) for linear in self.linears)
        added, shares = self._added(context), self.shares()

        def net(x: Tensor) -> Tensor:
            self._expect(x)
            h = x
            for i, (activation, linear) in enumerate(zip(self.activations, dense, strict=True)):
                inner = nn.functional.linear(h, *linear)
                new = activation(inner if i else inner + added)
                h = torch.cat([shares[i, 0] * h, shares[i, 1] * new], -1)
            return nn.functional.linear(h, *leave)

        return net


def _weights(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias as they act; of a folded map as they are."""
    assert isinstance(linear, nn.Linear)
    return linear.bounded() if isinstance(linear, SpectralLinear) else linear.weight, linear.bias
