"""Writing so that a crash leaves the old or the new content whole, and errors say what to do.

Nothing here imports torch.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixerflow.errors import ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_TEMPORARY = re.compile(r"\.tmp-.+-(\d+)")


@contextmanager
def writing(folder: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn a failure to write below ``folder`` into an error for people.

    Args:
        folder: the folder to name.
        needed: the bytes that the write takes; called only when the disk is full.

    Raises:
        ResourceError: for any `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            remedy = "make it writable, or choose another folder"
            raise ResourceError(f"cannot write ({error.strerror})", folder, remedy) from error
        size = "" if needed is None else f", {needed():,} bytes needed"
        remedy = "free some space and resume: what was saved before is untouched"
        raise ResourceError(f"disk full{size}", folder, remedy) from error


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries, where the file system can say so."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems refuse to sync a folder
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a reader, or a crash, meets the old or the new content whole."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed writers left."""
    for path in folder.glob(".tmp-*"):
        match = _TEMPORARY.fullmatch(path.name)
        # This process's own pid counts as dead: it writes one thing at a time, so what bears its
        # number comes from an earlier process (in containers the same pid returns every time).
        if match and (int(match[1]) == os.getpid() or not is_alive(int(match[1]))):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine bears this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
