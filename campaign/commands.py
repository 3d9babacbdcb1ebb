"""Signals, and full disks, for every command that writes."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaign import saving
from campaign.base import Found, Outcome, Row, prepared
from campaign.tools import Running, command, dice, in_child, make_images

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": saving.WHOLE,
    "evaluate": ("evaluate", "ready", "--importance-samples=40", "--batch=4", "--threads=1"),
    "fid": ("evaluate", "ready", "--fid", "--features=net.pt2", "--trust", "--threads=1"),
    "sample": ("sample", "ready", "--out=grid.png", "--files=singles", "-n=20", "--threads=1"),
    "report": ("report", "ready", "--threads=1"),
    "publish": ("publish", "ready", "--to=weights", "--force", "--threads=1"),
    "reproduce": (
        *("reproduce", "table-10", "--budget=tiny", "--rows=basic", "--seeds=1", "--data=wide.npz"),
        *("--runs=runs", "--out=results/table-10", "--threads=1"),
    ),
}
"""Name -> words. A trial runs one of them, in turn."""
_RESULTS = {
    "evaluate": ("ready/evaluations/*.json",),
    "fid": ("ready/evaluations/*.json",),
    "sample": ("grid.png", "singles/*.png"),
    "report": (),
    "publish": ("weights/model.safetensors",),
    "reproduce": ("results/table-10/tiny.json",),
}
"""Files that a command writes; those that a report or a card writes have times in them."""


def prepare(folder: Path) -> None:
    """Make a run that is ready, a net for features, and the results of every command."""
    saving.prepare(folder)
    make_images(folder / "wide.npz", side=32, channels=3)
    (folder / "run").rename(folder / "ready")
    if in_child(lambda: _make_net(folder / "net.pt2")):
        raise SystemExit("no net")
    done, seconds = folder / "done", {}
    give(folder, done)
    for name, words in COMMANDS.items():
        seconds[name] = command(*words, folder=done).require(0).seconds
    (folder / "seconds.json").write_text(json.dumps(seconds))


def _make_net(path: Path) -> None:
    import torch
    from torch import nn

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.adaptive_avg_pool2d(x.float() / 255, 2).flatten(1)

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("n")},)
    torch.export.save(torch.export.export(Net(), (images,), dynamic_shapes=shapes), path)


def give(source: Path, folder: Path) -> None:
    """Copy what the commands read."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(source / "ready", folder / "ready")
    for name in ("images.npz", "wide.npz", "net.pt2"):
        shutil.copy(source / name, folder)


def require_same(name: str, done: Path, folder: Path) -> None:
    """Require that a command's files are as they are when nothing disturbs it.

    Raises:
        Found: one is missing, or differs.
    """
    if name == "train":
        expected, found = (saving.digest(each / "run") for each in (done, folder))
        if expected != found:
            raise Found("wrong", f"the run ended at {found}, undisturbed at {expected}")
    for pattern in _RESULTS.get(name, ()):
        for path in done.glob(pattern):
            mine = folder / path.relative_to(done)
            if not mine.exists():
                if name not in ("evaluate", "fid"):
                    raise Found("lost", f"{mine} is missing")
                continue  # of the other evaluation
            if _content(mine) != _content(path):
                raise Found("wrong", f"{mine} differs from {path}")
    if left := [str(path) for path in folder.rglob(".tmp-*") if name in ("train", "sample")]:
        raise Found("lost", f"left over: {left}")


def _content(path: Path) -> object:
    if path.suffix != ".json":
        return path.read_bytes()
    record = json.loads(path.read_bytes())
    if "columns" in record:
        runs = [run for each in record["columns"] for row in each["rows"] for run in row["runs"]]
        return [(run["bits_per_dim"], run["measures"], run["steps"]) for run in runs]
    return {key: record.get(key) for key in ("bits_per_dim", "curve", "frechet", "codecs")}


def signals(number: int, folder: Path) -> Outcome:
    """Send a signal at a random moment; then the same words go on."""
    name = tuple(COMMANDS)[number % len(COMMANDS)]
    give(prepared(folder), folder)
    dice_ = dice("signals", number)
    took = json.loads((prepared(folder) / "seconds.json").read_text())[name]
    sent = dice_.choice((signal.SIGINT, signal.SIGTERM))
    running = Running(*COMMANDS[name], folder=folder)
    time.sleep(dice_.uniform(0, took))
    running.send(sent)
    begun = time.monotonic()
    ended = running.wait()
    quiet = time.monotonic() - begun
    if ended.code == -sent and ended.seconds - quiet < 0.05:
        ended = None  # before the program had taken its signals
    elif ended.require(0, 128 + sent).code:
        told = [line for line in ended.err.splitlines() if "stopped" in line]
        if len(told) > 1 or "error" in ended.err:
            raise Found("wrong", f"{ended}\nexpected at most one line about the end")
    command(*COMMANDS[name], folder=folder).require(0)
    require_same(name, prepared(folder) / "done", folder)
    return Outcome(quiet)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """Mount a file system in memory there, which only this process and its children see."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000):  # CLONE_NEWNS
        raise PermissionError(ctypes.get_errno(), "a small disk needs root")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m"]
    subprocess.run(["mount", *options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def full(number: int, folder: Path) -> Outcome:
    """Run a command on a disk that is full at a random moment; then free it."""
    name = tuple(COMMANDS)[number % len(COMMANDS)]
    dice_ = dice("full", number)
    with small_disk(folder, 64):
        give(prepared(folder), folder)
        cache = folder / "cache/mixerflow"
        cache.mkdir(parents=True)
        (cache / "kernels").symlink_to(f"{os.environ['XDG_CACHE_HOME']}/mixerflow/kernels")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        sizes = [path.stat().st_size for path in (prepared(folder) / "done").rglob("*")]
        room = int(dice_.choice((4096, 1 << 16, 1 << 18, sum(sizes) // 4)) * dice_.random())
        _fill(folder, room)
        begun = time.monotonic()
        ended = command(*COMMANDS[name], folder=prepared(folder), before=lambda: os.chdir(folder))
        seconds = time.monotonic() - begun
        if ended.require(0, 5).code == 5:
            ended.require_line("disk full", "cannot be", "could not")
        (folder / "filler").unlink()
        again = command(*COMMANDS[name], folder=folder).require(0)
        if "damaged" in again.err:
            raise Found("lost", f"{ended}\n{again}")
        require_same(name, prepared(folder) / "done", folder)
    return Outcome(seconds)


def _fill(folder: Path, room: int) -> None:
    """Leave `room` bytes of a disk, to a page."""
    free = shutil.disk_usage(folder).free
    with open(folder / "filler", "wb") as file:
        for _ in range(max(0, free - room) // 4096):
            file.write(bytes(4096))


ROWS = (
    Row(
        "signals",
        f"SIGINT or SIGTERM at a random moment of {', '.join(COMMANDS)}, in turn; then the same "
        "words again",
        50 * len(COMMANDS),
        signals,
        "longest from the signal to the end, s",
        seconds=2,
        prepare=prepare,
    ),
    Row(
        "full",
        f"a disk that gets full at a random moment of {', '.join(COMMANDS)}, in turn; then the "
        "same words with space again",
        50 * len(COMMANDS),
        full,
        "longest until the error, s",
        seconds=2,
        prepare=prepare,
    ),
)
