"""Copies of a result that was printed: one that cannot be kept is a warning, not an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mixerflow.errors import ResourceError
from mixerflow.terminal import tell


@contextlib.contextmanager
def keeping(what: str) -> Iterator[None]:
    """Turn a failure to write, in a ``with`` block, into the warning that `what` is not kept."""
    try:
        yield
    except ResourceError as error:
        tell(f"warning: {what} is not kept: {error}")
