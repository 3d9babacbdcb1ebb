"""The codec's C code as a library; `mixerflow.compiled` builds it."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from mixerflow import compiled

# The same numbers on every machine: what $CC says of loose arithmetic is taken back first, and
# contraction, which clang couples to it, is switched off behind that.
_FLAGS = (
    "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-associative-math",
    "-fno-reciprocal-math", "-fno-finite-math-only", "-std=gnu11", "-O3", "-ffp-contract=off",
    "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-w",
)  # fmt: skip

SOURCE = compiled.Source(
    main=Path(__file__).parent / "native" / "codec.c",
    about="the codec's functions",
    flags=_FLAGS,
    ways=(("-march=native",), ("-mcpu=native",), ()),
)


@functools.cache
def library() -> ctypes.CDLL:
    """Load the codec; BuildError if it cannot be built."""
    return compiled.load(SOURCE)
