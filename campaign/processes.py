"""One of two processes is killed under the launcher: the other ends, and the same words go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from campaign import saving
from campaign.base import Found, Outcome, Row, prepared
from campaign.tools import Ended, dice, digest, make_images

KINDS = ("ddp", "fsdp")
STEPS = 30
LIMIT = 90.0
"""Seconds from the kill to the end: 35 of silence, and 30 that torchrun gives."""


class Launched:
    """A run in two processes."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.words = (*saving.TRAIN, f"--steps={STEPS}", "--device=cpu", f"--train.parallel={kind}")
        launcher = (sys.executable, "-m", "mixerflow.launch", "--standalone", "--nproc-per-node=2")
        self.begun = time.monotonic()
        self._paths = folder / ".out", folder / ".err"
        out, err = (path.open("w") for path in self._paths)
        self.process = subprocess.Popen(
            [*launcher, *self.words], cwd=folder, stdout=out, stderr=err
        )

    def workers(self) -> list[int]:
        """The two processes, as soon as they are there; none if all is over."""
        pid = self.process.pid
        while self.process.poll() is None:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if len(found) == 2:
                return [int(each) for each in found]
            time.sleep(0.02)
        return []

    def wait(self, limit: float = 600.0) -> Ended:
        """Wait for the end.

        Raises:
            Found: there is none in `limit` seconds.
        """
        try:
            code = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            for pid in (*self.workers(), self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise Found("lost", f"{self.words}: no end in {limit:g} s") from None
        out, err = (path.read_text() for path in self._paths)
        return Ended(self.words, code, out, err, time.monotonic() - self.begun)


def prepare(folder: Path) -> None:
    """Make the images, and the two runs as they are when nothing disturbs them."""
    for kind in KINDS:
        (folder / kind).mkdir()
        make_images(folder / "images.npz")
        shutil.copy(folder / "images.npz", folder / kind)
        ended = Launched(kind, folder / kind).wait().require(0)
        (folder / kind / "seconds").write_text(str(ended.seconds))


def killed(number: int, folder: Path) -> Outcome:
    """Kill one of two processes at a random moment; then the same words end the run."""
    kind, dice_ = KINDS[number % 2], dice("processes", number)
    undisturbed = prepared(folder) / kind
    shutil.copy(prepared(folder) / "images.npz", folder)
    launched = Launched(kind, folder)
    seconds, victim = float((undisturbed / "seconds").read_text()), dice_.randrange(2)
    workers = launched.workers()
    time.sleep(dice_.uniform(0, seconds))
    at = time.monotonic()
    if launched.process.poll() is None and workers:
        try:
            os.kill(workers[victim], signal.SIGKILL)
        except ProcessLookupError:  # its work is done
            at = time.monotonic()
    ended = launched.wait(LIMIT)
    quiet = time.monotonic() - at
    if ended.require(0, 5).code:
        errors = [line for line in ended.err.splitlines() if line.startswith("error:")]
        if not 1 <= len(errors) <= 2:  # the launcher's, and before it the other process's
            raise Found("wrong", f"{ended}\nexpected a line of each process that is left")
    saving.require_loadable(folder / "run")
    Launched(kind, folder).wait().require(0)
    expected, found = (digest(each / "run") for each in (undisturbed, folder))
    if found != expected:
        raise Found("wrong", f"the run ended at {found}, undisturbed at {expected}")
    return Outcome(quiet)


ROWS = (
    Row(
        name="processes",
        words="one of two processes is killed (DDP, FSDP2), and the run resumed",
        trials=20,
        trial=killed,
        figure="longest end, s",
        seconds=30,
        prepare=prepare,
        limit=300,
    ),
)
