"""The files of a checkpoint as bytes, and the manifest that verifies them.

Neither ``.pt`` nor safetensors notices a flipped bit: ``manifest.json`` holds the SHA-256 of every
file and its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from mixerflow.errors import first_line
from mixerflow.runs.kinds import FILE, misfit
from mixerflow.runs.reading import LARGEST, parse_json, read_file

MANIFEST = "manifest.json"
MODEL, EMA, STATE = "model.safetensors", "ema.safetensors", "state.pt"


class Damage(Exception):
    """A damaged file of a checkpoint, and its fault."""

    def __init__(self, what: str, path: Path) -> None:
        self.what, self.path = what, path
        super().__init__(f"{what}: {path}")


def pack_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Return a state dict as a safetensors file; tensors may share memory or have any strides."""
    # Clones share no memory and are contiguous, as safetensors wants them.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(own)


def pack_state(state: dict[str, Any]) -> memoryview:
    """Return a state as a ``.pt`` file.

    Raises:
        TypeError: it holds a type that ``torch.load(weights_only=True)`` would refuse.
    """
    buffer = BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    if unsafe:
        raise TypeError(f"state could not be loaded again: it holds {', '.join(unsafe)}")
    return buffer.getbuffer()


def parse(path: Path, data: bytes) -> dict[str, Any]:
    """Return the content of a verified file, on the CPU.

    Raises:
        Damage: they cannot be parsed.
    """
    try:
        if path.name == STATE:
            return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        return safetensors.torch.load(data)
    except Exception as error:  # their parsers raise a dozen kinds, and quote what they read
        raise Damage(f"cannot be parsed: {first_line(error)[:200]}", path) from error


def entry(data: bytes | memoryview) -> dict[str, Any]:
    """Return the manifest's entry for a file."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def seal(content: dict[str, Any]) -> bytes:
    """Return a manifest in its only valid spelling: a flipped bit makes another one."""

    def spell(value: dict[str, Any]) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    return spell(content | {"sha256": hashlib.sha256(spell(content)).hexdigest()})


def _read(path: Path, largest: int) -> bytes:
    try:
        return read_file(path, largest=largest)
    except FileNotFoundError:
        raise Damage("file missing", path) from None
    except OSError as error:
        raise Damage(f"cannot be read, {error.strerror}", path) from error


def unseal(path: Path) -> dict[str, Any]:
    """Return the content of a file that `seal` wrote.

    Raises:
        Damage: the file is missing, or differs in any bit.
    """
    data = _read(path, LARGEST)
    try:
        content = parse_json(data)
        del content["sha256"]
        if seal(content) != data:
            raise ValueError
    except (ValueError, TypeError, KeyError) as error:
        raise Damage("SHA-256 differs", path) from error
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of a step's manifest.

    Raises:
        Damage: the manifest is missing, damaged, or of another step.
    """
    path = folder / MANIFEST
    content = unseal(path)
    try:
        expected = {MODEL, STATE} <= set(content["files"]) <= {MODEL, EMA, STATE}
        if content["format"] != 1 or not expected:
            raise Damage("from another version of mixerflow", path)
        entries = {"files": dict.fromkeys(content["files"], FILE), "best": bool}
        if misfit(content, entries):
            raise TypeError
        if folder.name != f"step-{content['step']}":
            raise Damage(f"is step {content['step']}'s", path)
        return content
    except (TypeError, KeyError, AttributeError) as error:
        raise Damage("SHA-256 differs", path) from error


def read_verified(path: Path, expected: dict[str, Any]) -> bytes:
    """Return a file's bytes if `entry` of them is `expected`.

    Raises:
        Damage: the bytes differ or cannot be read.
    """
    data = _read(path, expected["bytes"])
    if len(data) != expected["bytes"]:
        raise Damage(f"{len(data):,} of {expected['bytes']:,} bytes", path)
    if entry(data) != expected:
        raise Damage("SHA-256 differs", path)
    return data


def verified(folder: Path, skip: set[str]) -> Iterator[tuple[Path, bytes]]:
    """Yield the path and verified bytes of every file in the manifest, but for the names to skip.

    Raises:
        Damage: at the first file that differs.
    """
    for name, expected in read_manifest(folder)["files"].items():
        if name not in skip:
            yield folder / name, read_verified(folder / name, expected)


def exhaust(folder: Path) -> None:
    """Verify every file of a step.

    Raises:
        Damage: at the first file that differs.
    """
    for _ in verified(folder, set()):
        pass
