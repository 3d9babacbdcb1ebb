"""Records of further figures: measured once, kept in the run folders, read for the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixerflow.experiments.further import Further
from mixerflow.experiments.images import Budget, SeedImages
from mixerflow.experiments.runs import Run
from mixerflow.means import mean_and_error
from mixerflow.runs import load
from mixerflow.runs.files import read_record, sealed, write_atomically, writing


def keep_further(run: Run, images: SeedImages, device: torch.device) -> None:
    """Measure the further figures of a finished run and of its images, unless that is done."""
    further = run.cell.table.further
    assert further is not None
    key = _key(further, run.budget, images.train.fingerprint(), images.test.fingerprint())
    for name in further.references:
        _keep(
            _reference_path(run.root, further, name, key),
            key,
            lambda name=name: further.measure_reference(name, images, run.seed, run.budget, device),
        )

    depends = json.loads(json.dumps(further.depends(run.path, images)))

    def measure() -> dict[str, Any]:
        flow = load(run.path, which=run.cell.column.which, device=device)
        record = further.measure(flow, run.path, images, run.seed, run.budget)
        return record | {"depends": depends}

    _keep(_path(run, further), key, measure, depends)


def further_of(run: Run, training: str, test: str) -> dict[str, Any] | None:
    """Return the record of a run on images of these SHA-256; None where there is none yet."""
    further = run.cell.table.further
    assert further is not None
    return _known(_path(run, further), _key(further, run.budget, training, test))


def summary(
    further: Further, runs: Sequence[Mapping[str, Any]], paper: Mapping[str, float]
) -> dict[str, Any]:
    """Return mean, standard error over the runs, their number and the paper's value by figure."""
    found = {}
    for figure in further.figures:
        values = [value for run in runs if (value := figure_of(run, figure.name)) is not None]
        mean, error = mean_and_error(values)
        found[figure.name] = {
            "mean": mean,
            "standard_error": error,
            "seeds": len(values),
            "paper": paper.get(figure.name),
        }
    return found


def figure_of(run: Mapping[str, Any], name: str) -> float | None:
    """Return a further figure of a run's results, if it is measured."""
    return ((run.get("further") or {}).get("figures") or {}).get(name)


def reference_rows(
    root: Path, further: Further, budget: Budget, runs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return rows of what needs no flow, on the images of a column's runs."""
    seeds = {run["seed"]: (run["training_sha256"], run["images_sha256"]) for run in runs}
    rows = []
    for name, label in further.references.items():
        found = []
        for seed, images in sorted(seeds.items()):
            key = _key(further, budget, *images)
            record = _known(_reference_path(root, further, name, key), key)
            if record is not None:
                same = dict(zip(("training_sha256", "images_sha256"), images, strict=True))
                found.append({"seed": seed, **same, "further": record})
        row = {"row": name, "label": label, "runs": found, "paper": {"bits_per_dim": None}}
        rows.append(row | {"further": summary(further, found, {})})
    return rows


def _key(further: Further, budget: Budget, training: str, test: str) -> dict[str, Any]:
    images = {"training_sha256": training, "images_sha256": test}
    key = {**images, "budget": budget, "settings": further.settings(budget)}
    return json.loads(json.dumps(key))  # as it is read again


def _keep(
    path: Path,
    key: dict[str, Any],
    measure: Callable[[], dict[str, Any]],
    depends: dict[str, Any] | None = None,
) -> None:
    known = _known(path, key)
    if known is None or known.get("depends", {}) != (depends or {}):
        record = {**measure(), "key": key}
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, sealed(record))


def _known(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    record = read_record(path, "delete this file")
    return record if record is not None and record.get("key") == key else None


def _path(run: Run, further: Further) -> Path:
    return run.path / "evaluations" / f"{further.name}.json"


def _reference_path(root: Path, further: Further, name: str, key: dict[str, Any]) -> Path:
    images = f"{key['training_sha256'][:16]}{key['images_sha256'][:16]}"
    return (
        root.parent.parent / "references" / f"{further.name}-{name}-{key['budget']}-{images}.json"
    )
