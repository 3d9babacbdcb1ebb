"""Rearrangements of an image's numbers: patchify, which makes a patch matrix, and squeeze.

Reference: Dinh et al., Real NVP (2017), section 3.6: squeeze and checkerboard, arXiv:1605.08803.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow.core import Context, FixedShape, Mapped, Noise, Shape, Transform, constant
from mixerflow.registry import register


class _Rearrangement(FixedShape):
    """A reshape that splits each spatial axis into cells, and a permutation of the axes; log-det 0.

    A subclass sets ``latent_shape``, and ``_order``: the split axes in the latent's order. The
    pixels of a contiguous cell are neighbours; those of another lie one grid apart. A cell's side
    that does not divide the image's is a ValueError that names the sides that do.
    """

    _order: tuple[int, ...]
    _reordered = False
    """Whether groups of channels are reordered after the permutation."""

    def __init__(self, shape: Shape, sides: Shape, *, contiguous: bool = True) -> None:
        super().__init__(shape)
        sides = tuple(sides)
        channels, *spatial = self.shape
        name = type(self).__name__
        if not 1 <= len(spatial) <= 3 or len(sides) != len(spatial):
            raise ValueError(f"{name}: patch {sides} does not fit images {shape}")
        for axis, (n, p) in enumerate(zip(spatial, sides, strict=True)):
            if p < 1 or n % p:
                fits = ", ".join(str(q) for q in range(1, n + 1) if n % q == 0)
                span = f"the {n} pixels of spatial axis {axis} of images {self.shape}"
                raise ValueError(f"{name}: patch side {p} does not divide {span}; these do: {fits}")
        self.cells = tuple(n // p for n, p in zip(spatial, sides, strict=True))
        # each spatial axis is split in two; `contiguous` decides which of them counts the cells
        pairs = zip(self.cells, sides, strict=True)
        split = [(c, p) if contiguous else (p, c) for c, p in pairs]
        self._split = (channels, *(n for pair in split for n in pair))
        self._cell_axes = [2 * i + (1 if contiguous else 2) for i in range(len(spatial))]
        self._inner_axes = [2 * i + (2 if contiguous else 1) for i in range(len(spatial))]

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        split = x.reshape(-1, *self._split)
        moved = split.permute(0, *(axis + 1 for axis in self._order))
        return moved.reshape(-1, *self.latent_shape), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        moved = z.reshape(-1, *(self._split[axis] for axis in self._order))
        back = [self._order.index(axis) + 1 for axis in range(len(self._order))]
        return moved.permute(0, *back).reshape(-1, *self.shape), constant(0.0, z)

    def same_as(self, other: Transform) -> bool:
        return isinstance(other, _Rearrangement) and (
            (self.latent_shape, self._split, self._order, self._reordered)
            == (other.latent_shape, other._split, other._order, other._reordered)
        )


@register
class Patchify(_Rearrangement):
    """Rearrange ``(C, *spatial)`` into a patch matrix ``(patches, C * pixels of a patch)``."""

    contiguous = True

    def __init__(self, shape: Shape, patch: Shape) -> None:
        super().__init__(shape, patch, contiguous=self.contiguous)
        self.patch = tuple(patch)
        self.matrix = (math.prod(self.cells), self.shape[0] * math.prod(self.patch))
        self.latent_shape = self.matrix
        self._order = (*self._cell_axes, 0, *self._inner_axes)

    def extra_repr(self) -> str:
        return f"{self.shape}, patch={self.patch}"


@register
class Squeeze(_Rearrangement):
    """Space into channels: ``(C, *spatial)`` to ``(C f^axes, *(spatial / f))``; log-det 0.

    Channel ``(c f + dy) f + dx`` has the pixels of channel c at ``(f i + dy, f j + dx)``.
    """

    def __init__(self, shape: Shape, factor: int = 2) -> None:
        sides = (factor,) * (len(shape) - 1)
        super().__init__(shape, sides)
        self.factor = factor
        self.latent_shape = (shape[0] * math.prod(sides), *self.cells)
        self._order = (0, *self._inner_axes, *self._cell_axes)

    def extra_repr(self) -> str:
        return f"{self.shape}, factor={self.factor}"


@register
class SpaceToDepth(Squeeze):
    """`Squeeze` whose channels lie by place: channel ``C (f dy + dx) + c``, of C channels before.

    For ``(C, H, W)`` the first half of the channels holds the upper row of each 2x2 square, all
    colours of it; that of a `Squeeze` holds the first colours of all four pixels.
    """

    def __init__(self, shape: Shape, factor: int = 2) -> None:
        super().__init__(shape, factor)
        self._order = (*self._inner_axes, 0, *self._cell_axes)


@register
class CheckerboardSqueeze(Squeeze):
    """`Squeeze` of ``(C, H, W)`` by 2x2 cells: each colour of the board is half of the channels.

    Four groups of C channels hold the cells' top left, bottom right, top right and bottom left
    pixels: a flow that goes on with the first half of the channels goes on with one colour of the
    whole image.
    """

    _reordered = True

    def __init__(self, shape: Shape) -> None:
        if len(shape) != 3:
            raise ValueError(f"CheckerboardSqueeze: takes images (C, H, W); got {shape}")
        super().__init__(shape)
        self._order = (*self._inner_axes, 0, *self._cell_axes)  # before the groups are reordered

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_det = super().forward(x, context, noise)
        top_left, top_right, bottom_left, bottom_right = z.chunk(4, 1)
        return torch.cat([top_left, bottom_right, top_right, bottom_left], 1), log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        top_left, bottom_right, top_right, bottom_left = z.chunk(4, 1)
        z = torch.cat([top_left, top_right, bottom_left, bottom_right], 1)
        return super().inverse(z, context, noise)


@register
class Dilated(Patchify):
    """Patches whose pixels lie one grid apart: each is a coarse view of the whole image."""

    contiguous = False


@register
class Stripes(Patchify):
    """Patches as wide as the image, of `height` rows each: the first spatial axis is cut."""

    def __init__(self, shape: Shape, height: int) -> None:
        super().__init__(shape, (height, *shape[2:]))


@register
class Bands(Patchify):
    """Patches as high as the image, of `width` columns each: the last spatial axis is cut."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__(shape, (*shape[1:-1], width))


@register
class Roll(FixedShape):
    """Move each pixel of ``(C, *spatial)`` back by `shift`, over the border to the other side.

    Pixel i of an axis of n pixels is pixel ``(i + shift) mod n`` of x; log-det 0. Channels move
    back by `channels` in the same way.
    """

    rearranges = True

    def __init__(self, shape: Shape, shift: Shape, *, channels: int = 0) -> None:
        super().__init__(shape)
        if len(shift) != len(shape) - 1:
            raise ValueError(f"Roll: shift {tuple(shift)} does not fit images {tuple(shape)}")
        self.shift, self.channels = tuple(shift), channels
        self._entries, self._axes = (channels, *shift), tuple(range(-len(self.shape), 0))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        return x.roll([-entries for entries in self._entries], self._axes), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return z.roll(self._entries, self._axes), constant(0.0, z)

    def extra_repr(self) -> str:
        return f"{self.shape}, shift={self.shift}, channels={self.channels}"


@register
class Reshape(FixedShape):
    """The same numbers in the same order, the last axis fastest, in another shape; log-det 0."""

    def __init__(self, shape: Shape, latent_shape: Shape) -> None:
        super().__init__(shape, latent_shape)
        if math.prod(self.shape) != math.prod(self.latent_shape):
            raise ValueError(f"Reshape: {self.shape} and {self.latent_shape} differ in size")

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        return x.reshape(-1, *self.latent_shape), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return z.reshape(-1, *self.shape), constant(0.0, z)

    def extra_repr(self) -> str:
        return f"{self.shape}, {self.latent_shape}"


@register
class SwapHalves(Transform):
    """The second half of the first axis before the first: ``z = [x_b, x_a]``; log-det 0.

    The first half has the middle entry of an odd number, as in couplings: after a coupling that
    transforms b given a, the next one transforms a given b.
    """

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return x.roll(x.shape[1] // 2, 1), constant(0.0, x)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return z.roll(-(z.shape[1] // 2), 1), constant(0.0, z)
