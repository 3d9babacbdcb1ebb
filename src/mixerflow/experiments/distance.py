"""Frechet distances of a run's samples and the test images, kept in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mixerflow.evaluate import FID, Features, compare
from mixerflow.evaluate.features import digest_of
from mixerflow.experiments.images import SeedImages
from mixerflow.experiments.runs import Run
from mixerflow.runs import load
from mixerflow.runs.files import read_record, sealed, write_atomically, writing


def keep_distance(run: Run, images: SeedImages, features: Features, device: torch.device) -> None:
    """Compare as many samples of a finished run as there are test images, unless that is done.

    The features of the images are kept beside the tables' folders of runs.
    """
    known, digest = _read(run) or {}, digest_of(features)
    same = {"features": features.name, "features_sha256": digest}
    same |= {"images_sha256": images.test.fingerprint()}
    if digest is not None and same.items() <= known.items():
        return
    flow = load(run.path, which=run.cell.column.which, device=device)
    cache = run.root.parent.parent / "features"
    figure = compare(flow, images.test, features, split=images.split, cache=cache)
    with writing(run.path):
        path = _path(run)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, sealed(figure.as_dict()))


def distance_of(run: Run, measures: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the measures of a run with its distance among them, None where there is none yet.

    With a distance goes what `compare` says of it, as ``frechet``.
    """
    known = _read(run)
    if known is None:
        return {"measures": {**measures, FID: None}}
    return {"measures": {**measures, known["name"]: known["distance"]}, "frechet": known}


def _read(run: Run) -> dict[str, Any] | None:
    return read_record(_path(run), "delete this file")


def _path(run: Run) -> Path:
    return run.path / "evaluations" / "frechet.json"
