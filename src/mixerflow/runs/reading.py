"""Reading files that may come from anybody. Nothing here imports torch."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

LARGEST = 64 << 20
"""Bytes of a file of JSON."""
_DEEPEST = 64  # levels of JSON


def read_file(path: Path, *, largest: int | None = None) -> bytes:
    """Return the bytes of a file that may come from anybody.

    A pipe, a device and a folder, and a file of more than `largest` bytes, are an OSError before
    anything is read: reading would not end, or fill the memory.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    if largest is not None and status.st_size > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", str(path))
    return Path(path).read_bytes()


def parse_json(data: bytes) -> Any:  # noqa: ANN401
    """Return what JSON that may come from anybody says.

    Besides what is no JSON, levels beyond 64 are a ValueError, for which no code here recurses deep
    enough, and so are numbers that are not finite or pass 64 bits.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        for each in level:
            if isinstance(each, int) and abs(each) >= 2**64:
                raise ValueError("a whole number of more than 64 bits")
            if isinstance(each, float) and not math.isfinite(each):
                raise ValueError("a number that is not finite")
        groups = [each for each in level if isinstance(each, (dict, list))]
        level = [each for g in groups for each in (g.values() if isinstance(g, dict) else g)]
    return value
