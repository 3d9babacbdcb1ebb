"""Kills while a run saves, two starts at once, readers beside a writer, and clocks set back."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

from campaign.base import Found, Outcome, Row, prepared
from campaign.tools import SMALL, Running, command, dice, digest, make_images

STEPS = 8
TRAIN = (
    "train",
    *SMALL,
    "--data=images.npz",
    "--out=run",
    "--train.save-every=1",
    "--train.keep=3",
)
WHOLE = (*TRAIN, f"--steps={STEPS}")


def prepare(folder: Path) -> None:
    """Make the images, and the run as it is when nothing disturbs it."""
    make_images(folder / "images.npz")
    command(*WHOLE, folder=folder).require(0)  # builds the kernels, which is not what is timed
    shutil.rmtree(folder / "run")
    seconds = command(*WHOLE, folder=folder).require(0).seconds
    (folder / "seconds").write_text(str(seconds))


def begin(folder: Path) -> float:
    """Give a trial its images; return how long the undisturbed run took."""
    shutil.copy(prepared(folder) / "images.npz", folder)
    return float((prepared(folder) / "seconds").read_text())


def require_whole(folder: Path) -> None:
    """Require that a run is as it is when nothing disturbs it, and that nothing is left beside it.

    Raises:
        Found: it is not.
    """
    expected, found = (digest(each / "run") for each in (prepared(folder), folder))
    if found != expected:
        raise Found("wrong", f"the run ended at {found}, undisturbed at {expected}")
    if left := [str(path) for path in (folder / "run").rglob(".tmp-*")]:
        raise Found("lost", f"left over: {left}")
    steps = [
        sorted(path.name for path in (each / "run/checkpoints").iterdir())
        for each in (prepared(folder), folder)
    ]
    records = [_steps_of(each / "run/metrics.jsonl") for each in (prepared(folder), folder)]
    if steps[0] != steps[1] or records[0] != records[1]:
        raise Found("wrong", f"checkpoints or records differ: {steps}, {records}")


def _steps_of(path: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [(record["kind"], record["step"]) for record in records]


def require_loadable(run: Path) -> None:
    """Require that the newest checkpoint of a run that was killed is whole, if there is one.

    Raises:
        Found: it is not.
    """
    from mixerflow.errors import MixerFlowError
    from mixerflow.runs import Checkpoints

    checkpoints = Checkpoints(run / "checkpoints")
    try:
        for which in ("last", *checkpoints.steps()) if checkpoints.steps() else ():
            checkpoints.load(which)
    except MixerFlowError as error:
        raise Found("lost", f"a checkpoint does not load after a kill: {error}") from error


def kills(number: int, folder: Path) -> Outcome:
    """Kill a run, kill it again as it goes on, and let it end."""
    seconds, dice_ = begin(folder), dice("kills", number)
    for _ in range(2):
        running = Running(*WHOLE, folder=folder)
        time.sleep(dice_.uniform(0, 1.2 * seconds))
        running.send(signal.SIGKILL)
        ended = running.wait()
        if ended.code not in (0, -signal.SIGKILL):
            raise Found("lost", str(ended))
        require_loadable(folder / "run")
    last = command(*WHOLE, folder=folder).require(0)
    require_whole(folder)
    return Outcome(last.seconds)


def twice(number: int, folder: Path) -> Outcome:
    """Start a run twice at once, the second a little later."""
    seconds, dice_ = begin(folder), dice("twice", number)
    both = [Running(*WHOLE, folder=folder)]
    time.sleep(dice_.choice((0.0, dice_.uniform(0, 0.5 * seconds))))
    both.append(Running(*WHOLE, folder=folder))
    ended = sorted((each.wait() for each in both), key=lambda each: each.code)
    ended[0].require(0)
    if ended[1].require(0, 5).code == 5:
        ended[1].require_line("is writing here")
        if len(ended[1].err.splitlines()) > 2:  # the images, and the error
            raise Found("wrong", str(ended[1]))
    require_whole(folder)
    return Outcome(ended[1].seconds)


def readers(number: int, folder: Path) -> Outcome:
    """Read a run 50 times while it is written, and killed and resumed."""
    seconds, dice_ = begin(folder), dice("readers", number)
    running, longest, reads = Running(*WHOLE, folder=folder), 0.0, 0
    at_kill = time.monotonic() + dice_.uniform(0.3, 1) * seconds
    while reads < 50:
        if at_kill and time.monotonic() > at_kill:
            running.send(signal.SIGKILL)
            running.wait()
            running, at_kill = Running(*WHOLE, folder=folder), 0.0
        if (folder / "run/checkpoints/last").exists():
            begun = time.monotonic()
            _read(folder / "run", dice_)
            longest, reads = max(longest, time.monotonic() - begun), reads + 1
        time.sleep(dice_.uniform(0, 2 * seconds / 50))
    for words in (("report", "run", "--out=page.html"), ("info", "run")):
        command(*words, folder=folder).require(0)
    running.wait().require(0)
    require_whole(folder)
    return Outcome(longest)


def _read(run: Path, dice_: random.Random) -> None:
    import mixerflow
    from mixerflow.errors import MixerFlowError
    from mixerflow.runs import RunFolder

    folder = RunFolder(run)
    reads = (
        lambda: mixerflow.load(run),
        lambda: mixerflow.load(run, which="last"),
        folder.read_metrics,
        folder.read_metadata,
    )
    try:
        dice_.choice(reads)()
    except MixerFlowError as error:
        raise Found("lost", f"a reader got an error: {error}") from error


def clocks(number: int, folder: Path) -> Outcome:
    """Set the clock back while a run trains for minutes, and further back before it goes on."""
    begin(folder)
    dice_ = dice("clocks", number)
    budget, back = 6.0, dice_.uniform(60, 1e6)
    words = (*TRAIN, f"--minutes={budget / 60}", "--train.clock=cpu")  # others may use the cores

    def clock(before: float, after: float, jump: float) -> None:
        begun, real = time.monotonic(), time.time

        def shown() -> float:
            return real() - (after if time.monotonic() - begun > jump else before)

        time.time = shown

    running = Running(*words, folder=folder, before=lambda: clock(0, back, dice_.uniform(0, 2)))
    time.sleep(dice_.uniform(0.2, 2))
    running.send(dice_.choice((signal.SIGTERM, signal.SIGKILL)))
    running.wait()
    left = folder / "run/checkpoints" / ".tmp-7-999999999@gone"
    left.mkdir(parents=True, exist_ok=True)  # of another machine: may be writing now
    ended = command(*words, folder=folder, before=lambda: clock(2 * back, 3 * back, 1)).require(0)
    if not left.exists():
        raise Found("lost", "files that another machine was writing were removed")
    records = (folder / "run/metrics.jsonl").read_text().splitlines()
    seconds = [record["seconds"] for record in map(json.loads, records) if "seconds" in record]
    if not seconds or seconds != sorted(seconds) or not 0 < seconds[-1] < 2 * budget:
        raise Found("wrong", f"{ended}\nseconds of steps: {seconds}")
    return Outcome(seconds[-1])


ROWS = (
    Row(
        "kills",
        "SIGKILL at a random moment while a run saves, twice; then it goes on to its end, which "
        "equals the undisturbed one bit for bit",
        200,
        kills,
        "longest last start, s",
        seconds=2,
        prepare=prepare,
    ),
    Row(
        "twice",
        "two starts of one run at once",
        20,
        twice,
        "longest until both ended, s",
        seconds=2,
        prepare=prepare,
    ),
    Row(
        "readers",
        "50 reads of a run (weights, metrics, run.json; report and info) while it is written, "
        "killed and resumed",
        20,
        readers,
        "longest read, s",
        seconds=5,
        prepare=prepare,
    ),
    Row(
        "clocks",
        "the clock set back during a run of 6 s of processor time, and between its starts",
        20,
        clocks,
        "longest time of all steps, s",
        seconds=6,
        prepare=prepare,
    ),
)
