"""What long benchmarks share: JSON that grows and that they go on from, and errors in a line."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from mixerflow.errors import ConfigError, DataError, MixerFlowError


def taken_over(path: Path, mine: dict[str, Any], names: Sequence[str], what: str) -> dict[str, Any]:
    """Return the entries `names` of a file that `keep` has written.

    Args:
        path: the file.
        mine: the result that goes on, with `settings`, `cpu` and `torch`, which must be alike.
        names: entries.
        what: the kind of benchmark, for the error.

    Raises:
        DataError: it is no such file.
        ConfigError: it was made with other settings, or on another machine.
    """
    own = {name: mine[name] for name in ("cpu", "torch")} | mine["settings"]
    try:
        found = json.loads(path.read_text())
        theirs = {name: found[name] for name in ("cpu", "torch")} | found["settings"]
        kept = {name: found[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"no JSON of this {what}", path, "name another file with --out") from None
    if other := [name for name in own if theirs.get(name) != own[name]]:
        name = other[0]
        differs = f"it has another {name}: {theirs.get(name)}, and not {own[name]}"
        raise ConfigError(differs, path, "name another file with --out")
    return kept


def require_positive(given: object, *names: str) -> None:
    """Raise a ConfigError unless the whole numbers `names` of the arguments are at least 1."""
    for name in names:
        if getattr(given, name) < 1:
            raise ConfigError(f"{getattr(given, name)} cannot be", f"--{name}", "at least 1")


@contextlib.contextmanager
def told_in_a_line(arguments: type[Any]) -> Iterator[None]:
    """End the command with an error's line and exit code; `arguments` has its flags as fields."""
    try:
        yield
    except MixerFlowError as error:
        flags = [f"--{each.name}".replace("_", "-") for each in fields(arguments)]
        print(f"error: {error.for_command(flags)}", file=sys.stderr)
        sys.exit(error.exit_code)
