"""The C kernels, built once with the machine's compiler and stored in the user's cache folder.

A stored library is loaded only if nobody but the user could have written it. If they cannot be
stored, each process builds them anew, with a warning.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from pathlib import Path

import torch

from mixerflow.caches import user_cache
from mixerflow.compiler import compiler
from mixerflow.errors import ResourceError
from mixerflow.temporary import sweep, temporary_path

_HERE = Path(__file__).parent
_SOURCES = sorted(path.name for path in _HERE.glob("*.[ch]"))
_FLAGS = (
    "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread",
    "-w",
)  # fmt: skip
# Tried in turn: some compilers for ARM have no -march=native, some have no OpenMP (one thread).
_WAYS = (
    ("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native", "-fopenmp"),
    ("-mcpu=native",), (),
)  # fmt: skip
_DIGEST = hashlib.sha256().digest_size
_building = threading.Lock()


class BuildError(RuntimeError):
    """The kernels cannot be built on this machine; the message says why in one line."""


def cache_folder() -> Path:
    """Return the folder of built kernels: ``$XDG_CACHE_HOME/mixerflow/kernels``."""
    return user_cache() / "kernels"


def _processor() -> str:
    """Return the processor's features, on which ``-march=native`` depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    except OSError:
        return platform.processor()


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Load the kernels for float32, or for float64, which proofs use; BuildError if they fail."""
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    sources = b"".join((_HERE / name).read_bytes() for name in _SOURCES)
    build = repr(
        (real, compiler(), _FLAGS, _WAYS, platform.machine(), _processor(), torch.__version__)
    )
    name = f"rows-{real}-{hashlib.sha256(sources + build.encode()).hexdigest()[:16]}.so"
    try:
        return _load(cache_folder() / name, real)
    except BuildError:
        raise
    except (OSError, ResourceError) as error:  # ResourceError: there is no home folder
        cache_error = error
    try:
        with tempfile.TemporaryDirectory() as folder:  # a loaded library needs its file no more
            loaded = _load(Path(folder) / name, real)
    except OSError as error:
        raise BuildError(str(error)) from error
    what = f"the CPU's kernels cannot be kept ({cache_error}) and are compiled by each process"
    warnings.warn(f"{what}: set XDG_CACHE_HOME to a folder for them", RuntimeWarning, stacklevel=2)
    return loaded


def _load(built: Path, real: str) -> ctypes.CDLL:
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
        _build(built, real)
    return ctypes.CDLL(str(built))


def _is_private(path: Path) -> bool:
    """Whether only this user, or root, can write a file or folder, where the system has users."""
    if not hasattr(os, "geteuid"):
        return True
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


def _build(to: Path, real: str) -> None:
    """Compile beside the target and move into place: several processes may build at once."""
    sweep(to.parent)
    folder = temporary_path(to)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        built = folder / to.name
        options = [f"-DREAL={real}", str(_HERE / "rows.c"), "-lm", "-o", str(built)]
        lines = []
        for way in _WAYS:
            command = [*compiler(), *_FLAGS, *way, *options]
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
        raise BuildError(f"{shlex.join(compiler())} failed: {(lines or ['no message'])[0]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
