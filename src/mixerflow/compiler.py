"""The machine's C compiler, which builds kernels; nothing here imports torch."""

from __future__ import annotations

import os
import shlex


def compiler() -> list[str]:
    """Return the command of the C compiler, ``$CC`` or cc, with its first arguments."""
    given = os.environ.get("CC", "")
    try:
        return shlex.split(given, posix=os.name != "nt") or ["cc"]
    except ValueError:  # a quotation without an end
        return [given]
