"""C code of the tests, compiled by the test that asks for it."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixerflow.compiler import compiler

NATIVE = Path(__file__).parent / "native"


def build(name: str, to: Path, *flags: str, cc: Sequence[str] = ()) -> Path:
    """Compile `native/NAME` to a file."""
    command = [*(cc or compiler()), "-std=gnu11", "-ffp-contract=off", *flags, str(NATIVE / name)]
    subprocess.run([*command, "-lm", "-o", str(to)], check=True)
    return to


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Return the address of an array that lies in one piece."""
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
