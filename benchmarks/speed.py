"""How fast, beside Glow in other libraries and beside the matrix products alone.

    make bench                              # 5 minutes: what follows, with --quick
    python -m benchmarks.speed [--out FILE] [--presets NAME ...] [--rounds N] [--threads N]
    python -m benchmarks.speed --norms rms layer none --match --out FILE      # ours, by norm

For each preset: the MixerFlow (on every way it can run here), the floor of its matrix products, and
a Glow in nflows, normflows and FrEIA whose forward pass needs as many operations; with
``--match weights`` also one with as many weights. All in one interleaved run: in each round each
model does each job once, so that a noisy machine slows all alike. Figures are medians with the
smallest and largest; shares of the floor are paired round by round.

Jobs, in float32: a training step (forward, backward, Adam; ours through the package's trainer, with
gradient clipping, without weight averaging), log-probabilities in eval mode, samples. Ours takes
integer images and dequantises them; the rivals get theirs dequantised.

JSON goes to standard output, a table to standard error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    JOBS,
    Clock,
    Contender,
    Work,
    emit,
    facts,
    figure,
    interleaved,
    keep,
    pin,
    ratio,
    spread,
)
from benchmarks.costs import flop, import_seconds, operators, peak_memory
from benchmarks.floor import Floor
from benchmarks.ours import kernels_here, plain, variants
from benchmarks.rivals import LIBRARIES, Measure, base, installed
from mixerflow.models import MixerFlow
from mixerflow.nets import Norm
from mixerflow.recipes import recipe
from mixerflow.registry import evolve

_OURS = "import mixerflow; flow = mixerflow.build('mixerflow-cifar10-tiny').eval()"
_THEIRS = "from benchmarks.rivals import Glow; model = Glow('{0}', (3, 32, 32), 3, 1, 64).build()"
_CALL = "import torch; {0}.log_prob(torch.zeros(2, 3, 32, 32, dtype=torch.{1}))"
IMPORTS = {
    "torch": "import torch",
    "mixerflow": "import mixerflow",
    "mixerflow, first use": f"{_OURS}; {_CALL.format('flow', 'uint8')}",
} | {
    f"{name}, first use": f"{_THEIRS.format(name)}; {_CALL.format('model', 'float32')}"
    for name in LIBRARIES
}


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    presets: tuple[str, ...] = ("mixerflow-cifar10", "mixerflow-cifar10-tiny")
    rounds: int = 9
    batch: int = 32
    threads: int = 0
    """0: one for each core."""
    clock: Clock = "wall"
    """What seconds are: with one thread, "cpu" does not count the time of other programs."""
    match: tuple[Measure, ...] = ("flop", "weights")
    """In what the rivals equal the preset: operations, weights, or one rival for each."""
    norms: tuple[Norm, ...] = ()
    """Other norms in our nets than the preset's, each a contender more."""
    quick: bool = False
    """Five rounds and rivals of equal operations: about 5 minutes on 2 cores."""
    seed: int = 0
    out: Path | None = None
    """Where to write the JSON too."""


def contenders(
    name: str, match: tuple[Measure, ...], batch: int, norms: tuple[Norm, ...] = ()
) -> list[Contender]:
    """The preset, its floor, and Glows of as many operations at that batch, or weights."""
    named = recipe(name)
    if not isinstance(named.model, MixerFlow) or len(named.shape) != 3:
        raise SystemExit(f"benchmarks.speed: {name} is no MixerFlow over (C, H, W)")
    shape = (named.shape[0], named.shape[1], named.shape[2])
    ours = variants(name, named.model, shape)
    for norm in norms:
        model = evolve(named.model, {"flow.net.norm": norm})
        ours += variants(f"{name}, norm {norm}", model, shape)
    floor = Floor("floor: its matrix products", named.model, shape)
    work = ours[0].work(batch)
    with plain(ours[0]).path():
        targets = {
            "flop": flop(work.log_prob) / batch,
            "weights": sum(p.numel() for p in work.model.parameters()),
        }
    rivals = [base(lib, shape).like(targets[by], by=by) for by in match for lib in LIBRARIES]
    return [*ours, floor, *dict.fromkeys(rivals)]


def compare(
    entrants: list[Contender], *, batch: int, rounds: int, clock: Clock = "wall"
) -> list[dict[str, Any]]:
    """A row of figures for each; of one whose package is missing, that it is."""
    works = {c.name: c.work(batch) for c in entrants if installed(c.package)}
    paths = {c.name: c.path for c in entrants}

    def held(name: str, job: str) -> Callable[[], None]:
        def run() -> None:
            with paths[name]():
                getattr(works[name], job)()

        return run

    timed = {(name, job): held(name, job) for name in works for job in JOBS}
    seconds = interleaved(timed, rounds, clock)
    floor = next(c.name for c in entrants if isinstance(c, Floor))
    rows: list[dict[str, Any]] = []
    for entrant in entrants:
        row: dict[str, Any] = {"name": entrant.name, "package": entrant.package}
        if entrant.name not in works:
            rows.append(row | {"installed": False})
            continue
        speeds = {j: [batch / s for s in seconds[entrant.name, j]] for j in JOBS}
        row |= {
            "installed": True,
            "images_per_second": {j: spread(speeds[j]) for j in JOBS},
            "of_floor": {j: ratio(seconds[floor, j], seconds[entrant.name, j]) for j in JOBS},
        }
        rows.append(row | _costs(entrant, works[entrant.name], batch))
    return rows


def _costs(entrant: Contender, work: Work, batch: int) -> dict[str, Any]:
    """Parameters, operations, operator calls; whether the weights are still finite."""
    weights = [p for p in work.model.parameters() if p.requires_grad]
    with entrant.path():
        calls = operators(work.train)
    with plain(entrant).path():
        operations = flop(work.log_prob)
    return {
        "parameters": sum(p.numel() for p in weights),
        "gflop_per_image": round(operations / batch / 1e9, 4),
        "operators_per_training_step": calls,
        "finite": all(bool(p.isfinite().all()) for p in weights),
    }


def table(preset: str, rows: list[dict[str, Any]], batch: int) -> Table:
    """One preset's rows."""
    title = f"{preset}, batch {batch}: images/s, median (least-most), and share of the floor"
    show = Table("model", "M par.", "GFLOP", *JOBS, "ops/step", "peak MiB", title=title)
    for row in rows:
        if not row["installed"]:
            show.add_row(row["name"], *["-"] * 2, *["not installed"] * 3, *["-"] * 2)
            continue
        cells = []
        for job in JOBS:
            speed, share = row["images_per_second"][job], row["of_floor"][job]["median"]
            least, median, most = (figure(speed[k]) for k in ("least", "median", "most"))
            cells.append(f"{median} ({least}-{most}) {share:.0%}")
        peak = row.get("peak_mib")
        show.add_row(
            row["name"] if row["finite"] else f"{row['name']} (NOT FINITE)",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['gflop_per_image']:.3f}",
            *cells,
            str(row["operators_per_training_step"]),
            "-" if peak is None else f"{peak:.0f}",
        )
    return show


def imports(rounds: int) -> dict[str, Any]:
    """Seconds to import and to use first, with the rivals' beside; missing ones are said."""
    missing = {f"{name}, first use" for name in LIBRARIES if not installed(name)}
    wanted = {name: code for name, code in IMPORTS.items() if name not in missing}
    figures: dict[str, Any] = {k: spread(v) for k, v in import_seconds(wanted, rounds).items()}
    return figures | dict.fromkeys(sorted(missing), "not installed")


def main() -> None:
    """Time every preset and print."""
    given = tyro.cli(Arguments)
    match: tuple[Measure, ...] = ("flop",) if given.quick else given.match
    rounds = 5 if given.quick else given.rounds
    pin(given.threads, given.seed, given.clock)
    console = Console(stderr=True, width=160)
    result: dict[str, Any] = {
        **facts(given.seed, LIBRARIES),
        "kernels": kernels_here(),
        "batch": given.batch,
        "clock": given.clock,
    }
    result |= {"rounds": rounds, "presets": {}}
    for preset in given.presets:
        entrants = contenders(preset, match, given.batch, given.norms)
        rows = compare(entrants, batch=given.batch, rounds=rounds, clock=given.clock)
        for row, entrant in zip(rows, entrants, strict=True):
            if row["installed"] and not isinstance(entrant, Floor):
                row["peak_mib"] = peak_memory(entrant, given.batch)
        result["presets"][preset] = rows
        console.print(table(preset, rows, given.batch))
        keep(result, given.out)
    result["import_seconds"] = imports(rounds)
    show = Table("statement", "seconds", title="import, in fresh processes")
    for name, taken in result["import_seconds"].items():
        show.add_row(name, taken if isinstance(taken, str) else f"{taken['median']:.2f}")
    console.print(show)
    emit(result, given.out)


if __name__ == "__main__":
    main()
