"""The machine's C compiler, which builds kernels; nothing here imports torch."""

from __future__ import annotations

import os
import shlex


def compiler() -> list[str]:
    """Return the command of the C compiler, ``$CC`` or cc, with its first arguments."""
    return shlex.split(os.environ.get("CC", ""), posix=os.name != "nt") or ["cc"]
