"""A flow as a list of operations on integers, which the native codec reads.

A program is two arrays: `words` (int32) and `numbers` (float64), each read from the first to the
last. Every pixel of an image ``(C, *spatial)``, flattened, has a position 0 to D - 1; operations
never move numbers, they read and change those at the positions of a table. A table of n features
and P rows has the position of feature i of row p at ``i P + p``.

    words: FORMAT, levels, D, channels, height, width, classes,
           base, components,
           number of tables, then each table: length, positions ...
           number of operations, then each operation: its kind and its words

`classes` is 0 for a flow without. Images ``(C, *spatial)`` have the last axis as their width, all
other spatial axes as their height: it matters to the predictor of pixels only.

- AFFINE, words: table, rows; numbers: factor (n), log_scale (n), shift (n):
  ``z_i = x_i factor_i exp(log_scale_i) + shift_i``. Factors may be negative, never 0.
- TRIANGLES, words: table, rows; numbers: packed (n, n), bias (n): ``z = L U x + bias``, packed as
  `mixerflow.transforms.LU` packs them.
- SCORES, words: table, rows, whose features are the image's channels; numbers: shares (n, levels):
  `mixerflow.transforms.NormalScores` of all pixels, before any other operation.
- COUPLING, words: table, rows, given, map, hidden, squash, squares, norm, by class, by row (the
  last two, and squash and squares, are 0 or 1); numbers: limit, epsilon; enter (hidden, reads) and
  its bias (hidden); by class (classes, hidden), if so; by row (rows, hidden), if so; the first
  norm; linear1 (hidden, hidden) and its bias; the second norm; linear2 and its bias; leave
  (2 changed, hidden) and its bias, log-scales first.
- CONVOLUTION, words: table, rows, given, map, hidden, squash, norm, by class, depth, taps, then
  neighbours (taps, rows), each a row, or the number of rows for none; numbers: limit, epsilon;
  enter (hidden, taps, given) and its bias; by class (classes, hidden), if so; for each block, the
  first norm, mix (hidden, hidden) and its bias, the second norm, look (hidden, taps, hidden) and
  its bias; leave (2 changed, taps, hidden) and its bias, log-scales first.
- Where a map is a SPLINE, the number of its bins is the next word, the limit is its tail, and leave
  has ``3 bins - 1`` raw parameters for each changed feature, as the spline takes them.

In a coupling the first `given` features are read by a net, the others are changed. ``reads`` is
`given`, or twice that with squares, which follow the features. The net is
`mixerflow.nets.ResidualMLP`; its second batch norm is folded into linear1, and its first one is a
scale and a shift. What a class or a row adds to the first layer is the product of its context and
the context's matrix. `map` is an `Affine` without bound (EXPONENTIAL), with one (BOUNDED, limit),
or a `FlooredAffine` (FLOORED, limit). `norm` is NO_NORM (no numbers), SCALE (weight and bias
(hidden), for the first norm only), LAYER (weight and bias, for both), or RMS (no numbers).

A CONVOLUTION is a coupling whose net is `mixerflow.nets.ResidualConvNet`, of `depth` blocks: rows
are an image's pixels, and at a pixel a convolution reads its neighbours, one for each tap; where
there is none it reads zeros.

Matrices are stored by rows, of outputs. The numbers of nets are float32 values.

The base's numbers come first. It is NORMAL (no numbers), STUDENT (offset,
factor and log, of ``offset + factor exp(log)`` degrees of freedom), or MIXTURE (logits, means and
log-scales, `components` each; the others have 0 components); all latent numbers are independent and
of this one distribution.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

FORMAT = 1


class Operation(IntEnum):
    """What an operation is."""

    AFFINE = 1
    TRIANGLES = 2
    COUPLING = 3
    CONVOLUTION = 4
    SCORES = 5


class Map(IntEnum):
    """The elementwise map of a coupling."""

    EXPONENTIAL = 0
    BOUNDED = 1
    FLOORED = 2
    SPLINE = 3


class Norm(IntEnum):
    """The norms of a coupling's net."""

    NO_NORM = 0
    SCALE = 1
    LAYER = 2
    RMS = 3


class Base(IntEnum):
    """The distribution of the latents."""

    NORMAL = 0
    STUDENT = 1
    MIXTURE = 2


@dataclass(frozen=True, eq=False)
class Program:
    """A flow as operations on integers: see this file's docstring.

    Attributes:
        words: int32.
        numbers: float64.
        shape: of an image, ``(C, *spatial)``.
        levels: of a pixel.
        classes: classes of the flow; 0 for none.
    """

    words: np.ndarray
    numbers: np.ndarray
    shape: tuple[int, ...]
    levels: int
    classes: int

    @property
    def sha256(self) -> str:
        """The digest of the program, as little-endian bytes."""
        digest = hashlib.sha256(self.words.astype("<i4").tobytes())
        digest.update(self.numbers.astype("<f8").tobytes())
        return digest.hexdigest()
