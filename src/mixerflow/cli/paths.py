"""Paths and names that a command is given: what can be none, and what names a part of a run."""

from __future__ import annotations

import os
from pathlib import Path

from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.named import is_name, require_known

RUN_FILES = ("run.json", "card.json")
"""Files of which a run folder, or published weights, have one."""


def check_path(path: Path, where: str) -> None:
    """Raise a ConfigError for a path that no file can have or that cannot be looked at."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        what = f"cannot be a path ({getattr(error, 'strerror', error)})"
        shown = str(path) if len(str(path)) < 80 else f"{str(path)[:60]}..."
        raise ConfigError(what, f"{where} {shown}", "name another") from error


def check_run_path(path: Path) -> None:
    """Raise a ConfigError for a path in a run folder, which it names, or for a file."""
    if is_name(path) or (path.is_dir() and is_run(path)):
        return
    for parent in list(path.parents)[:3]:
        if is_run(parent):
            raise ConfigError("a part of a run", path, f"name the run folder, {parent}")
    if path.exists() and not path.is_dir():
        raise ConfigError("a file, where a run folder is needed", path, "name a folder")


def require_run(path: Path, where: str) -> None:
    """Raise a CheckpointError where no run folder is, or an error of `check_run_path`.

    A name of weights that ship, or of a repository of the hub, needs no folder.
    """
    check_path(path, where)
    if is_name(path):
        return
    require_known(path)
    check_run_path(path)
    closed = path.exists() and not os.access(path, os.X_OK)  # reading says so
    if not is_run(path) and not closed:
        remedy = "name a folder that `mixerflow train` or `mixerflow publish` made"
        raise CheckpointError("no run here", path, remedy)


def check_run_name(name: str) -> None:
    """Check a word that names a recipe or a run folder; one with a slash must be a run's path."""
    path = Path(name)
    check_path(path, "the name")
    if "/" in name:
        require_run(path, "the name")
    elif path.is_dir():
        check_run_path(path)


def is_run(path: Path) -> bool:
    """Whether a path, or a name, is a run's or has published weights.

    What is no file, reading says.
    """
    return is_name(path) or any(os.path.lexists(path / name) for name in RUN_FILES)
