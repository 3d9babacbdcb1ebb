"""C libraries, built once with the machine's compiler and stored in the user's cache folder.

A stored library is loaded only if nobody but the user could have written it. If they cannot be
stored, each process builds them anew, with a warning. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from mixerflow.caches import user_cache
from mixerflow.compiler import compiler
from mixerflow.errors import ResourceError
from mixerflow.temporary import sweep, temporary_path

_DIGEST = hashlib.sha256().digest_size
_building = threading.Lock()


class BuildError(RuntimeError):
    """A library cannot be built on this machine; the message says why in one line."""


@dataclass(frozen=True)
class Source:
    """A library's C code, and how it is compiled.

    Attributes:
        main: the file that is compiled; it includes others of its folder.
        about: its name in messages, in the plural.
        flags: of the compiler, behind those of ``$CC``.
        ways: more flags, tried in turn until the compiler takes them.
        key: what the library depends on besides its code, compiler, flags and processor.
    """

    main: Path
    about: str
    flags: tuple[str, ...]
    ways: tuple[tuple[str, ...], ...]
    key: str = ""

    def file_name(self) -> str:
        """Return the name of the built library: it has a digest of all that it depends on."""
        code = b"".join(path.read_bytes() for path in sorted(self.main.parent.glob("*.[ch]")))
        flags = (compiler(), self.flags, self.ways)
        build = repr((*flags, platform.machine(), _processor(), self.key)).encode()
        return f"{self.main.stem}-{hashlib.sha256(code + build).hexdigest()[:16]}.so"


def cache_folder() -> Path:
    """Return the folder of built libraries: ``$XDG_CACHE_HOME/mixerflow/kernels``."""
    return user_cache() / "kernels"


def load(source: Source) -> ctypes.CDLL:
    """Load a library, which is built first if need be; BuildError if that fails."""
    name = source.file_name()
    try:
        return _load(cache_folder() / name, source)
    except BuildError:
        raise
    except (OSError, ResourceError) as error:  # ResourceError: there is no home folder
        cache_error = error
    try:
        with tempfile.TemporaryDirectory() as folder:  # a loaded library needs its file no more
            loaded = _load(Path(folder) / name, source)
    except OSError as error:
        raise BuildError(str(error)) from error
    what = f"{source.about} cannot be kept ({cache_error}) and are compiled by each process"
    warnings.warn(f"{what}: set XDG_CACHE_HOME to a folder for them", RuntimeWarning, stacklevel=3)
    return loaded


def _processor() -> str:
    """Return the processor's features, on which ``-march=native`` depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    except OSError:
        return platform.processor()


def _load(built: Path, source: Source) -> ctypes.CDLL:
    """Load a library; build it first if its file is missing or damaged, or others could write it.

    Raises:
        OSError: the folder is another user's, or cannot be written.
        BuildError: the compiler fails.
    """
    built.parent.mkdir(parents=True, exist_ok=True)
    if not _is_private(built.parent):
        os.chmod(built.parent, 0o700)  # an OSError unless it is ours
    with contextlib.suppress(OSError):
        data = built.read_bytes() if _is_private(built) else b""
        if hashlib.sha256(data[:-_DIGEST]).digest() == data[-_DIGEST:]:
            return ctypes.CDLL(str(built))
    with _building:
        _build(built, source)
    return ctypes.CDLL(str(built))


def _is_private(path: Path) -> bool:
    """Whether only this user, or root, can write a file or folder, where the system has users."""
    if not hasattr(os, "geteuid"):
        return True
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _build(to: Path, source: Source) -> None:
    """Compile beside the target and move into place: several processes may build at once."""
    sweep(to.parent)
    folder = temporary_path(to)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        built = folder / to.name
        lines = []
        for way in source.ways:
            given = [*compiler(), *source.flags, *way]
            command = [*given, str(source.main), "-lm", "-o", str(built)]
            try:
                result = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                raise BuildError(f"there is no C compiler {compiler()[0]!r}") from None
            if result.returncode == 0:
                with built.open("ab") as file:  # loaders pass over what follows the library
                    file.write(hashlib.sha256(built.read_bytes()).digest())
                os.chmod(built, 0o755)
                built.replace(to)
                return
            lines = result.stderr.strip().splitlines()
        faults = [line for line in lines if "error:" in line]  # before them: included from where
        line = (faults or lines or ["no message"])[0]
        raise BuildError(f"{shlex.join(compiler())} failed: {line}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
