"""Growth in depth: a deeper flow that begins from a run of a shallower one.

Appendix D of the MixerFlow paper trains in stages of growing depth. Here a stage is a run of its
own: the shallower model's layers, averaged weights and moments of the optimiser go over into the
deeper model, whose new layers start as the identity, and the schedule continues at its place.

References:
    English, Kirchler, Lippert: MixerFlow: MLP-Mixer meets Normalising Flows (2023), appendix D,
    "Iterative growing of flows". https://arxiv.org/abs/2310.16777
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, example_context
from mixerflow.errors import ConfigError
from mixerflow.models import flow_from
from mixerflow.optimizers import Optimizer
from mixerflow.registry import restore, word_of
from mixerflow.runs import Checkpoint, Checkpoints, RunFolder, is_published, read_metadata
from mixerflow.runs.located import locate
from mixerflow.runs.manifest import entry, pack_tensors
from mixerflow.runs.metadata import model_settings
from mixerflow.runs.weights import origin_of, pieces_of, require_same_model
from mixerflow.train_config import TrainConfig
from mixerflow.training.optimizer import parameter_groups

_FLAG = "--from"
_ROUNDING = 1e-7
"""Largest error of the identity, in float64; a batch norm's epsilon moves values by 5e-6."""


@dataclass(frozen=True, eq=False)
class Stage:
    """The state that a deeper flow's training begins with.

    Attributes:
        origin: the entry "origin" of ``run.json``, with the place in the schedule.
        model: the state dict.
        ema: the averaged weights' state dict.
        moments: the optimiser's state by parameter name; new layers have none.
        objective: the state dict of an objective that learns, or None.
    """

    origin: dict[str, Any]
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]
    objective: dict[str, Tensor] | None


def grow_from(flow: Flow, path: Path, optimizer: Optimizer) -> Stage | None:
    """Map the last checkpoint of a run of a shallower model to a flow of the deeper model.

    Layers correspond in order; what follows the layers corresponds too. The flow gets the mapped
    weights, and counts as initialised. None where the flow is not of a deeper model.

    Raises:
        ConfigError: the models differ in more than depth, a new layer is not the identity, the
            weights are published ones, which have no moments, or `optimizer` is not the run's.
        CheckpointError: the run is damaged.
    """
    published = is_published(locate(path).path)
    known = published or RunFolder(path).metadata_path.exists()
    metadata = read_metadata(path) if known else {}
    spec = metadata.get("model")
    if spec is None or not _is_deeper(flow, spec):
        return None
    if published:
        what = "published weights have no moments for a deeper model to continue with"
        raise ConfigError(what, path, "name the run folder that they are from")
    with torch.device("meta"):
        shallow = flow_from(spec, path / "run.json")
    pairs = {name: name for name in shallow.state_dict() if not name.startswith("transform.")}
    try:
        pairs |= _aligned(shallow.transform, flow.transform, "transform.", "transform.")
    except ValueError:
        require_same_model(flow, spec, path)  # names the setting
        raise
    config = restore(TrainConfig, metadata["train"])
    if config.optimizer.moments != optimizer.moments:
        theirs, mine = config.optimizer.moments, optimizer.moments
        what = f"the moments there are those of {theirs}, not {mine}"
        raise ConfigError(what, path, f"use --train.optimizer {word_of(type(config.optimizer))}")
    checkpoint = Checkpoints(path / "checkpoints").load("last")
    _check_identity(flow, set(pairs.values()))
    place = config.schedule_start + checkpoint.step
    later = config.schedule_steps if (config.schedule_steps or 0) > place else None
    digest = entry(pack_tensors(checkpoint.model))["sha256"]
    origin = origin_of(path, digest, pieces_of(metadata, checkpoint.step)) | {
        "moments": True,
        "schedule_start": place,
        "schedule_steps": later,
    }
    fresh = flow.state_dict()
    model, ema = (
        fresh | {pairs[name]: tensor for name, tensor in tensors.items()}
        for tensors in (checkpoint.model, checkpoint.ema or checkpoint.model)
    )
    flow.load_state_dict(model)
    return Stage(origin, model, ema, *_moments(checkpoint, shallow, config, pairs))


def _moments(
    checkpoint: Checkpoint, shallow: Flow, config: TrainConfig, pairs: dict[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor] | None]:
    """The optimiser's state by the deeper flow's names, and the objective's own weights."""
    names = {id(p): name for name, p in shallow.named_parameters()}
    groups, _ = parameter_groups(shallow, config)
    order = [names[id(p)] for group in groups for p in group["params"]]
    state = checkpoint.state["trainer"]
    moments = {
        pairs[order[number]]: values
        for number, values in state["optimizer"]["state"].items()
        if number < len(order)  # an objective's own parameters come last
    }
    return moments, state.get("objective")


def _is_deeper(flow: Flow, spec: dict[str, Any]) -> bool:
    """Whether a flow has the settings of a spec but for larger numbers: more layers, say."""
    if flow.spec is None or spec.get("type") == "Flow":
        return False
    mine, theirs = model_settings(flow.spec), model_settings(spec)
    pairs = [(mine.get(n), theirs.get(n)) for n in mine.keys() | theirs.keys()]
    changed = [(a, b) for a, b in pairs if a != b]
    return bool(changed) and all(
        type(a) is type(b) is int and a > b  # pyright: ignore[reportOptionalOperand]
        for a, b in changed
    )


def _aligned(shallow: nn.Module, deep: nn.Module, a: str, b: str) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of the tensors that correspond, in the shallower and the deeper module.

    Raises:
        ValueError: the modules differ in more than the length of their lists.
    """
    if _signature(shallow) == _signature(deep):
        yield from ((a + name, b + name) for name in shallow.state_dict())
        return
    mine, theirs = dict(shallow.named_children()), dict(deep.named_children())
    own, others = ({n: t.shape for n, t in m.state_dict().items()} for m in (shallow, deep))
    own = {name: shape for name, shape in own.items() if name.partition(".")[0] not in mine}
    if type(shallow) is not type(deep) or any(others.get(n) != own[n] for n in own):
        raise ValueError("modules of two kinds")
    yield from ((a + name, b + name) for name in own)
    names: list[tuple[str, str]] = [(name, name) for name in mine]
    if isinstance(shallow, nn.ModuleList) and isinstance(deep, nn.ModuleList):
        names = _matched(shallow, deep)
    elif mine.keys() != theirs.keys():
        raise ValueError("modules of other parts")
    for x, y in names:
        yield from _aligned(mine[x], theirs[y], f"{a}{x}.", f"{b}{y}.")


def _matched(shallow: nn.ModuleList, deep: nn.ModuleList) -> list[tuple[str, str]]:
    """Match two lists: a common beginning, and the rest of the shorter list at the end."""
    if len(shallow) == len(deep):
        return [(str(i), str(i)) for i in range(len(deep))]
    mine, theirs = ([_signature(m) for m in each] for each in (shallow, deep))
    same = [x == y for x, y in zip(mine, theirs, strict=False)]
    first = same.index(False) if False in same else len(same)
    rest = len(shallow) - first
    if len(shallow) > len(deep) or (rest and mine[first:] != theirs[-rest:]):
        raise ValueError("layers that do not correspond")
    numbers = [*range(first), *range(len(deep) - rest, len(deep))]
    return [(str(i), str(j)) for i, j in enumerate(numbers)]


def _signature(module: nn.Module) -> object:
    """What two modules must agree in to correspond: settings, and the shapes of their tensors."""
    return repr(module), [(name, t.shape) for name, t in module.state_dict().items()]


@torch.no_grad()
def _check_identity(flow: Flow, mapped: set[str]) -> None:
    """Raise a ConfigError unless each layer without a mapped tensor is the identity."""
    held = {id(t) for name, t in flow.state_dict(keep_vars=True).items() if name in mapped}
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        draws = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
        return draws.to(flow.device)

    context = None
    if flow.context_net is not None:
        given = example_context(flow.context_net, 2)
        given = torch.zeros(2, dtype=torch.int64) if given is None else given
        context = drawn(*flow.context_net(given.to(flow.device)).shape[1:])
    layers = flow.layer_shapes()
    for number, (layer, taken, given) in enumerate(layers, 1):
        if not layer.state_dict() or any(
            id(t) in held for t in layer.state_dict(keep_vars=True).values()
        ):
            continue
        exact = copy.deepcopy(layer).double().eval()
        x = drawn(*taken)
        z, log_det = exact(x, context, Noise.of(0, x))
        same = taken == given and bool(((z - x).abs() <= _ROUNDING * (1 + x.abs())).all())
        if not (same and bool((log_det.abs() <= _ROUNDING * x[0].numel()).all())):
            what = f"layer {number} of {len(layers)} is not the identity at its start"
            remedy = (
                "grow models whose layers start as the identity: no batch norm between layers, an "
                "even number of rlu maps, no random rotations or sigmoid scales"
            )
            raise ConfigError(what, _FLAG, remedy)
