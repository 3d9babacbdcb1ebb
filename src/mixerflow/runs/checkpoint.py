"""Checkpoints that a kill, a full disk or a flipped bit cannot turn into a wrong model.

A checkpoint is a folder. It is written under another name and renamed when the disk has all of it.
Only files that its manifest verifies are parsed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mixerflow.errors import CheckpointError
from mixerflow.runs.files import sync_folder, write_atomically, write_synced, writing
from mixerflow.runs.manifest import (
    EMA,
    MANIFEST,
    MODEL,
    STATE,
    Damage,
    entry,
    exhaust,
    pack_state,
    pack_tensors,
    parse,
    read_manifest,
    seal,
    verified,
)
from mixerflow.runs.reading import read_file
from mixerflow.temporary import sweep, temporary_path
from mixerflow.terminal import quoted

_STEP = re.compile(r"step-(0|[1-9][0-9]*)")

Packers = dict[str, Callable[[], bytes | memoryview]]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State saved after a training step, on the CPU.

    Attributes:
        step: the steps done.
        path: the folder it came from.
        model: the model's state dict.
        ema: the averaged weights' state dict, or None where none were kept.
        state: the other state that resuming needs; empty when loaded with ``weights_only``.
    """

    step: int
    path: Path
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]


class Checkpoints:
    """The folder ``checkpoints`` of a run: folders ``step-N``, and files ``best`` and ``last``.

    One process writes (`RunFolder.lock`); any number may read meanwhile.

    Args:
        root: the folder; the first save creates it.
        keep: number of latest checkpoints that stay, besides the best.
    """

    def __init__(self, root: Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.root = Path(root)
        self.keep = keep

    def steps(self) -> list[int]:
        """Return the steps that have a folder, in order, unverified."""
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
        """Save one step; after the return no kill can undo it.

        A valid checkpoint of the same step is kept, a damaged one is moved aside.

        Args:
            step: the steps done.
            model: the model's state dict; tensors may share memory or have any strides.
            ema: the averaged weights' state dict, or None.
            state: tensors, numbers, strings, and lists, tuples and dicts of them, as
                ``torch.load(weights_only=True)`` reads them.
            best: whether this is the best step so far.

        Returns:
            The step's folder.

        Raises:
            ResourceError: the disk is full or the folder cannot be written; earlier checkpoints
                are untouched.
            TypeError: ``state`` holds a value that could not be loaded again.
        """
        packers: Packers = {MODEL: lambda: pack_tensors(model), STATE: lambda: pack_state(state)}
        if ema is not None:
            packers[EMA] = lambda: pack_tensors(ema)
        with writing(self.root, lambda: sum(len(pack()) for pack in packers.values())):
            self.root.mkdir(parents=True, exist_ok=True)
            sweep(self.root)
            if not self._is_valid(step):
                self._write(step, packers, best)
            # `last` comes last: a kill before it leaves a run that resumes from the step before,
            # meets this one again, and so repairs both pointers.
            for name in ("best", "last") if best else ("last",):
                write_atomically(self.root / name, _pointer_to(step))
            self._prune(step)
        return self._folder(step)

    def load(
        self, which: int | Literal["best", "last"] = "last", *, weights_only: bool = False
    ) -> Checkpoint:
        """Load one checkpoint; each file is read once, and the hashed bytes are parsed.

        Args:
            which: a step, or a name. If the file ``best`` or ``last`` is damaged, the newest valid
                step (for ``best``: one that was the best when saved) is loaded, with a warning.
            weights_only: do not read ``state.pt``.

        Raises:
            CheckpointError: no such checkpoint, or a damaged one; names a step to resume from.
        """
        step = self._resolve(which)
        folder = self._folder(step)
        skip = {STATE} if weights_only else set()
        try:
            parsed = {path.name: parse(path, data) for path, data in verified(folder, skip)}
        except Damage as damage:
            if isinstance(which, str) and not os.path.lexists(folder):  # pruned meanwhile
                return self.load(which, weights_only=weights_only)
            raise self._damaged(step, damage) from damage
        return Checkpoint(step, folder, parsed[MODEL], parsed.get(EMA), parsed.get(STATE, {}))

    def verify(self, path: Path) -> None:
        """Check every file of a step's folder against its manifest.

        Raises:
            CheckpointError: naming the damaged file, and the step to continue from.
        """
        match = _STEP.fullmatch(path.name)
        if not match:
            raise CheckpointError("not a checkpoint", path, "name a folder step-N")
        try:
            exhaust(path)
        except Damage as damage:
            raise self._damaged(int(match[1]), damage) from damage

    def set_aside(self, after: int) -> None:
        """Rename the steps after `after` to ``step-N.aside-K``; remove one that no save finished.

        Args:
            after: an existing step, which becomes the last.

        Raises:
            ResourceError: the folder cannot be written.
        """
        past = [each for each in self.steps() if each <= after]
        best = [each for each in past if self._was_best(each)]
        later = self.steps()[len(past) :]
        with writing(self.root):
            unfinished = [each for each in later if self._is_unfinished(each)]
            # Pointers first: after a kill at any moment they name steps that are here.
            write_atomically(self.root / "last", _pointer_to(after))
            if best:
                write_atomically(self.root / "best", _pointer_to(best[-1]))
            else:  # or it would name another run's step of the same number
                (self.root / "best").unlink(missing_ok=True)
            for step in reversed(later):
                if step in unfinished:
                    self._remove(step)
                else:
                    self._move(self._folder(step), "aside")
            sync_folder(self.root)

    def _folder(self, step: int) -> Path:
        return self.root / f"step-{step}"

    def _move(self, folder: Path, why: str) -> None:
        names = (self.root / f"{folder.name}.{why}-{k}" for k in count(1))
        folder.rename(next(name for name in names if not os.path.lexists(name)))

    def _is_valid(self, step: int) -> bool:
        try:
            exhaust(self._folder(step))
        except Damage:
            return False
        return True

    def _write(self, step: int, packers: Packers, best: bool) -> None:
        folder, temporary = self._folder(step), temporary_path(self.root / str(step))
        try:
            temporary.mkdir()
            files = {}
            for name, pack in packers.items():  # one at a time: only one copy in memory
                data = pack()
                write_synced(temporary / name, data)
                files[name] = entry(data)
                del data
            content = {"best": best, "files": files, "format": 1, "step": step}
            write_synced(temporary / MANIFEST, seal(content))
            sync_folder(temporary)
            if os.path.lexists(folder):
                self._move(folder, "damaged")
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.root)

    def _prune(self, step: int) -> None:
        """Remove old steps; later steps than `step` belong to a run that was set back."""
        past = [each for each in self.steps() if each <= step]
        best = self._named("best")
        marked = {best} if best is not None else {each for each in past if self._was_best(each)}
        for each in set(past[: -self.keep]) - marked:
            self._remove(each)

    def _remove(self, step: int) -> None:
        # A half-removed folder must not look like a damaged checkpoint.
        temporary = temporary_path(self.root / str(step))
        self._folder(step).rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)  # the next save sweeps what is left

    def _is_unfinished(self, step: int) -> bool:
        """Whether a kill came between the writing of a step and of the pointer to it."""
        last, times = self._named("last"), []
        if last is not None and step > last:
            with contextlib.suppress(OSError):  # damaged
                paths = (self.root / "last", self._folder(step) / MANIFEST)
                times = [path.stat().st_mtime_ns for path in paths]
        return len(times) == 2 and times[0] <= times[1]

    def _named(self, name: str) -> int | None:
        """Return the step that a pointer names; None where it is missing or wrong."""
        before, text = None, self._pointer(name)
        while text != before:  # the writer may move the pointer and prune what it named
            for step in self.steps():
                # older ones name it once; the newline tells 300 from a 3000 cut short
                if text in (f"{step}\n", _pointer_to(step).decode()):
                    return step
            before, text = text, self._pointer(name)
        return None

    def _pointer(self, name: str) -> str | None:
        try:
            return read_file(self.root / name, largest=100).decode()
        except (OSError, UnicodeDecodeError):
            return None

    def _was_best(self, step: int) -> bool:
        try:
            return read_manifest(self._folder(step))["best"]
        except Damage:
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
        pointer = self.root / which
        fault = "damaged" if pointer.exists() else "missing"  # a full disk or a kill came before it
        warnings.warn(f"{pointer} is {fault}: taking step {found}", stacklevel=3)
        return found

    def _damaged(self, step: int, damage: Damage) -> CheckpointError:
        valid = (each for each in reversed(self.steps()) if each < step and self._is_valid(each))
        earlier = next(valid, None)
        remedy = "no earlier one is valid: delete the folder and train again"
        if earlier is not None:
            run = quoted(self.root.parent)
            remedy = f"go on before it, `mixerflow train {run} --from-step {earlier}`, or delete it"
        return CheckpointError(f"checkpoint damaged ({damage.what})", damage.path, remedy)


def _pointer_to(step: int) -> bytes:
    """Name a step twice: a flipped bit makes the two differ, and names no other step."""
    return f"{step}\n{step}\n".encode()
