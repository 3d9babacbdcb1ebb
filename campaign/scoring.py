"""Kills while shards of images are scored: the same words end with the same bytes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

from campaign.base import Found, Outcome, Row, prepared
from campaign.saving import WHOLE
from campaign.tools import Running, command, dice, in_child, make_images

SHARDS, IMAGES = 24, 96
"""Shards, and images of each: enough for a kill to fall into the writing of a part."""
SCORE = ("score", "run", "--data=shards", "--out=scores", "--batch=32", "--threads=1")


def prepare(folder: Path) -> None:
    """Make a run, shards of images, and the parts as they are when nothing disturbs them."""
    make_images(folder / "images.npz")
    command(*WHOLE, folder=folder).require(0)
    if in_child(lambda: make_shards(folder / "shards")):
        raise SystemExit("no shards")
    command(*SCORE, folder=folder).require(0)  # the first one warms up
    shutil.rmtree(folder / "scores")
    seconds = command(*SCORE, folder=folder).require(0).seconds
    (folder / "seconds").write_text(json.dumps(seconds))


def make_shards(folder: Path, shards: int = SHARDS) -> None:
    """Write parquet files of arrays of 8 x 8 pixels."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(shards):
        pixels = rng.integers(0, 200, (IMAGES, 8, 8), np.uint8)
        kind = pa.list_(pa.list_(pa.uint8()))
        table = pa.table({"image": pa.array(pixels.tolist(), kind)})
        pq.write_table(table, folder / f"part-{number:05}.parquet")


def parts(folder: Path) -> dict[str, bytes]:
    """Return the content of the files that scoring leaves, but for the lock."""
    files = (path for path in folder.iterdir() if path.name != ".lock")
    return {path.name: path.read_bytes() for path in files}


def kills(number: int, folder: Path) -> Outcome:
    """Kill the scoring of shards at a random moment; then the same words end it."""
    for name in ("run", "shards"):
        (folder / name).symlink_to(prepared(folder) / name)
    seconds = json.loads((prepared(folder) / "seconds").read_text())
    running = Running(*SCORE, folder=folder)
    time.sleep(dice("score", number).uniform(0, seconds))
    running.send(signal.SIGKILL)
    ended = running.wait()
    if ended.code not in (0, -signal.SIGKILL):
        raise Found("lost", str(ended))
    scores = folder / "scores"
    left = parts(scores) if scores.exists() else {}
    expected = parts(prepared(folder) / "scores")
    for name, content in left.items():
        if not name.startswith(".tmp-") and content != expected[name]:
            raise Found("wrong", f"{name} differs after a kill")
    last = command(*SCORE, folder=folder).require(0)
    if (found := parts(scores)) != expected:
        names = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        raise Found("wrong", f"these differ from an undisturbed run's: {names}")
    kept = sum(name in left for name in expected)
    told = f"of which {kept:,} were done before" if kept else f"{SHARDS} shards;"
    if told not in last.out:
        raise Found("lost", f"{last}\nexpected {told!r}")
    cut = sum(name.startswith(".tmp-") for name in left)
    return Outcome(last.seconds, text=f"{kept} parts whole, {cut} cut short")


ROWS = (
    Row(
        "score",
        f"SIGKILL at a random moment while {SHARDS} shards are scored; then the same words end "
        "with the parts of an undisturbed run, byte for byte",
        50,
        kills,
        "longest last start, s",
        seconds=3,
        prepare=prepare,
    ),
)
