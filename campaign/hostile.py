"""Run folders and published weights that somebody has forged, with digests that fit.

Every mutation is refused in one line, or changes nothing that matters, and takes no memory.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from campaign.base import Found, Outcome, Row, prepared
from mixerflow.errors import MixerFlowError

_MEMORY = 320 << 20
"""Bytes that a command may take; on the small model itself a report takes 215 MB."""
_NESTED = "nested {}"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 2**31, 2**63, 10**12, 10**25, 10**400, 0.5, 1e308, -1e308),
    *(float("nan"), float("inf"), "", "x" * 100_000, "../../etc/passwd", "/dev/zero", "\x1b[31m\n"),
    *([], {}, [[]], [None], list(range(1000)), {"type": "MAF"}, {"type": "Glow"}, {"type": "x"}),
    *({"name": "Embedding"}, {"type": "Flow"}, {"type": "Classes", "count": 10**12}),
    *(_NESTED.format(n) for n in (50, 900, 5000, 200_000)),
)
SHAPES = ([2**62, 4], [2**32, 2**32], [-1], [], [0], [10**12], [1.5], ["2"], None)
OFFSETS = ([0, 2**63], [2**64 - 1, 2], [-4, 0], [0, 10**6], [0, 0], [5], [8, 4], None)
DTYPES = "F64 F16 BF16 I32 U8 BOOL C64 F8_E4M3 I64 U16 F4 F6_E2M3 Q".split()
STEP = "checkpoints/step-2"
Mutation = Callable[[Path, random.Random], str]
"""Changes a folder, and returns what it did."""


def _json(value: Any) -> bytes:  # noqa: ANN401
    """Spell JSON as `mixerflow.runs.manifest.seal` does; nesting is written out."""
    text = json.dumps(value, indent=2, sort_keys=True)
    nested = re.compile(f'"{_NESTED.format("([0-9]+)")}"')
    return nested.sub(lambda m: "[" * int(m[1]) + "]" * int(m[1]), text).encode() + b"\n"


def _sealed(content: Any) -> bytes:  # noqa: ANN401
    if not isinstance(content, dict):
        return _json(content)
    return _json(content | {"sha256": hashlib.sha256(_json(content)).hexdigest()})


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    yield path
    pairs = value.items() if isinstance(value, dict) else []
    pairs = enumerate(value[:4]) if isinstance(value, (list, tuple)) else pairs
    for key, each in pairs:
        yield from _paths(each, (*path, key))


def changed(value: Any, rng: random.Random) -> tuple[Any, str]:  # noqa: ANN401
    """Return a copy of JSON of which one entry is removed, renamed or another value."""
    value = copy.deepcopy(value)
    path, new, how = rng.choice(list(_paths(value))), rng.choice(VALUES), rng.random()
    if not path:
        return new, f"all is {str(new)[:40]}"
    place = value
    for key in path[:-1]:
        place = place[key]
    if how < 0.15:
        del place[path[-1]]
        return value, f"no {path}"
    if how < 0.2 and isinstance(place, dict):
        place[f"../{path[-1]}"] = place.pop(path[-1])
        return value, f"{path} renamed"
    place[path[-1]] = new
    return value, f"{path} is {str(new)[:40]}"


def _run_json(run: Path, rng: random.Random) -> str:
    content = json.loads((run / "run.json").read_bytes())
    content.pop("crc32", None)  # records without one are older, and valid
    content, what = changed(content, rng)
    (run / "run.json").write_bytes(_json(content))
    return f"run.json: {what}"


def _metrics(run: Path, rng: random.Random) -> str:
    lines = (run / "metrics.jsonl").read_bytes().splitlines()
    at = rng.randrange(len(lines))
    content = json.loads(lines[at])
    content.pop("crc32", None)
    content, what = changed(content, rng)
    lines[at] = _json(content).replace(b"\n", b" ")
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return f"metrics.jsonl: {what}"


def _seal_of(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The card or the manifest of a folder, and its content."""
    path = next(
        p for name in ("card.json", f"{STEP}/manifest.json") if (p := folder / name).exists()
    )
    content = json.loads(path.read_bytes())
    del content["sha256"]
    return path, content


def _card_or_manifest(folder: Path, rng: random.Random) -> str:
    path, content = _seal_of(folder)
    content, what = changed(content, rng)
    path.write_bytes(_sealed(content))
    return f"{path.name}: {what}"


def _put(folder: Path, name: str, data: bytes) -> None:
    """Write a file with a digest that fits."""
    path, content = _seal_of(folder)
    (path.parent / name).write_bytes(data)
    content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_bytes(_sealed(content))


def _weights(folder: Path, rng: random.Random) -> str:
    path, content = _seal_of(folder)
    name = rng.choice([each for each in content["files"] if each.endswith(".safetensors")])
    data = (path.parent / name).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header, numbers, size, how = json.loads(data[8 : 8 + length]), data[8 + length :], None, ""
    names = [each for each in header if each != "__metadata__"]
    tensor = rng.choice(names)
    kind = rng.choice(
        ["any", "any", "dtype", "shape", "data_offsets", "swap", "size", "cut", "nan"]
    )
    if kind == "any":
        header, how = changed(header, rng)
    elif kind == "swap":
        other = rng.choice(names)
        header[tensor], header[other] = header[other], header[tensor]
    elif kind == "size":
        size = rng.choice([0, 1, 2**63, 2**64 - 1, 10**9, 10**8])
    elif kind == "nan":
        value = rng.choice([np.nan, np.inf, 1e30, -1e38])
        numbers = np.full(len(numbers) // 4, value, np.float32).tobytes()
    elif kind != "cut":
        header[tensor][kind] = rng.choice({"dtype": DTYPES, "shape": SHAPES}.get(kind, OFFSETS))
        how = f"{tensor} {header[tensor]}"
    text = _json(header)
    data = struct.pack("<Q", len(text) if size is None else size) + text + numbers
    data = data[: rng.randrange(len(data))] if kind == "cut" else data
    _put(folder, name, data)
    return f"{name}: {kind} {how}"


class _Program:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("kill -9 $PPID",)


def _state(run: Path, rng: random.Random) -> str:
    data = (run / STEP / "state.pt").read_bytes()
    state = torch.load(io.BytesIO(data), weights_only=True)
    bad = (
        None,
        -1,
        10**30,
        float("nan"),
        "x",
        [],
        {},
        True,
        torch.zeros(1),
        torch.eye(3).to_sparse(),
    )
    bad = (*bad, torch.zeros(1).expand(10**6), torch.empty(10**9, device="meta"), _Program())
    bad = (*bad, torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(3, dtype=torch.int8))
    if rng.random() < 0.3:
        flipped = bytearray(data)
        for _ in range(rng.randrange(1, 50)):
            flipped[rng.randrange(len(data))] = rng.randrange(256)
        _put(run, "state.pt", bytes(flipped))
        return "state.pt: bytes changed"
    path, value = rng.choice([each for each in _paths(state) if each]), rng.choice(bad)
    place = state
    for key in path[:-1]:
        place = place[key]
    try:
        place[path[-1]] = value
    except TypeError:  # a tuple
        state[path[0]] = value
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _put(run, "state.pt", buffer.getvalue())
    return f"state.pt: {path} is {str(value)[:40]!r}"


def _no_file(folder: Path, rng: random.Random) -> str:
    """Put something else in the place of a file."""
    path = rng.choice(sorted(each for each in folder.rglob("*") if each.is_file()))
    path.unlink()
    kind = rng.choice(["pipe", "folder", "sparse", "socket", "link", *_LINKS])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to(path.name if kind == "link" else kind)
    return f"{path.relative_to(folder)} is a {kind}"


_LINKS = ("/dev/zero", "/dev/full", "/dev/null", "/etc/passwd", "/nowhere")


def _bits(folder: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(each for each in folder.rglob("*") if each.is_file()))
    data = bytearray(path.read_bytes())
    for _ in range(rng.randrange(1, 5)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
    return f"{path.relative_to(folder)}: bits changed, or cut"


MUTATIONS: dict[str, tuple[Mutation, ...]] = {
    "run": (_run_json, _run_json, _card_or_manifest, _weights, _state, _no_file, _metrics, _bits),
    "weights": (_card_or_manifest, _card_or_manifest, _weights, _weights, _no_file, _bits),
}
COMMANDS = ("info", "evaluate", "sample", "report", "train", "publish", "load", "resume")


def act(command: str, run: Path, images: Path, out: Path) -> int:
    """Run a command, or a call, that reads a run folder; return its exit code."""
    import mixerflow
    from mixerflow.cli.commands import run as command_line

    if command == "load":
        mixerflow.load(run)
        return 0
    if command == "resume":
        data = mixerflow.data.load(images).train
        mixerflow.train(_model().build((1, 4, 4)), data, out=run, steps=2, quiet=True)
        return 0
    small = ["--train.steps", 2, "--model.classes.count", 10]
    words = {
        "info": [],
        "evaluate": ["--data", images, "--no-codecs"],
        "sample": ["--out", out / "grid.png", "--number", 4],
        "report": ["--data", images, "--out", out / "page.html"],
        "train": ["--from", run, "--data", images, "--out", out / "new", *small],
        "publish": ["--to", out / "card", "--data", images],
    }[command]
    named = "glow-cifar10-tiny" if command == "train" else run
    return command_line([command, *map(str, (named, *words))])


def _model() -> Any:  # noqa: ANN401
    from mixerflow.models import Glow
    from mixerflow.parts import Classes, GlowConv

    return Glow(2, 1, net=GlowConv(2), classes=Classes(2, 2))


def _prepare(folder: Path) -> None:
    import mixerflow

    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4), np.uint8)
    for number, image in enumerate(pixels):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    images, run = mixerflow.data.load(folder / "images").train, folder / "run"
    mixerflow.train(_model().build((1, 4, 4)), images, out=run, steps=2, quiet=True)
    act("publish", run, folder / "images", folder)
    (folder / "card").rename(folder / "weights")


def forged(number: int, source: Path, to: Path) -> tuple[str, str]:
    """Copy a run or weights with one mutation, of this number; return it and a command to try."""
    rng = random.Random(number)
    kind = rng.choice(list(MUTATIONS))
    shutil.copytree(source / kind, to)
    return f"{kind}: {rng.choice(MUTATIONS[kind])(to, rng)}", rng.choice(COMMANDS)


def _trial(number: int, folder: Path) -> Outcome:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    what, command = forged(number, prepared(folder), folder / "run")
    output, before = io.StringIO(), _peak()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = act(command, folder / "run", prepared(folder) / "images", folder)
        except MixerFlowError as error:
            code = error.exit_code
            print(f"error: {error}")
    text = f"{what}\n{command}: {code}\n{output.getvalue()[-5000:]}"
    errors = [line for line in output.getvalue().splitlines() if line.startswith("error: ")]
    if (
        code not in (0, 2, 3, 4, 5, 6)
        or (code and len(errors) != 1)
        or max(map(len, errors), default=0) > 2000
    ):
        raise Found("traceback", text)
    memory = _peak() - before
    if memory > _MEMORY:
        raise Found("lost", f"{memory:,} bytes of memory\n{text}")
    return Outcome(memory / 1e6)


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


ROWS = (
    Row(
        "hostile",
        "a run folder or published weights are forged, digests included, and read",
        1000,
        _trial,
        figure="most memory, MB",
        seconds=0.6,
        prepare=_prepare,
        limit=60,
    ),
)
