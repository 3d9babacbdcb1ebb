"""Yardsticks of a table's columns, computed once for the same images and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixerflow.evaluate import yardsticks
from mixerflow.experiments.images import SeedImages
from mixerflow.runs.files import read_record, sealed, write_atomically, writing


def keep_yardsticks(root: Path, images: SeedImages) -> None:
    """Write the yardsticks of images, unless they are kept, beside the tables whose runs have them.

    `root` holds the runs of one table at one budget.
    """
    levels, path = images.train.levels, _path(root, _key(*_hashes(images)))
    if levels is None or path.exists():
        return
    found = yardsticks(images.train.pixels, images.test.pixels, levels)
    with writing(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sealed(found))


def read_yardsticks(root: Path, runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the yardsticks of the images of a column's first seed; nothing where none are kept.

    Runs that were scored on other images than the first seed's have none.
    """
    first = [run for run in runs if run["seed"] == 0]
    if not first or len({run["images_sha256"] for run in runs}) > 1:
        return {}
    path = _path(root, _key(first[0]["training_sha256"], first[0]["images_sha256"]))
    return read_record(path, "delete this file") or {}


def _hashes(images: SeedImages) -> tuple[str, str]:
    return images.train.fingerprint(), images.test.fingerprint()


def _key(training: str, test: str) -> str:
    return training[:16] + test[:16]


def _path(root: Path, key: str) -> Path:
    return root.parent.parent / "yardsticks" / f"{key}.json"
