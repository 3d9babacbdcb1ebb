"""Nets with a Lipschitz constant below one in the 2-norm, whatever their weights.

``|g(a) - g(b)| <= coefficient |a - b|`` holds for every a, b and one context: each linear map is
divided by an upper bound of its spectral norm, computed from its present weight.

References:
    Behrmann et al., Invertible residual networks (2019), eq. 3, arXiv:1811.00995.
    Delattre et al., Efficient bound of Lipschitz constant for convolutional layers by Gram
    iteration (2023), algorithm 1, arXiv:2305.16173.
Departs from the papers:
    - Gram iteration bounds the norm from above; the power iteration of residual flows approaches
      the norm from below, and its vector is out of date once the weights move.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from mixerflow.nets.base import Conditioner, RowContext, RowsIn, RowsOut, context_map, zeroed
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.units import unit_of, unit_rows

_TINY = 1e-18
"""Lower bound of the norms in divisions; its square is still a float32."""


def spectral_bound(weight: Float[Tensor, "out in"], squarings: int = 8) -> Float[Tensor, ""]:
    """``(sum_i s_i^p)^(1/p) >= max_i s_i`` of the singular values, ``p = 2^(squarings + 2)``.

    The bound is too large by at most the factor ``min(out, in)^(1/p)``: 0.5 % for 128 singular
    values by default. Each squaring of the Gram matrix doubles p. Rounding may make the bound too
    small, by 1e-5 in float32. The bound is differentiable everywhere, at a zero matrix too.
    """
    with without_autocast(weight):
        wide = widen(weight)
        unit = unit_of(wide)
        wide = wide / unit
        gram = wide @ wide.mT if wide.shape[0] <= wide.shape[1] else wide.mT @ wide
        log_bound = torch.zeros_like(gram[0, 0])
        for i in range(squarings + 1):
            size = torch.linalg.vector_norm(gram).clamp_min(_TINY)
            log_bound = log_bound + size.log() * 0.5 ** (i + 1)
            gram = gram / size
            if i < squarings:
                gram = gram @ gram
        return (log_bound.exp() * unit).to(weight.dtype)


class SpectralLinear(nn.Linear):
    """``min(1, coefficient / |W|) W x + b``: a linear map whose 2-norm is at most `coefficient`."""

    def __init__(self, in_features: int, out_features: int, *, coefficient: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        self.coefficient = coefficient

    def bounded(self) -> Float[Tensor, "out in"]:
        """``min(1, coefficient / |W|) W``."""
        unit = unit_of(self.weight)  # so that no bound overflows
        scaled = self.weight / unit
        return scaled * (self.coefficient / spectral_bound(scaled)).clamp(max=unit)

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.bounded(), self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """The same map as a plain `nn.Linear`."""
        plain = nn.Linear(self.in_features, self.out_features).to(self.weight)
        plain.weight.copy_(self.bounded())
        plain.bias.copy_(self.bias)
        return plain


@register
class LipSwish(nn.Module):
    """``x sigmoid(softplus(beta) x) / 1.1``, whose slope is never above 1 (0.99985).

    Reference: Chen et al., Residual flows (2019), section 3.3, arXiv:1906.02735.
    """

    copies = 1
    """Output numbers for each input number."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(softplus(self.beta) * x) / 1.1


@register
class CLipSwish(LipSwish):
    """``[f(x), f(-x)] / 1.004`` with f LipSwish: 1-Lipschitz; section 3.3 of i-DenseNets' paper."""

    copies = 2

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super().forward(x), super().forward(-x)], -1) / 1.004


Activation = type[LipSwish]
RowFunction = Callable[[Tensor], Tensor]


class _Lipschitz(Conditioner):
    """Base of nets of `SpectralLinear` maps, each but the last one followed by an activation.

    The maps read vectors of `lengths` and write vectors of length `width`; the last map writes
    length `out`, has the coefficient and starts at 0.
    """

    def __init__(
        self,
        lengths: list[int],
        out: int,
        width: int,
        coefficient: float,
        activation: Activation,
        context: int,
    ) -> None:
        super().__init__()
        name, (*hidden, last) = type(self).__name__, lengths
        if not 0 < coefficient < 1:
            raise ValueError(f"{name}: coefficient must lie between 0 and 1; got {coefficient}")
        if not hidden:
            raise ValueError(f"{name}: depth must be at least 1; got {len(hidden)}")
        self.in_features = lengths[0]
        self.context = context_map(context, width)
        maps = [SpectralLinear(length, width) for length in hidden]
        leave = zeroed(SpectralLinear(last, out, coefficient=coefficient))
        self.linears = nn.ModuleList([*maps, leave])
        self.activations = nn.ModuleList(activation() for _ in hidden)

    def bounded(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each map; the weight is bounded, unless the map is folded already."""
        maps = [each for each in self.linears if isinstance(each, nn.Linear)]
        weights = [m.bounded() if isinstance(m, SpectralLinear) else m.weight for m in maps]
        return [(weight, each.bias) for weight, each in zip(weights, maps, strict=True)]

    def context_term(self, context: Tensor | None) -> Tensor | float:
        """``C c``, or 0 for a net that reads no context."""
        return 0.0 if self.context is None else self.context(self.require_context(context))

    def prepare(self, context: RowContext = None) -> RowFunction:
        """The net as a function of rows; weights are bounded and the context is read only once."""
        raise NotImplementedError

    def forward(self, x: RowsIn, context: RowContext = None) -> RowsOut:
        return self.prepare(context)(x)


@register
class LipschitzMLP(_Lipschitz):
    """``g(x) = W_d a(... a(W_0 x + C c))``; W_d has norm `coefficient`, all else is 1-Lipschitz.

    There are `depth` hidden layers. The output starts at 0. A context may change g in any way.
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
        lengths = [in_features] + [activation.copies * width] * depth
        super().__init__(lengths, out_features, width, coefficient, activation, context)

    def prepare(self, context: Tensor | None = None) -> RowFunction:
        (first, *later), added = self.bounded(), self.context_term(context)

        def net(x: Tensor) -> Tensor:
            self.require_vectors(x, self.in_features)
            h = linear(x, *first) + added
            for activation, weights in zip(self.activations, later, strict=True):
                h = linear(activation(h), *weights)
            return h

        return net


@register
class LipschitzDense(_Lipschitz):
    """``h <- [eta_1 h, eta_2 a(W_i h)]`` with ``eta_1^2 + eta_2^2 = 1``, depth times; ``W h``.

    The learned concatenation of an i-DenseNet: eta is ``softplus(raw) + 0.1``, normalised. ``C c``
    is added to ``W_0 x``. The output starts at 0. `width` is the output length of each W_i; with
    `CLipSwish` a layer adds twice as many features.

    Reference: Perugachi-Diaz et al., Invertible DenseNets with concatenated LipSwish (2021),
        section 3, arXiv:2102.02694.
    Departs from the paper:
        - the last map alone has the coefficient, all maps before it have the constant 1.
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
        lengths = [in_features + i * activation.copies * width for i in range(depth + 1)]
        super().__init__(lengths, out_features, width, coefficient, activation, context)
        self.eta = nn.Parameter(torch.full((depth, 2), math.log(math.expm1(0.9))))

    def shares(self) -> Float[Tensor, "depth 2"]:
        """``(eta_1, eta_2)`` of each layer, of norm 1."""
        return unit_rows(softplus(self.eta) + 0.1)

    def prepare(self, context: Tensor | None = None) -> RowFunction:
        (*dense, last), added, shares = self.bounded(), self.context_term(context), self.shares()

        def net(x: Tensor) -> Tensor:
            self.require_vectors(x, self.in_features)
            h = x
            for i, (activation, weights) in enumerate(zip(self.activations, dense, strict=True)):
                inner = linear(h, *weights)
                new = activation(inner if i else inner + added)
                h = torch.cat([shares[i, 0] * h, shares[i, 1] * new], -1)
            return linear(h, *last)

        return net
