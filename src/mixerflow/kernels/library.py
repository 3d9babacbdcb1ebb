"""The C kernels: built once with the machine's compiler, kept in the user's cache folder.

Where nothing can be kept they are built anew by each process, with a warning.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch

_HERE = Path(__file__).parent
_SOURCES = sorted(path.name for path in _HERE.glob("*.[ch]"))
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-march=native",
    "-fPIC",
    "-shared",
    "-pthread",
    "-w",
)


class BuildError(RuntimeError):
    """The kernels cannot be built here; says why in a line."""


def compiler() -> list[str]:
    """The C compiler that builds them, and what it is told first: ``$CC``, or cc."""
    return shlex.split(os.environ.get("CC", "")) or ["cc"]


def cache_folder() -> Path:
    """Where built kernels are kept: ``$XDG_CACHE_HOME/mixerflow/kernels``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mixerflow" / "kernels"


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
    except OSError:
        return platform.processor()


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The kernels for float32, or float64 for proofs.

    Raises:
        BuildError: no compiler, or it fails.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    text = b"".join((_HERE / name).read_bytes() for name in _SOURCES)
    told = repr((real, compiler(), _FLAGS, platform.machine(), _processor(), torch.__version__))
    name = hashlib.sha256(text + told.encode()).hexdigest()[:16]
    name = f"rows-{real}-{name}.so"
    try:
        return _load(cache_folder() / name, real)
    except BuildError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        unkept = error
    try:
        with tempfile.TemporaryDirectory() as folder:  # what is loaded needs its file no more
            loaded = _load(Path(folder) / name, real)
    except OSError as error:
        raise BuildError(str(error)) from error
    what = f"the CPU's kernels cannot be kept ({unkept}) and are compiled by each process"
    warnings.warn(f"{what}: set XDG_CACHE_HOME to a folder for them", RuntimeWarning, stacklevel=2)
    return loaded


def _load(built: Path, real: str) -> ctypes.CDLL:
    """Load a library, built first if it is not there or cut short."""
    if built.exists():
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(built))
    _build(built, real)
    return ctypes.CDLL(str(built))


def _build(to: Path, real: str) -> None:
    """Compile beside the target and move into place: several processes may build at once."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder) / to.name
        for threads in (["-fopenmp"], []):  # some compilers have no OpenMP: one thread then
            command = [*compiler(), *_FLAGS, *threads, f"-DREAL={real}", str(_HERE / "rows.c")]
            try:
                ran = subprocess.run(
                    [*command, "-lm", "-o", str(made)], capture_output=True, text=True, check=False
                )
            except FileNotFoundError:
                raise BuildError(f"there is no C compiler {compiler()[0]!r}") from None
            if ran.returncode == 0:
                made.replace(to)
                return
        said = ran.stderr.strip().splitlines()
        raise BuildError(f"{shlex.join(compiler())} failed: {said[0] if said else 'no message'}")
