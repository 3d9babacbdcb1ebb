"""What stands below a column's rows: quoted figures, costs of full models, words on distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mixerflow.evaluate.features import INCEPTION_URL

TableText = tuple[list[str], list[list[str]]]
"""The cells of a table's head, and of each row."""

FID = "FID"
NO_FEATURES = "no features given"
"""What a cell says where samples were not compared with images."""


def distances_text(column: dict[str, Any]) -> list[str]:
    """Return sentences on the Frechet distances of samples, in a table that has them."""
    runs = [run for row in column["rows"] for run in row["runs"]]
    said = {
        f"{each['name']}: of {each['samples']:,} samples at temperature {each['temperature']:g} "
        f"and {each['images']:,} images ({each['split']}), features {each['features']}. The slides "
        "do not say of how many theirs are: compare our rows with each other."
        for run in runs
        if (each := run.get("frechet"))
    }
    if any(run["measures"].get(FID, 0.0) is None for run in runs):
        said.add(
            f"FID needs the weights of an Inception net: get {INCEPTION_URL}, and give the same "
            "command --features PATH."
        )
    return sorted(said)


def further_tables(column: dict[str, Any]) -> Iterator[tuple[str, TableText]]:
    """Yield the tables of a column's results that it has, each below a paragraph."""
    if costs := [row for row in column["rows"] if row.get("cost")]:
        first = costs[0]["cost"]
        text = (
            "Computed: the hours that the full recipe's schedule would take here, its images over "
            "the full model's images/s, or a small model's at the budget tiny. That speed is of "
            f"{first['steps']} training steps of {first['batch']} images after one to warm up, a "
            "rough figure: in processor time on one thread of a CPU, else by the clock."
        )
        yield text, _cost_table(costs)
    if column.get("quoted"):
        yield "Quoted from publications, not of runs here:", _quoted_table(column["quoted"])


def _cost_table(rows: list[dict[str, Any]]) -> TableText:
    head = ["row", "parameters measured", "images/s of these", "images of the schedule"]
    head += ["hours here, computed", "machine"]
    cells = []
    for row in rows:
        cost, machine = row["cost"], row["cost"]["machine"]
        threads = f"{machine['threads']} of {machine['cores']} cores"
        figures = (f"{cost['parameters']:,}", f"{cost['images_per_second']:.3g}")
        work = (f"{cost['scheduled_images']:,.0f}", f"{cost['hours']:,.0f}")
        cells.append([row["label"], *figures, *work, f"{machine['device']}, {threads}"])
    return head, cells


def _quoted_table(models: list[dict[str, Any]]) -> TableText:
    names = list(dict.fromkeys(name for model in models for name in model["figures"]))
    head = ["group", "model", *(f"quoted: {name}" for name in names)]
    rows = []
    for model in models:
        figures = [_shown(model["figures"].get(name)) for name in names]
        rows.append([model["group"], model["label"], *figures])
    return head, rows


def _shown(figure: float | str | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)
