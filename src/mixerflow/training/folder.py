"""The run folder: its configuration, its metrics, and the lock that lets one process write.

Nothing here imports torch, so that a table of a hundred runs reads quickly.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixerflow.errors import CheckpointError, ConfigError, ResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_TEMPORARY = re.compile(r"\.tmp-.+-(\d+)")

_flocked: set[int] = set()  # descriptors this process holds a lock through


def _leave_locks_to_parent() -> None:
    """Close inherited lock files: a lock ends only when the last copy of its file is closed."""
    while _flocked:
        os.close(_flocked.pop())


os.register_at_fork(after_in_child=_leave_locks_to_parent)


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
        if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class RunFolder:
    """The folder of one training run.

    Args:
        path: the folder; the first write makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "run.json"
        self.metrics_path = self.path / "metrics.jsonl"

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``run.json`` whole.

        Args:
            config: what JSON can hold.

        Raises:
            ResourceError: the folder cannot be written.
        """
        data = (json.dumps(config, indent=2) + "\n").encode()
        with writing(self.path, lambda: len(data)):
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config_path, data)

    def read_config(self) -> dict[str, Any]:
        """Read ``run.json``.

        Raises:
            ConfigError: this is no run folder.
            CheckpointError: ``run.json`` is damaged.
        """
        try:
            config = json.loads(self.config_path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            remedy = "name a folder that training has made"
            raise ConfigError("no run.json, so no run", self.path, remedy) from None
        except OSError as error:
            raise _unreadable(self.config_path, error) from error
        except ValueError as error:
            raise self._damaged_config(str(error)) from error
        if not isinstance(config, dict):
            raise self._damaged_config("not a JSON object")
        return config

    def _damaged_config(self, why: str) -> CheckpointError:
        remedy = "put a copy back, or train again in a new folder"
        return CheckpointError(f"run.json is damaged ({why})", self.config_path, remedy)

    def update(self, changes: dict[str, Any]) -> None:
        """Change some entries of ``run.json``, the status for one, and keep the others.

        Raises:
            ConfigError: this is no run folder.
            CheckpointError: ``run.json`` is damaged.
            ResourceError: the folder cannot be written.
        """
        self.write_config(self.read_config() | changes)

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``.

        Raises:
            ResourceError: the folder cannot be written.
        """
        line = (json.dumps(record) + "\n").encode()
        with writing(self.path, lambda: len(line)), open(self.metrics_path, "ab") as file:
            file.write(line)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Read ``metrics.jsonl``, without a last line that a killed process left half written.

        Raises:
            CheckpointError: another line is damaged.
        """
        return [record for _, record in self._lines()]

    def cut_back(self, step: int) -> None:
        """Drop what was recorded after ``step``, and a half-written last line.

        Args:
            step: records whose ``"step"`` is greater go; those without one stay.

        Raises:
            CheckpointError: a line other than the last is damaged.
            ResourceError: the folder cannot be written.
        """
        if self.metrics_path.exists():
            kept = [line for line, record in self._lines() if record.get("step", step) <= step]
            data = b"".join(kept)
            with writing(self.path, lambda: len(data)):
                write_atomically(self.metrics_path, data)

    def _lines(self) -> Iterator[tuple[bytes, dict[str, Any]]]:
        try:
            data = self.metrics_path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreadable(self.metrics_path, error) from error
        # A record ends with its newline: what follows the last one is torn, or empty.
        for number, line in enumerate(data.split(b"\n")[:-1], start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:
                where = f"{self.metrics_path}, line {number}"
                raise CheckpointError("damaged metrics", where, "delete that line") from error
            yield line + b"\n", record

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the one process that writes here; reading needs no lock.

        The kernel's `flock`, which ends with the process however it ends. Where the file system
        has none: a warning, and a file that names its holder's host and process.

        Raises:
            ResourceError: another process holds the folder, or it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            release = self._flock()
        owner = os.getpid()
        try:
            with writing(self.path):
                sweep(self.path)
            yield
        finally:
            if os.getpid() == owner:  # a forked child that leaves this block has no lock to end
                release()

    def _flock(self) -> Callable[[], None]:
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _signature())
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0)
            os.close(descriptor)
            remedy = "wait for it or stop it, or choose another folder"
            raise ResourceError(f"{_name(holder)} is writing here", self.path, remedy) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_FLOCK:
                raise
            return self._exclusive()
        _flocked.add(descriptor)

        def release() -> None:
            _flocked.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

        return release

    def _exclusive(self) -> Callable[[], None]:
        path = self.path / ".lock-exclusive"
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
        raise ResourceError("another process is taking over", claim, remedy) from None
    except FileNotFoundError:
        remedy = "try again"
        raise ResourceError("another process has just left", path, remedy) from None


def _refuse_unless_stale(path: Path) -> None:
    holder = path.read_bytes()
    host, pid = _host_and_pid(holder)
    if host != socket.gethostname() or not pid.isdecimal() or _alive(int(pid)):
        remedy = "wait for it or stop it; if it is gone, delete this file"
        raise ResourceError(f"{_name(holder)} is writing here", path, remedy)


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    remedy = "make it readable, or name another run"
    return CheckpointError(f"cannot read ({error.strerror})", path, remedy)


def _signature() -> bytes:
    return f"{socket.gethostname()} {os.getpid()}\n".encode()


def _host_and_pid(holder: bytes) -> tuple[str, str]:
    host, _, pid = holder.decode(errors="replace").strip().rpartition(" ")
    return host, pid


def _name(holder: bytes) -> str:
    host, pid = _host_and_pid(holder)
    return f"process {pid} on {host}" if host else "an unknown process"
