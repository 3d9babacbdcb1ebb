"""``mixerflow outliers``: which images are abnormal for a run, by which score and threshold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mixerflow import runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import EvaluationArguments, file_name
from mixerflow.cli.inside import InsideFlags, Measurer, fit_of, inside_rows
from mixerflow.cli.judged import Judged
from mixerflow.cli.outlier_maps import MapFlags, mapped, ordering
from mixerflow.cli.outlier_places import PlacesFlags, compare_places, maps_of, places_line
from mixerflow.cli.parse import parse
from mixerflow.core import Flow
from mixerflow.detection import Outliers, note_of, scores_named
from mixerflow.errors import CheckpointError
from mixerflow.runs.files import (
    json_text,
    read_record,
    require_writable,
    sealed,
    write_atomically,
    writing,
)
from mixerflow.runs.weights import Weights
from mixerflow.signals import Stopped
from mixerflow.terminal import say


@dataclass(frozen=True, kw_only=True)
class _OutliersArguments(PlacesFlags, MapFlags, InsideFlags, EvaluationArguments):
    """Outlier scores of images, with thresholds from images of the inside."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    scores: str = ""
    """Print only these scores, as in `complexity,bits`; the first orders the images."""
    out: Path | None = None
    """Folder of the results, by default `outliers` in the run folder."""
    json: bool = False
    """Print JSON rather than a table."""


def main(arguments: list[str]) -> int:
    """Score images, print each score's threshold and figures, and keep them in the run folder.

    The exit code is 0, or 130 / 143 after a signal; what was fitted until then is kept.
    """
    given = parse(_OutliersArguments, arguments, prog="mixerflow outliers")
    given.check()
    given.check_inside()
    named = scores_named([n.strip() for n in given.scores.split(",") if n.strip()])
    chosen = [score.name for score in named]
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    device = runs.device_of(given.device)
    flow = held.flow(device)
    given.chosen_maps(flow)  # refuses what cannot be before the long work
    measurer = Measurer(flow, held, given, given.load_background(device), quiet=given.json)
    images, split = given.load_images(held.metadata)
    rows = inside_rows(images, given.inside_classes)
    masks = given.load_masks(images, places=measurer.places)
    measurer.require(named)
    try:
        fit = fit_of(given.run, measurer, given)
        found = Outliers.of(measurer.measure(images, split), fit.fitted)
    except Stopped as stopped:
        return stopped.exit_code
    compared = measurer.compare(fit, found.measured, rows)
    judged = Judged(images, split, fit, found, compared, rows, note_of(flow))
    entry = judged.as_dict() | {
        "inside_classes": given.inside_classes,
        "density": flow.density,
        "weights": given.entry(held),
    }
    if masks is not None:
        entry["places"] = compare_places(found.measured, masks)
    if given.json:
        say(*json_text(entry).splitlines())
    else:
        judged.print(chosen or [*found.scores])
        if masks is not None:
            say(places_line(entry["places"]))
    path = _path(given, judged)
    with keeping("the result"), writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sealed(entry))
        _write(judged, path, places=measurer.places, quiet=given.json)
    return _picture(judged, flow, held, given, path, by=ordering(found, chosen))


def _path(given: _OutliersArguments, judged: Judged) -> Path:
    """Return the JSON file of a result; other images of the same name have another file."""
    folder = given.out or given.run / "outliers"
    name = file_name(f"{judged.images.dataset_id}-{judged.split}")
    path, sha256 = folder / f"{name}.json", judged.sha256
    try:
        before = read_record(path, "delete this file") or {}
    except CheckpointError:
        before = {}
    if before.get("images_sha256", sha256) != sha256:
        return folder / f"{name}-{sha256[:8]}.json"
    return path


def _write(judged: Judged, path: Path, *, places: bool, quiet: bool) -> None:
    """Write the scores of each image, and of each place, beside the JSON file `path`."""
    measured = judged.found.measured
    written = {"image": (path.with_suffix(".csv"), judged.csv())}
    if places:
        data = maps_of(measured, judged.images.shape)
        written["place"] = (path.with_name(f"{path.stem}-places.npy"), data)
    for word, (each, data) in written.items():
        write_atomically(each, data)
        if not quiet:
            say(f"scores of each {word} in {each}")


def _picture(
    judged: Judged, flow: Flow, held: Weights, given: _OutliersArguments, path: Path, *, by: str
) -> int:
    """Write maps and the page; return the exit code, that of a signal after one."""
    images, split, found = judged.images, judged.split, judged.found
    exit_code, maps = 0, []
    try:
        maps = mapped(given, flow, held.metadata, images, path, found, by)
    except Stopped as stopped:
        exit_code = stopped.exit_code
    name = held.metadata.get("recipe") or given.run.resolve().name
    told = {"title": f"{name}, {split}", "against": judged.against, "maps": maps}
    with keeping("the page"):
        require_writable(path.with_suffix(".html"))
        from mixerflow.report import make_outliers_page  # matplotlib takes a second

        told |= {"by": by, "inside": judged.fit.inside, "compared": judged.compared}
        told |= {"origin": judged.fit.images, "weights": held.kind}
        make_outliers_page(path.with_suffix(".html"), flow, images, found, **told)
        if not given.json:
            say(f"see {path.with_suffix('.html')}")
    return exit_code
