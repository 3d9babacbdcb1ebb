"""What a flow layer can be: linear maps, laws, conditioners and whole flows of vectors, by name.

`LINEARS`, `LAWS`, `NETS` and `FLOWS` are the menu that `MixerFlowConfig` chooses from. Another flow
for the mixer is another line here; nothing else knows which there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from torch import nn

from mixerflow.core import Chain, Inverse, Transform
from mixerflow.nets import (
    MADE,
    KernelNet,
    LipschitzDense,
    LipschitzMLP,
    Norm,
    ResidualMLP,
    SplineNet,
    Velocity,
)
from mixerflow.transforms import (
    LU,
    RLU,
    Affine,
    Autoregressive,
    Butterfly,
    Continuous,
    Coupling,
    Elementwise,
    FlooredAffine,
    Gaussianize,
    Householder,
    LogisticMixture,
    Monotone,
    RationalQuadratic,
    Residual,
    Woodbury,
    halves,
)

if TYPE_CHECKING:
    from mixerflow.models.mixerflow import MixerFlowConfig

LinearName = Literal["LU", "RLU", "Woodbury", "Butterfly", "none"]
LawName = Literal["affine", "floored", "spline", "logistic"]
NetName = Literal["mlp", "kan", "kernel"]
FlowName = Literal[
    "coupling",
    "maf",
    "iaf",
    "residual",
    "dense-residual",
    "monotone",
    "continuous",
    "gaussianization",
]


class RowNet(Protocol):
    """How a conditioner of rows is made."""

    def __call__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        norm: Norm,
        squash: bool,
        context: int,
    ) -> nn.Module:
        """``(rows, in)`` and ``(rows, context)`` to ``(rows, out)``."""
        ...


LINEARS: dict[str, Callable[[int, int], Transform]] = {
    "LU": lambda n, rank: LU(n),
    "RLU": lambda n, rank: RLU(n),
    "Woodbury": lambda n, rank: Woodbury(n, min(rank, n)),
    "Butterfly": lambda n, rank: Butterfly(n) if n > 1 else LU(n),  # one entry has no partner
}

LAWS: dict[str, Callable[[MixerFlowConfig], Elementwise]] = {
    "affine": lambda config: Affine(config.scale_bound),
    "floored": lambda config: FlooredAffine(),
    "spline": lambda config: RationalQuadratic(config.bins, config.tail),
    "logistic": lambda config: LogisticMixture(config.components),
}

NETS: dict[str, RowNet] = {"mlp": ResidualMLP, "kan": SplineNet, "kernel": KernelNet}


RowFlow = Callable[["MixerFlowConfig", int, bool, int], Transform | None]
"""Config, length of the vectors, whether to flip, length of the context; None for no flow."""


def coupling(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform | None:
    """One half of a vector by a law whose parameters a net reads off the other; None for n = 1."""
    if n == 1:
        return None
    law = LAWS[config.law](config)
    given, changed = halves(n, flip=flip)
    net = NETS[config.net](
        given,
        law.params * changed,
        width=config.hidden,
        norm=config.norm,
        squash=config.squash,
        context=context,
    )
    return Coupling(-1, net, law, flip=flip)


def autoregressive(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """Each entry by a law whose parameters a masked net reads off those before it.

    Every other one runs through the entries backwards, unless order reversals (RLU) do that.
    """
    law = LAWS[config.law](config)
    backwards = flip and "RLU" not in (config.linear, config.patch_linear)
    net = MADE(
        n,
        law.params,
        width=config.hidden,
        norm=config.norm,
        squash=config.squash,
        context=context,
        order=range(n)[::-1] if backwards else None,
    )
    return Autoregressive(net, law)


def inverse_autoregressive(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """The same turned round: quick to sample, n steps to score."""
    return Inverse(autoregressive(config, n, flip, context), (n,))


def residual(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """``x + g(x)`` with a contraction g, two hidden layers as the couplings' nets have."""
    net = LipschitzMLP(n, n, width=config.hidden, context=context)
    return Residual(net, log_det=config.log_det)


def dense_residual(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """The same with a densely connected g: a layer of i-DenseConvNet."""
    net = LipschitzDense(n, n, width=max(1, config.hidden // 4), context=context)
    return Residual(net, log_det=config.log_det)


def monotone(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """A monotone operator of such a g."""
    return Monotone(LipschitzMLP(n, n, width=config.hidden, context=context))


def continuous(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """The end of an ordinary differential equation that starts at the vector."""
    trace = "exact" if config.log_det == "exact" else "hutchinson"
    return Continuous(Velocity(n, width=config.hidden, context=context), trace=trace)


def gaussianization(config: MixerFlowConfig, n: int, flip: bool, context: int) -> Transform:
    """Each entry's own mixture made normal, and a rotation; no entry reads another."""
    if context:
        raise ValueError("flow gaussianization reads no context: use classes=0, positions none")
    return Chain(Gaussianize(n, max(2, config.components)), Householder(n))


FLOWS: dict[str, RowFlow] = {
    "coupling": coupling,
    "maf": autoregressive,
    "iaf": inverse_autoregressive,
    "residual": residual,
    "dense-residual": dense_residual,
    "monotone": monotone,
    "continuous": continuous,
    "gaussianization": gaussianization,
}


def flow_layer(
    config: MixerFlowConfig, n: int, linear: str, *, flip: bool, context: int
) -> list[Transform]:
    """A linear map and a flow of vectors of length n; every other layer's flow is flipped."""
    steps: list[Transform | None] = []
    if linear != "none":
        steps.append(LINEARS[linear](n, config.rank))
    steps.append(FLOWS[config.flow](config, n, flip, context))
    return [step for step in steps if step is not None]
