"""Flows of vectors as values: the transform that follows each linear map of a mixer layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mixerflow.core import Chain, Inverse, Transform
from mixerflow.parts.base import PositiveCounts
from mixerflow.parts.conditioners import (
    MLP,
    DenseLipschitzNet,
    LipschitzNet,
    MaskedNet,
    RowNet,
    VelocityNet,
)
from mixerflow.registry import register
from mixerflow.transforms import (
    Affine,
    Autoregressive,
    Continuous,
    Coupling,
    Elementwise,
    Gaussianize,
    Householder,
    Monotone,
    Residual,
    halves,
)

LogDet = Literal["exact", "unbiased"]


class RowFlow:
    """A flow of vectors: `transform` of a subclass, or `build` where the entries' order matters."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform | None:
        """Return the flow of vectors of length n; None where there is nothing to transform.

        Every second flow has `flip`: it swaps the halves, or reverses the order, unless the linear
        map before it has `reversed` the order already.
        """
        return self.transform(n, context)

    def transform(self, n: int, context: int) -> Transform:
        """Return the flow of vectors of length n, in any order, with contexts of that length."""
        raise NotImplementedError


@register("coupling")
@dataclass(frozen=True)
class RowCoupling(RowFlow):
    """Half of a vector is transformed, given the other half."""

    elementwise: Elementwise = Affine()
    """Transform of each entry of the changed half."""
    net: RowNet = MLP()
    """Net that reads the other half."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform | None:
        if n == 1:
            return None
        given, changed = halves(n, flip=flip)
        net = self.net.build(given, self.elementwise.params * changed, context=context)
        return Coupling(-1, net, self.elementwise, flip=flip)


@register("maf")
@dataclass(frozen=True)
class RowAutoregression(RowFlow):
    """Each entry is transformed, given the entries before it: quick to score, n steps to sample."""

    elementwise: Elementwise = Affine()
    """Transform of each entry."""
    net: MaskedNet = MaskedNet()
    """Net that reads the entries before it."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        order = range(n)[::-1] if flip and not reversed else None
        net = self.net.build(n, self.elementwise.params, context=context, order=order)
        return Autoregressive(net, self.elementwise)


@register("iaf")
@dataclass(frozen=True)
class RowInverseAutoregression(RowAutoregression):
    """The inverse of an autoregressive flow: quick to sample, n steps to score."""

    def build(self, n: int, **settings: Any) -> Transform:  # noqa: ANN401
        return Inverse(super().build(n, **settings), (n,))


@dataclass(frozen=True)
class _RowResidual(RowFlow):
    net: LipschitzNet | DenseLipschitzNet = LipschitzNet()
    """The contraction."""
    log_det: LogDet = "exact"
    """Log-det by n backward passes, or an unbiased estimate, for long vectors."""

    def transform(self, n: int, context: int) -> Transform:
        return Residual(self.net.build(n, context=context), log_det=self.log_det)


@register("residual")
@dataclass(frozen=True)
class RowResidual(_RowResidual):
    """``x + g(x)`` with a contraction g."""

    net: LipschitzNet = LipschitzNet()
    """The contraction."""


@register("dense-residual")
@dataclass(frozen=True)
class RowDenseResidual(_RowResidual):
    """``x + g(x)`` with a densely connected contraction g: a layer of i-DenseNet."""

    net: DenseLipschitzNet = DenseLipschitzNet()
    """The contraction."""


@register("monotone")
@dataclass(frozen=True)
class RowMonotone(RowFlow):
    """The Cayley operator of a contraction."""

    net: LipschitzNet = LipschitzNet()
    """The contraction."""
    log_det: LogDet = "exact"
    """Log-det by n backward passes, or an unbiased estimate, for long vectors."""

    def transform(self, n: int, context: int) -> Transform:
        return Monotone(self.net.build(n, context=context), log_det=self.log_det)


@register("continuous")
@dataclass(frozen=True)
class RowContinuous(RowFlow):
    """The final state of an ordinary differential equation that starts at the vector."""

    net: VelocityNet = VelocityNet()
    """Right-hand side of the equation."""
    log_det: LogDet = "exact"
    """Log-det by the trace itself, or an unbiased estimate of the trace, for long vectors."""

    def transform(self, n: int, context: int) -> Transform:
        trace = "exact" if self.log_det == "exact" else "hutchinson"
        return Continuous(self.net.build(n, context=context), trace=trace)


@register("gaussianization")
@dataclass(frozen=True)
class RowGaussianization(PositiveCounts, RowFlow):
    """Each entry's own mixture made normal, and a rotation; no entry reads another."""

    components: int = 8
    """Logistic distributions in a mixture."""

    least = 2

    def transform(self, n: int, context: int) -> Transform:
        if context:
            raise ValueError("flow gaussianization reads no context: use no classes, no positions")
        return Chain(Gaussianize(n, self.components), Householder(n))
