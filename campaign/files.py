"""Truncations and flipped bits in every kind of file that mixerflow writes and reads again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign import commands
from campaign.base import Found, Outcome, Row, prepared
from campaign.tools import command, in_child

_COMPILER = """#!/bin/sh
for last; do :; done
if [ -f "$0.so" ]; then cp "$0.so" "$last"; else cc "$@" && cp "$last" "$0.so"; fi
"""
"""A compiler that compiles once: a trial builds damaged kernels again."""


def prepare(folder: Path) -> None:
    """Make a file of every kind, and what reading it gives."""
    commands.prepare(folder)
    shutil.copytree(folder / "done", folder / "files")
    files = folder / "files"
    command(*commands.COMMANDS["reproduce"], folder=files).require(0)
    if in_child(lambda: _make_caches(files)):
        raise SystemExit("no caches")


def _make_caches(files: Path) -> None:
    import numpy as np
    import torch

    from mixerflow.data import pixel_cache
    from mixerflow.evaluate.comparison import Reference
    from mixerflow.evaluate.frechet import Statistics

    rows = torch.arange(24.0).reshape(6, 4) ** 1.5
    statistics = Statistics.of_batches(iter([rows.double()]))
    Reference(statistics, rows).save(files / "cache/images.features", {"format": 1})
    images = [np.full((1, 8, 8), value, np.uint8) for value in range(32)]
    stream = pixel_cache.ImageStream(iter(images), (1, 8, 8), np.dtype("uint8"), [*range(32)], ())
    pixel_cache._write(stream, files / "cache/pixels")
    kept = _kept(files)
    kept.draws.count[:] = 4
    kept.draws.sums[:] = -1.25
    kept.save()
    compiler = files / "bin/once-cc"
    compiler.parent.mkdir()
    compiler.write_text(_COMPILER)
    compiler.chmod(0o755)
    _set_places(files)
    _kernels(files)


def _set_places(files: Path) -> None:
    """Let caches and the compiler be those of a folder."""
    os.environ["XDG_CACHE_HOME"] = str(files / "cache")
    os.environ["PATH"] = f"{files / 'bin'}:{os.environ['PATH']}"
    os.environ["CC"] = "once-cc"


def _kept(files: Path) -> Any:  # noqa: ANN401
    from mixerflow.runs import KeptDraws

    return KeptDraws(files / "draws", {"format": 1}, 5, 4)


def _draws(files: Path) -> object:
    draws = _kept(files).draws
    if draws.count.any():
        return draws.count.tolist(), draws.sums.tolist()
    return None  # drawn again


def _weights(path: str, files: Path) -> object:
    from mixerflow.runs import read_weights

    both = [read_weights(files / path), read_weights(files / path)]
    if path == "ready":
        both[1] = read_weights(files / path, which="last", average=False)
    return [[each.metadata, each.sha256, each.steps] for each in both]


def _state(files: Path) -> object:
    from mixerflow.runs import Checkpoints

    loaded = Checkpoints(files / "ready/checkpoints").load("last")
    return loaded.step, str(loaded.state)


def _metrics(files: Path) -> object:
    from mixerflow.runs import RunFolder

    return RunFolder(files / "ready").read_metrics()


def _features(files: Path) -> object:
    from mixerflow.evaluate.comparison import Reference

    found = Reference.load(files / "cache/images.features", {"format": 1})
    return found.statistics.mean.tolist(), found.rows.tolist()


def _pixels(files: Path) -> object:
    from mixerflow.data import pixel_cache

    pixels, kept, skipped = pixel_cache.load_or_decode(
        lambda: 1 / 0, key="pixels", cache=files / "cache"
    )
    return hashlib.sha256(pixels.tobytes()).hexdigest(), kept, skipped


def _table(files: Path) -> object:
    from mixerflow import experiments
    from mixerflow.experiments.results import collect

    results = collect(experiments.table("table-10"), "tiny", files / "runs/table-10/tiny")
    lost = [each for each in results["left_out"] if each.startswith("basic")]
    return None if lost else results  # a run that is not counted is named in the table


def _page(files: Path) -> object:
    from mixerflow.experiments.outputs import write_page

    return write_page(files / "results").read_text()


def _kernels(files: Path) -> object:
    import torch

    from mixerflow.kernels.library import library

    library.cache_clear()
    loaded = library(torch.float32)
    return loaded.lanes(), hashlib.sha256(Path(loaded._name).read_bytes()[:-32]).hexdigest()


KINDS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "run.json": ("ready/run.json", functools.partial(_weights, "ready")),
    "metrics.jsonl": ("ready/metrics.jsonl", _metrics),
    "weights": (
        "ready/checkpoints/step-*/*.safetensors",
        functools.partial(_weights, "ready"),
    ),
    "state": ("ready/checkpoints/step-*/state.pt", _state),
    "manifest": ("ready/checkpoints/step-*/manifest.json", functools.partial(_weights, "ready")),
    "pointer": ("ready/checkpoints/[bl]*st", functools.partial(_weights, "ready")),
    "card": ("weights/card.json", functools.partial(_weights, "weights")),
    "published": ("weights/model.safetensors", functools.partial(_weights, "weights")),
    "draws": ("draws/draws-*", _draws),
    "features": ("cache/images.features", _features),
    "pixel cache": ("cache/pixels/*", _pixels),
    "kernels": ("cache/mixerflow/kernels/*.so", _kernels),
    "table's run": ("runs/table-10/tiny/basic/seed-0/[rm]*.json*", _table),
    "table's figures": ("runs/table-10/tiny/basic/seed-0/evaluations/*.json", _table),
    "table": ("results/table-10/tiny.json", _page),
}
"""Kind -> its files, and what reads them; None stands for what is computed again."""


def damage(flips: bool, number: int, folder: Path) -> Outcome:
    """Damage one file of every kind, one after the other, and read it."""
    source, files = prepared(folder) / "files", folder / "files"
    dice_ = random.Random(f"{flips} {number}")
    shutil.copytree(source, files)
    _set_places(files)
    for kind, (pattern, read) in KINDS.items():
        path = dice_.choice(sorted(files.glob(pattern)))
        whole = path.read_bytes()
        at = dice_.randrange(len(whole))
        damaged = bytearray(whole if flips else whole[:at])
        if flips:
            damaged[at] ^= 1 << dice_.randrange(8)
        path.unlink()
        path.write_bytes(damaged)
        found = _apart(read, files)
        path.write_bytes(whole)
        shown = f"{kind}: {path.relative_to(files)}, {'bit' if flips else 'cut'} at byte {at}"
        if found[0] == "value" and found[1] is not None:
            _require_right(shown, found[1], _apart(read, files)[1], cut=not flips)
        elif found[0] == "error":
            names = (str(path), path.parent.name, path.name)
            if "\n" in found[1] or not any(name in found[1] for name in names):
                raise Found("wrong", f"{shown}: not one line that names the file: {found[1]}")
        elif found[0] != "value":
            raise Found("traceback", f"{shown}: {found}")
    return Outcome()


def _require_right(shown: str, found: object, whole: object, *, cut: bool) -> None:
    """Raise Found, if a damaged file gave another result than the whole one.

    Metrics that are cut are as a kill leaves them: the records before are right.
    """
    if cut and shown.startswith("metrics") and isinstance(found, list) and isinstance(whole, list):
        whole = whole[: len(found)]
    if found != whole:
        raise Found("wrong", f"{shown}: {str(found)[:2000]} instead of {str(whole)[:2000]}")


def _apart(read: Callable[[Path], object], files: Path) -> list[Any]:
    """Read in a forked process, as code from a damaged file may end it; return kind and value."""
    inlet, outlet = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(inlet)
        with open(outlet, "w") as pipe:
            json.dump(_tried(read, files), pipe, default=str)
        os._exit(0)
    os.close(outlet)
    with open(inlet) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        return ["death", f"{signal.Signals(-status).name if status < 0 else status}"]
    return json.loads(text)


def _tried(read: Callable[[Path], object], files: Path) -> list[Any]:
    import warnings

    from mixerflow.errors import MixerFlowError

    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        return ["value", read(files)]
    except MixerFlowError as error:
        return ["error", str(error)]
    except OSError as error:
        return ["error", str(error)] if error.filename else ["exception", repr(error)]
    except BaseException as error:
        return ["exception", repr(error)]


def _rows() -> Iterator[Row]:
    kinds = ", ".join(KINDS)
    for flips, name, words in (
        (False, "cuts", "a file cut short at a random byte"),
        (True, "flips", "a flipped bit of a file"),
    ):
        trial = functools.partial(damage, flips)
        functools.update_wrapper(trial, damage)
        yield Row(
            name, f"{words}, one of each kind: {kinds}", 200, trial, seconds=1.5, prepare=prepare
        )


ROWS = tuple(_rows())
