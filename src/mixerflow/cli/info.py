"""``mixerflow info``: the list of recipes, a model as a chain with shapes, or an archive."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Column, Table
from torch import nn

from mixerflow import kernels, recipes
from mixerflow.cli import pages
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.cli.paths import check_run_name, is_run
from mixerflow.core import (
    Along,
    Chain,
    Flow,
    Inverse,
    Layer,
    Shape,
    Transform,
    VectorNet,
    Window,
)
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.models import from_spec
from mixerflow.models.recipe import PublishedResult
from mixerflow.named import is_archive, shipped
from mixerflow.parts import Model
from mixerflow.runs.bounded import flow_within_reason
from mixerflow.terminal import console, say, show
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import Augment, Coupling, KernelChain, MixerLayer, Patchify
from mixerflow.transforms.plans import plan_of

_COLUMNS = 80
"""Largest width of the lines, where no one word is longer."""
_PART = 42
"""Largest width of a part's description."""
_NARROW = 20
"""Width of a description below which a table has no shapes, which leaves it more room."""
_LEAST = 12
"""Smallest width of a description."""


@dataclass(frozen=True)
class Arguments(ComputingArguments):
    """Show a model: its chain, shapes, parameters a part, and the paper's count."""

    shape: tuple[int, ...]
    """Shape of the images: channels, then each side."""
    model: Model


def main(arguments: list[str]) -> int:
    """Print the lists, or the chain."""
    if not arguments:
        _print_recipes()
        _print_shipped()
        return 0
    if arguments[0].startswith("-") and {"-h", "--help"} & set(arguments):
        say("usage: mixerflow info [RECIPE, RUN or ARCHIVE] [flags]", "")
        arguments = ["mixerflow-tiny", *arguments]
    name, *rest = arguments
    if name.startswith("-"):
        remedy = "name one before its flags; `mixerflow info` lists them"
        raise ConfigError("no recipe", "mixerflow info RECIPE", remedy)
    if is_archive(name):
        from mixerflow.cli.archive_info import print_archive

        return print_archive(Path(name), rest)
    published = flow = None
    check_run_name(name)
    pages.keep([*recipes.RECIPES], "recipes")
    if is_run(Path(name)):
        from mixerflow.runs import read_metadata  # takes time that recipes need not

        metadata = read_metadata(Path(name))
        if not metadata.get("model"):
            raise CheckpointError("names no model", name, "restore run.json from a copy")
        flow = flow_within_reason(metadata["model"], name)
        model, shape = from_spec(metadata["model"])
        data = metadata.get("data", {}).get("dataset_id")
        say(f"status {metadata.get('status')}, {metadata.get('steps')} steps on {data}")
    else:
        named = recipes.recipe(name)
        model, shape, published = named.model, named.shape, named.published
        say(*_lines([f"{name}: {named.about}"]))
    default = Arguments(shape=shape, model=model)
    prog = f"mixerflow info {name}"
    given = parse(Arguments, rest, prog=prog, default=default) if rest else default
    changed = (given.model, given.shape) != (model, shape)
    if changed or flow is None:
        flow = given.model.build(given.shape)
    _print_chain(flow, None if changed else published)
    return 0


def _print_recipes() -> None:
    rows = [(name, each.about, _budget(each.train)) for name, each in recipes.RECIPES.items()]
    if console().width < _COLUMNS:
        say(*_lines(f"{name} ({about}; {budget})" for name, about, budget in rows), "")
    else:
        table = Table(Column("recipe", no_wrap=True), "what", "budget", box=SIMPLE)
        for row in rows:
            table.add_row(*row)
        show(table)
    # the papers' figures are of several kinds, which one column cannot have
    hint = "`mixerflow info RECIPE` shows the chain, and the paper's figure with its kind."
    say(*_lines([hint]))


def _print_shipped() -> None:
    """List the weights that ship, by their cards."""
    from mixerflow.runs import read_metadata

    rows = []
    for name, folder in shipped().items():
        card = read_metadata(folder)
        figure, size = card["figure"], card["files"]["model.safetensors"]["bytes"]
        data = f"{_times(card['model']['shape'])}, {card['data']['dataset_id']}"
        rows.append((name, data, f"{figure['bits_per_dim']:.3f}", f"{size / 1e6:.1f} MB"))
    if not rows:
        return
    if console().width < _COLUMNS:
        lines = (f"{name} ({data}; {bits} bits/dim; {size})" for name, data, bits, size in rows)
        say("", *_lines(lines))
        return
    columns = [Column(each, justify="right") for each in ("bits/dim", "size")]
    table = Table(Column("weights", no_wrap=True), "images", *columns, box=SIMPLE)
    for row in rows:
        table.add_row(*row)
    show(table)


def _budget(train: TrainConfig) -> str:
    if train.minutes is not None:
        return f"{train.minutes:g} min"
    return f"{train.epochs:g} epochs" if train.steps is None else f"{train.steps:,} steps"


def _print_chain(flow: Flow, published: PublishedResult | None) -> None:
    rows, total = [*_chain_rows(flow)], _count(flow)
    counts = max(len("parameters"), len(f"{total:,}"))
    shapes = max(len(_times(shape)) for _, _, shape, _ in rows)
    room = console().width - counts - 14  # beside numbers, rules and spaces
    shown = room - shapes - 3 >= _NARROW
    part = max(min(_PART, room - shapes - 3 if shown else room), _LEAST)
    table = Table("part", *["gives"] * shown, Column("parameters", justify="right"), box=SIMPLE)

    def add(name: str, shape: Shape | None, count: int) -> None:
        gives = [_times(shape) if shape else ""] * shown
        table.add_row(name, *gives, f"{count:,}" if count else "")

    for numbers, name, shape, count in rows:
        add(_numbered(numbers, name, part), shape, count)
    if flow.context_net is not None:
        is_vector = isinstance(flow.context_net, VectorNet)
        add("net of vectors" if is_vector else "class embedding", None, _count(flow.context_net))
    for name, module in (("base", flow.base), ("head", flow.head)):
        if module is not None and (count := _count(module)):
            add(f"{name}: {module.__class__.__name__}", None, count)
    table.add_section()
    add("in all", flow.latent_shape, total)
    show(table)
    notes = (_noise_use(flow), _kernel_use(flow), _published_lines(published, total))
    say(*_lines(itertools.chain(*notes)))


def _lines(notes: Iterable[str]) -> Iterator[str]:
    """Break notes into lines that the terminal has room for."""
    width = max(min(_COLUMNS, console().width), 4)
    for note in notes:
        yield from textwrap.wrap(note, width, subsequent_indent="  ", break_on_hyphens=False)


def _published_lines(published: PublishedResult | None, total: int) -> Iterator[str]:
    if published is None:
        return
    if published.parameters is not None:
        millions = published.parameters
        same = f"{total / 1e6:.2f}" == f"{millions:.2f}"
        here = "the same" if same else f"{100 * (total / (1e6 * millions) - 1):+.2f} %"
        yield f"the paper's count: {millions:.2f}M ({here} here)"
    if published.bits_per_dim is not None:
        figure = f"{published.bits_per_dim:.2f} bits/dim, {published.where}; {published.note}"
        yield f"the paper's figure: {figure}"


def _noise_use(flow: Flow) -> Iterator[str]:
    """Say what the noise that a flow adds makes of its dimensions and its density."""
    latents = math.prod(flow.latent_shape)
    if latents > flow.dims:
        noise = f"{latents - flow.dims:,} of {latents:,} latents come from noise"
        yield f"{noise}, {flow.dims:,} from the image; bits/dim count the image's numbers alone"


def _kernel_use(flow: Flow) -> Iterator[str]:
    """Count the row flows that kernels run: on this CPU, on GPUs, and on this machine's GPU."""
    chains = [module for module in flow.modules() if isinstance(module, KernelChain)]
    if not chains:
        return
    missing = kernels.unsupported_reason(torch.zeros(1))
    if missing is not None:
        pages.active = False  # a compiler may be mended before the next call
    yield f"on the CPU: {_count_refusals([missing or _refusal(c, 'cpu') for c in chains])}"
    gpu = _count_refusals([_refusal(chain, "gpu") for chain in chains])
    yield f"on a GPU (experimental): {gpu}"
    if torch.cuda.is_available():
        flow, reasons = flow.to("cuda"), []
        for chain in chains:
            plan = plan_of(chain)
            length = 1 if isinstance(plan, str) else plan.n
            path = chain.path(torch.zeros(2, length, device="cuda"))
            reasons.append(None if path == "kernel" else path)
        yield f"tried on {torch.cuda.get_device_name()}: {_count_refusals(reasons)}"


def _refusal(chain: KernelChain, where: kernels.Where) -> str | None:
    """Return why no kernel runs a row flow there; None where one does."""
    plan = plan_of(chain)
    return plan if isinstance(plan, str) else plan.refused(where, differentiated=True)


def _count_refusals(reasons: list[str | None]) -> str:
    refused = [reason for reason in reasons if reason is not None]
    count = f"{len(reasons) - len(refused)} of {len(reasons)} row flows by a kernel"
    return f"{count}; the others operator by operator: {refused[0]}" if refused else count


def _chain_rows(flow: Flow) -> Iterator[tuple[str, str, Shape, int]]:
    """Yield numbers, part, event shape after it, parameters; equal neighbours share a row.

    Layers of several transforms are numbered from data to latent; later ones equal to earlier ones
    are described by their numbers.
    """
    steps, layer, described = [], 0, {}
    for step, in_shape, out_shape in flow.layer_shapes():
        is_layer = isinstance(step, (Layer, Window))
        layer += is_layer
        key = (_describe(step, in_shape), None if is_layer else len(steps))
        steps.append((key, layer if is_layer else 0, _count(step), out_shape))
    for (name, _), group in itertools.groupby(steps, key=lambda each: each[0]):
        _, layers, counts, shapes = zip(*group, strict=True)
        first, last = layers[0], layers[-1]
        numbers = "" if not last else str(first) if first == last else f"{first}-{last}"
        if last:
            like = described.setdefault((name, shapes[-1]), numbers)
            name = name if like == numbers else f"as {like}"
        yield numbers, name, shapes[-1], sum(counts)


def _numbered(numbers: str, name: str, width: int) -> str:
    """Put a description beside its numbers, broken between its parts."""
    parts = re.split(r"(?<=[,:]) ", name)
    whole = (part.replace(" ", "\0") if len(part) <= width else part for part in parts)
    lines = textwrap.wrap(" ".join(whole), width, break_on_hyphens=False)
    return "\n".join(f"{numbers if line is lines[0] else '':>5}  {line}" for line in lines).replace(
        "\0", " "
    )


def _describe(step: Transform, shape: Shape) -> str:
    """Name a transform, and the parts of a layer of several transforms."""
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
    if isinstance(step, Augment):
        read = getattr(step.net, "in_channels", step.shape[0])
        given = f" given {read}" if step.net is not None else ""
        return f"noise: {step.channels} channels{given}"
    if isinstance(step, Inverse):
        return f"inverse {type(step.transform).__name__}"
    return f"{type(step).__name__}({step.extra_repr()})"


def _inside(chain: Chain, shape: Shape) -> str:
    """Name the parts of a layer, each with its parameters, or with the shape of its patches."""
    parts = []
    for step in chain:
        shape = step.out_shape(shape)
        if isinstance(step, Patchify):
            parts.append(f"{type(step).__name__.lower()} {_times(step.matrix)}")
        elif isinstance(step, Along) and isinstance(step.transform, KernelChain):
            parts.append(f"{'channels' if step.dim == -1 else 'patches'} {_count(step):,}")
        elif _count(step):
            transform = step.transform if isinstance(step, Along) else step
            parts.append(f"{type(transform).__name__} {_count(step):,}")
    return ", ".join(parts)


def _times(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
