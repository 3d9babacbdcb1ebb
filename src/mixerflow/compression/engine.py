"""The native codec of a program: blocks of images to bytes, and back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mixerflow.compression.program import Program


@dataclass(frozen=True)
class Block:
    """A coded block of images.

    Attributes:
        payload: the coder's words, little-endian.
        initial: images at the block's end that the predictor codes.
        report: what was counted, by name (see `native/codec.h`).
    """

    payload: bytes
    initial: int
    report: dict[str, float] = field(default_factory=dict)


class Engine:
    """The native codec of a program, with k bits below a pixel; one may be used by many threads.

    Raises:
        ConfigError: there is no C compiler, or it fails.
    """

    def __init__(self, program: Program, k: int = 16) -> None:
        self.program, self.k = program, k

    @property
    def fingerprint(self) -> int:
        """A 64-bit number that machines must agree on to decode each other's files."""
        raise NotImplementedError

    def encode(self, pixels: np.ndarray, classes: np.ndarray | None = None) -> Block:
        """Code images ``(N, *shape)``, with their classes ``(N,)`` if it has any."""
        raise NotImplementedError

    def decode(
        self, payload: bytes, images: int, initial: int, classes: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the images ``(N, *shape)`` of a block; DataError if it is not of this program."""
        raise NotImplementedError
