"""``mixerflow outliers``: which images are abnormal for a run, by which score and threshold."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.box import SIMPLE
from rich.table import Column, Table

from mixerflow import runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import EvaluationArguments, file_name
from mixerflow.cli.inside import InsideFlags, Measurer, fit_of, inside_rows
from mixerflow.cli.outlier_maps import MapFlags, mapped, ordering
from mixerflow.cli.outlier_places import PlacesFlags, compare_places, maps_of, places_line
from mixerflow.cli.parse import parse
from mixerflow.data import Images
from mixerflow.detection import Detection, Outliers, halves, rarity, scores_named
from mixerflow.detection.groups import SOURCE
from mixerflow.runs import InsideFit
from mixerflow.runs.files import json_text, require_writable, sealed, write_atomically, writing
from mixerflow.signals import Stopped
from mixerflow.terminal import say, show

_EACH = 8
"""Images up to which each has a row of its own."""
WARNING = "bits/dim alone calls simple images likely, whatever they show: docs/outliers.md"


@dataclass(frozen=True, kw_only=True)
class _OutliersArguments(PlacesFlags, MapFlags, InsideFlags, EvaluationArguments):
    """Outlier scores of images, with thresholds from images of the inside."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    scores: str = ""
    """Only these scores, as in `bits,complexity`."""
    json: bool = False
    """Print JSON rather than a table."""


def main(arguments: list[str]) -> int:
    """Score images, print each score's threshold and figures, and keep them in the run folder.

    The exit code is 0, or 130 / 143 after a signal; what was fitted until then is kept.
    """
    given = parse(_OutliersArguments, arguments, prog="mixerflow outliers")
    given.check()
    given.check_inside()
    chosen = {each.name for each in scores_named([n.strip() for n in given.scores.split(",") if n])}
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    device = runs.device_of(given.device)
    flow = held.flow(device)
    given.chosen_maps(flow)  # refuses what cannot be before the long work
    measurer = Measurer(flow, held, given, given.load_background(device), quiet=given.json)
    images, split = given.load_images(held.metadata)
    rows = inside_rows(images, given.inside_classes)
    masks = given.load_masks(images, places=measurer.places)
    try:
        fit = fit_of(given.run, measurer, given)
        found = Outliers.of(measurer.measure(images, split), fit.fitted)
    except Stopped as stopped:
        return stopped.exit_code
    compared = measurer.compare(fit, found.measured, rows)
    entry = _entry(given, fit, found, compared, images, split)
    if masks is not None:
        entry["places"] = compare_places(found.measured, masks)
    if given.json:
        say(*json_text(entry).splitlines())
    else:
        _print(fit, found, compared, images, split, chosen or {*found.scores}, rows)
        if masks is not None:
            say(places_line(entry["places"]))
    folder = given.run / "outliers"
    path = folder / f"{file_name(f'{images.dataset_id}-{split}')}.json"
    with keeping("the result"), writing(folder):
        folder.mkdir(exist_ok=True)
        write_atomically(path, sealed(entry))
        write_atomically(path.with_suffix(".csv"), _table_of(found, fit))
        if not given.json:
            say(f"scores of each image in {path.with_suffix('.csv')}")
        if measurer.places:
            places = path.with_name(f"{path.stem}-places.npy")
            write_atomically(places, maps_of(found.measured, images.shape))
            if not given.json:
                say(f"scores of each place in {places}")
    by, exit_code, maps = ordering(found, chosen), 0, []
    try:
        maps = mapped(given, flow, held.metadata, images, split, found, by)
    except Stopped as stopped:
        exit_code = stopped.exit_code
    name = held.metadata.get("recipe") or given.run.resolve().name
    told = {"title": f"{name}, {split}", "against": _against(rows), "maps": maps}
    with keeping("the page"):
        require_writable(path.with_suffix(".html"))
        from mixerflow.report import make_outliers_page  # matplotlib takes a second

        told |= {"by": by, "inside": fit.inside, "compared": compared}
        make_outliers_page(path.with_suffix(".html"), flow, images, found, **told)
        if not given.json:
            say(f"see {path.with_suffix('.html')}")
    return exit_code


def _entry(
    given: _OutliersArguments,
    fit: InsideFit,
    found: Outliers,
    compared: dict[str, Detection],
    images: Images,
    split: str,
) -> dict[str, Any]:
    """Return the result for JSON."""
    fitted = fit.fitted
    return {
        "dataset_id": images.dataset_id,
        "split": split,
        "images": len(images),
        "images_sha256": images.fingerprint(),
        "inside": fit.images | {"images": fitted.images},
        "inside_classes": given.inside_classes,
        "seed": fitted.seed,
        "weights": {"checkpoint": given.checkpoint, "averaged": not given.raw},
        "scores": {
            score.name: {
                "equation": score.equation,
                "source": score.source,
                "larger": "more outlying",
                "threshold": threshold.as_dict(),
                "rate_interval": threshold.interval(),
                "flagged": float(found.flags(score.name).mean()),
                "detection": compared[score.name].as_dict() if score.name in compared else None,
            }
            for score, threshold in zip(fitted.scores, fitted.thresholds, strict=True)
        },
        "groups": {
            "size": fitted.group,
            "source": SOURCE,
            "threshold": None if (t := fitted.group_threshold) is None else t.as_dict(),
            "detection": compared["groups"].as_dict() if "groups" in compared else None,
        },
    }


def _print(
    fit: InsideFit,
    found: Outliers,
    compared: dict[str, Detection],
    images: Images,
    split: str,
    chosen: set[str],
    rows: np.ndarray | None,
) -> None:
    fitted = fit.fitted
    plural = "" if len(images) == 1 else "s"
    say(f"{images.dataset_id}, {split}: {len(images):,} image{plural}")
    inside = f"{fit.images['dataset_id']}, {fit.images['split']}"
    first = fitted.thresholds[0]
    low, high = first.interval()
    say(
        f"inside: {fitted.images:,} images of {inside}; half of them give the thresholds:",
        f"{100 * first.false_alarms:g} % false alarms, truly {100 * low:.2g} to {100 * high:.2g} "
        "% with 95 % confidence",
    )
    heads = ("threshold", "beyond, %", "AUROC, %", "AUPR, %", "FPR95, %")
    score_column = Column("score", no_wrap=True)
    table = Table(score_column, *(Column(h, justify="right") for h in heads), box=SIMPLE)
    for score, threshold in zip(fitted.scores, fitted.thresholds, strict=True):
        if score.name in chosen:
            share = f"{100 * found.flags(score.name).mean():.1f}"
            told = _figures(compared.get(score.name))
            table.add_row(score.name, f"{threshold.value:.4g}", share, *told)
    if "groups" in compared:
        limit, scores = fitted.group_threshold, found.groups()
        words = "" if limit is None else f"{limit.value:.4g}"
        share = "" if limit is None else f"{100 * limit.flags(scores).mean():.1f}"
        name = f"groups of {fitted.group}"
        table.add_row(name, words, share, *_figures(compared["groups"]))
    show(table)
    if len(images) <= _EACH:
        _print_each(found, _rarities(found, fit), chosen)
    if compared:
        say(f"a larger score is more outlying; as if outliers were {_against(rows)}")
    say(WARNING)


def _against(rows: np.ndarray | None) -> str:
    """Return words for the images that figures take as outliers."""
    if rows is None:
        return "all images given, beside the inside images"
    return "the images of other classes, beside those of the inside classes"


def _figures(found: Detection | None) -> tuple[str, str, str]:
    if found is None:
        return "", "", ""
    pairs = (
        (found.auroc, found.auroc_error),
        (found.aupr, found.aupr_error),
        (found.fpr95, found.fpr95_error),
    )
    first, second, third = (
        f"{100 * value:.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")
        for value, error in pairs
    )
    return first, second, third


def _rarities(found: Outliers, fit: InsideFit) -> dict[str, np.ndarray]:
    """Return how rare each score is among those of the inside images that gave the thresholds."""
    inside = Outliers.of(fit.inside.take(halves(len(fit.inside))[1]), fit.fitted)
    return {name: rarity(inside.scores[name], scores) for name, scores in found.scores.items()}


def _print_each(found: Outliers, rarities: dict[str, np.ndarray], chosen: set[str]) -> None:
    names = [name for name in found.scores if name in chosen]
    table = Table("image", *(Column(name, justify="right") for name in names), box=SIMPLE)
    for number in range(len(found)):
        cells = []
        for name in names:
            mark = " !" if found.flags(name)[number] else ""
            cells.append(f"{found.scores[name][number]:.4g} ({rarities[name][number]:.2g}){mark}")
        table.add_row(str(number), *cells)
    show(table)
    say("in brackets: the share of inside images that score at least as high; !: beyond")


def _table_of(found: Outliers, fit: InsideFit) -> bytes:
    """Return a CSV file: of each image its number, figures, and scores with their rarity."""
    rarities = _rarities(found, fit)
    measured = found.measured
    columns: dict[str, np.ndarray] = {"log_prob": measured.log_prob, "log_base": measured.log_base}
    columns["log_det"] = measured.log_det
    if measured.complexity is not None:
        columns["file_bits"] = measured.complexity
    for name, scores in found.scores.items():
        columns |= {name: scores, f"{name}_rarity": rarities[name]}
        columns[f"{name}_outlier"] = found.flags(name).astype(int)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        writer.writerow([number, *(f"{value:.8g}" for value in row)])
    return text.getvalue().encode()
