"""Densely connected nets with a Lipschitz constant below one, of vectors and of images.

Reference: Perugachi-Diaz et al., Invertible DenseNets with concatenated LipSwish (2021),
    arXiv:2102.02694.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from mixerflow.nets.lipschitz import Function, LipschitzBase, Prepared, activate
from mixerflow.nets.lipswish import Activation, CLipSwish
from mixerflow.registry import register
from mixerflow.units import unit_rows


class _Dense(LipschitzBase):
    late = ("eta",)

    def __init__(
        self,
        first: int,
        out: int,
        *,
        width: int,
        depth: int,
        activation: Activation,
        enter: int | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        start = first if enter is None else enter
        lengths = [start + i * activation.copies * width for i in range(depth + 1)]
        outs = [width] * depth + [out]
        if enter is not None:
            lengths, outs = [first, *lengths], [enter, *outs]
        activations = [activation() for _ in range(depth)]
        super().__init__(lengths, outs, activations=activations, **settings)
        if depth < 1:
            raise ValueError(f"{type(self).__name__}: depth must be at least 1; got {depth}")
        self.eta = nn.Parameter(torch.full((depth, 2), math.log(math.expm1(0.9))))

    def shares(self) -> Float[Tensor, "depth 2"]:
        """``(eta_1, eta_2)`` of each layer, of norm 1."""
        return unit_rows(softplus(self.eta) + 0.1)

    def run(self, x: Tensor, prepared: Prepared, steps: list[Function] | None) -> Tensor:
        self.check(x)
        maps = iter(zip(prepared.maps, prepared.products, strict=True))
        h, added = x, prepared.added
        if len(self.linears) > len(self.activations) + 1:
            apply, product = next(maps)
            h, added = apply(h) + added, 0.0
            if steps is not None:
                steps.append(product)
        assert prepared.shares is not None
        layers = zip(self.activations, prepared.shares, maps, strict=False)
        for activation, shares, (apply, product) in layers:
            inner: list[Function] | None = None if steps is None else [product]
            new, added = activate(activation, apply(h) + added, inner), 0.0
            h = torch.cat([shares[0] * h, shares[1] * new], 1)
            if steps is not None and inner is not None:
                steps.append(_beside(shares, *inner))
        apply, product = next(maps)
        if steps is not None:
            steps.append(product)
        return apply(h)


def _beside(shares: Tensor, product: Function, multiply: Function) -> Function:
    """The Jacobian of a dense layer: ``t -> [eta_1 t, eta_2 a' W t]``."""
    return lambda t: torch.cat([shares[0] * t, shares[1] * multiply(product(t))], 1)


@register
class LipschitzDense(_Dense):
    """``h <- [eta_1 h, eta_2 a(W_i h)]`` with ``eta_1^2 + eta_2^2 = 1``, depth times; ``W h``.

    The learned concatenation of an i-DenseNet: eta is ``softplus(raw) + 0.1``, normalised. ``C c``
    is added to what the first map gives. The output starts at 0. `width` is the output length of
    each W_i; with `CLipSwish` a layer adds twice as many features. With `enter` a first map makes a
    vector of that length of x.

    Reference: Perugachi-Diaz et al., Invertible DenseNets with concatenated LipSwish (2021),
        section 3, arXiv:2102.02694.
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
        enter: int | None = None,
        context: int = 0,
    ) -> None:
        settings = {"coefficient": coefficient, "context": context, "enter": enter}
        settings |= {"width": width, "depth": depth, "activation": activation}
        super().__init__(in_features, out_features, **settings)


@register
class LipschitzDenseConv(_Dense):
    """`LipschitzDense` of images ``(channels, *sides)``: convolutions of one kernel, then a 1x1.

    Reference: Perugachi-Diaz et al., Invertible DenseNets with concatenated LipSwish (2021),
        appendix B, arXiv:2102.02694.
    """

    def __init__(
        self,
        channels: int,
        sides: tuple[int, ...],
        *,
        width: int,
        depth: int = 3,
        kernel: int = 3,
        coefficient: float = 0.97,
        activation: Activation = CLipSwish,
        context: int = 0,
    ) -> None:
        settings = {"coefficient": coefficient, "context": context, "sides": sides}
        settings |= {"width": width, "depth": depth, "activation": activation}
        super().__init__(channels, channels, kernels=[kernel] * depth + [1], **settings)
