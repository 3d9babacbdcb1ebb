"""Cuts: an image becomes a patch matrix ``(patches, channels)``, and nothing is lost."""

from __future__ import annotations

import math

from torch import Tensor

from mixerflow.core import Noise, Shape, Transform, constant, expect


class Patches(Transform):
    """Rearrange ``(C, *spatial)`` into ``(patches, C * values a patch)``; log-det 0.

    Args:
        shape: the image's event shape ``(C, *spatial)``, one to three spatial axes.
        patch: a patch's side on each spatial axis.

    Raises:
        ValueError: a side does not divide the image's; names the sides that do.
    """

    contiguous = True

    def __init__(self, shape: Shape, patch: Shape) -> None:
        super().__init__()
        self.shape, self.patch = tuple(shape), tuple(patch)
        channels, *spatial = self.shape
        if not 1 <= len(spatial) <= 3 or len(self.patch) != len(spatial):
            raise ValueError(f"{type(self).__name__}: patch {patch} does not fit images {shape}")
        for axis, (n, p) in enumerate(zip(spatial, self.patch, strict=True)):
            if p < 1 or n % p:
                fits = ", ".join(str(q) for q in range(1, n + 1) if n % q == 0)
                raise ValueError(
                    f"{type(self).__name__}: patch side {p} does not divide the {n} pixels of "
                    f"spatial axis {axis} of images {self.shape}; these do: {fits}"
                )
        self.cells = tuple(n // p for n, p in zip(spatial, self.patch, strict=True))
        self.matrix = (math.prod(self.cells), channels * math.prod(self.patch))
        # each spatial axis is split in two; which of the halves counts the patches is the scheme
        pairs = zip(self.cells, self.patch, strict=True)
        split = [(c, p) if self.contiguous else (p, c) for c, p in pairs]
        self._split = (channels, *(n for pair in split for n in pair))
        cell_axes = [2 * i + (1 if self.contiguous else 2) for i in range(len(spatial))]
        patch_axes = [2 * i + (2 if self.contiguous else 1) for i in range(len(spatial))]
        self._order = (*cell_axes, 0, *patch_axes)

    def forward(  # noqa: D102
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        expect(self, tuple(x.shape[1:]), self.shape)
        split = x.reshape(-1, *self._split)
        cut = split.permute(0, *(axis + 1 for axis in self._order))
        return cut.reshape(-1, *self.matrix), constant(0.0, x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        expect(self, tuple(z.shape[1:]), self.matrix)
        cut = z.reshape(-1, *(self._split[axis] for axis in self._order))
        back = [0] * len(self._order)
        for position, axis in enumerate(self._order):
            back[axis] = position + 1
        return cut.permute(0, *back).reshape(-1, *self.shape), constant(0.0, z)

    def out_shape(self, shape: Shape) -> Shape:  # noqa: D102
        expect(self, shape, self.shape)
        return self.matrix

    def same_as(self, other: Transform) -> bool:
        """Whether the other cuts the same images the same way."""
        mine = (self.shape, self._split, self._order)
        return isinstance(other, Patches) and mine == (other.shape, other._split, other._order)

    def extra_repr(self) -> str:
        """Image and patch, in ``print(flow)``."""
        return f"{self.shape}, patch={self.patch}"


class Dilated(Patches):
    """Patches whose pixels lie one grid apart: each is a coarse view of the whole image."""

    contiguous = False


class Stripes(Patches):
    """Patches as wide as the image: `height` rows each (the first spatial axis is cut).

    Args:
        shape: the image's event shape.
        height: rows a stripe.
    """

    def __init__(self, shape: Shape, height: int) -> None:
        super().__init__(shape, (height, *shape[2:]))


class Bands(Patches):
    """Patches as high as the image: `width` columns each (the last spatial axis is cut).

    Args:
        shape: the image's event shape.
        width: columns a band.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__(shape, (*shape[1:-1], width))
