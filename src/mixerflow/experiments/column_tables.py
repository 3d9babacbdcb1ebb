"""The tables of a column's results: rows, claims, the cost of full models, quoted figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixerflow.evaluate import FID, kind_of
from mixerflow.evaluate.features import INCEPTION_URL
from mixerflow.experiments.claims import paper_kind
from mixerflow.means import mean_and_error

TableText = tuple[list[str], list[list[str]]]
"""The cells of a table's head, and of each row."""

NO_FEATURES = "no features given"
"""What a cell says where samples were not compared with images."""


def kinds_of(column: dict[str, Any]) -> list[str]:
    """Return the kinds of a column's figures; those of two kinds are not comparable."""
    return sorted({kind_of(run) for row in column["rows"] for run in row["runs"]})


def rows_table(column: dict[str, Any]) -> TableText:
    """Return a column's rows beside the paper's, with a column for each kind of our figures."""
    measures = sorted({m for row in column["rows"] for run in row["runs"] for m in run["measures"]})
    kinds, ours = kinds_of(column), "ours, mean ± s.e. over seeds"
    head = ["row", "paper", *([f"{ours}: {kind}" for kind in kinds] if len(kinds) > 1 else [ours])]
    published = any(row["paper"]["parameters"] is not None for row in column["rows"])
    full = "full parameters / paper's" if published else "full parameters"
    head += ["seeds", full, "parameters here", "images/s", "steps"]
    head += measures
    notes = {paper_kind(row) for row in column["rows"] if row["paper"]["bits_per_dim"] is not None}
    rows = []
    for row in column["rows"]:
        runs, paper = row["runs"], row["paper"]
        words = (paper["where"], paper_kind(row) if len(notes) > 1 else "")
        where = f" ({'; '.join(filter(None, words))})" if any(words) else ""
        figure = "" if paper["bits_per_dim"] is None else f"{paper['bits_per_dim']:.2f}{where}"
        count = _counts(row)
        mean = _plus_minus(row["bits_per_dim"], row["standard_error"])
        mine = {kind_of(run) for run in runs}
        cells = [row["label"], figure, *(mean if k in mine else "" for k in kinds or [""])]
        cells += [str(len(runs)), count]
        cells.append(f"{runs[0]['parameters']:,}" if runs else "")
        cells.append(f"{np.median([r['images_per_second'] for r in runs]):.0f}" if runs else "")
        cells.append(f"{runs[0]['steps']:,}" if runs else "")
        for name in measures:
            values = [run["measures"].get(name) for run in runs]
            values = [value for value in values if value is not None]
            unknown = NO_FEATURES if name == FID and runs else ""
            cells.append(f"{np.mean(values):.3f}" if values else unknown)
        rows.append(cells)
    if not notes:  # no published figure
        head, rows = head[:1] + head[2:], [cells[:1] + cells[2:] for cells in rows]
    return head, rows


def _counts(row: dict[str, Any]) -> str:
    """Return a full model's parameters beside the paper's, in millions; nothing if not counted."""
    if row["parameters_full"] is None:
        return ""
    count, published = f"{row['parameters_full'] / 1e6:.2f}M", row["paper"]["parameters"]
    if published is None:
        return count
    return f"{count} / {published:.2f}M ({row['parameters_deviation_percent']:+.2f} %)"


def claims_table(column: dict[str, Any]) -> TableText:
    """Return a column's claims, each with its difference and verdict."""
    head = [
        "claim",
        "rows",
        "paper",
        "ours, difference, 95 % interval",
        "verdict",
    ]
    early = [claim["at_equal_steps"]["step"] for claim in column["claims"] if _is_timed(claim)]
    head += [f"curves at step {early[0]}"] if early else []
    labels = {row["row"]: row["label"] for row in (*column["rows"], *column.get("references", ()))}
    figures = {each["name"]: each for each in column.get("figures", ())}
    rows = []
    for claim in column["claims"]:
        paper = claim["paper_difference"]
        loss = "loss of " if claim.get("against") else ""
        rows_of = (f"{loss}{labels[claim[side]]}" for side in ("better", "worse"))
        apart = ", figures of any kind" if claim.get("kinds") == "any" else ""
        figure = figures.get(claim.get("figure", ""), {})
        than = " > " if figure.get("better") == "higher" else " < "
        apart += f", {figure.get('label', 'bits/dim')}" if figures else ""
        cells = [claim["words"] + apart, than.join(rows_of)]
        cells.append("" if paper is None else f"{paper:+.2f}")
        digits = figure.get("digits", 4)
        difference = _plus_minus(claim["difference"], claim["half_width"], digits, sign="+")
        cells.append(difference)
        cells.append(f"{claim['verdict']} (seeds: {claim['seeds']})")
        if _is_timed(claim):
            early = claim["at_equal_steps"]
            difference = _plus_minus(early["difference"], early["half_width"], sign="+")
            cells.append(f"{difference}: {early['verdict']}" if difference else "of other images")
        rows.append(cells + [""] * (len(head) - len(cells)))
    return head, rows


def _is_timed(claim: dict[str, Any]) -> bool:
    return "at_equal_steps" in claim


def _plus_minus(mean: float | None, error: float | None, digits: int = 4, *, sign: str = "") -> str:
    if mean is None:
        return ""
    return f"{mean:{sign}.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


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


def estimates_text(column: dict[str, Any]) -> list[str]:
    """Return a sentence on the error of estimated densities, in a table that has them."""
    runs = [run for row in column["rows"] for run in row["runs"]]
    known = [run for run in runs if run.get("estimator_error") is not None]
    if not known:
        return []
    most = max(run["estimator_error"] for run in known)
    probes = sorted({run["probes"] for run in known})
    return [
        f"Where the density is estimated, a figure is the mean of {', '.join(map(str, probes))} "
        f"probes an image, and its error by the probes is at most {most:.2g} bits/dim."
    ]


def further_tables(column: dict[str, Any]) -> Iterator[tuple[str, TableText]]:
    """Yield the tables of a column's results that it has, each below a paragraph."""
    if own := column.get("tables"):
        yield from ((text, (head, rows)) for text, (head, rows) in own)
    elif figures := column.get("figures"):
        yield column["about"], _further_table(column, figures)
    if costs := [row for row in column["rows"] if row.get("cost")]:
        first = costs[0]["cost"]
        text = (
            "Computed: the hours that the full recipe's schedule would take here, its images over "
            "the full model's images/s, or a small model's at the budget tiny. That speed is of "
            f"{first['steps']} training steps of {first['batch']} images after one to warm up, a "
            "rough figure: in processor time on one thread of a CPU, else by the clock."
        )
        yield text, _cost_table(costs)
    for kind in kinds_of(column) if column.get("weighted") else ():
        draws, images = column["weighted"]
        text = (
            f"Importance-weighted, {draws:,} draws an image, of the same weights; single-sample "
            f"figures are: {kind}. Both are of the first {images:,} test images, or of all if they "
            "are fewer. A gain is the mean over images of the first figure less the second, ± its "
            "standard error over seeds."
        )
        if (found := _weighted_table(column, kind))[1]:
            yield text, found
    if column.get("quoted"):
        yield "Quoted from publications, not of runs here:", _quoted_table(column["quoted"])


def _further_table(column: dict[str, Any], figures: list[dict[str, Any]]) -> TableText:
    """Return the further figures of the rows, beside bits/dim, and of what needs no flow."""
    every = (*column["references"], *column["rows"])
    published = {
        name
        for row in every
        for name, known in row["further"].items()
        if known["paper"] is not None
    }
    head = ["row"]
    for each in figures:
        head += [f"{each['label']}: paper"] if each["name"] in published else []
        head.append(f"{each['label']}: ours, mean ± s.e. over seeds")
    head += ["seeds", "bits/dim"]
    rows = []
    for row in every:
        cells, seeds = [row["label"]], 0
        for each in figures:
            known = row["further"][each["name"]]
            if each["name"] in published:
                cells.append("" if known["paper"] is None else f"{known['paper']:.2f}")
            cells.append(_plus_minus(known["mean"], known["standard_error"], each["digits"]))
            seeds = max(seeds, known["seeds"])
        rows.append([*cells, str(seeds), _plus_minus(row.get("bits_per_dim"), None)])
    return head, rows


def _weighted_table(column: dict[str, Any], kind: str) -> TableText:
    """Return the importance-weighted figures of the runs whose single-sample figure has a kind."""
    rows = []
    for row in column["rows"]:
        runs = [run for run in row["runs"] if kind_of(run) == kind]
        known = [run["weighted"] for run in runs if run.get("weighted")]
        if not known:
            continue
        bits, gains = ([each[name] for each in known] for name in ("bits_per_dim", "gain"))
        single = [a + b for a, b in zip(bits, gains, strict=True)]
        figures = (f"{statistics.fmean(each):.4f}" for each in (single, bits))
        gain = _plus_minus(*mean_and_error(gains))
        rows.append([row["label"], *figures, gain, str(len(known))])
    return ["row", "single-sample", "importance-weighted", "gain", "seeds"], rows


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
