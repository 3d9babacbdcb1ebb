"""The flow that `benchmarks.gpu` measures, and the ways in which it can run."""

from __future__ import annotations

import contextlib
import gc
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.count import Place, places
from benchmarks.gpu_timing import here
from mixerflow import kernels
from mixerflow.core import Chain, Flow, Shape, Transform, Window
from mixerflow.data import Images, make_images
from mixerflow.models import MixerFlow
from mixerflow.nets import ResidualMLP
from mixerflow.parts import MLP, Patching, RowCoupling
from mixerflow.recipes import recipe
from mixerflow.registry import evolve
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import GraphedTrainer
from mixerflow.transforms import KernelChain

TINY = MixerFlow(
    layers=2, flow_layers=1, patching=Patching(2, shift=(0, 1)), flow=RowCoupling(net=MLP(16))
)
TINY_SHAPE = (1, 6, 6)


@dataclass(frozen=True)
class Way:
    """How a flow runs and trains."""

    kernels: bool = True
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    graph: bool = False
    tf32: bool = False
    """Whether the operators' float32 products may be tf32 products."""
    compiled: Literal["", "flows", "nets"] = ""
    """What torch.compile takes: nothing, each row flow, or each net of a coupling."""
    keep: kernels.Keep = "inputs"
    memory: Literal["store", "checkpoint", "invert"] = "store"
    norm: str | None = None
    """In the nets; by default that of all that is measured."""

    @contextlib.contextmanager
    def holds(self) -> Iterator[None]:
        """While this is how flows run."""
        with contextlib.ExitStack() as stack:
            if not self.kernels:
                stack.enter_context(kernels.disabled())
            elif here().type == "cpu":
                stack.enter_context(kernels.interpreted())
            before = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = self.tf32
            try:
                yield
            finally:
                torch.backends.cuda.matmul.allow_tf32 = before

    def autocast(self) -> torch.autocast:
        """The precision of conditioners outside of a trainer."""
        low = self.precision == "bfloat16"
        return torch.autocast(here().type, torch.bfloat16, enabled=low)


def model_of(
    given: dict[str, Any], *, layers: int | None = None, norm: str | None = None
) -> tuple[MixerFlow, Shape]:
    """The recipe's model with a norm that kernels know, or another, and the images' shape.

    Raises:
        ValueError: the recipe is of another model.
    """
    model, shape = TINY, TINY_SHAPE
    if not given["tiny"]:
        named = recipe(given["recipe"])
        model, shape = named.model, named.shape
    if not isinstance(model, MixerFlow):
        raise ValueError(f"{given['recipe']} is no MixerFlow")
    changes = {"layers": layers or model.layers, "flow.net.norm": norm or given["norm"]}
    return evolve(model, changes), shape


def images_of(shape: Shape, n: int) -> Images:
    """Noise, the same each time."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)
    return make_images(pixels, None, dataset_id="noise")


def flow_of(given: dict[str, Any], *, layers: int | None = None) -> Flow:
    """A flow far from the identity, whose ActNorms keep its activations in bounds."""
    torch.manual_seed(0)
    model, shape = model_of(given, layers=layers)
    flow = model.build(shape).to(here())
    scatter(flow)
    with kernels.disabled():
        flow.initialize(torch.from_numpy(images_of(shape, 64).pixels).to(flow.device))
    return flow


def shallow(given: dict[str, Any]) -> Flow:
    """A flow with as few layers as have one of each kind."""
    model, _ = model_of(given)
    in_turn = (model.patching.shift, model.patching.cut)
    return flow_of(given, layers=min(model.layers, math.lcm(*map(len, in_turn))))


@torch.no_grad()
def scatter(flow: Flow) -> None:
    """Weights away from the zeros they start from: what is multiplied by zero is never wrong."""
    for parameter in flow.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)


def trainer_of(
    given: dict[str, Any], way: Way, batch: int, *, layers: int | None = None
) -> Trainer:
    """The package's own trainer, as the recipe trains, on noise."""
    torch.manual_seed(0)
    model, shape = model_of(given, layers=layers, norm=way.norm)
    flow = model.build(shape).to(here())
    images = images_of(shape, 4 * batch)
    batches = Batches(images, batch, seed=0, device=flow.device, conditional=False)
    with kernels.disabled():
        flow.initialize(*batches.first(min(batch, 512)))
    keep_of(flow, way)
    train = TrainConfig() if given["tiny"] else recipe(given["recipe"]).train
    settings = replace(train, batch=batch, precision=way.precision, memory=way.memory)
    kind = GraphedTrainer if way.graph else Trainer
    trainer = kind(flow, batches, settings, steps=10**6)
    compile_of(flow, way)
    return trainer


def compile_of(flow: Flow, way: Way) -> None:
    """Have torch.compile take what `way` says, each by itself: the parts alike share a program."""
    if way.compiled:
        torch._dynamo.config.recompile_limit = 64  # as many kinds of parts there may be
        wanted = KernelChain if way.compiled == "flows" else ResidualMLP
        for module in flow.modules():
            if isinstance(module, wanted):
                module.compile(dynamic=False)


def keep_of(flow: Flow, way: Way) -> None:
    """Have row flows leave their backward passes what `way` says."""
    for module in flow.modules():
        if isinstance(module, KernelChain):
            module.keep = way.keep


def kinds_of(flow: Flow) -> dict[str, Place]:
    """One row flow of each kind, by name."""
    found: dict[str, Place] = {}
    for place in places(flow.transform, flow.shape):
        found.setdefault(place.name, place)
    return found


def layers_of(flow: Flow) -> list[Transform]:
    """A layer with each kind of row flow."""
    found, names = [], set()
    for layer, taken, _ in flow.layer_shapes():
        new = {place.name for place in places(layer, taken)} - names
        found += [layer] if new else []
        names |= new
    return found


def paths_of(flow: Flow) -> dict[str, int]:
    """On how many row flows, and layers, which path is taken, or why kernels are not."""
    found: Counter[str] = Counter()
    for place in places(flow.transform, flow.shape):
        n = place.shape[place.along.dim]
        found[f"rows: {place.rows.path(torch.zeros(2, n, device=flow.device))}"] += 1
    for layer, shape in _layers(flow.transform, flow.shape):
        found[f"layer: {layer.path(torch.zeros(2, *shape, device=flow.device))}"] += 1
    return dict(found)


def _layers(transform: Transform, shape: Shape) -> Iterator[tuple[Any, Shape]]:
    """Layers that kernels may take whole, with the shape of their events."""
    if isinstance(transform, Window):
        yield from _layers(transform.transform, (*shape[: -len(transform.size)], *transform.size))
    elif hasattr(transform, "path"):
        yield transform, shape
    elif isinstance(transform, Chain):
        for step in transform:
            yield from _layers(step, shape)
            shape = step.out_shape(shape)


def let_go() -> None:
    """Give back what a measurement held, so that the next does not run out for its sake."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
