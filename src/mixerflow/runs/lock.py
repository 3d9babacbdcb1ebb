"""The lock that lets one process write to a folder.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixerflow.errors import InUseError
from mixerflow.runs.files import is_alive, sweep, writing

_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

_TRIES = 100

_flocked: set[int] = set()  # descriptors this process holds a lock through


def _leave_locks_to_parent() -> None:
    """Close inherited lock files: a lock ends only when the last copy of its file is closed."""
    while _flocked:
        os.close(_flocked.pop())


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Be the one process that writes here; reading needs no lock.

    The kernel's `flock`, which ends with the process however it ends. Where the file system
    has none: a warning, and a file that names its holder's host and process.

    Args:
        folder: the folder, made if it is not there, and then taken away again if nothing has come
            into it; what dead writers left in it is swept.

    Raises:
        InUseError: another process holds the folder.
        ResourceError: it cannot be written.
    """
    with writing(folder):
        made = not folder.exists()
        release = _flock(folder)
    owner = os.getpid()
    try:
        with writing(folder):
            sweep(folder)
        yield
    finally:
        if os.getpid() == owner:  # a forked child that leaves this block has no lock to end
            if made:
                _remove_unused(folder)
            release()


def _remove_unused(folder: Path) -> None:
    """Take away a folder with nothing in it but its lock, which is held."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def _open(path: Path) -> int:
    """The lock file's descriptor; its folder is made where it is not, or not any more."""
    for _ in range(_TRIES):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileExistsError, FileNotFoundError):
            if path.parent.exists():
                raise
    raise InUseError("another process makes it and takes it away", path.parent, "try again")


def _flock(folder: Path) -> Callable[[], None]:
    path = folder / ".lock"
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _signature())
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0)
        os.close(descriptor)
        remedy = "wait for it or stop it, or choose another folder"
        raise InUseError(f"{_name(holder)} is writing here", folder, remedy) from None
    except OSError as error:
        os.close(descriptor)
        if error.errno not in _NO_FLOCK:
            raise
        return _exclusive(folder)
    if not _is_still(path, descriptor):  # its last holder has just taken the folder away
        os.close(descriptor)
        return _flock(folder)
    _flocked.add(descriptor)

    def release() -> None:
        _flocked.discard(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    return release


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file: its last holder may have taken it away meanwhile."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _exclusive(folder: Path) -> Callable[[], None]:
    path = folder / ".lock-exclusive"
    warnings.warn(f"no flock on this file system: {path} marks the writer", stacklevel=5)
    try:
        _create(path)
    except FileExistsError:
        _take_over(path)
    return lambda: path.unlink(missing_ok=True)


def _create(path: Path) -> None:
    """Make a file that bears this process's name, if there is none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, _signature())
    os.close(descriptor)


def _take_over(path: Path) -> None:
    """Put this process's name in place of a dead one's.

    Two processes may find the same dead name: only who has made the second file, the claim, looks
    again and replaces, so that none replaces the other's.
    """
    claim = path.with_name(f"{path.name}-claim")
    try:
        _refuse_unless_stale(path)
        _create(claim)
        try:
            _refuse_unless_stale(path)
            os.replace(claim, path)
        except BaseException:
            claim.unlink(missing_ok=True)
            raise
    except FileExistsError:
        remedy = "wait for it; if it is gone, delete this file"
        raise InUseError("another process is taking over", claim, remedy) from None
    except FileNotFoundError:
        remedy = "try again"
        raise InUseError("another process has just left", path, remedy) from None


def _refuse_unless_stale(path: Path) -> None:
    holder = path.read_bytes()
    host, pid = _host_and_pid(holder)
    if host != socket.gethostname() or not pid.isdecimal() or is_alive(int(pid)):
        remedy = "wait for it or stop it; if it is gone, delete this file"
        raise InUseError(f"{_name(holder)} is writing here", path, remedy)


def _signature() -> bytes:
    return f"{socket.gethostname()} {os.getpid()}\n".encode()


def _host_and_pid(holder: bytes) -> tuple[str, str]:
    host, _, pid = holder.decode(errors="replace").strip().rpartition(" ")
    return host, pid


def _name(holder: bytes) -> str:
    host, pid = _host_and_pid(holder)
    return f"process {pid} on {host}" if host else "an unknown process"
