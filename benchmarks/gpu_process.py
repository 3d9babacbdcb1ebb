"""Parts of a benchmark in processes of their own: what one crashes or hangs loses no other.

    python -m benchmarks.gpu_process MODULE:FUNCTION GIVEN ROWS

calls a function that yields rows of figures, and writes each to a file as soon as it is there.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import processor, version

Row = dict[str, Any]
Status = Literal["measured", "failed", "timed out", "no time"]
ROOT = Path(__file__).resolve().parent.parent
_LOG = 15
"""Last lines of output that are kept of a part that failed."""
_LONGEST = 300


@dataclass(frozen=True)
class Part:
    """Something to measure.

    Attributes:
        name: as the tables call it.
        run: "module:function", which takes `given` and yields rows.
        given: what JSON can hold.
        limit: seconds that it may take.
    """

    name: str
    run: str
    given: dict[str, Any]
    limit: float


@dataclass
class Outcome:
    """What a part came to."""

    name: str
    status: Status
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    error: str | None = None
    command: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


def said(error: BaseException) -> str:
    """What an error says, and what it came from, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Triton's begin with a place and quote the source before they come to the point
    lines = lines[-1:] if lines and lines[0].startswith("at ") else lines[:2]
    return f"{type(error).__name__}: {' '.join(lines)}"[:_LONGEST]


def attempted(about: Row, measure: Callable[[], Row]) -> Row:
    """A row, or why there is none: what comes after it in the same process has its chance."""
    try:
        return about | measure()
    except Exception as error:
        return about | {"error": said(error)}


def together(parts: Sequence[Part], seconds: float) -> list[Outcome]:
    """Run parts at the same time, each up to its limit, and none for more than `seconds`."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        running = []
        for number, part in enumerate(parts):
            running.append(stack.enter_context(_running(part, Path(folder) / str(number))))
        begun = time.monotonic()
        return [_awaited(*each, begun, seconds) for each in running]


_Running = tuple[Part, subprocess.Popen[bytes], Path]
"""A part, its process, and how the files begin that it writes."""


@contextlib.contextmanager
def _running(part: Part, place: Path) -> Iterator[_Running]:
    """The process of a part, which ends with the ``with``."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    arguments = [part.run, json.dumps(part.given), f"{place}.rows"]
    with open(f"{place}.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_process", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # with what it starts it is one group, to be ended as one
        )
    try:
        yield part, process, place
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _awaited(
    part: Part, process: subprocess.Popen[bytes], place: Path, begun: float, seconds: float
) -> Outcome:
    limit = min(part.limit, seconds)
    outcome = Outcome(part.name, "measured")
    try:
        code = process.wait(max(0.0, begun + limit - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        outcome.status = "timed out"
        outcome.error = f"not done after {limit:.0f} s"
    outcome.seconds = round(time.monotonic() - begun, 1)
    _read(outcome, place)
    if outcome.status == "measured" and (code or outcome.error):
        outcome.status = "failed"
        outcome.error = outcome.error or _died(code, outcome.log)
    if outcome.status == "measured":
        outcome.log = []
    return outcome


def _read(outcome: Outcome, place: Path) -> None:
    """What a process wrote before it ended, however it did."""
    rows = Path(f"{place}.rows")
    for line in rows.read_text().splitlines() if rows.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # cut off in the middle
            record = json.loads(line)
            outcome.machine = record.get("machine", outcome.machine)
            outcome.error = record.get("failed", outcome.error)
            outcome.rows += [record["row"]] if "row" in record else []
    text = Path(f"{place}.log").read_text(errors="replace")
    outcome.log = [line[:_LONGEST] for line in text.splitlines() if line.strip()][-_LOG:]


def _died(code: int, log: list[str]) -> str:
    how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    return f"{how}: {log[-1] if log else 'said nothing'}"


def machine() -> dict[str, Any]:
    """What a part ran on, as far as torch is there to say."""
    found: dict[str, Any] = {"python": platform.python_version(), "triton": version("triton")}
    torch = sys.modules.get("torch")
    if torch is not None:
        gpu = torch.cuda.is_available()
        device = torch.cuda.get_device_name() if gpu else processor()
        found |= {"device": device, "torch": torch.__version__, "cuda": torch.version.cuda}
    return found


def main() -> None:
    """Run one part, in the process that is its own."""
    run, given, rows = sys.argv[1:]
    module, _, function = run.partition(":")
    with open(rows, "w") as file:

        def put(record: Row) -> None:
            print(json.dumps(record), file=file, flush=True)

        try:
            called = getattr(importlib.import_module(module), function)
            put({"machine": machine()})
            for row in called(json.loads(given)):
                put({"row": row})
        except Exception as error:
            put({"failed": said(error)})
            raise


if __name__ == "__main__":
    main()
