"""``mixerflow info``: the recipes, or one of them as a chain with shapes and parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from mixerflow import kernels, recipes
from mixerflow.cli.parse import parse
from mixerflow.core import Along, Chain, Flow, Inverse, Layer, Shape, Transform, Window
from mixerflow.errors import CheckpointError
from mixerflow.models import from_spec
from mixerflow.models.recipe import PublishedResult
from mixerflow.parts import Model
from mixerflow.runs import is_published, read_header
from mixerflow.transforms import Coupling, KernelChain, MixerLayer, Patchify
from mixerflow.transforms.plans import plan_of


@dataclass(frozen=True)
class Arguments:
    """Show a model: its chain, shapes, parameters a part, and the paper's count."""

    shape: tuple[int, ...]
    """Of the images: channels, then each side."""
    model: Model


def main(arguments: list[str]) -> int:
    """Print the list, or the chain."""
    console = Console()
    if not arguments:
        _list(console)
        return 0
    if arguments[0] in ("-h", "--help"):
        print("usage: mixerflow info [RECIPE or RUN] [flags]\n")
        arguments = ["mixerflow-tiny", *arguments]
    name, *rest = arguments
    published = None
    if (Path(name) / "run.json").is_file() or is_published(Path(name)):
        header = read_header(Path(name))
        if not header.get("model"):
            raise CheckpointError("names no model", name, "restore run.json from a copy")
        model, shape = from_spec(header["model"])
        data = header.get("data", {}).get("dataset_id")
        console.print(f"status {header.get('status')}, {header.get('steps')} steps on {data}")
    else:
        named = recipes.recipe(name)
        model, shape, published = named.model, named.shape, named.published
        console.print(f"{name}: {named.about}")
    default = Arguments(shape=shape, model=model)
    given = parse(Arguments, rest, prog=f"mixerflow info {name}", default=default)
    show(given.model, given.shape, published if given == default else None, console)
    return 0


def _list(console: Console) -> None:
    table = Table(Column("recipe", no_wrap=True), "what", "budget", "paper", box=SIMPLE)
    for name, each in recipes.RECIPES.items():
        budget = (
            f"{each.train.minutes:g} min" if each.train.minutes else f"{each.train.steps:,} steps"
        )
        figure = each.published and each.published.bits_per_dim
        paper = "" if figure is None else f"{figure:.2f}"
        table.add_row(name, each.about, budget, paper)
    console.print(table)
    console.print("paper: its bits/dim. `mixerflow info RECIPE` shows the chain.", highlight=False)


def show(model: Model, shape: Shape, published: PublishedResult | None, console: Console) -> None:
    """Print the chain of a model over images of `shape`."""
    flow = model.build(shape)
    table = Table("part", "gives", Column("parameters", justify="right"), box=SIMPLE)
    for part, gives, count in rows(flow):
        table.add_row(part, _times(gives), f"{count:,}" if count else "")
    if flow.context_net is not None:
        table.add_row("class embedding", "", f"{_count(flow.context_net):,}")
    table.add_section()
    total = _count(flow)
    table.add_row("in all", _times(flow.latent_shape), f"{total:,}")
    console.print(table)
    for line in paths(flow):
        console.print(line, highlight=False)
    if published is not None:
        if published.parameters is not None:
            difference = 100 * (total / (1e6 * published.parameters) - 1)
            count = f"{published.parameters:.2f}M ({difference:+.2f} % here)"
            console.print(f"the paper's count: {count}", highlight=False)
        if published.bits_per_dim is not None:
            figure = f"{published.bits_per_dim:.2f} bits/dim, {published.where}; {published.note}"
            console.print(f"the paper's figure: {figure}", highlight=False)


def paths(flow: Flow) -> Iterator[str]:
    """How its row flows run: on this machine's CPU, on GPUs, and on this machine's GPU."""
    chains = [module for module in flow.modules() if isinstance(module, KernelChain)]
    if not chains:
        return
    missing = kernels.unsupported_reason(torch.zeros(1))
    yield f"on the CPU: {_split([missing or _why_not(chain, 'cpu') for chain in chains])}"
    gpu = _split([_why_not(chain, "gpu") for chain in chains])
    yield f"on a GPU: {gpu} (experimental: it has never run on a GPU here)"
    if torch.cuda.is_available():
        flow = flow.to("cuda")
        found = [chain.path(torch.zeros(2, _length(chain), device="cuda")) for chain in chains]
        name = torch.cuda.get_device_name()
        yield f"tried on {name}: {_split([None if p == 'kernel' else p for p in found])}"


def _length(chain: KernelChain) -> int:
    """Of its rows, as far as the kernels know them."""
    plan = plan_of(chain)
    return 1 if isinstance(plan, str) else plan.n


def _why_not(chain: KernelChain, where: kernels.Where) -> str | None:
    plan = plan_of(chain)
    return plan if isinstance(plan, str) else plan.refused(where, differentiated=True)


def _split(reasons: list[str | None]) -> str:
    """How many go which way, and why."""
    others = [reason for reason in reasons if reason is not None]
    said = f"{len(reasons) - len(others)} of {len(reasons)} row flows by a kernel"
    return f"{said}; the others operator by operator: {others[0]}" if others else said


def rows(flow: Flow) -> Iterator[tuple[str, Shape, int]]:
    """Part, event shape after it, and parameters; equal neighbours in one row.

    Layers of several transforms are numbered, data to latent.
    """
    layer = 0
    pending: list[tuple[str, Shape, int, int]] = []  # name, shape, parameters, number
    for step, taken, shape in flow.layer_shapes():
        name, count = _describe(step, taken), _count(step)
        whole = isinstance(step, (Layer, Window))
        layer += whole
        if pending and (pending[0][0] != name or not whole):
            yield _line(pending)
            pending = []
        pending.append((name, shape, count, layer if whole else 0))
    if pending:
        yield _line(pending)


def _line(alike: list[tuple[str, Shape, int, int]]) -> tuple[str, Shape, int]:
    name, shape, _, last = alike[-1]
    first, count = alike[0][3], sum(each[2] for each in alike)
    numbers = "" if not last else str(first) if first == last else f"{first}-{last}"
    return f"{numbers:>5}  {name}", shape, count


def _describe(step: Transform, shape: Shape) -> str:
    """A layer in words: what it is, and for a layer of several what they are."""
    if isinstance(step, Window):
        ends = [a + b for a, b in zip(step.start, step.size, strict=True)]
        box = " x ".join(f"{a}:{b}" for a, b in zip(step.start, ends, strict=True))
        inner = (*shape[: -len(step.size)], *step.size)
        return f"shift layer on {box}: {_describe(step.transform, inner)}"
    if isinstance(step, MixerLayer):
        return f"mixer layer: {_inside(step, shape)}"
    if isinstance(step, Chain):
        return _inside(step, shape)
    if isinstance(step, Along):
        return f"{_describe(step.transform, (shape[step.dim],))} along axis {step.dim}"
    if isinstance(step, Coupling):
        return f"Coupling by {step.elementwise!r}"
    if isinstance(step, Inverse):
        return f"inverse {type(step.transform).__name__}"
    return f"{type(step).__name__}({step.extra_repr()})"


def _inside(chain: Chain, shape: Shape) -> str:
    """The parts of a layer, with their parameters; cuts with what they make."""
    parts = []
    for step in chain:
        shape = step.out_shape(shape)
        if isinstance(step, Patchify):
            parts.append(f"{type(step).__name__.lower()} {_times(step.matrix)}")
        elif isinstance(step, Along) and isinstance(step.transform, KernelChain):
            parts.append(f"{'channels' if step.dim == -1 else 'patches'} {_count(step):,}")
        elif _count(step):
            parts.append(f"{_name(step)} {_count(step):,}")
    return ", ".join(parts)


def _name(step: Transform) -> str:
    return type(step.transform if isinstance(step, Along) else step).__name__


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
