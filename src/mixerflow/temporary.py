"""Names of temporary files, by which a later process knows those that a killed one has left.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

_NAME = re.compile(r"\.tmp-.+-(\d+)(?:@(.+))?")
_KEPT = 40  # characters of the name: a file may have the longest name that there can be
_ABANDONED = 24 * 3600.0  # seconds


def temporary_path(path: Path) -> Path:
    """Return a name beside `path` for its content while it is written: pid and host are in it."""
    return path.with_name(f".tmp-{path.name[:_KEPT]}-{os.getpid()}@{socket.gethostname()}")


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed writers left.

    Those of this machine, if their process is gone; those of another machine, which may be writing
    now, when they are a day old. So are all on Windows, where asking for a process would end it.
    """
    for path in folder.glob(".tmp-*"):
        match = _NAME.fullmatch(path.name)
        if match and _is_left(path, int(match[1]), match[2]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_left(path: Path, pid: int, host: str | None) -> bool:
    windows = hasattr(signal, "CTRL_C_EVENT")
    if host not in (None, socket.gethostname()) or (windows and pid != os.getpid()):
        try:
            return time.time() - path.stat().st_mtime > _ABANDONED
        except OSError:
            return False
    # This process's own pid counts as dead: it writes one file at a time, so a file with its
    # number comes from an earlier process (in containers the same pid returns every time).
    return pid == os.getpid() or not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
