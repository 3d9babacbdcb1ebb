"""Depth that grows during training: layers that sleep as the identity and wake stage by stage."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, Transform
from mixerflow.errors import ConfigError
from mixerflow.processes import SINGLE, Processes

_FLAG = "--train.grow"
_ROUNDING = 1e-7
"""In float64; a batch norm's epsilon, which moves values by 5e-6, is not rounding."""


def layers_of(flow: Flow) -> list[Transform]:
    """What can sleep: layers of the flow with parameters that keep the event's shape.

    Of a MixerFlow the colour transform, which is the first and never sleeps, and the mixer layers.
    """
    return [
        layer
        for layer, taken, given in flow.layer_shapes()
        if taken == given and next(layer.parameters(), None) is not None
    ]


def active(step: int, steps: int, *, stages: int, layers: int) -> int:
    """How many layers are awake in step `step` (from 0) of `steps`.

    In stage k of n, from 1, the first ``ceil(k L / n)`` of L; stages are equally long.
    """
    stage = min(stages, step * stages // steps + 1)
    return -(-stage * layers // stages)


class Growth:
    """Puts a flow's later layers to sleep, and wakes them as a pure function of the step.

    A sleeping layer stands at its identity start and is skipped: nothing in it changes.

    Args:
        flow: whose layers grow in number.
        stages: the number of stages; with less than 2, nothing ever sleeps.
        processes: that train the flow.

    Raises:
        ConfigError: several processes, more stages than layers, or layers that share parameters.

    References:
        English, Kirchler, Lippert: MixerFlow: MLP-Mixer meets Normalising Flows (2023), appendix D,
        "Iterative growing of flows". https://arxiv.org/abs/2310.16777
    """

    def __init__(self, flow: Flow, stages: int, processes: Processes = SINGLE) -> None:
        self.stages = stages
        self.layers = layers_of(flow) if stages > 1 else []
        if stages < 2:
            return
        if processes.together:  # DDP waits for the gradients of those that sleep
            raise ConfigError("several processes", _FLAG, "train in one process, or use 0")
        if stages > len(self.layers):
            what = f"{stages} stages are more than the flow's {len(self.layers)} layers"
            raise ConfigError(what, _FLAG, "use fewer, or 0")
        held: set[int] = set()
        rest = [part for part in (flow.base, flow.context_net) if part is not None]
        for part in (*flow.layers(), *rest):
            mine = {id(p) for p in part.parameters()}
            if held & mine:  # one would train while the other sleeps
                raise ConfigError("layers that share parameters cannot grow", _FLAG, "use 0")
            held |= mine

    def at(self, step: int, steps: int) -> None:
        """Let those sleep that are not yet due in step `step` (from 0) of `steps`."""
        if not self.layers:
            return
        awake = active(step, steps, stages=self.stages, layers=len(self.layers))
        for number, layer in enumerate(self.layers):
            layer.dormant = number >= awake


def wake(flow: Flow) -> None:
    """Let no layer of `flow` sleep."""
    for module in flow.modules():
        if isinstance(module, Transform):
            module.dormant = False


@torch.no_grad()
def check(flow: Flow, stages: int, x: Tensor, context: Tensor | None = None) -> None:
    """Raise a ConfigError unless the layers that will sleep are the identity on images `x`.

    Args:
        flow: with all its layers awake.
        stages: the number of stages.
        x: a few images, ``(B, *shape)``.
        context: what the flow takes with them.
    """
    layers = layers_of(flow)
    asleep = layers[active(0, 1, stages=stages, layers=len(layers)) :]
    calls: list[tuple[nn.Module, Any]] = []
    handles = [
        layer.register_forward_hook(lambda layer, given, _: calls.append((layer, given)))
        for layer in asleep
    ]
    training = flow.training
    try:
        flow.eval()(x, context, Noise.of(0, x))
    finally:
        flow.train(training)
        for handle in handles:
            handle.remove()
    for layer, (given, seen, noise) in calls:
        exact = copy.deepcopy(layer).double().eval()
        given = given.double()
        z, log_det = exact(given, None if seen is None else seen.double(), noise)
        off = (z - given).abs() / (1 + given.abs())
        if not (
            bool((off <= _ROUNDING).all())  # and NaN is not the identity either
            and bool((log_det.abs() <= _ROUNDING * given[0].numel()).all())
        ):
            what = f"layer {layers.index(layer) + 1} of {len(layers)} is not the identity"  # pyright: ignore[reportArgumentType]
            remedy = (
                "grow a fresh flow, not initialised, whose layers start as the identity (an even "
                "--model.flow-layers with RLU, no batch norm between layers), or use 0"
            )
            raise ConfigError(what, _FLAG, remedy)
