"""A transform of each of the two parts of an event."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mixerflow.core import Composite, Context, Mapped, Noise, Runner, Shape, Transform, expect
from mixerflow.registry import register
from mixerflow.transforms.coupling import Halves, Split


@register
class EachPart(Composite):
    """``z_a = t_a(x_a), z_b = t_b(x_b)`` for the two parts a and b of the event; log-dets added.

    Args:
        split: the rule that cuts an event into a, which a coupling would read, and b; its parts
            must be pieces of the event (halves, leading channels, columns). A number is short for
            the halves of that event axis.
        given, changed: the transforms of a and b, which keep their shapes.

    Raises:
        ValueError: a split of another kind, or events of which a transform changes the shape.
    """

    layer_shapes = Transform.layer_shapes
    walk = Transform.walk
    watch = Transform.watch

    def __init__(self, split: int | Split, given: Transform, changed: Transform) -> None:
        super().__init__()
        split = split if isinstance(split, Split) else Halves(split)
        if not split.disjoint:
            raise ValueError(f"EachPart: the parts of {split} are no pieces of the event")
        self.split, self.given, self.changed = split, given, changed

    def parts(self) -> Iterator[Transform]:
        return iter((self.given, self.changed))

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        self.out_shape(tuple(x.shape[1:]))
        pairs = zip(self.parts(), self.split.parts(x), strict=True)
        (a, log_det_a), (b, log_det_b) = (run(part, x, context, noise) for part, x in pairs)
        return self.split.join(a, b), log_det_a + log_det_b

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self.compose(lambda part, *inputs: part.inverse(*inputs), z, context, noise)

    def out_shape(self, shape: Shape) -> Shape:
        self.split.check(shape)
        pieces = self.split.parts(torch.empty(1, *shape, device="meta"))
        for transform, piece in zip(self.parts(), pieces, strict=True):
            expect(self, transform.out_shape(tuple(piece.shape[1:])), tuple(piece.shape[1:]))
        return shape

    def extra_repr(self) -> str:
        return f"{self.split!r}"
