"""What trials share: a small run, and commands in forked processes."""

from __future__ import annotations

import atexit
import hashlib
import os
import random
import re
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign.base import Found

_POLL = 0.002  # seconds
_BROKEN = re.compile(r"Traceback|something unforeseen|Fatal Python error|Exception ignored")

SMALL = (
    "mixerflow-tiny",
    "--model.flow-layers=1",
    "--model.layers=2",
    "--model.flow.net.width=8",
    "--model.flow.net.norm=none",
    "--train.batch=8",
    "--train.initial=16",
    "--train.evaluate-images=8",
    "--threads=1",
)
"""A run that takes a second: beside it a trial is what the campaign does to it."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        words: its words.
        code: its exit code; below 0 the signal that killed it.
        out: its stdout.
        err: its stderr.
        seconds: how long it ran.
    """

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        shown = f"mixerflow {shlex.join(self.words)}: exit code {self.code}"
        return "\n".join(part for part in (shown, self.out.strip(), self.err.strip()) if part)

    def require(self, *codes: int) -> Ended:
        """Return it, if it ended with one of these codes and without a traceback.

        Raises:
            Found: it did not; an error of another code is lost work.
        """
        shows = _BROKEN.search(self.out + self.err)
        if shows or (self.code < 0 and self.code not in codes):
            raise Found("traceback", str(self))
        if self.code not in codes:
            raise Found("lost", f"{self}\nexpected one of the codes {codes}")
        return self

    def require_line(self, *names: str) -> Ended:
        """Return it, if its stderr has just one line with "error:", which has one of the names.

        Raises:
            Found: it did not.
        """
        errors = [line for line in self.err.splitlines() if line.startswith("error:")]
        if len(errors) != 1 or not any(name in errors[0] for name in names):
            raise Found("wrong", f"{self}\nexpected one line of error with one of {names}")
        return self


class Running:
    """A command in a forked process.

    Args:
        words: after ``mixerflow``.
        folder: where it runs, and keeps what it prints.
        before: called in the process first: to change its clock, its limits.
    """

    def __init__(
        self, *words: str | Path, folder: Path, before: Callable[[], object] | None = None
    ) -> None:
        self.words = tuple(map(str, words))
        self._out, self._err = (
            folder / f".{name}-{time.monotonic_ns()}" for name in ("out", "err")
        )
        self.begun = time.monotonic()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.pid = os.fork()
        if not self.pid:
            self._run(folder, before)

    def _run(self, folder: Path, before: Callable[[], object] | None) -> None:
        """Be the command: as ``python -m mixerflow`` from its imports on."""
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number, path in ((1, self._out), (2, self._err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            os.chdir(folder)
            sys.argv = ["mixerflow", *self.words]
            if before is not None:
                before()
            from mixerflow.cli import main

            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            traceback.print_exc()
        finally:
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except OSError:
                    code = code or 120  # as Python
            os._exit(code)

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, limit: float = 600.0) -> Ended:
        """Wait for its end.

        Raises:
            Found: it does not end in `limit` seconds.
        """
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - self.begun > limit:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise Found("lost", f"mixerflow {shlex.join(self.words)}: no end in {limit:g} s")
            time.sleep(_POLL)
        out, err = map(_taken, (self._out, self._err))
        seconds = time.monotonic() - self.begun
        return Ended(self.words, os.waitstatus_to_exitcode(status), out, err, seconds)


def _taken(path: Path) -> str:
    """Read what a command printed, and remove the file."""
    text = path.read_text(errors="replace") if path.exists() else ""
    path.unlink(missing_ok=True)
    return text


def command(*words: str | Path, folder: Path, **changes: Any) -> Ended:  # noqa: ANN401
    """Run a command to its end; the arguments are those of `Running`."""
    return Running(*words, folder=folder, **changes).wait()


def in_child(work: Callable[[], object]) -> int:
    """Do work in a forked process, so that this one stays without threads; return its exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def make_images(path: Path, *, side: int = 8, channels: int = 1) -> None:
    """Write images, those of the small run unless told otherwise: 64 to train on, 16 to test."""
    import numpy as np

    rng = np.random.default_rng(0)
    steps = rng.integers(0, 60, (80, side, side, channels))
    pixels = (steps.cumsum(1) * 4 // side).clip(0, 255).astype(np.uint8)
    np.savez(path, train_images=pixels[:64], test_images=pixels[64:])


def dice(row: str, number: int) -> random.Random:
    """Return the random numbers of a trial."""
    return random.Random(f"{row} {number}")


def digest(folder: Path) -> str:
    """Hash the weights that a run has reached: they come from all its states before."""
    step = (folder / "checkpoints/last").read_text().split()[0]
    files = sorted((folder / f"checkpoints/step-{step}").glob("*.safetensors"))
    content = b"".join(path.name.encode() + path.read_bytes() for path in files)
    return f"step {step}, {hashlib.sha256(content).hexdigest()}"
