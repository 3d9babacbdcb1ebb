"""Yardsticks of a table's columns, computed once for the same images and kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

from mixerflow.evaluate import yardsticks
from mixerflow.experiments.runs import SeedImages
from mixerflow.runs.files import json_text, write_atomically, writing


def keep_yardsticks(root: Path, source: str, images: SeedImages) -> None:
    """Write the yardsticks of images named `source` beside a table's runs, in `root`.

    Those of the same images are copied from the runs of any table.
    """
    levels = images.train.levels
    if levels is None:
        return
    key = images.train.fingerprint()[:16] + images.test.fingerprint()[:16]
    kept = root.parent.parent / "yardsticks" / f"{key}.json"
    with writing(root):
        if not kept.exists():
            found = yardsticks(images.train.pixels, images.test.pixels, levels)
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json_text(found).encode())
        write_atomically(_path(root, source), kept.read_bytes())


def read_yardsticks(root: Path, source: str) -> dict[str, float]:
    """Return the yardsticks that `keep_yardsticks` wrote; nothing where it wrote none."""
    path = _path(root, source)
    return json.loads(path.read_bytes()) if path.exists() else {}


def _path(root: Path, source: str) -> Path:
    return root / f"yardsticks-{source}.json"
