"""Archives of images: 100,000 that are no longer what was written, and kills of the writing."""

from __future__ import annotations

import contextlib
import json
import random
import resource
import signal
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.base import Found, Outcome, Row, prepared
from campaign.mutations import KINDS, Mutated
from campaign.tools import Running, command, dice, in_child

if TYPE_CHECKING:
    import numpy as np

    from mixerflow.compression import Codec

MUTATIONS = 1000
"""Mutations of a trial."""
_SECONDS, _MEMORY = 30, 1 << 30
"""What a mutation may take: seconds, and bytes beyond those of the process before."""
_OUT = ("compress", "plain", "--data=images.npz", "--split=train", "--out=x.mfa", "--block=200")
KILLED = (*_OUT, "--k=16", "--threads=1")


def prepare(folder: Path) -> None:
    """Make two small models, images, and archives of each kind."""
    if in_child(lambda: _make(folder)):
        raise SystemExit("no archives")
    command(*KILLED, folder=folder).require(0)  # the first one warms up
    seconds = command(*KILLED, folder=folder).require(0).seconds
    (folder / "seconds").write_text(json.dumps(seconds))


def _make(folder: Path) -> None:
    import numpy as np

    from mixerflow.compression import Codec
    from mixerflow.models import MixerFlow
    from mixerflow.parts import MLP, Classes, Patching, RowCoupling
    from mixerflow.train_config import TrainConfig
    from mixerflow.training import train
    from mixerflow.transforms import Affine

    rng = np.random.default_rng(0)
    steps = rng.integers(0, 60, (4000, 1, 8, 8))
    pixels = (steps.cumsum(2) // 2).clip(0, 255).astype(np.uint8)
    labels = rng.integers(0, 3, len(pixels))
    np.savez(folder / "images.npz", train_images=pixels[:, 0], test_images=pixels[:99, 0])
    np.save(folder / "pixels.npy", pixels[:48])
    for name, classes in (("plain", None), ("classes", Classes(3, 4))):
        flow = MixerFlow(
            layers=1,
            flow_layers=2,
            flow=RowCoupling(Affine(2.0), MLP(6, norm="none")),
            patching=Patching(2, shift=(0,)),
            classes=classes,
        ).build((1, 8, 8))
        settings = TrainConfig(steps=2, batch=8, warmup=1, initial=16, evaluate_every=2)
        given: dict[str, Any] = {"labels": labels[:64]} if classes else {}
        held = given | ({"validation_labels": labels[:64]} if classes else {})
        train(flow, pixels[:64], validation=pixels[:64], out=folder / name, config=settings, **held)
    names = [f"a/{number}.png" for number in range(24)]
    for place, here in (("one", slice(24)), ("two", slice(24, 48))):
        for name, embed in (("plain", False), ("classes", False), ("inside", True)):
            run = folder / ("classes" if name == "classes" else "plain")
            codec = Codec(run, block=8, threads=1, embed=embed)
            data = codec.encode(pixels[here], labels[here], names)
            (folder / f"{name}-{place}.mfa").write_bytes(data)


def mutations(number: int, folder: Path) -> Outcome:
    """Decode archives that are not what was written: refused, decoded right, or a block is lost."""
    import numpy as np

    from mixerflow.compression import Codec

    ready, roll, counts = prepared(folder), dice("archive", number), dict[str, int]()
    pixels = np.load(ready / "pixels.npy")
    known = {image.tobytes() for image in pixels}
    codecs = {name: Codec(ready / name, threads=1) for name in ("plain", "classes")}
    codecs["inside"] = Codec(ready / "plain", threads=1, embed=True)
    for codec in codecs.values():
        codec.engine(16)
    _limit_memory()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a death, which the campaign sees
    for turn in range(MUTATIONS):
        name = roll.choice(("plain", "plain", "classes", "classes", "inside"))
        data, other = (_read(ready / f"{name}-{each}.mfa") for each in ("one", "two"))
        mutated = roll.choice(KINDS)(data, other, roll)
        (folder / "turn").write_text(f"{turn} {name} {mutated.words}")
        signal.alarm(_SECONDS)
        own = name == "inside" and roll.random() < 0.2
        said = _decoded(mutated, None if own else codecs[name], pixels, known, roll)
        signal.alarm(0)
        counts[said] = counts.get(said, 0) + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Outcome(peak, text=json.dumps(counts))


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    bound = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


@cache
def _read(path: Path) -> bytes:
    return path.read_bytes()


def _decoded(
    mutated: Mutated,
    codec: Codec | None,
    pixels: np.ndarray,
    known: set[bytes],
    roll: random.Random,
) -> str:
    """Return what became of a mutated archive; a fault is raised."""
    from mixerflow.compression import Archive, Codec, Lost
    from mixerflow.errors import MixerFlowError

    parts, rescue = [], roll.random() < 0.2
    try:
        with Archive(mutated.data, rescue=rescue) as archive:
            used = Codec.of(archive, threads=1) if codec is None else codec
            parts = [*used.parts(archive)] if archive.images else []
    except MixerFlowError as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            raise Found("wrong", f"{mutated.words}: {error}") from error
        return "refused"
    except MemoryError as error:
        raise Found("lost", f"{mutated.words}: no memory") from error
    for part in parts:
        if isinstance(part, Lost):
            continue
        for number, image in enumerate(part.pixels, part.first):
            if mutated.placed and image.tobytes() != pixels[number].tobytes():
                raise Found("wrong", f"{mutated.words}: image {number} is another one")
            if image.tobytes() not in known:
                raise Found("wrong", f"{mutated.words}: image {number} is none that was written")
    lost = sum(isinstance(part, Lost) for part in parts)
    return "blocks lost and named" if lost else "decoded right"


def kills(number: int, folder: Path) -> Outcome:
    """Kill the writing of an archive at a random moment; then the same words write it."""
    for name in ("plain", "images.npz"):
        (folder / name).symlink_to(prepared(folder) / name)
    seconds = json.loads((prepared(folder) / "seconds").read_text())
    expected, out = (prepared(folder) / "x.mfa").read_bytes(), folder / "x.mfa"
    running = Running(*KILLED, folder=folder)
    time.sleep(dice("compress", number).uniform(0, seconds))
    running.send(signal.SIGKILL)
    ended = running.wait()
    if ended.code not in (0, -signal.SIGKILL):
        raise Found("lost", str(ended))
    if out.exists() and out.read_bytes() != expected:
        raise Found("wrong", "an archive that is there, and is another one, after a kill")
    whole, cut = out.exists(), 0
    for path in folder.glob(".tmp-*"):
        cut += 1
        _refused(path)
    last = command(*KILLED, folder=folder).require(0)
    if out.read_bytes() != expected:
        raise Found("wrong", f"{last}\nthe archive differs from an undisturbed one")
    if left := [path.name for path in folder.glob(".tmp-*")]:
        raise Found("wrong", f"left behind: {left}")
    return Outcome(last.seconds, text=f"{int(whole)} whole, {cut} cut short")


def _refused(path: Path) -> None:
    """Raise `Found` unless what a kill left is no archive."""
    from mixerflow.compression import Archive
    from mixerflow.errors import DataError

    with contextlib.suppress(DataError):
        Archive(path).__exit__(None, None, None)
        raise Found("wrong", f"{path.name} is what a kill left, and looks whole")


ROWS = (
    Row(
        "archive",
        f"{MUTATIONS:,} archives that were cut, flipped, overwritten, spliced, or lie with every "
        "digest right: refused, decoded right, or the lost block is named",
        100,
        mutations,
        "largest memory, MB",
        seconds=8,
        prepare=prepare,
    ),
    Row(
        "compress",
        "SIGKILL at a random moment while an archive is written; nothing looks whole, and the same "
        "words write the bytes of an undisturbed run",
        50,
        kills,
        "longest last start, s",
        seconds=4,
        prepare=prepare,
    ),
)
