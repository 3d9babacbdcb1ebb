"""Runs a row: each trial in a forked process, its outcome kept as one line of JSON.

The process that forks has imported mixerflow and torch but has computed nothing and has no threads;
a fork takes milliseconds where an import takes seconds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from campaign.base import FAULTS, Found, Outcome, Row
from mixerflow.caches import source_sha256
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import lock

_POLL, _LOOK = 0.005, 0.1  # seconds between two looks at the trials, and at their file


@dataclass(frozen=True)
class Store:
    """The trials of a row that are done, one line of JSON each, and the row's folders.

    A line counts while the package's source, and the row's own, are as they were: a table never
    mixes the trials of two versions.

    Args:
        root: the campaign's folder.
        row: the row.
    """

    root: Path
    row: Row

    @property
    def path(self) -> Path:
        """The file of lines."""
        return self.root / f"{self.row.name}.jsonl"

    @property
    def folder(self) -> Path:
        """The folder of what was prepared and of the trials; those that found a fault stay."""
        return self.root / self.row.name

    def done(self) -> dict[int, Outcome]:
        """Return the outcomes by number of trial, without a last line that a kill cut short."""
        code, found = code_of(self.row), {}
        for line in self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # cut short by a kill, and another line came after it
                continue
            if record.pop("code") == code:
                number = record.pop("trial")
                found[number] = Outcome(**record)
        return found

    def add(self, number: int, outcome: Outcome) -> None:
        """Keep an outcome."""
        record = {"trial": number, "code": code_of(self.row), **asdict(outcome)}
        line = f"{json.dumps(record)}\n"
        with open(self.path, "ab") as file:
            cut_short = file.tell() > 0 and self.path.read_bytes()[-1:] != b"\n"
            file.write(b"\n" * cut_short + line.encode())


@functools.cache
def code_of(row: Row) -> str:
    """Hash the source of mixerflow, of this package, and of the row."""
    module = sys.modules[row.trial.__module__]
    digest = hashlib.sha256(source_sha256().encode())
    for path in sorted({Path(str(module.__file__)), *Path(__file__).parent.glob("*.py")}):
        digest.update(f"{path.name} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run(row: Row, root: Path, *, trials: int, jobs: int = 1, quiet: bool = False) -> list[Outcome]:
    """Do the trials of a row that are not done; return the outcomes of its first `trials`.

    Args:
        row: the row.
        root: the campaign's folder.
        trials: how many.
        jobs: trials at a time.
        quiet: show no progress.
    """
    store = Store(root, row)
    before = {n: each for n, each in store.done().items() if n < trials}
    missing = [number for number in range(trials) if number not in before]
    if not missing:
        return [before[number] for number in range(trials)]
    with lock(store.folder):  # one campaign at a time
        _prepare(row, store.folder)
        done = _watched(store, before, missing, trials, jobs, quiet)
    return [done[number] for number in range(trials)]


def _watched(
    store: Store,
    before: dict[int, Outcome],
    missing: list[int],
    trials: int,
    jobs: int,
    quiet: bool,
) -> dict[int, Outcome]:
    """Do the trials that are missing, with a bar; return all outcomes."""
    row = store.row
    # The bar may have a thread, and a fork must not: another process forks the trials.
    done = before
    server = _fork(lambda: _serve(store, missing, jobs))
    try:
        with ProgressBar(row.name, trials, done=len(before), quiet=quiet) as bar:
            shown, ended = dict(before), None
            while ended is None:
                ended = _ended(server)
                done = {n: each for n, each in store.done().items() if n < trials}
                for number in sorted(done.keys() - shown.keys()):
                    _show(row, number, done[number], bar)
                shown = done
                faults = sum(counts(list(done.values())).values())
                bar.update(len(done), f"{faults} faults")
                time.sleep(_LOOK)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGTERM)
            os.waitpid(server, 0)
        raise
    if ended or len(done) < trials:
        raise SystemExit(f"{row.name}: its trials ended with {ended}")
    return done


def _show(row: Row, number: int, outcome: Outcome, bar: ProgressBar) -> None:
    if outcome.fault:
        bar.say(f"{row.name}, trial {number}: {outcome.fault}")
        for line in outcome.text.splitlines():
            bar.say(f"    {line}")


def _serve(store: Store, missing: list[int], jobs: int) -> None:
    """Fork the trials, `jobs` at a time, until all are done or the campaign's process is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent, limit = os.getppid(), store.row.limit
    live: dict[int, tuple[int, float]] = {}  # pid -> number, begun
    try:
        while (missing or live) and os.getppid() == parent:
            while missing and len(live) < jobs:
                number = missing.pop(0)
                live[_fork(functools.partial(_trial, store, number))] = number, time.monotonic()
            for pid, (number, begun) in list(live.items()):
                status = _ended(pid)
                if status is None and time.monotonic() - begun > limit:
                    status = _kill(pid)
                if status is None:
                    continue
                del live[pid]
                if number not in store.done():
                    store.add(number, _died(status, limit))
            time.sleep(_POLL)
    finally:
        for pid in live:
            _kill(pid)


def _prepare(row: Row, folder: Path) -> None:
    """Make what all trials use, whole or not at all, in a process of its own."""
    ready, making = folder / "prepared", folder / "preparing"
    if (ready / code_of(row)).exists():
        return
    for path in (ready, making):
        shutil.rmtree(path, ignore_errors=True)
    making.mkdir()
    make = row.prepare or (lambda _: None)
    _, status = os.waitpid(_fork(lambda: make(making)), 0)
    if status:
        raise SystemExit(f"{row.name}: its preparation failed")
    (making / code_of(row)).touch()
    making.rename(ready)


def _fork(work: Callable[[], object]) -> int:
    """Do work in a forked process, the first of a group of its own; return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _ended(pid: int) -> int | None:
    """Return the exit code of a child; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _kill(pid: int) -> int:
    """Kill a child and its group; return its exit code."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _trial(store: Store, number: int) -> None:
    folder = store.folder / f"trial-{number:04}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    begun = time.monotonic()
    try:
        outcome = store.row.trial(number, folder)
    except Found as found:
        outcome = Outcome(fault=found.fault, text=found.text)
    except Exception:
        outcome = Outcome(fault="traceback", text=traceback.format_exc())
    if outcome.figure is None and outcome.fault is None:
        outcome = Outcome(time.monotonic() - begun)
    store.add(number, outcome)
    if outcome.fault is None:
        shutil.rmtree(folder, ignore_errors=True)


def _died(status: int, limit: float) -> Outcome:
    if status == -signal.SIGKILL:
        return Outcome(fault="lost", text=f"no end within {limit:g} s")
    return Outcome(fault="traceback", text=f"the trial's own process ended with {status}")


def counts(outcomes: list[Outcome]) -> dict[str, int]:
    """Return the number of trials with each kind of fault."""
    return {fault: sum(each.fault == fault for each in outcomes) for fault in FAULTS}
