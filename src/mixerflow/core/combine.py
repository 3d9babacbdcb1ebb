"""Transforms made of transforms: one after another, turned round, row by row, inside a box."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mixerflow.core.composite import Composite
from mixerflow.core.noise import Noise
from mixerflow.core.transform import (
    Context,
    Density,
    FixedShape,
    Mapped,
    PlacedLayer,
    Run,
    Shape,
    Transform,
    constant,
)
from mixerflow.registry import register


@register
class Chain(Composite):
    """Transforms one after another: ``z = t_n(... t_1(x))``, log-dets added.

    Dormant ones, which are the identity, are passed over. The steps' layers are the chain's.

    Args:
        transforms: first the one nearest the data. None gives the identity.
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.steps = nn.ModuleList(transforms)

    def __iter__(self) -> Iterator[Transform]:
        return iter(self.steps)  # pyright: ignore[reportReturnType]

    def __len__(self) -> int:
        return len(self.steps)

    def parts(self) -> Iterator[Transform]:
        """The steps."""
        return iter(self)

    def awake(self) -> list[Transform]:
        """The steps that are not dormant."""
        return [step for step in self if not step.dormant]

    def compose(
        self, run: Run, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        log_det = constant(0.0, x)
        for step in self.awake():
            x, step_log_det = run(step, x, context, noise)
            log_det = log_det + step_log_det
        return x, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_det = constant(0.0, z)
        for step in reversed(self.awake()):
            z, step_log_det = step.inverse(z, context, noise)
            log_det = log_det + step_log_det
        return z, log_det

    def out_shape(self, shape: Shape) -> Shape:
        for step in self:
            shape = step.out_shape(shape)
        return shape

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        found = []
        for step in self:
            found += step.layer_shapes(shape)
            shape = step.out_shape(shape)
        return found

    def folded(self) -> Transform:
        """Chains inside that fold as this one unrolled, steps folded, neighbours merged."""
        left, steps = self.awake()[::-1], []
        while left:
            step = left.pop()
            if isinstance(step, Chain) and type(step).folded is Chain.folded:
                left.extend(step.awake()[::-1])
                continue
            step = step.folded()
            one = _merged(steps[-1], step) if steps else None
            if one is None:
                steps.append(step)
            else:
                steps.pop()
                left.append(one)  # which may merge with its new neighbour
        self.steps = nn.ModuleList(steps)
        return self


@register
class Layer(Chain):
    """A chain that counts as one layer: a mixer layer, a step of Glow's, a layer of MAF.

    What is in it runs together: memory modes run it again as a whole, sharding gathers it as a
    whole, it has one learning rate, and growth wakes it at once.

    Args:
        transforms: as `Chain` takes them.
    """

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        return Transform.layer_shapes(self, shape)

    def walk(
        self, run: Run, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        return run(self, x, context, noise)


def _merged(before: Transform, after: Transform) -> Transform | None:
    one = before.merged(before, after)
    return after.merged(before, after) if one is None else one


class _Around(Transform):
    """What is as exact, and as invertible, as the one transform inside it."""

    transform: Transform

    @property
    def density(self) -> Density:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the transform inside."""
        return self.transform.density

    @property
    def invertible(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the transform inside is."""
        return self.transform.invertible


@register
class Inverse(_Around, FixedShape):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A transform run backwards: data to latent is the other's latent to data.

    Args:
        transform: the transform to turn round; it must not be stochastic.
        shape: the event shape that `transform` takes, which is what this one gives back.
    """

    def __init__(self, transform: Transform, shape: Shape) -> None:
        super().__init__(transform.out_shape(shape), shape)
        if transform.density != "exact":
            raise ValueError("Inverse: a stochastic transform has no inverse density")
        self.transform = transform

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        return self.transform.inverse(x, context, noise)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return self.transform(z, context, noise)

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        """Nothing at all, where the other is the transform that this one turns round."""
        other = after if before is self else before
        return Chain() if self.transform.same_as(other) else None


@register
class Along(_Around):
    """The same vector transform for every row along one axis of the event.

    Rows are folded into the batch, transformed as ``(B * rows, n)``, and put back; their log-dets
    are summed per image. Mixing the channels or the patches of a patch matrix, and the 1x1
    convolution of an image, are this with different axes.

    Args:
        dim: event axis: 0 is the first (an image's channels), -1 the last.
        transform: a transform of vectors ``(n,)`` that keeps their length.
        rows: what tells the rows of an event apart: without arguments it gives ``(rows, K)``, which
            each row's transform sees behind the event's context.
    """

    def __init__(self, dim: int, transform: Transform, *, rows: nn.Module | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.transform = transform
        self.rows = rows

    def _fold(self, x: Tensor) -> tuple[Tensor, Shape]:
        axis = self.dim + 1 if self.dim >= 0 else self.dim
        moved = x.movedim(axis, -1)
        return moved.reshape(-1, moved.shape[-1]), tuple(moved.shape)

    def _unfold(self, rows: Tensor, moved: Shape) -> Tensor:
        return rows.reshape(moved).movedim(-1, self.dim + 1 if self.dim >= 0 else self.dim)

    def _context(self, context: Tensor | None, moved: Shape) -> Tensor | None:
        """Of each row of events that `_fold` made ``(B, *rows, n)``."""
        if context is not None and context.dim() != 2:
            raise ValueError(f"Along: context is (B, K); got shape {tuple(context.shape)}")
        batch, n = moved[0], math.prod(moved[1:-1])
        if self.rows is None:
            return None if context is None else context.repeat_interleave(n, 0)
        places: Tensor = self.rows()
        if places.shape[0] != n:
            raise ValueError(f"Along: {n} rows in an event; got vectors for {places.shape[0]}")
        parts = [places.expand(batch, *places.shape)]
        if context is not None:
            parts.insert(0, context[:, None].expand(-1, n, -1).to(places.dtype))
        return torch.cat(parts, -1).flatten(0, 1)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        rows, moved = self._fold(x)
        n = math.prod(moved[1:-1])
        noise = None if noise is None or self.density == "exact" else noise.rows(n)
        rows, log_det = self.transform(rows, self._context(context, moved), noise)
        return self._unfold(rows, moved), log_det.reshape(moved[0], n).sum(1)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        rows, moved = self._fold(z)
        n = math.prod(moved[1:-1])
        noise = None if noise is None or self.density == "exact" else noise.rows(n)
        rows, log_det = self.transform.inverse(rows, self._context(context, moved), noise)
        return self._unfold(rows, moved), log_det.reshape(moved[0], n).sum(1)

    def out_shape(self, shape: Shape) -> Shape:
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"Along: no axis {self.dim} in events of shape {tuple(shape)}")
        row = (shape[self.dim],)
        if self.transform.out_shape(row) != row:
            raise ValueError(f"Along: the row transform must keep rows of shape {row}")
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        rows, moved = self._fold(x)
        context = self._context(context, moved)
        return self._unfold(self.transform.initialize(rows, context), moved)

    def extra_repr(self) -> str:
        """The axis, in ``print(flow)``."""
        return f"dim={self.dim}"


@register
class Window(_Around):
    """A transform of an inner box of the event; the frame around it passes untouched.

    Args:
        start: first index of the box on each of the last ``len(start)`` axes.
        size: its length on each of them.
        transform: a transform that keeps the shape of ``(..., *size)`` events.
    """

    def __init__(self, start: Shape, size: Shape, transform: Transform) -> None:
        super().__init__()
        if len(start) != len(size) or min(start) < 0 or min(size) < 1:
            raise ValueError(f"Window: start {start} and size {size} do not make a box")
        self.start, self.size = tuple(start), tuple(size)
        self.transform = transform

    def _views(self, x: Tensor) -> list[Tensor]:
        """The event, then its crops axis by axis down to the box."""
        views = [x]
        for i, (start, size) in enumerate(zip(self.start, self.size, strict=True)):
            views.append(views[-1].narrow(i - len(self.start), start, size))
        return views

    def _put_back(self, views: list[Tensor], inner: Tensor) -> Tensor:
        for i in reversed(range(len(self.start))):
            start, stop = self.start[i], self.start[i] + self.size[i]
            inner = torch.slice_scatter(views[i], inner, i - len(self.start), start, stop)
        return inner

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        views = self._views(x)
        inner, log_det = self.transform(views[-1], context, noise)
        return self._put_back(views, inner), log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        views = self._views(z)
        inner, log_det = self.transform.inverse(views[-1], context, noise)
        return self._put_back(views, inner), log_det

    def out_shape(self, shape: Shape) -> Shape:
        k = len(self.start)
        ends = [a + b for a, b in zip(self.start, self.size, strict=True)]
        if len(shape) < k or any(e > n for e, n in zip(ends, shape[-k:], strict=True)):
            raise ValueError(f"Window: a box from {self.start} to {ends} leaves events of {shape}")
        box = (*shape[:-k], *self.size)
        if self.transform.out_shape(box) != box:
            raise ValueError(f"Window: the transform must keep events of shape {box}")
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        views = self._views(x)
        return self._put_back(views, self.transform.initialize(views[-1], context))

    def extra_repr(self) -> str:
        """The box, in ``print(flow)``."""
        return f"start={self.start}, size={self.size}"
