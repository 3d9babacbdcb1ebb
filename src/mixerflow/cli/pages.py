"""What commands keep in the user's cache, so that help and errors need not import torch again.

Help, and what `mixerflow info` prints, are functions of the words, of the terminal and of the
installed source. So are a command's flags and the recipes' names, by which a mistake is known
before the command's own module is imported. Each is kept when a command has it for the first time.
A program that has registered classes of its own neither reads nor writes any of this.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from mixerflow.caches import source_sha256, store, user_cache, without_digest
from mixerflow.cli.paths import RUN_FILES
from mixerflow.compiler import compiler
from mixerflow.errors import ConfigError, ResourceError
from mixerflow.named import hub_name, shipped, shipped_path

active = False
"""Whether this process keeps and reads anything: nothing was registered before the command."""
_UNUSED = 30 * 24 * 3600.0
"""Seconds without a reader or a writer after which what other versions have kept is removed."""
_LARGEST = 1 << 20
"""Bytes of a run's description beyond which its page is not kept."""
_TERMINAL = ("COLUMNS", "LINES", "TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR")
_TERMINAL += ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "UNICODE_VERSION")  # rich reads these too
_MACHINE = ("CC", "MIXERFLOW_KERNELS", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES")


def read(*key: object) -> Any:  # noqa: ANN401
    """Return what is kept under a key; None where nothing is, or what is damaged."""
    if not active:
        return None
    try:
        path = _path(key)
        content = without_digest(path.read_bytes())
        if content is None:
            return None
        with contextlib.suppress(OSError):  # reading alone does not change a folder's time
            os.utime(path.parent)
        return json.loads(content)
    except (OSError, ValueError, ResourceError):  # ResourceError: there is no home folder
        return None


def keep(value: object, *key: object) -> None:
    """Keep a value that JSON can hold, unless the key has one; no error where nothing can be."""
    if not active or read(*key) is not None:
        return
    try:
        path = _path(key)
        if not path.parent.exists():
            _remove_unused(path.parents[1])
        store(path, json.dumps(value).encode())
    except (OSError, ResourceError):
        return


def page_of(command: str, words: list[str]) -> tuple[object, ...] | None:
    """Return the key of what a command prints; None if it does more than print.

    None, too, where the words name what cannot be read: the command says why.
    """
    listed = command == "reproduce" and words in ([], ["list"], ["--list"])
    if not (listed or command == "info" or {"-h", "--help"} & set(words)):
        return None
    runs = []
    try:
        if any(map(hub_name, words)):  # whose newest commit may be another by now
            return None
        folders = [shipped_path(word) or Path(word) for word in words]
        folders += shipped().values() if command == "info" else []
        for folder in filter(os.path.lexists, folders):
            files = [file for name in RUN_FILES if (file := folder / name).is_file()]
            if not files or any(file.stat().st_size > _LARGEST for file in files):
                return None
            runs.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
        machine = _machine() if command == "info" else []
        return ("page", command, words, runs, _terminal(), machine)
    except (OSError, ValueError, AttributeError, ConfigError):
        return None  # AttributeError: there is no stdout; ConfigError: no name of the hub


def _path(key: tuple[object, ...]) -> Path:
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return user_cache() / "commands" / _installed() / f"{name}.json"


@functools.cache
def _installed() -> str:
    """Return a digest of the source, of Python, and of the packages whose words help has."""
    parts: list[object] = [source_sha256(), sys.version, sys.flags.optimize]
    for package in ("torch", "tyro", "rich"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            status = os.stat(spec.origin)
            parts += [spec.origin, status.st_size, status.st_mtime_ns]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _terminal() -> list[object]:
    """Return what decides the width and the signs of a page."""
    sizes: list[object] = []
    for descriptor in range(3):
        try:
            sizes.append([*os.get_terminal_size(descriptor)])
        except OSError:
            sizes.append(None)
    stream = sys.stdout
    encoding = getattr(stream, "encoding", None)
    return [sizes, encoding, stream.isatty(), [os.environ.get(name) for name in _TERMINAL]]


def _machine() -> list[object]:
    """Return what decides which kernels run: processor, compiler and GPUs."""
    gpus = sorted(map(str, Path("/dev").glob("nvidia[0-9]*")))
    found = [platform.node(), platform.machine(), shutil.which(compiler()[0]), gpus]
    return [*found, [os.environ.get(name) for name in _MACHINE]]


def _remove_unused(folder: Path) -> None:
    for other in folder.glob("*"):
        if time.time() - other.stat().st_mtime > _UNUSED:
            shutil.rmtree(other, ignore_errors=True)
