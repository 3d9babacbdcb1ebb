"""A program as it is put together: tables that are stored once, operations, numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixerflow.compression.program import FORMAT, Base, Operation, Program

Positions = np.ndarray
"""Positions of the features of rows, int64 ``(rows, features)``."""


class Assembly:
    """Operations and numbers of a program for images of a shape, in the order in which they come.

    Attributes:
        operations: how many there are so far.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.operations = 0
        self._tables: dict[bytes, int] = {}
        self._words: list[int] = []
        self._numbers: list[np.ndarray] = []

    def add(
        self, operation: Operation, rows: Positions, *words: int, numbers: Sequence[np.ndarray]
    ) -> None:
        """Add an operation on the features of rows, with the words and numbers that follow."""
        table = np.ascontiguousarray(rows.T, dtype="<i4").tobytes()
        number = self._tables.setdefault(table, len(self._tables))
        self._words += [operation, number, len(rows), *words]
        self._numbers += [np.ravel(each).astype(np.float64) for each in numbers]
        self.operations += 1

    def affine(
        self, rows: Positions, factor: np.ndarray, log_scale: np.ndarray, shift: np.ndarray
    ) -> None:
        """Add ``z = x factor exp(log_scale) + shift`` for each of the features."""
        self.add(Operation.AFFINE, rows, numbers=[factor, log_scale, shift])

    def triangles(self, rows: Positions, packed: np.ndarray, bias: np.ndarray) -> None:
        """Add ``z = L U x + bias`` with packed triangles."""
        self.add(Operation.TRIANGLES, rows, numbers=[packed, bias])

    def program(
        self, levels: int, classes: int, base: Base, components: int, numbers: Sequence[np.ndarray]
    ) -> Program:
        """Return the program, with a base of so many components and its numbers."""
        channels, *others, width = self.shape
        height = int(np.prod(others, dtype=np.int64))
        size = channels * height * width
        words = [FORMAT, levels, size, channels, height, width, classes, base, components]
        words.append(len(self._tables))
        for table in self._tables:
            positions = np.frombuffer(table, "<i4")
            words += [len(positions), *positions.tolist()]
        words += [self.operations, *self._words]
        every = [*(np.ravel(each).astype(np.float64) for each in numbers), *self._numbers]
        return Program(
            np.array(words, np.int32), np.concatenate([np.zeros(0), *every]), self.shape, levels,
            classes,
        )  # fmt: skip
