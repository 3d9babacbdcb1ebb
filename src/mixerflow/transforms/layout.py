"""Where numbers stand: cuts, which make an image a patch matrix, and squeeze; nothing is lost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, constant, expect
from mixerflow.registry import register


class _Rearrangement(Transform):
    """Each spatial axis is split into cells of some pixels, and the axes are put in another order.

    Args:
        shape: the image's event shape ``(C, *spatial)``, one to three spatial axes.
        sides: pixels of a cell on each spatial axis.
        contiguous: whether a cell's pixels are neighbours, or lie one grid apart.

    Raises:
        ValueError: a side does not divide the image's; names the sides that do.
    """

    given: Shape
    """Of the events that come out."""

    def __init__(self, shape: Shape, sides: Shape, *, contiguous: bool) -> None:
        super().__init__()
        self.shape, sides = tuple(shape), tuple(sides)
        channels, *spatial = self.shape
        name = type(self).__name__
        if not 1 <= len(spatial) <= 3 or len(sides) != len(spatial):
            raise ValueError(f"{name}: patch {sides} does not fit images {shape}")
        for axis, (n, p) in enumerate(zip(spatial, sides, strict=True)):
            if p < 1 or n % p:
                fits = ", ".join(str(q) for q in range(1, n + 1) if n % q == 0)
                raise ValueError(
                    f"{name}: patch side {p} does not divide the {n} pixels of "
                    f"spatial axis {axis} of images {self.shape}; these do: {fits}"
                )
        self.cells = tuple(n // p for n, p in zip(spatial, sides, strict=True))
        # each spatial axis is split in two; which of the halves counts the cells is the scheme
        pairs = zip(self.cells, sides, strict=True)
        split = [(c, p) if contiguous else (p, c) for c, p in pairs]
        self._split = (channels, *(n for pair in split for n in pair))
        self._cell_axes = [2 * i + (1 if contiguous else 2) for i in range(len(spatial))]
        self._inner_axes = [2 * i + (2 if contiguous else 1) for i in range(len(spatial))]
        self._order: tuple[int, ...] = ()

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), self.shape)
        split = x.reshape(-1, *self._split)
        cut = split.permute(0, *(axis + 1 for axis in self._order))
        return cut.reshape(-1, *self.given), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), self.given)
        cut = z.reshape(-1, *(self._split[axis] for axis in self._order))
        back = [0] * len(self._order)
        for position, axis in enumerate(self._order):
            back[axis] = position + 1
        return cut.permute(0, *back).reshape(-1, *self.shape), constant(0.0, z)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, self.shape)
        return self.given

    def same_as(self, other: Transform) -> bool:
        """Whether the other rearranges the same images the same way."""
        mine = (self.given, self._split, self._order)
        return isinstance(other, _Rearrangement) and mine == (
            other.given,
            other._split,
            other._order,
        )


@register
class Patchify(_Rearrangement):
    """Rearrange ``(C, *spatial)`` into ``(patches, C * values a patch)``; log-det 0.

    Args:
        shape: the image's event shape ``(C, *spatial)``, one to three spatial axes.
        patch: a patch's side on each spatial axis.

    Raises:
        ValueError: a side does not divide the image's; names the sides that do.
    """

    contiguous = True

    def __init__(self, shape: Shape, patch: Shape) -> None:
        super().__init__(shape, patch, contiguous=self.contiguous)
        self.patch = tuple(patch)
        self.matrix = (math.prod(self.cells), self.shape[0] * math.prod(self.patch))
        self.given = self.matrix
        self._order = (*self._cell_axes, 0, *self._inner_axes)

    def extra_repr(self) -> str:
        """Image and patch, in ``print(flow)``."""
        return f"{self.shape}, patch={self.patch}"


@register
class Squeeze(_Rearrangement):
    """Space into channels: ``(C, *spatial)`` to ``(C f^axes, *(spatial / f))``; log-det 0.

    Channel ``(c f + dy) f + dx`` has the pixels of channel c at ``(f i + dy, f j + dx)``.

    Args:
        shape: the image's event shape ``(C, *spatial)``, one to three spatial axes.
        factor: f.

    Raises:
        ValueError: the factor does not divide a side; names what does.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.6.
        https://arxiv.org/abs/1605.08803
    """

    def __init__(self, shape: Shape, factor: int = 2) -> None:
        sides = (factor,) * (len(shape) - 1)
        super().__init__(shape, sides, contiguous=True)
        self.factor = factor
        self.given = (shape[0] * math.prod(sides), *self.cells)
        self._order = (0, *self._inner_axes, *self._cell_axes)

    def extra_repr(self) -> str:
        """Image and factor, in ``print(flow)``."""
        return f"{self.shape}, factor={self.factor}"


@register
class CheckerboardSqueeze(Squeeze):
    """`Squeeze` of 2x2 cells into four groups of C channels, each colour of the board a half.

    The groups hold the cells' top left, bottom right, top right and bottom left pixels: a flow
    that goes on with the first half of the channels goes on with one colour of the whole image.

    Args:
        shape: the image's event shape ``(C, H, W)``.

    Raises:
        ValueError: an odd side, or not two of them.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.6.
        https://arxiv.org/abs/1605.08803
    """

    def __init__(self, shape: Shape) -> None:
        if len(shape) != 3:
            raise ValueError(f"CheckerboardSqueeze: takes images (C, H, W); got {shape}")
        super().__init__(shape)
        self._order = (*self._inner_axes, 0, *self._cell_axes)  # cells row by row, for a start

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_det = super().forward(x, context, noise)
        top_left, top_right, bottom_left, bottom_right = z.chunk(4, 1)
        return torch.cat([top_left, bottom_right, top_right, bottom_left], 1), log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), self.given)
        top_left, bottom_right, top_right, bottom_left = z.chunk(4, 1)
        z = torch.cat([top_left, top_right, bottom_left, bottom_right], 1)
        return super().inverse(z, context, noise)

    def same_as(self, other: Transform) -> bool:
        return isinstance(other, CheckerboardSqueeze) and super().same_as(other)


@register
class Dilated(Patchify):
    """Patches whose pixels lie one grid apart: each is a coarse view of the whole image."""

    contiguous = False


@register
class Stripes(Patchify):
    """Patches as wide as the image: `height` rows each (the first spatial axis is cut).

    Args:
        shape: the image's event shape.
        height: rows a stripe.
    """

    def __init__(self, shape: Shape, height: int) -> None:
        super().__init__(shape, (height, *shape[2:]))


@register
class Bands(Patchify):
    """Patches as high as the image: `width` columns each (the last spatial axis is cut).

    Args:
        shape: the image's event shape.
        width: columns a band.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__(shape, (*shape[1:-1], width))
