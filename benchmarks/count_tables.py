"""The tables of `benchmarks.count`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from rich.table import Table

from benchmarks.common import figure
from benchmarks.count_parts import Arguments, Count


def _table(title: str, names: list[str], lines: list[list[str]]) -> Table:
    show = Table(*names, title=title)
    for line in lines:
        show.add_row(*line)
    return show


def tables(found: Count, given: Arguments) -> Iterator[Table]:
    """What a reader wants to see."""
    title = f"{given.recipe}, batch {given.batch}: "
    yield _operations(found, title)
    yield _traffic(found, f"{title}MB a row-flow step")
    yield _by_operator(found, f"{title}layer by layer, a training step")
    kernels = [(kind.name, kernel) for kind in found.kinds for kernel in kind.kernels]
    kernels += [("optimiser", kernel) for kernel in found.optimiser]
    lines = [[name, k.name, *map(figure, k.us.values()), k.bound] for name, k in kernels]
    names = ["kind", "kernel", *kernels[0][1].us, "bound by"]
    yield _table(f"{title}floors in us, one launch each", names, lines)
    lines = [
        [x if isinstance(x, str) else "-" if x is None else figure(x) for x in asdict(t).values()]
        for t in found.totals
    ]
    names = ["", "forward ms", "backward ms", "optimiser ms", "step ms", "images/s", "recipe, h"]
    yield _table(f"{title}floors of a training step", names, lines)
    lines = [
        [name.replace("_", " "), "-" if number is None else f"{number:,}"]
        for name, number in asdict(found.launches).items()
    ]
    yield _table(f"{title}launches of a training step", ["", "number"], lines)


def _operations(found: Count, title: str) -> Table:
    names = ["kind", "rows", "length", "halves", "hidden", "steps", "par.", "multiply-adds"]
    names += ["padded", "overhead", "forward", "backward 2x", "recomputing 3x", "assembly"]
    lines = []
    for kind in found.kinds:
        flop = kind.kernels[0].flop / 1e9
        sizes = (kind.rows, kind.length, f"{kind.halves[0]}+{kind.halves[1]}", kind.hidden)
        counts = (kind.steps, kind.parameters, kind.multiply_adds, kind.padded)
        lines.append(
            [kind.name, *map(str, sizes), *(f"{x:,.0f}" for x in counts)]
            + [f"{kind.padded / kind.multiply_adds - 1:.1%}"]
            + [f"{times * flop:.3f}" for times in (1, 2, 3)]
            + [f"{kind.assembly_flop / 1e9:.6f}"]
        )
    about = f"{found.gflop_per_image:.4f} GFLOP an image forward, {found.parameters:,} parameters"
    return _table(f"{title}{about}; of a row, and GFLOP of a step", names, lines)


def _traffic(found: Count, title: str) -> Table:
    lines = []
    for kind in found.kinds:
        each = kind.steps / kind.flows
        for kernel in kind.kernels:
            line = [kind.name, kernel.name, "", ""]
            if kernel.name in kind.layered:
                traffic = kind.layered[kernel.name]
                line[2] = figure(sum(traffic.bytes.values()) / each / 1e6)
                line[3] = f"{sum(traffic.calls.values()) / each:.1f}"
            fused = (kernel.memory_bytes, kernel.l2_bytes)
            lines.append([*line, *(figure(size / 1e6) for size in fused)])
    names = ["kind", "pass", "layer by layer", "operators", "fused: memory", "fused: L2"]
    return _table(title, names, lines)


def _by_operator(found: Count, title: str) -> Table:
    size: Counter[tuple[str, str]] = Counter()
    calls: Counter[tuple[str, str]] = Counter()
    for kind in found.kinds:
        for name, traffic in kind.layered.items():
            for operator, moved in traffic.bytes.items():
                size[name, operator] += kind.flows * moved
                calls[name, operator] += kind.flows * traffic.calls[operator]
    whole = sum(size.values())
    lines = [
        [*key, f"{calls[key]:,}", f"{moved / 1e9:.2f}", f"{moved / whole:.1%}"]
        for key, moved in size.most_common()
        if moved > 0.005 * whole
    ]
    return _table(f"{title}, {whole / 1e9:.0f} GB", ["pass", "operator", "calls", "GB", ""], lines)
