"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong model.

A checkpoint is a folder that is written under another name and renamed when the disk has all of
it, so it is there whole or not at all. Neither ``.pt`` nor safetensors notices a flipped bit:
``manifest.json`` holds every file's SHA-256 and one of itself, and nothing unverified is parsed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from mixerflow.errors import CheckpointError
from mixerflow.training.folder import sweep, sync_folder, write_atomically, write_synced, writing

_MANIFEST = "manifest.json"
_MODEL, _EMA, _STATE = "model.safetensors", "ema.safetensors", "state.pt"
_STEP = re.compile(r"step-(0|[1-9][0-9]*)")

Packers = dict[str, Callable[[], bytes | memoryview]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was saved after one training step, on the CPU.

    Attributes:
        step: the steps done.
        path: the folder it came from.
        model: the model's state dict.
        ema: the averaged weights' state dict, or None where none were kept.
        state: the rest that resuming needs; empty when loaded with ``weights_only``.
    """

    step: int
    path: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]


class _Damage(Exception):
    """What is wrong with which file of a checkpoint."""

    def __init__(self, what: str, path: Path) -> None:
        self.what, self.path = what, path
        super().__init__(f"{what}: {path}")


class Checkpoints:
    """The folder ``checkpoints`` of a run: ``step-N`` each, and ``best`` and ``last`` naming one.

    One process writes (`RunFolder.lock`); any number may read meanwhile.

    Args:
        root: the folder; the first save makes it.
        keep: how many of the latest checkpoints stay, besides the best.
    """

    def __init__(self, root: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.root = Path(root)
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps that have a folder here, in order, unverified."""
        if not self.root.is_dir():
            return []
        matches = (_STEP.fullmatch(path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def save(
        self,
        step: int,
        model: dict[str, Tensor],
        ema: dict[str, Tensor] | None,
        state: dict[str, Any],
        *,
        best: bool = False,
    ) -> Path:
        """Save one step; when this returns, no kill can take it back.

        A valid checkpoint of the same step is kept as it is, a damaged one is moved aside.

        Args:
            step: the steps done.
            model: the model's state dict; tensors may share memory or have any strides.
            ema: the averaged weights' state dict, or None.
            state: what ``torch.load(weights_only=True)`` can read: tensors, numbers, strings,
                and lists, tuples and dicts of them.
            best: whether this is the best step so far.

        Returns:
            The step's folder.

        Raises:
            ResourceError: the disk is full or the folder cannot be written; what was saved
                before is untouched.
            TypeError: ``state`` holds what could not be loaded again.
        """
        packers: Packers = {_MODEL: lambda: _pack(model), _STATE: lambda: _pack_state(state)}
        if ema is not None:
            packers[_EMA] = lambda: _pack(ema)
        with writing(self.root, lambda: sum(len(pack()) for pack in packers.values())):
            self.root.mkdir(parents=True, exist_ok=True)
            sweep(self.root)
            if not self._is_valid(step):
                self._write(step, packers, best)
            # `last` comes last: a kill before it leaves a run that resumes from the step before,
            # meets this one again, and so repairs both pointers.
            for name in ("best", "last") if best else ("last",):
                write_atomically(self.root / name, f"{step}\n".encode())
            self._prune(step)
        return self._folder(step)

    def load(
        self, which: int | Literal["best", "last"] = "last", *, weights_only: bool = False
    ) -> Checkpoint:
        """Load one checkpoint; each file is read once, and what was hashed is what is parsed.

        Args:
            which: a step, or the name of one. Where the file ``best`` or ``last`` is damaged the
                newest valid step (for ``best``: that was the best when saved) is taken instead,
                with a warning.
            weights_only: leave ``state.pt`` alone.

        Raises:
            CheckpointError: there is none, or it is damaged; says which step to continue from.
        """
        step = self._resolve(which)
        folder = self._folder(step)
        skip = {_STATE} if weights_only else set()
        try:
            parsed = {path.name: _parse(path, data) for path, data in _verified(folder, skip)}
        except _Damage as damage:
            if isinstance(which, str) and not os.path.lexists(folder):  # pruned meanwhile
                return self.load(which, weights_only=weights_only)
            raise self._damaged(step, damage) from damage
        return Checkpoint(step, folder, parsed[_MODEL], parsed.get(_EMA), parsed.get(_STATE, {}))

    def verify(self, path: Path) -> None:
        """Check every file of a step's folder against its manifest.

        Raises:
            CheckpointError: naming the damaged file, and the step to continue from.
        """
        match = _STEP.fullmatch(path.name)
        if not match:
            raise CheckpointError("not a checkpoint", path, "name a folder step-N")
        try:
            _exhaust(path)
        except _Damage as damage:
            raise self._damaged(int(match[1]), damage) from damage

    def set_aside(self, after: int) -> None:
        """Rename the steps after `after` to ``step-N.aside-K``: another run's future from here on.

        Raises:
            ResourceError: the folder cannot be written.
        """
        with writing(self.root):
            for step in [each for each in self.steps() if each > after]:
                folder = self._folder(step)
                names = (self.root / f"{folder.name}.aside-{k}" for k in count(1))
                folder.rename(next(name for name in names if not name.exists()))
            best = [each for each in self.steps() if self._was_best(each)]
            if best:
                write_atomically(self.root / "best", f"{best[-1]}\n".encode())
            write_atomically(self.root / "last", f"{after}\n".encode())
            sync_folder(self.root)

    def _folder(self, step: int) -> Path:
        return self.root / f"step-{step}"

    def _is_valid(self, step: int) -> bool:
        try:
            _exhaust(self._folder(step))
        except _Damage:
            return False
        return True

    def _write(self, step: int, packers: Packers, best: bool) -> None:
        folder, temporary = self._folder(step), self.root / f".tmp-{step}-{os.getpid()}"
        try:
            temporary.mkdir()
            files = {}
            for name, pack in packers.items():  # one at a time: only one copy in memory
                data = pack()
                write_synced(temporary / name, data)
                files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                del data
            content = {"best": best, "files": files, "format": 1, "step": step}
            write_synced(temporary / _MANIFEST, _seal(content))
            sync_folder(temporary)
            if os.path.lexists(folder):
                names = (self.root / f"{folder.name}.damaged-{k}" for k in count(1))
                folder.rename(next(name for name in names if not os.path.lexists(name)))
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.root)

    def _prune(self, step: int) -> None:
        """Remove old steps; later ones, left by a run that was taken back, are not this run's."""
        past = [each for each in self.steps() if each <= step]
        best = self._named("best")
        marked = {best} if best is not None else {each for each in past if self._was_best(each)}
        for each in set(past[: -self.keep]) - marked:
            # A half-removed folder must not look like a damaged checkpoint.
            temporary = self.root / f".tmp-{each}-{os.getpid()}"
            self._folder(each).rename(temporary)
            shutil.rmtree(temporary, ignore_errors=True)  # the next save sweeps what is left

    def _named(self, name: str) -> int | None:
        """The step that a pointer names, or None where it is missing or cannot be right."""
        before, text = None, self._pointer(name)
        while text != before:  # the writer may move the pointer and prune what it named
            for step in self.steps():
                if text == f"{step}\n":  # the newline tells 300 from a 3000 cut short
                    return step
            before, text = text, self._pointer(name)
        return None

    def _pointer(self, name: str) -> str | None:
        try:
            return (self.root / name).read_text()
        except (OSError, UnicodeDecodeError):
            return None

    def _was_best(self, step: int) -> bool:
        try:
            return _manifest(self._folder(step))["best"]
        except _Damage:
            return False

    def _resolve(self, which: int | str) -> int:
        steps = self.steps()
        if not steps:
            remedy = "train first, or name another run folder"
            raise CheckpointError("no checkpoint", self.root, remedy)
        if isinstance(which, int):
            if which not in steps:
                remedy = f"choose one of {', '.join(map(str, steps))}"
                raise CheckpointError(f"no checkpoint of step {which}", self.root, remedy)
            return which
        named = self._named(which)
        if named is not None:
            return named
        fits = [each for each in reversed(steps) if which == "last" or self._was_best(each)]
        found = next(filter(self._is_valid, fits), None)
        if found is None and which == "best":
            remedy = "load the last one instead"
            raise CheckpointError("no checkpoint is marked as the best", self.root / which, remedy)
        if found is None:
            return steps[-1]  # damaged as all are: loading it says how
        warnings.warn(
            f"{self.root / which} is missing or damaged: taking step {found}", stacklevel=3
        )
        return found

    def _damaged(self, step: int, damage: _Damage) -> CheckpointError:
        valid = (each for each in reversed(self.steps()) if each < step and self._is_valid(each))
        earlier = next(valid, None)
        remedy = "no earlier one is valid: delete the folder and train again"
        if earlier is not None:
            remedy = (
                f"continue from step {earlier} with --from-step {earlier}, or delete the folder"
            )
        return CheckpointError(f"checkpoint damaged ({damage.what})", damage.path, remedy)


def _pack(tensors: dict[str, Tensor]) -> bytes:
    # Clones share no memory and are contiguous, as safetensors wants them.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(own)


def _pack_state(state: dict[str, Any]) -> memoryview:
    buffer = BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    if unsafe:
        raise TypeError(f"state could not be loaded again: it holds {', '.join(unsafe)}")
    return buffer.getbuffer()


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        if path.name == _STATE:
            return torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        return safetensors.torch.load(data)
    except Exception as error:  # their parsers raise a dozen kinds
        raise _Damage(f"cannot be parsed: {error}".splitlines()[0], path) from error


def _seal(content: dict[str, Any]) -> bytes:
    """A manifest in the one spelling that is valid: any flipped bit spells another."""

    def spell(value: dict[str, Any]) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    return spell(content | {"sha256": hashlib.sha256(spell(content)).hexdigest()})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise _Damage("file missing", path) from None
    except OSError as error:
        raise _Damage(f"cannot be read, {error.strerror}", path) from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    data = _read(path)
    try:
        content = json.loads(data)
        del content["sha256"]
        if _seal(content) != data:
            raise ValueError
        expected = {_MODEL, _STATE} <= set(content["files"]) <= {_MODEL, _EMA, _STATE}
        if content["format"] != 1 or not expected:
            raise _Damage("from another version of mixerflow", path)
        if folder.name != f"step-{content['step']}":
            raise _Damage(f"is step {content['step']}'s", path)
        return content
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Damage("SHA-256 differs", path) from error


def _verified(folder: Path, skip: set[str]) -> Iterator[tuple[Path, bytes]]:
    """Every file's path and bytes, as the manifest has them."""
    for name, entry in _manifest(folder)["files"].items():
        if name not in skip:
            path = folder / name
            data = _read(path)
            if len(data) != entry["bytes"]:
                raise _Damage(f"{len(data):,} of {entry['bytes']:,} bytes", path)
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise _Damage("SHA-256 differs", path)
            yield path, data


def _exhaust(folder: Path) -> None:
    for _ in _verified(folder, set()):
        pass
