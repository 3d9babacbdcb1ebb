"""The C kernels as a library; `mixerflow.compiled` builds it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from mixerflow import compiled

_MAIN = Path(__file__).parent / "rows.c"
_FLAGS = (
    "-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread",
    "-w",
)  # fmt: skip
# Tried in turn: some compilers for ARM have no -march=native, some have no OpenMP (one thread).
_WAYS = (
    ("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native", "-fopenmp"),
    ("-mcpu=native",), (),
)  # fmt: skip


def source(dtype: torch.dtype) -> compiled.Source:
    """Return the kernels for float32, or for float64, which proofs use."""
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    flags = (*_FLAGS, f"-DREAL={real}")
    return compiled.Source(_MAIN, "the CPU's kernels", flags, _WAYS, key=torch.__version__)


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Load the kernels of a dtype; BuildError if they cannot be built."""
    return compiled.load(source(dtype))
