"""How the layers of a MixerFlow patchify an image, as a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mixerflow.core import Shape
from mixerflow.registry import register
from mixerflow.transforms import Bands, Dilated, Patchify, Stripes

Cut = Literal["patches", "stripes", "bands", "dilated"]
Sides = int | tuple[int, ...]
"""One number for every spatial axis, or one for each."""

CUTS: dict[Cut, Callable[[Shape, Shape], Patchify]] = {
    "patches": Patchify,
    "dilated": Dilated,
    "stripes": lambda shape, size: Stripes(shape, size[0]),
    "bands": lambda shape, size: Bands(shape, size[-1]),
}


@register
@dataclass(frozen=True)
class Patching:
    """How each layer cuts the image; every setting has one value for all layers, or several."""

    size: tuple[Sides, ...] | int = (4,)
    """Side of a patch, or its sides as 2x4; several: each for an equal share of the layers. It is
    also the height of stripes and the width of bands."""
    shift: tuple[Sides, ...] | int = (0, 0, 0, 1)
    """Pixels by which a layer shifts the grid, or a shift for each axis, as 1x2; several: the
    layers take them in turn. The paper's is 0 0 0 1: every fourth layer is a shift layer."""
    cut: tuple[Cut, ...] | Cut = ("patches",)
    """Kind of the pieces of an image; several: the layers take them in turn."""
    cyclic: bool = False
    """Whether patches that a shift pushes over the border go on at the other side of the image, so
    that every layer transforms every pixel; the paper's shift layers leave a frame as it is."""

    def __post_init__(self) -> None:
        for name in ("size", "shift", "cut"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, tuple) else (value,))
            if not getattr(self, name):
                raise ValueError(f"Patching: {name} names none")

    def of(self, shape: Shape, number: int, layers: int) -> tuple[Cut, Shape, Shape]:
        """Return cut, patch sides and shift of layer `number`, from 1, of `layers`."""
        sizes, shifts, cuts = self.size, self.shift, self.cut
        assert isinstance(sizes, tuple) and isinstance(shifts, tuple) and isinstance(cuts, tuple)
        if len(sizes) > layers:
            raise ValueError(f"Patching: {len(sizes)} values of size for {layers} layers")
        size = _per_axis("size", sizes[(number - 1) * len(sizes) // layers], len(shape) - 1)
        shift = _per_axis("shift", shifts[(number - 1) % len(shifts)], len(shape) - 1)
        for axis, (p, s) in enumerate(zip(size, shift, strict=True)):
            if s and not 0 <= s < p:
                wanted = f"lie in 0..{p - 1}, less than the patch {p}"
                raise ValueError(f"shift {s} on spatial axis {axis} must {wanted}")
        return cuts[(number - 1) % len(cuts)], size, shift

    def kinds(self, shape: Shape, layers: int) -> set[tuple[Cut, Shape, Shape]]:
        """Return the different cuts, patch sides and shifts of that many layers."""
        return {self.of(shape, number, layers) for number in range(1, layers + 1)}


def window_of(shape: Shape, cut: Cut, size: Shape, shift: Shape) -> tuple[Shape, Shape] | None:
    """Return start and lengths of the window that a layer cuts; None for the whole image.

    The window is ``[s : n - p + s)`` of each spatial axis of n pixels, for shift s and patch p. The
    frame (s pixels before the window, p - s after it) is not transformed. An axis that one patch
    spans, as stripes do, is not shifted.
    """
    if not any(shift):
        return None
    if cut == "patches" and any(
        s and n == p for n, p, s in zip(shape[1:], size, shift, strict=True)
    ):
        raise ValueError(f"images {shape} are one patch {size} wide: use shift 0 on that axis")
    spans = patchify(shape, cut, size).patch
    sides = zip(shape[1:], spans, shift, strict=True)
    start, length = zip(*((s, n - p) if s and n > p else (0, n) for n, p, s in sides), strict=True)
    return start, length


def patchify(shape: Shape, cut: Cut, size: Shape) -> Patchify:
    """Return the transform that cuts images of that shape."""
    try:
        return CUTS[cut](shape, size)
    except ValueError as error:
        raise ValueError(f"size of patches: {error}") from error


def _per_axis(name: str, value: Sides, axes: int) -> Shape:
    sides = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(sides) != axes:
        raise ValueError(f"{name} {sides} names {len(sides)} spatial axes; the images have {axes}")
    return sides
