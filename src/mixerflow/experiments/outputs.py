"""A table's results as Markdown, curves, sample grids, and all tables as one page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixerflow.evaluate import kind_of
from mixerflow.experiments.results import collect
from mixerflow.experiments.runs import Run
from mixerflow.experiments.table import Budget, Table
from mixerflow.markdown import table
from mixerflow.runs.files import write_atomically, writing

NOTE = (
    "Differences are paired by seed: runs of the same seed see the same images in the same order "
    "with the same noise. s.e. is the standard error over seeds; a claim holds or fails where the "
    "difference exceeds two of them, and is undecided otherwise or with fewer than two seeds. "
    "Bits/dim are those of the averaged weights of the last step, in eval mode. border/inside: how "
    "much more neighbouring pixels differ, squared, across the borders of the base model's patches "
    "than inside, in 256 samples at temperature 1; 1 where the grid does not show."
)
COMPARABLE = {
    "tiny": "This budget only shows that everything runs; its figures mean nothing.",
    "cpu": (
        "These are small twins of the paper's models after few steps: compare our rows with each "
        "other, not with the paper's figures. Parameters are those of the full models."
    ),
    "gpu": "These are the paper's models and settings.",
}


def write(table: Table, budget: Budget, root: Path, out: Path) -> list[Path]:
    """Write ``BUDGET.json``, ``BUDGET.md``, the curves and the sample grids; returns the first two.

    Raises:
        ResourceError: `out` cannot be written.
    """
    results = collect(table, budget, root)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _copy_samples(table, budget, root, out, results)
        if any(run["curve"] for _, row in _rows(results) for run in row["runs"]):
            write_atomically(out / results_name(budget, "curves.png"), curves(results))
        paths = [out / f"{budget}.json", out / f"{budget}.md"]
        write_atomically(paths[0], (json.dumps(results, indent=2) + "\n").encode())
        write_atomically(paths[1], markdown(results).encode())
    return paths


def results_name(budget: str, name: str) -> str:
    """A file's name; the CPU budget's pictures bear none, so that two budgets share a folder."""
    return name if budget == "cpu" else f"{budget}-{name}"


def _copy_samples(
    table: Table, budget: Budget, root: Path, out: Path, results: dict[str, Any]
) -> None:
    """The last grid of each row's first seed, which training drew."""
    cells = {(cell.column.name, cell.row.name): cell for cell in table.cells}
    for column, row in _rows(results):
        cell = cells[column["column"], row["row"]]
        for run in row["runs"][:1]:
            folder = Run(cell, budget, run["seed"], root).path / "samples"
            grid = folder / f"step-{run['steps']}.png"
            if grid.exists():
                name = results_name(budget, f"samples-{cell.name}.png")
                write_atomically(out / name, grid.read_bytes())
                row["samples"] = name


def _rows(results: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(column, row) for column in results["columns"] for row in column["rows"]]


def markdown(results: dict[str, Any]) -> str:
    """The tables of every column, with the claims."""
    budget = results["budget"]
    lines = [f"# {results['title']}", "", results["caption"], "", COMPARABLE[budget]]
    for column in results["columns"]:
        lines += ["", f"## {column['column']}, budget {budget}", "", setting(column), ""]
        lines.append(table(*table_of(column)))
        if column["claims"]:
            lines += ["", table(*claims_of(column))]
    lines += ["", NOTE]
    if results["left_out"]:
        lines += ["", "Not counted:", "", *(f"- {each}" for each in results["left_out"])]
    return "\n".join(lines) + "\n"


def setting(column: dict[str, Any]) -> str:
    """The budget in words."""
    base, runs = column["base"], [run for row in column["rows"] for run in row["runs"]]
    names = {"layers": "layers", "flow.net.width": "width", "patching.size": "patches"}
    told = (f"{word} {_plain(base[n])}" for n, word in names.items() if n in base)
    parts = [
        f"{column['steps']:,} steps of {column['batch']} images",
        f"base model: {', '.join(told)}",
    ]
    if runs:
        parts.append(f"data {', '.join(column['data'])}")
        parts.append(f"figures of {', '.join(column['images'])} images")
        parts += sorted({kind_of(run) for run in runs})
    return "; ".join(parts) + "."


def table_of(column: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a column's table."""
    measures = sorted({m for row in column["rows"] for run in row["runs"] for m in run["measures"]})
    head = ["row", "paper", "ours, mean ± s.e. over seeds", "seeds", "full parameters / paper's"]
    head += ["parameters here", "images/s", "steps", *measures]
    rows = []
    for row in column["rows"]:
        runs, paper = row["runs"], row["paper"]
        where = f" ({paper['where']})" if paper["where"] else ""
        figure = "" if paper["bits_per_dim"] is None else f"{paper['bits_per_dim']:.2f}{where}"
        count = f"{row['parameters_full'] / 1e6:.2f}M"
        if paper["parameters"] is not None:
            deviation = row["parameters_deviation_percent"]
            count += f" / {paper['parameters']:.2f}M ({deviation:+.2f} %)"
        cells = [row["label"], figure, _plus_minus(row["bits_per_dim"], row["standard_error"])]
        cells += [str(len(runs)), count]
        cells.append(f"{runs[0]['parameters']:,}" if runs else "")
        cells.append(f"{np.median([r['images_per_second'] for r in runs]):.0f}" if runs else "")
        cells.append(f"{runs[0]['steps']:,}" if runs else "")
        for name in measures:
            values = [run["measures"][name] for run in runs if name in run["measures"]]
            cells.append(f"{np.mean(values):.3f}" if values else "")
        rows.append(cells)
    return head, rows


def claims_of(column: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a column's claims."""
    head = ["the paper says", "better - worse row", "paper", "ours, difference ± s.e.", "verdict"]
    labels = {row["row"]: row["label"] for row in column["rows"]}
    rows = []
    for claim in column["claims"]:
        paper = claim["paper_difference"]
        rows.append(
            [
                claim["words"],
                f"{labels[claim['better']]} < {labels[claim['worse']]}",
                "" if paper is None else f"{paper:+.2f}",
                _plus_minus(claim["difference"], claim["standard_error"], sign="+"),
                f"{claim['verdict']} (seeds: {claim['seeds']})",
            ]
        )
    return head, rows


def _plus_minus(mean: float | None, error: float | None, sign: str = "") -> str:
    if mean is None:
        return ""
    return f"{mean:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")


def curves(results: dict[str, Any]) -> bytes:
    """Validation bits/dim against steps, as PNG: seeds thin, their mean thick."""
    columns = results["columns"]
    figure = Figure(figsize=(9, 4.2 * len(columns)), layout="constrained")
    all_axes = figure.subplots(len(columns), squeeze=False)[:, 0]
    for axes, column in zip(all_axes, columns, strict=True):
        ends = []
        for number, row in enumerate(column["rows"]):
            lines = [np.array(run["curve"]) for run in row["runs"] if run["curve"]]
            colour = f"C{number % 10}"
            for line in lines:
                axes.plot(line[:, 0], line[:, 1], color=colour, lw=0.6, alpha=0.6)
                ends += line[len(line) // 4 :, 1].tolist()
            if lines and len({len(line) for line in lines}) == 1:
                mean = np.mean(lines, axis=0)
                axes.plot(mean[:, 0], mean[:, 1], color=colour, lw=1.8, label=row["label"])
        if ends:
            low, high = min(ends), max(ends)
            axes.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01)
            axes.legend(fontsize=8)
        axes.set_title(f"{column['column']}, budget {results['budget']}", fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("validation bits/dim")
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
