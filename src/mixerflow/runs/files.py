"""Writes that a crash cannot leave half done, and the lock that lets one process write a folder.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mixerflow.errors import CheckpointError, InUseError, ResourceError, first_line
from mixerflow.runs.reading import LARGEST, parse_json, read_file
from mixerflow.temporary import sweep, temporary_path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_TRIES = 100
_SEAL = "crc32"


@contextmanager
def writing(folder: Path, needed: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn a failure to write below ``folder`` into an error for people.

    Args:
        folder: the folder to name.
        needed: returns the bytes that the write takes; called only when the disk is full.

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
        remedy = "free some space and resume: earlier files are untouched"
        raise ResourceError(f"disk full{size}", folder, remedy) from error


def write_synced(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries, where the file system can say so."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems refuse to sync a folder
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, *, named: bool = False) -> None:
    """Replace a file so that a reader, or a crash, sees the whole old or the whole new content.

    For a file that was `named` by a person see `replacing`.
    """
    with replacing(path, named=named) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, named: bool = False) -> Iterator[BinaryIO]:
    """Write a file in pieces, in a ``with`` block: it takes the place of `path` when it is whole.

    A reader, or a crash, sees the whole old or the whole new content. Where the file was `named` by
    a person, a link stays, and what it points to is written; and a device, a pipe or an open file
    (``/dev/fd/3``) is written directly. Elsewhere a link is replaced: a run folder of somebody else
    must not lead to other files.
    """
    path, special = _behind_links(path) if named else (path, False)
    if special:
        own = path.parent == Path(f"/proc/{os.getpid()}/fd")
        with open(os.dup(int(path.name)) if own else path, "wb") as file:
            yield file
        return
    temporary = temporary_path(path)
    try:
        file = temporary.open("wb")
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):  # a full disk, once more
                file.close()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _behind_links(path: Path) -> tuple[Path, bool]:
    """Return the file that a path stands for, and whether it can only be written directly."""
    for _ in range(_TRIES):
        folder = Path(os.path.realpath(path.parent))
        path = folder / path.name
        if folder.name == "fd" and folder.parts[:2] == ("/", "proc"):  # of a process
            return path, True
        if not path.is_symlink():
            break
        path = folder / os.readlink(path)
    return path, path.exists() and not path.is_file() and not path.is_dir()


def require_writable(path: Path, remedy: str = "", *, named: bool = False) -> None:
    """Try, before long work, whether a file can be written there, and leave no trace.

    For a file that was `named` by a person see `replacing`.

    Raises:
        ResourceError: it cannot; `remedy` says what to do instead of making it writable.
    """
    shown = path
    try:
        with writing(path.parent):
            path, special = _behind_links(path) if named else (path, False)
            if special:
                if not os.access(path, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return
            missing = [each for each in path.parents if not each.exists()]
            temporary = temporary_path(path)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(b"\n")
                if os.path.isdir(path):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                with contextlib.suppress(FileNotFoundError):
                    os.lstat(path)  # too long a name shows here
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                    for folder in missing:
                        folder.rmdir()
    except ResourceError as error:
        raise ResourceError(error.what, shown, remedy or error.remedy) from error


def json_text(record: dict[str, Any], *, indent: int | None = 2) -> str:
    """Return a record as JSON, which has no NaN and no infinity: see `without_nan`."""
    text = json.dumps(without_nan(record), indent=indent, allow_nan=False)
    return text.replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is


def sealed(record: dict[str, Any], *, indent: int | None = 2) -> bytes:
    """Return a record as lines of JSON, with the CRC-32 of its text as its last entry."""
    content = {key: value for key, value in without_nan(record).items() if key != _SEAL}
    content[_SEAL] = _crc32(content)
    return f"{json_text(content, indent=indent)}\n".encode()


def unsealed(record: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return JSON that `sealed` wrote, parsed, without the CRC-32; an older record has none.

    Raises:
        ValueError: it is no JSON object, or differs from what was written.
    """
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    if _SEAL in record:
        if record.pop(_SEAL) != _crc32(record):
            raise ValueError(f"its {_SEAL} differs")
    elif record:
        *others, (name, value) = record.items()
        if value == _crc32(dict(others)):  # a bit of the check's name is damaged
            raise ValueError(f"{name!r} is no {_SEAL}")
    return record


def read_record(path: Path, remedy: str) -> dict[str, Any] | None:
    """Read a record that `sealed` wrote; None where there is no such file.

    Raises:
        CheckpointError: it is damaged or cannot be read; `remedy` says what to do.
    """
    try:
        return unsealed(parse_json(read_file(path, largest=LARGEST)))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read ({error.strerror})", path, remedy) from error
    except ValueError as error:
        raise CheckpointError(f"damaged ({first_line(error)})", path, remedy) from error


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json_text(record, indent=None).encode())


def without_nan(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record whose numbers that are not finite are None.

    An entry ``"not_finite"`` then says which they were: ``{"curve.1.gain": "nan"}``.
    """
    found: dict[str, str] = {}

    def clean(value: object, path: str) -> object:
        if isinstance(value, dict):
            return {key: clean(each, f"{path}.{key}") for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(each, f"{path}.{i}") for i, each in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            found[path[1:]] = str(value)
            return None
        return value

    cleaned = clean(record, "")
    assert isinstance(cleaned, dict)
    return cleaned | {"not_finite": found} if found else cleaned


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Make this process the only writer of a folder, in a ``with`` block; reading needs no lock.

    The kernel's `flock`, which ends with the process. Where the file system or the platform has
    none: a warning, and a file ``.lock-exclusive`` that names the writer's process and host.

    Args:
        folder: created if it is missing, and then removed again if it stays empty; temporary files
            of dead writers in it are removed.

    Raises:
        InUseError: another process writes to the folder; names that process.
        ResourceError: the folder cannot be written.
    """
    with writing(folder):
        created = not folder.exists()
        release = _acquire(folder)
    owner = os.getpid()
    try:
        with writing(folder):
            sweep(folder)
        yield
    finally:
        if os.getpid() == owner:  # a forked child that leaves this block holds no lock
            if created:
                _remove_unused(folder)
            release()


def _remove_unused(folder: Path) -> None:
    """Remove a folder that holds nothing but its lock."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()


def _acquire(folder: Path) -> Callable[[], object]:
    """Lock a folder, which another process may remove meanwhile; return what unlocks it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no fcntl: the marker's own warning says more
        from filelock import FileLock, Timeout, UnixFileLock

    path, made = folder / ".lock", False
    for number in range(_TRIES):
        held = FileLock(path, timeout=0, thread_local=False, fallback_to_soft=False)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made = True
            if FileLock is not UnixFileLock:  # Windows locks a file's bytes too: no name goes in
                return _acquire_marker(folder)
            held.acquire()
        except Timeout:
            holder = _read(path)
            if holder is not None:
                remedy = "wait for it or stop it, or choose another folder"
                raise InUseError(f"{_name(holder)} is writing here", folder, remedy) from None
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return _acquire_marker(folder)
            never = not made and number == _TRIES - 1  # as below /proc
            if not isinstance(error, FileNotFoundError) or folder.exists() or never:
                raise
        else:
            path.write_text(f"{os.getpid()}\n{socket.gethostname()}\n", "utf-8")
            return held.release
    raise InUseError("another process creates and removes it", folder, "try again")


def _acquire_marker(folder: Path) -> Callable[[], object]:
    """The same by a file's existence; the file of a dead process is taken over."""
    from filelock import SoftFileLock, Timeout

    path = folder / ".lock-exclusive"
    warnings.warn(f"no flock on this file system: {path} marks the writer", stacklevel=5)
    held = SoftFileLock(path, timeout=0, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        remedy = "wait for it or stop it; if it is gone, delete this file"
        raise InUseError(f"{_name(_read(path) or '')} is writing here", path, remedy) from None
    return held.release


def _read(path: Path) -> str | None:
    """The content of a lock file; None where there is no such file any more."""
    try:
        return path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _name(content: str) -> str:
    """The process that a lock file names by its first lines, pid and host."""
    pid, host, *_ = [*content.split("\n"), "", ""]
    return f"process {pid} on {host}" if pid and host else "an unknown process"
