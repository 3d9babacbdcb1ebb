"""Long and crowded use: ten thousand checkpoints, and sixteen processes that score one run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from campaign.base import Found, Outcome, Row, prepared

SAVES, PROCESSES = 10_000, 16
_GROWTH = 8 << 20
"""Bytes by which memory may differ between the first thousand saves and the last."""


def _month(number: int, folder: Path) -> Outcome:
    """Save as a month of training does; disk and memory stay as they are after the first saves."""
    from mixerflow.runs.checkpoint import Checkpoints

    tensors = {"weight": torch.randn(64, 64), "count": torch.zeros((), dtype=torch.int64)}
    checkpoints, seen, memory = Checkpoints(folder / "checkpoints"), None, 0
    for step in range(1, SAVES + 1):
        tensors["weight"] += 1
        state = {"step": step, "moments": [tensor.clone() for tensor in tensors.values()]}
        checkpoints.save(step, tensors, tensors, state, best=step % 50 == 0)
        if step == SAVES // 10:
            memory = _resident()
        if step % 1000 == 500:
            now = (len(list(folder.rglob("*"))), _bytes(folder) // 1000)
            if seen is not None and now != seen:
                raise Found("lost", f"step {step}: files and kB {now}, before {seen}")
            seen = now
    growth = _resident() - memory
    if growth > _GROWTH:
        raise Found("lost", f"{growth:,} bytes more after {SAVES:,} saves")
    if checkpoints.load().step != SAVES or checkpoints.load("best").step != SAVES:
        raise Found("wrong", "the last step cannot be loaded")
    return Outcome(growth / 1e6)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _prepare(folder: Path) -> None:
    import mixerflow
    from mixerflow.models import Glow
    from mixerflow.parts import GlowConv

    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    np.savez(folder / "images.npz", images=pixels[:, 0])
    flow = Glow(2, 1, net=GlowConv(4)).build((1, 8, 8))
    mixerflow.train(flow, pixels, out=folder / "run", steps=2, quiet=True)


def _crowd(number: int, folder: Path) -> Outcome:
    """Score one run by many processes at once; all give one figure, and nothing is damaged."""
    run, images = folder / "run", prepared(folder) / "images.npz"
    shutil.copytree(prepared(folder) / "run", run)
    before = _contents(run)
    children = [_score(run, images, folder / f"{n}.json") for n in range(PROCESSES)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    texts = [(folder / f"{n}.json").read_text("utf-8") for n in range(PROCESSES)]
    if any(codes):
        raise Found("traceback", f"codes {codes}\n" + "\n".join(texts))
    figures = {json.loads(text[text.index("{") :])["bits_per_dim"] for text in texts}
    if len(figures) != 1:
        raise Found("wrong", f"figures {sorted(figures)}")
    if any(_contents(run).get(name) != data for name, data in before.items()):
        raise Found("lost", "a file of the run has changed")
    if left := [path for path in run.rglob(".tmp-*")]:
        raise Found("lost", f"left behind: {left}")
    return Outcome()


def _contents(run: Path) -> dict[str, bytes]:
    files = (path for path in run.rglob("*") if path.is_file())
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def _score(run: Path, images: Path, to: Path) -> int:
    """Fork a process that scores the run; return its number."""
    from mixerflow.cli.commands import run as command_line

    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        words = ["evaluate", run, "--data", images, "--importance-samples", 30, "--json"]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            code = command_line([*map(str, words), "--no-codecs"])
        to.write_text(out.getvalue(), "utf-8")
    finally:
        os._exit(code)


ROWS = (
    Row(
        "month",
        f"{SAVES:,} checkpoints are saved: disk and memory stay as they are",
        1,
        _month,
        figure="growth of memory, MB",
        seconds=250,
    ),
    Row(
        "crowd",
        f"{PROCESSES} processes score one run at once",
        10,
        _crowd,
        seconds=8,
        prepare=_prepare,
        limit=120,
    ),
)
