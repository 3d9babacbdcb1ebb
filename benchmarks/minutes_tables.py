"""The tables and the plot of `benchmarks.minutes` from its JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common import figure
from mixerflow.experiments.claims import outcome
from mixerflow.markdown import table
from mixerflow.means import mean_and_error

Row = dict[str, Any]
_VERDICTS = {"holds": "more", "fails": "less", "undecided": "undecided"}


def tables(result: dict[str, Any]) -> str:
    """For each set of images: every model's bits/dim, rate, images a second and steps."""
    settings, parts = result["settings"], []
    for data, of in result["sets"].items():
        some = f"{of['test']:,} test images of {of['dataset_id']}"
        head = f"{data}: {settings['seconds']:g} CPU seconds, {_threads(result)}, {some}"
        parts.append(f"{head}\n\n{_table(result, data)}")
    missing = result.get("not_installed")
    if missing:
        parts.append(f"not installed: {', '.join(missing)}")
    return "\n\n".join(parts)


def _table(result: dict[str, Any], data: str) -> str:
    rows: dict[str, list[Row]] = {}
    for row in result["minutes"]:
        if row["data"] == data:
            rows.setdefault(row["name"], []).append(row)
    entrants = result["entrants"][data]
    first = next((name for name in entrants if name in rows), "")
    lines = []
    for name, about in ((name, of["about"]) for name, of in entrants.items()):
        trial = result["trials"].get(data, {}).get(name)
        if trial is None or name not in rows:
            tried = "" if trial is None else _rate(trial)
            lines.append([name, about, "", tried, _held(trial), "", "", "", ""])
            continue
        mine = rows[name]
        speed = figure(float(np.median([row["images_per_second"] for row in mine])))
        steps = f"{np.median([row['steps'] for row in mine]):,.0f}"
        size = f"{mine[0]['parameters'] / 1e6:.2f}M"
        cells = [name, about, size, _rate(trial), _held(trial), _bits(mine)]
        lines.append([*cells, "" if name == first else _beside(rows[first], mine), speed, steps])
    heads = [
        "name",
        "model",
        "par.",
        "rate",
        "trial",
        "bits/dim",
        f"more than {first or 'the first'}",
    ]
    return table([*heads, "images/s", "steps"], lines)


def _threads(result: dict[str, Any]) -> str:
    return f"{result['threads']} thread{'' if result['threads'] == 1 else 's'}"


def _rate(trial: Row) -> str:
    """The chosen rate, and whether it is the end of those that were tried."""
    chosen, tried = trial["chosen"], [each["rate"] for each in trial["tried"]]
    end = {min(tried): " (lowest)", max(tried): " (highest)"}.get(chosen, "")
    return f"{chosen:g}{end if len(tried) > 1 else ''}"


def _held(trial: Row | None) -> str:
    """Bits/dim of the chosen rate's trial on held-out images."""
    found = [] if trial is None else [e for e in trial["tried"] if e["rate"] == trial["chosen"]]
    value = found[0]["bits_per_dim"] if found else None
    return "" if value is None else f"{value:.3f}"


def _bits(mine: list[Row]) -> str:
    """The mean over seeds and its standard error."""
    values = [row["bits_per_dim"] for row in mine]
    if None in values:
        return f"not finite ({values.count(None)} of {len(values)} seeds)"
    mean, error = mean_and_error(values)
    return f"**{mean:.3f}**" + ("" if error is None else f" ± {error:.3f} ({len(values)} seeds)")


def _beside(reference: list[Row], mine: list[Row]) -> str:
    """The difference, paired by seed, with its 95 % interval by Student's t and the verdict."""
    found = [
        {r["seed"]: r["bits_per_dim"] for r in rows if r["bits_per_dim"] is not None}
        for rows in (reference, mine)
    ]
    held = outcome(found[0], found[1])
    if held.difference is None:
        return ""
    if held.half_width is None:
        return f"{held.difference:+.3f}"
    return f"{held.difference:+.3f} ± {held.half_width:.3f}, {_VERDICTS[held.verdict]}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the curves as PNG or SVG, a panel for each set, a line for each run."""
    sets = [*result["sets"]]
    canvas = Figure(figsize=(6.4 * len(sets), 4.6), layout="constrained")
    for panel, data in zip(canvas.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        _curves(panel, result, data)
    canvas.suptitle(f"{result['cpu']}, {_threads(result)}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110)


def _curves(panel: Axes, result: dict[str, Any], data: str) -> None:
    ends = []
    for number, (name, of) in enumerate(result["entrants"][data].items()):
        mine = [r for r in result["minutes"] if (r["data"], r["name"]) == (data, name)]
        style = "o-" if of["package"] == "mixerflow" else "s--"
        for row in mine:
            seconds = [point["seconds"] for point in row["curve"]]
            values = [_number(point["bits_per_dim"]) for point in row["curve"]]
            label = name if row is mine[0] else None
            panel.plot(seconds, values, style, ms=4, lw=1.2, color=f"C{number}", label=label)
            ends += values[-2:]
    ticks = [result["settings"]["seconds"] / 2**n for n in range(result["settings"]["marks"])]
    panel.set(xscale="log", xlabel="CPU seconds", ylabel="bits/dim", title=data)
    panel.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    panel.minorticks_off()
    _limit(panel, np.array(ends))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def _limit(panel: Axes, ends: np.ndarray) -> None:
    """Show the ends of the curves well, and what lies far above them not at all."""
    known = ends[np.isfinite(ends)]
    if len(known):
        low, high = float(known.min()), float(np.quantile(known, 0.9))
        top = min(panel.get_ylim()[1], high + 2 * (high - low) + 0.5)
        panel.set_ylim(low - 0.1 * (top - low), top)


def _number(value: float | None) -> float:
    """A figure, or a gap in the curve."""
    return math.nan if value is None else value
