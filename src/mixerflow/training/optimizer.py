"""The optimiser, its parameter groups, and the moving average of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise
from mixerflow.errors import ConfigError
from mixerflow.nets import SpectralConv
from mixerflow.nets.base import Conditioner
from mixerflow.optimizers import Adamax, AdamW, Matrices, Muon
from mixerflow.registry import word_of
from mixerflow.train_config import TrainConfig
from mixerflow.training.orthogonal import OrthogonalAdam
from mixerflow.training.parallel import local

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, SpectralConv)


def parameter_groups(flow: Flow, config: TrainConfig) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the optimiser's groups of a flow's parameters, and each group's learning-rate factor.

    Layer i of L, from 0, has the factor ``layer_lr^(i / (L - 1))``, counted over the layers that
    train. Parameters outside of layers have factor 1; parameters that layers share are in the group
    of the first of them. Where the optimiser treats matrices of conditioners differently, they are
    in groups with the entry ``"matrices": True``, after the others of their layer.

    Raises:
        ConfigError: the optimiser is for matrices, and the flow has none that train.
    """
    layers, factors = _by_layer(flow, config.layer_lr)
    wanted, share = config.optimizer.apart, config.optimizer.share(config.lr)
    if wanted is None:
        return [{"params": layer} for layer in layers], factors
    chosen = {id(p) for p in conditioner_matrices(flow, wanted)}
    groups, rates = [], []
    for layer, factor in zip(layers, factors, strict=True):
        parts = [[p for p in layer if (id(p) in chosen) == matrices] for matrices in (False, True)]
        for part, matrices in zip(parts, (False, True), strict=True):
            if part:
                groups.append({"params": part, "matrices": matrices})
                rates.append(factor * (share if matrices else 1.0))
    if not any(group["matrices"] for group in groups):
        what = "no matrices of conditioners train, which it is for"
        flag = f"--train.optimizer {word_of(type(config.optimizer))}"
        remedy = "use --train.optimizer adam"
        remedy += ", or --train.optimizer.matrices all" if wanted == "hidden" else ""
        raise ConfigError(what, flag, remedy)
    return groups, rates


def conditioner_matrices(flow: Flow, which: Matrices) -> list[Tensor]:
    """Return the weights of linear maps and convolutions in a flow's conditioners.

    "hidden" leaves out a conditioner's `enter`, `leave` and `context`.
    """
    found: dict[int, Tensor] = {}
    for net in flow.modules():
        if not isinstance(net, Conditioner):
            continue
        for name, child in net.named_children():
            if which == "hidden" and name in ("enter", "leave", "context"):
                continue
            for module in child.modules():
                if isinstance(module, _MAPS):
                    found[id(module.weight)] = module.weight
    return list(found.values())


def late_parameters(flow: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that conditioners name in `late`."""
    nets = (module for module in flow.modules() if isinstance(module, Conditioner))
    return [getattr(net, name) for net in nets for name in net.late]


def _by_layer(flow: Flow, last: float) -> tuple[list[list[nn.Parameter]], list[float]]:
    left = {id(p): p for p in flow.parameters() if p.requires_grad}
    if last == 1:
        return [list(left.values())], [1.0]
    layers = [
        [p for p in layer.parameters() if left.pop(id(p), None) is not None]
        for layer in flow.layers()
    ]
    layers = [layer for layer in layers if layer]
    factors = [last ** (i / max(1, len(layers) - 1)) for i in range(len(layers))]
    if left:
        layers, factors = [*layers, list(left.values())], [*factors, 1.0]
    return layers, factors


def make_optimizer(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser that `config` names, on groups of parameters."""
    chosen, lr, betas = config.optimizer, config.lr, config.betas
    if isinstance(chosen, Adamax):
        return torch.optim.Adamax(groups, lr=lr, betas=betas, foreach=True)
    if isinstance(chosen, Muon):
        return OrthogonalAdam(groups, lr=lr, betas=betas, settings=chosen)
    if isinstance(chosen, AdamW):
        decays = [chosen.decay if group.get("matrices") else 0.0 for group in groups]
        groups = [g | {"weight_decay": d} for g, d in zip(groups, decays, strict=True)]
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    return torch.optim.Adam(groups, lr=lr, betas=betas, fused=True)


class Average:
    """A copy of a flow whose weights are an exponential moving average of the flow's.

    The decay after n updates is ``min(decay, (1 + n) / (10 + n))``: early averages forget the
    initial weights sooner.

    Args:
        flow: the flow that trains.
        decay: weight of the past; 0 makes the copy follow the flow.
    """

    def __init__(self, flow: Flow, decay: float) -> None:
        self.decay = decay
        self.flow = copy.deepcopy(flow).eval().requires_grad_(False)
        self._source = flow

    def share(self, step: int) -> float:
        """Return the weight of the flow in the average after step `step` (from 0)."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Return each parameter of the flow with its average; sharding replaces them."""
        return list(zip(self._source.parameters(), self.flow.parameters(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Average in the flow's weights after step `step` (from 0)."""
        pairs = self.pairs()
        mine, theirs = [local(e) for _, e in pairs], [local(p) for p, _ in pairs]
        torch._foreach_lerp_(mine, theirs, self.share(step))  # pyright: ignore[reportPrivateImportUsage]


def batch_norms(flow: nn.Module) -> list[nn.BatchNorm1d]:
    """Return the batch-norm modules of a flow, in its conditioners and between its layers."""
    return [module for module in flow.modules() if isinstance(module, nn.BatchNorm1d)]


@torch.no_grad()
def recalibrate(flow: Flow, batches: Iterable[tuple[Tensor, Tensor | None, Noise]]) -> None:
    """Set batch-norm statistics to their means over `batches` of images, contexts and noise.

    Averaged weights need statistics of their own. No random generator moves.
    """
    norms = batch_norms(flow)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for x, labels, noise in batches:
        flow(x, labels, noise)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
