"""Settings are frozen dataclasses; this reads back what JSON made of one."""

from __future__ import annotations

from typing import Any, TypeVar

from mixerflow.errors import CheckpointError

T = TypeVar("T")


def restore(kind: type[T], stored: dict[str, Any]) -> T:
    """An instance of the dataclass `kind` from its fields as JSON keeps them (lists for tuples).

    Raises:
        CheckpointError: fields that this version does not know.
    """
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
    }
    try:
        return kind(**fields)
    except TypeError as error:
        what = f"settings of another version ({error})"
        raise CheckpointError(what, "run.json", "use the mixerflow that wrote it") from error
