"""Nets with a Lipschitz constant below one in the 2-norm, whatever their weights.

``|g(a) - g(b)| <= coefficient |a - b|`` holds for every a, b and one context: each linear map is
divided by an upper bound of its spectral norm, see `mixerflow.nets.spectral`. Nets of vectors and
of images are the same functions, of linear maps and of convolutions.

Reference: Behrmann et al., Invertible residual networks (2019), eq. 3, arXiv:1811.00995.
Departs from the papers:
    - Gram iteration bounds the norm from above; the power iteration of residual flows approaches
      the norm from below, and its vector is out of date once the weights move;
    - the last map alone has the coefficient, all maps before it have the constant 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.nets.base import Conditioner, context_map, zeroed
from mixerflow.nets.conv import channels_last
from mixerflow.nets.lipswish import Activation, LipSwish
from mixerflow.nets.spectral import SpectralConv, SpectralLinear, applied
from mixerflow.registry import register

Function = Callable[[Tensor], Tensor]


class Prepared:
    """A net as a function of x: weights are bounded and the context is read only once."""

    def __init__(self, net: LipschitzBase, context: Tensor | None) -> None:
        self.net, self.added = net, net.context_term(context)
        weights = [(channels_last(weight), bias) for weight, bias in net.bounded()]
        self.maps = [applied(*each) for each in weights]
        self.products = [applied(weight) for weight, _ in weights]
        self.shares = net.shares()

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``g(x)``, of x's shape."""
        return self.net.run(channels_last(x), self, None)

    def linearise(self, x: Tensor) -> tuple[Tensor, Function]:
        """Return ``g(x)`` and the function ``t -> J t`` with g's Jacobian J at x.

        Products reuse the activations' slopes. Both can be differentiated once, in x, t and the
        net's parameters.
        """
        steps: list[Function] = []
        value = self.net.run(channels_last(x), self, steps)

        def push(t: Tensor) -> Tensor:
            t = channels_last(t)
            for step in steps:
                t = step(t)
            return t

        return value, push


def _multiply(slopes: Tensor, copies: int) -> Function:
    """The product with a diagonal Jacobian, or with `copies` such below each other."""
    if copies == 1:
        return lambda t: slopes * t
    return lambda t: slopes * torch.cat([t] * copies, 1)


class LipschitzBase(Conditioner):
    """Base of nets of maps of bounded norm, with activations between them.

    Args:
        lengths: length of the vectors that each map reads, or channels of the images.
        outs: length of the vectors that each map writes; the last one has the coefficient, and
            starts at 0.
        coefficient: the net's Lipschitz constant, between 0 and 1.
        activations: one before each map, or before each but the first.
        context: length of the contexts ``(B, K)``, 0 for none.
        sides: the sides of images; () for vectors.
        kernels: sides of the maps' kernels, where there are images.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        outs: Sequence[int],
        *,
        coefficient: float,
        activations: Sequence[nn.Module],
        context: int,
        sides: tuple[int, ...] = (),
        kernels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        name, depth = type(self).__name__, len(lengths) - 1
        if not 0 < coefficient < 1:
            raise ValueError(f"{name}: coefficient must lie between 0 and 1; got {coefficient}")
        if depth < 1:
            raise ValueError(f"{name}: depth must be at least 1; got {depth}")
        self.in_features, self.sides = lengths[0], tuple(sides)
        self.context = context_map(context, outs[0])
        maps = []
        for number, (length, out) in enumerate(zip(lengths, outs, strict=True)):
            settings = {"coefficient": coefficient} if number == depth else {}
            if sides:
                made = SpectralConv(length, out, kernels[number], sides=self.sides, **settings)
            else:
                made = SpectralLinear(length, out, **settings)
            maps.append(zeroed(made) if number == depth else made)
        self.linears = nn.ModuleList(maps)
        self.activations = nn.ModuleList(activations)

    def bounded(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of each map; the weight is bounded, unless the map is folded already."""
        return [
            (each.bounded() if hasattr(each, "bounded") else each.weight, each.bias)  # pyright: ignore
            for each in self.linears
        ]

    def shares(self) -> Tensor | None:
        """What `run` needs besides the maps, computed once for a context."""
        return None

    def context_term(self, context: Tensor | None) -> Tensor | float:
        """``C c``, or 0 for a net that reads no context."""
        if self.context is None:
            return 0.0
        context = self.require_context(context)
        if context.dim() != 2:
            name, given = type(self).__name__, tuple(context.shape)
            raise ValueError(f"{name}: reads contexts (B, K), not maps; got {given}")
        added = self.context(context)
        return added[(...,) + (None,) * len(self.sides)]

    def check(self, x: Tensor) -> None:
        """Raise a ValueError unless x is a batch of the events that the net reads."""
        wanted = (self.in_features, *self.sides)
        if tuple(x.shape[1:]) != wanted:
            name = type(self).__name__
            raise ValueError(f"{name}: reads events {wanted}; got {tuple(x.shape[1:])}")

    def run(self, x: Tensor, prepared: Prepared, steps: list[Function] | None) -> Tensor:
        """Return ``g(x)``; append to `steps`, if given, the factors of its Jacobian, in order."""
        raise NotImplementedError

    def prepare(self, context: Tensor | None = None) -> Prepared:
        """The net as a function of x; weights are bounded and the context is read only once."""
        return Prepared(self, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.prepare(context)(x)


def activate(activation: nn.Module, x: Tensor, steps: list[Function] | None) -> Tensor:
    """Return ``a(x)``; append the product with its slopes to `steps`, if given."""
    if steps is None:
        return activation(x)
    value, slopes = activation.with_slopes(x)  # pyright: ignore[reportCallIssue]
    steps.append(_multiply(slopes, activation.copies))  # pyright: ignore[reportArgumentType]
    return value


class _Chain(LipschitzBase):
    def __init__(
        self,
        first: int,
        out: int,
        *,
        width: int,
        depth: int,
        activation: Activation,
        leading: bool,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        copies = activation.copies
        lengths = [(copies if leading else 1) * first] + [copies * width] * depth
        activations = [activation() for _ in range(depth + leading)]
        super().__init__(lengths, [width] * depth + [out], activations=activations, **settings)
        self.in_features = first  # a leading activation may give more to the first map

    def run(self, x: Tensor, prepared: Prepared, steps: list[Function] | None) -> Tensor:
        self.check(x)
        h, before = x, len(self.linears) - len(self.activations)
        for number, apply in enumerate(prepared.maps):
            if number >= before:
                h = activate(self.activations[number - before], h, steps)
            h = apply(h) if number else apply(h) + prepared.added
            if steps is not None:
                steps.append(prepared.products[number])
        return h


@register
class LipschitzMLP(_Chain):
    """``g(x) = W_d a(... a(W_0 x + C c))``; W_d has norm `coefficient`, all else is 1-Lipschitz.

    There are `depth` hidden layers. The output starts at 0. A context may change g in any way.
    `leading` puts one more activation before W_0.
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
        leading: bool = False,
        context: int = 0,
    ) -> None:
        settings = {"coefficient": coefficient, "context": context, "leading": leading}
        settings |= {"width": width, "depth": depth, "activation": activation}
        super().__init__(in_features, out_features, **settings)


@register
class LipschitzConvNet(_Chain):
    """`LipschitzMLP` of images ``(channels, *sides)``: convolutions with these kernels' sides.

    Reference: Chen et al., Residual flows (2019), appendix E, arXiv:1906.02735: kernels 3-1-3, an
        activation before each convolution.
    """

    def __init__(
        self,
        channels: int,
        sides: tuple[int, ...],
        *,
        width: int,
        kernels: tuple[int, ...] = (3, 1, 3),
        coefficient: float = 0.97,
        activation: Activation = LipSwish,
        leading: bool = True,
        context: int = 0,
    ) -> None:
        settings = {"coefficient": coefficient, "context": context, "leading": leading}
        settings |= {"width": width, "depth": len(kernels) - 1, "activation": activation}
        super().__init__(channels, channels, sides=sides, kernels=kernels, **settings)
