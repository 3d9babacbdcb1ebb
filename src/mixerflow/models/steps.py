"""What a flow layer can be: linear maps, laws, conditioners and whole flows of vectors, by name.

`LINEARS`, `LAWS`, `NETS` and `FLOWS` are the menu that `MixerFlowConfig` chooses from. Another flow
for the mixer is another line here; nothing else knows which there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol

from torch import nn

from mixerflow.core import Transform
from mixerflow.nets import Norm, ResidualMLP
from mixerflow.transforms import LU, RLU, Affine, Butterfly, Coupling, Law, Woodbury, halves

if TYPE_CHECKING:
    from mixerflow.models.mixerflow import MixerFlowConfig

LinearName = Literal["LU", "RLU", "Woodbury", "Butterfly", "none"]
LawName = Literal["affine"]
NetName = Literal["mlp"]
FlowName = Literal["coupling"]


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

LAWS: dict[str, Callable[[MixerFlowConfig], Law]] = {
    "affine": lambda config: Affine(config.scale_bound),
}

NETS: dict[str, RowNet] = {"mlp": ResidualMLP}


def coupling(config: MixerFlowConfig, n: int, flip: bool) -> Transform | None:
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
        context=config.context_width,
    )
    return Coupling(-1, net, law, flip=flip)


FLOWS: dict[str, Callable[[MixerFlowConfig, int, bool], Transform | None]] = {
    "coupling": coupling,
}


def flow_layer(config: MixerFlowConfig, n: int, linear: str, *, flip: bool) -> list[Transform]:
    """A linear map and a flow of vectors of length n; every other layer's flow is flipped."""
    steps: list[Transform | None] = []
    if linear != "none":
        steps.append(LINEARS[linear](n, config.rank))
    steps.append(FLOWS[config.flow](config, n, flip))
    return [step for step in steps if step is not None]
