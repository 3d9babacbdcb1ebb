"""A table's results as Markdown, curves and sample grids, and all tables as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mixerflow import markdown, page, plots
from mixerflow.errors import ConfigError
from mixerflow.evaluate import kind_of
from mixerflow.experiments.column_tables import (
    claims_table,
    distances_text,
    estimates_text,
    further_tables,
    kinds_of,
    rows_table,
)
from mixerflow.experiments.images import Budget
from mixerflow.experiments.results import collect
from mixerflow.experiments.runs import Run
from mixerflow.experiments.table import Table
from mixerflow.runs.files import read_record, sealed, write_atomically, writing

NOTE = (
    "Differences are paired by seed: runs of the same seed see the same images in the same order "
    "with the same noise. s.e. is the standard error over seeds; a claim holds or fails where the "
    "95 % interval of the difference, by Student's t, does not contain 0, and is undecided "
    "otherwise or with fewer than two seeds. Bits/dim are those of the averaged weights of the "
    "last step, unless the table says otherwise, in eval mode. Of 256 samples at temperature 1: "
    "border/inside is the mean squared difference of neighbouring pixels across the borders of the "
    "base model's patches, divided by the same inside the patches, 1 where the borders do not "
    "show; high frequencies/test is their power at a quarter of a cycle a pixel and more, divided "
    "by that of the test images. Curves are on fewer, held-out images than the figures, and "
    "are compared only where they are of as many."
)
COMPARABLE = {
    "tiny": "This budget only shows that everything runs; its figures mean nothing.",
    "cpu": (
        "These are small twins of the paper's models after few steps: compare our rows with each "
        "other, not with the paper's figures. Parameters are the full models'."
    ),
    "time": (
        "These are small twins of the paper's models after little processor time, the same for "
        "each: compare our rows with each other, not with the paper's figures. Parameters are the "
        "full models'. images/s are those of a second of processor time."
    ),
    "gpu": "These are the paper's models and settings.",
}


def write(table: Table, budget: Budget, root: Path, out: Path) -> None:
    """Write ``BUDGET.json``, ``BUDGET.md``, the curves and the sample grids of a table.

    A folder `out` that cannot be written is a ResourceError.
    """
    results = collect(table, budget, root)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _copy_samples(table, budget, root, out, results)
        if any(run["curve"] for _, row in _rows(results) for run in row["runs"]):
            write_atomically(out / _file_name(budget, "curves.png"), curves(results))
        else:
            (out / _file_name(budget, "curves.png")).unlink(missing_ok=True)
        _write_pictures(table, budget, out, results)
        write_atomically(out / f"{budget}.json", sealed(results))
        write_atomically(out / f"{budget}.md", markdown_text(results).encode())


def _write_pictures(table: Table, budget: Budget, out: Path, results: dict[str, Any]) -> None:
    """Write the pictures of the further figures, and list their files in each column."""
    for column in results["columns"] if table.further else ():
        place = f"{column['column']}-" if len(results["columns"]) > 1 else ""
        drawn = table.further.pictures(column) if table.further else {}
        column["pictures"] = []
        for name, png in drawn.items():
            path = out / _file_name(budget, f"{place}{name}")
            write_atomically(path, png)
            column["pictures"].append(path.name)


def _file_name(budget: str, name: str) -> str:
    """Return a picture's file name, with the budget's where the budget is not `cpu`."""
    return name if budget == "cpu" else f"{budget}-{name}"


def _copy_samples(
    table: Table, budget: Budget, root: Path, out: Path, results: dict[str, Any]
) -> None:
    """Copy the last grid of samples that training drew for each row's first seed.

    Grids of earlier runs that have no run now are removed.
    """
    cells = {(cell.column.name, cell.row.name): cell for cell in table.cells}
    for column, row in _rows(results):
        cell = cells[column["column"], row["row"]]
        for run in row["runs"][:1]:
            folder = Run(cell, budget, run["seed"], root).path / "samples"
            grid = folder / f"step-{run['steps']}.png"
            if grid.exists():
                row["samples"] = _file_name(budget, f"samples-{cell.name}.png")
                write_atomically(out / row["samples"], grid.read_bytes())
    copied = {row.get("samples") for _, row in _rows(results)}
    for cell in table.cells:
        if (name := _file_name(budget, f"samples-{cell.name}.png")) not in copied:
            (out / name).unlink(missing_ok=True)


def _rows(results: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(column, row) for column in results["columns"] for row in column["rows"]]


def markdown_text(results: dict[str, Any]) -> str:
    """Return the tables of every column, with the claims, in Markdown."""
    budget = results["budget"]
    lines = [f"# {results['title']}", "", results["caption"], "", COMPARABLE[budget]]
    for column in _shown(results):
        lines += ["", f"## {column['column']}, budget {budget}", "", _settings_text(column), ""]
        lines.append(markdown.table(*rows_table(column)))
        sentences = _sentences(column)
        lines += [each for text in sentences for each in ("", text)]
        if column["claims"]:
            lines += ["", markdown.table(*claims_table(column))]
        for text, table in further_tables(column):
            lines += ["", text, "", markdown.table(*table)]
    for column in _quoted_only(results):
        lines += ["", f"## {column['column']}, not run"]
        for text, table in further_tables(column):
            lines += ["", text, "", markdown.table(*table)]
    lines += ["", NOTE, *(each for text in _not_run(results) for each in ("", text))]
    if results["left_out"]:
        lines += [
            "",
            "Not counted:",
            "",
            *(f"- {markdown.plain(each)}" for each in results["left_out"]),
        ]
    return "\n".join(lines) + "\n"


def write_page(results: Path) -> Path:
    """Write ``report.html`` beside the tables' folders and return its path."""
    paths = sorted(path for name in COMPARABLE for path in results.glob(f"*/{name}.json"))
    read = ((path, read_record(path, "run its table again, or delete it")) for path in paths)
    # others share the folder
    found = [(path, each) for path, each in read if each is not None and "table" in each]
    if not found:
        remedy = "run one: `mixerflow reproduce TABLE`; or name their folder with --out"
        raise ConfigError("no tables so far", results, remedy)
    body = [page.heading("Tables, as run here", level=1), page.note(NOTE)]
    for path, each in found:
        body += _page_section(path.parent, each)
    return page.write(results / "report.html", "Tables", body)


def _page_section(folder: Path, results: dict[str, Any]) -> Iterator[str]:
    budget = results["budget"]
    yield page.heading(f"{results['title']}, budget {budget}")
    yield page.paragraph(results["caption"])
    yield page.paragraph(COMPARABLE[budget])
    for column in _shown(results):
        yield page.heading(column["column"], level=3)
        yield page.paragraph(_settings_text(column))
        yield page.table(*rows_table(column))
        yield from map(page.paragraph, _sentences(column))
        if column["claims"]:
            yield page.items((claim["words"], claim["verdict"]) for claim in column["claims"])
            yield page.table(*claims_table(column))
        yield from _page_tables(column)
    for column in _quoted_only(results):
        yield page.heading(f"{column['column']}, not run", level=3)
        yield from _page_tables(column)
    curves = f"{results['title']}: validation bits/dim against steps"
    pictures = [(_file_name(budget, "curves.png"), curves, "plot", "")]
    for column in results["columns"]:
        alt = f"{results['title']}, {column['column']}: plot of further figures"
        pictures += [(name, alt, "plot", "") for name in column.get("pictures", ())]
    for _, row in _rows(results):
        if "samples" in row:
            words = f"Samples: {row['label']}"
            pictures.append((row["samples"], f"Grid of samples of {row['label']}", "pixels", words))
    for name, alt, kind, caption in pictures:
        if (folder / name).exists():
            yield page.picture((folder / name).read_bytes(), alt, kind, caption)
    yield from map(page.paragraph, _not_run(results))
    if results["left_out"]:
        yield page.paragraph(f"Not counted: {'; '.join(results['left_out'])}.")


def _page_tables(column: dict[str, Any]) -> Iterator[str]:
    for text, table in further_tables(column):
        yield page.paragraph(text)
        yield page.table(*table)


def _shown(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the columns that have runs; all columns of a table without runs."""
    columns = results["columns"]
    return [each for each in columns if any(row["runs"] for row in each["rows"])] or columns


def _quoted_only(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the columns that are not shown, but have quoted figures."""
    shown = _shown(results)
    return [each for each in results["columns"] if each not in shown and each.get("quoted")]


def _not_run(results: dict[str, Any]) -> list[str]:
    """Return a sentence on the columns without runs, if there are others."""
    shown = [each["column"] for each in _shown(results)]
    names = [each["column"] for each in results["columns"] if each["column"] not in shown]
    return [f"Not run: {', '.join(names)}."] if names else []


def _settings_text(column: dict[str, Any]) -> str:
    base, runs = column["base"], [run for row in column["rows"] for run in row["runs"]]
    names = {"layers": "layers", "flow.net.width": "width", "patching.size": "patches"}
    settings = [f"{word} {_plain(base[name])}" for name, word in names.items() if name in base]
    if (minutes := column.get("minutes")) is None:
        parts = [f"{column['steps']:,} steps of {column['batch']} images"]
    else:
        parts = [f"{minutes:g} minutes of processor time, batches of {column['batch']} images"]
    parts.append(f"base model: {', '.join(settings)}")
    if column.get("training_images"):
        parts.append(f"{column['training_images']:,} training images")
    if column.get("shuffle"):
        kind = {"GlobalShuffle": "globally", "LocalShuffle": "locally"}
        parts.append(f"pixels shuffled {kind[column['shuffle']['type']]}")
    if column.get("weights") == "best":
        parts.append("weights of the step that is best on the held-out images")
    if runs:
        parts.append(f"data {', '.join(map(markdown.plain, column['data']))}")
        parts.append(f"figures of {', '.join(column['images'])} images")
        parts += kinds_of(column)
    return "; ".join(parts) + "."


def _sentences(column: dict[str, Any]) -> list[str]:
    return [*_yardsticks_text(column), *estimates_text(column), *distances_text(column)]


def _yardsticks_text(column: dict[str, Any]) -> list[str]:
    """Return a sentence on what takes no training, if it was measured."""
    known = column.get("yardsticks")
    if not known:
        return []
    figures = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    codecs = "codecs' files hold one image in its own order of pixels"
    fitted = "Gaussians are fitted to the training images"
    return [f"Without a flow, bits/dim on the same test images: {figures}; {fitted}, {codecs}."]


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def curves(results: dict[str, Any]) -> bytes:
    """Draw validation bits/dim against steps, as PNG: seeds thin, a mean of them thick."""
    columns = _shown(results)
    figure = Figure(figsize=(9, 4.2 * len(columns)), layout="constrained")
    all_axes = figure.subplots(len(columns), squeeze=False)[:, 0]
    for axes, column in zip(all_axes, columns, strict=True):
        ends = []
        several = len(kinds_of(column)) > 1
        for number, row in enumerate(column["rows"]):
            label = row["label"]
            if several and row["runs"]:
                label += f": {kind_of(row['runs'][0])}"
            lines = [np.array(run["curve"]) for run in row["runs"] if run["curve"]]
            colour = f"C{number % 10}"
            alike = len({len(line) for line in lines}) == 1
            for i, line in enumerate(lines):
                shown = "_" if alike or i else label  # matplotlib leaves out what begins so
                axes.plot(line[:, 0], line[:, 1], color=colour, lw=0.6, alpha=0.6, label=shown)
                ends += line[len(line) // 4 :, 1].tolist()
            if alike:
                mean = np.mean(lines, axis=0)
                axes.plot(mean[:, 0], mean[:, 1], color=colour, lw=1.8, label=label)
        if ends:
            plots.finish_plot(axes, min(ends), max(ends))
            axes.legend(fontsize=8)
        axes.set_title(f"{column['column']}, budget {results['budget']}", fontsize=10)
        axes.set_ylabel("validation bits/dim")
    return plots.png_of(figure)
