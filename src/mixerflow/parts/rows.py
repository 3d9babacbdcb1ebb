"""Flows of vectors as values: what may follow each linear map of a mixer, and stand elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mixerflow.core import Chain, Inverse, Transform
from mixerflow.parts.conditioners import (
    MLP,
    DenseLipschitzNet,
    LipschitzNet,
    MaskedNet,
    RowNet,
    VelocityNet,
)
from mixerflow.parts.model import PositiveCounts
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

Trace = Literal["exact", "unbiased"]


class RowFlow:
    """A flow of vectors."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform | None:
        """The flow of vectors of length n; None where there is nothing to transform.

        Args:
            n: length of the vectors.
            flip: whether this is every other one, which has the halves, or the order, turned round.
            reversed: whether the linear map before it has reversed the order already.
            context: length of the context, 0 for none.
        """
        raise NotImplementedError


@register("coupling")
@dataclass(frozen=True)
class RowCoupling(RowFlow):
    """Half of a vector is transformed, given the other half."""

    elementwise: Elementwise = Affine()
    """What happens to each entry of that half."""
    net: RowNet = MLP()
    """What reads the other half."""

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
    """Each entry is transformed, given those before it: quick to score, n steps to sample."""

    elementwise: Elementwise = Affine()
    """What happens to each entry."""
    net: MaskedNet = MaskedNet()
    """What reads those before it."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        order = range(n)[::-1] if flip and not reversed else None
        net = self.net.build(n, self.elementwise.params, context=context, order=order)
        return Autoregressive(net, self.elementwise)


@register("iaf")
@dataclass(frozen=True)
class RowInverseAutoregression(RowAutoregression):
    """The same turned round: quick to sample, n steps to score."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        return Inverse(super().build(n, flip=flip, reversed=reversed, context=context), (n,))


@register("residual")
@dataclass(frozen=True)
class RowResidual(RowFlow):
    """``x + g(x)`` with a contraction g."""

    net: LipschitzNet = LipschitzNet()
    """The contraction."""
    log_det: Trace = "exact"
    """By n backward passes, or an unbiased estimate, for long vectors."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        return Residual(self.net.build(n, context=context), log_det=self.log_det)


@register("dense-residual")
@dataclass(frozen=True)
class RowDenseResidual(RowFlow):
    """The same with a densely connected g: a layer of i-DenseNet."""

    net: DenseLipschitzNet = DenseLipschitzNet()
    """The contraction."""
    log_det: Trace = "exact"
    """By n backward passes, or an unbiased estimate, for long vectors."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        return Residual(self.net.build(n, context=context), log_det=self.log_det)


@register("monotone")
@dataclass(frozen=True)
class RowMonotone(RowFlow):
    """The Cayley operator of a contraction."""

    net: LipschitzNet = LipschitzNet()
    """The contraction."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        return Monotone(self.net.build(n, context=context))


@register("continuous")
@dataclass(frozen=True)
class RowContinuous(RowFlow):
    """The end of an ordinary differential equation that starts at the vector."""

    net: VelocityNet = VelocityNet()
    """Its right-hand side."""
    log_det: Trace = "exact"
    """By the trace itself, or an unbiased estimate of it, for long vectors."""

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        trace = "exact" if self.log_det == "exact" else "hutchinson"
        return Continuous(self.net.build(n, context=context), trace=trace)


@register("gaussianization")
@dataclass(frozen=True)
class RowGaussianization(PositiveCounts, RowFlow):
    """Each entry's own mixture made normal, and a rotation; no entry reads another."""

    components: int = 8
    """Logistic distributions in a mixture."""

    least = 2

    def build(
        self, n: int, *, flip: bool = False, reversed: bool = False, context: int = 0
    ) -> Transform:
        if context:
            raise ValueError("flow gaussianization reads no context: use no classes, no positions")
        return Chain(Gaussianize(n, self.components), Householder(n))
