"""Transforms made of transforms: one after another, turned round, row by row, inside a box."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mixerflow.core.noise import Noise
from mixerflow.core.transform import (
    Composite,
    Context,
    Density,
    FixedShape,
    Mapped,
    MixesPlaces,
    PlacedLayer,
    Runner,
    Shape,
    Transform,
    constant,
)
from mixerflow.registry import register


@register
class Chain(Composite):
    """Transforms one after another, data to latent: ``z = t_n(... t_1(x))``, log-dets added.

    The steps' layers are the chain's. A chain of no transforms is the identity.
    """

    def __init__(self, *transforms: Transform) -> None:
        super().__init__()
        self.steps = nn.ModuleList(transforms)

    def __iter__(self) -> Iterator[Transform]:
        return iter(self.steps)  # pyright: ignore[reportReturnType]

    def __len__(self) -> int:
        return len(self.steps)

    def parts(self) -> Iterator[Transform]:
        return iter(self)

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        log_det = constant(0.0, x)
        for step in self:
            x, step_log_det = run(step, x, context, noise)
            log_det = log_det + step_log_det
        return x, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_det = constant(0.0, z)
        for step in reversed(list(self)):
            z, step_log_det = step.inverse(z, context, noise)
            log_det = log_det + step_log_det
        return z, log_det

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_dets = constant(0.0, x)[:, None]
        for step in self:
            x, step_log_dets = step.by_place(x, context, noise)
            log_dets = log_dets + step_log_dets
        return x, log_dets

    def out_shape(self, shape: Shape) -> Shape:
        for step in self:
            shape = step.out_shape(shape)
        return shape

    def latent_shapes(self, shape: Shape) -> list[Shape]:
        pieces = [tuple(shape)]
        for step in self:
            pieces, shape = step.latent_shapes(shape), step.out_shape(shape)
        return pieces

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        layers = []
        for step in self:
            layers += step.layer_shapes(shape)
            shape = step.out_shape(shape)
        return layers

    def folded(self) -> Transform:
        """Unroll the chains inside that fold like this one, fold the steps, merge neighbours."""
        left, steps = list(self)[::-1], []
        while left:
            step = left.pop()
            if isinstance(step, Chain) and type(step).folded is Chain.folded:
                left.extend(list(step)[::-1])
                continue
            steps.append(step.folded())
            merged = _merge(*steps[-2:]) if len(steps) > 1 else None
            if merged is not None:
                del steps[-2:]
                left.append(merged)  # it may merge with its new neighbour
        self.steps = nn.ModuleList(steps)
        return self


def _merge(before: Transform, after: Transform) -> Transform | None:
    merged = before.merged(before, after)
    return after.merged(before, after) if merged is None else merged


@register
class Layer(Chain):
    """A chain that counts as one layer: a mixer layer, a step of Glow's, a layer of MAF.

    Its steps run together: memory modes run the layer again as a whole, sharding gathers it as a
    whole, and it has one learning rate.
    """

    layer_shapes = Transform.layer_shapes
    walk = Transform.walk
    watch = Transform.watch


class _Wrapper(Composite):
    """One layer, which runs another transform on a rearrangement or a part of the event."""

    transform: Transform
    layer_shapes = Transform.layer_shapes
    walk = Transform.walk
    watch = Transform.watch

    def parts(self) -> list[Transform]:
        return [self.transform]

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self.compose(lambda part, *inputs: part.inverse(*inputs), z, context, noise)


@register
class Inverse(FixedShape, _Wrapper):
    """A transform run backwards: data to latent is the other's latent to data.

    `shape` is the event shape that `transform`, which must not be stochastic, takes.

    A surjection turned round is its generative direction: `forward` draws what the data leaves
    open, `inverse` is deterministic, and the density is a lower bound. So `Round` turned round is
    uniform dequantisation, and `AbsoluteValue` turned round adds random signs.
    """

    def __init__(self, transform: Transform, shape: Shape) -> None:
        super().__init__(transform.out_shape(shape), shape)
        if transform.density != "exact":
            raise ValueError("Inverse: a stochastic transform has no inverse density")
        self.transform = transform

    @property
    def draws(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `forward` draws: that of a surjection turned round does."""
        return self.transform.inverse_draws

    @property
    def inverse_draws(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """False: the inverse is the other's forward direction."""
        return False

    @property
    def density(self) -> Density:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A lower bound where `forward` draws."""
        return "bound" if self.draws else super().density

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        return self.transform.inverse(x, context, noise)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return self.transform(z, context, noise)

    initialize = Transform.initialize

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        """Return the identity if the other is the transform that this one turns round."""
        other = after if before is self else before
        if self.draws:  # a surjection, and what is drawn for it, is no identity
            return None
        return Chain() if self.transform.same_as(other) else None


@register
class Along(_Wrapper):
    """The same vector transform for every row along one axis of the event.

    Rows are folded into the batch, transformed as ``(B * rows, n)``, and put back; their log-dets
    are summed per image. Mixing the channels or the patches of a patch matrix, and the 1x1
    convolution of an image, are this with different axes. Each row sees the event's context; of a
    context that is a map ``(B, K, *spatial)``, along the channels, that of its pixel.

    Args:
        dim: event axis: 0 is the first (an image's channels), -1 the last.
        transform: a transform of vectors ``(n,)`` that keeps their length.
        rows: positional encoding of an event's rows. Called without arguments it gives
            ``(rows, K)``; each row's transform sees its own behind the event's context.
    """

    def __init__(self, dim: int, transform: Transform, *, rows: nn.Module | None = None) -> None:
        super().__init__()
        self.dim, self.transform, self.rows = dim, transform, rows

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        if self.transform.takes_columns and self.dim == 0 and x.dim() > 2:  # nothing is copied
            z, log_det = run(self.transform, x.flatten(2), None, noise)
            return z.reshape(x.shape), log_det
        z, log_dets = self._by_row(run, x, context, noise)
        return z, log_dets.sum(1)

    def _by_row(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        """`forward`, with the log-det of each row, ``(B, rows)``."""
        axis = self.dim + 1 if self.dim >= 0 else self.dim
        moved = x.movedim(axis, -1)
        n = math.prod(moved.shape[1:-1])
        if noise is not None:
            draws = self.density != "exact" or self.inverse_draws
            noise = noise.rows(n) if draws else None
        context = self._row_contexts(context, x.shape[0], n)
        z, log_det = run(self.transform, moved.reshape(-1, moved.shape[-1]), context, noise)
        return z.reshape(moved.shape).movedim(-1, axis), log_det.reshape(-1, n)

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        if self.dim % (x.dim() - 1):
            raise MixesPlaces(f"Along, dim={self.dim}, reads more than one place at a time")
        return self._by_row(nn.Module.__call__, x, context, noise)

    def _row_contexts(self, context: Context, batch: int, n: int) -> Context:
        """Context of each of the `n` rows of `batch` events, or of each event, ``(.., K)``."""
        if context is not None and context.dim() > 2:  # a map has a row for each pixel
            if self.dim != 0 or context.shape[2:].numel() != n or self.rows is not None:
                what = f"a context (B, K), or a map with {n} pixels along axis 0"
                raise ValueError(f"Along: takes {what}; got shape {tuple(context.shape)}")
            return context.movedim(1, -1).flatten(0, -2)
        if self.rows is None:
            shares = self.transform.shares_contexts and not torch.compiler.is_compiling()
            if context is None or shares:
                return context
            return context.repeat_interleave(n, 0)
        encoding: Tensor = self.rows()
        if encoding.shape[0] != n:
            raise ValueError(f"Along: {n} rows in an event; got vectors for {encoding.shape[0]}")
        parts = [encoding.expand(batch, *encoding.shape)]
        if context is not None:
            parts.insert(0, context[:, None].expand(-1, n, -1).to(encoding.dtype))
        return torch.cat(parts, -1).flatten(0, 1)

    def out_shape(self, shape: Shape) -> Shape:
        if not -len(shape) <= self.dim < len(shape):
            raise ValueError(f"Along: no axis {self.dim} in events of shape {tuple(shape)}")
        row = (shape[self.dim],)
        if self.transform.out_shape(row) != row:
            raise ValueError(f"Along: the row transform must keep rows of shape {row}")
        return shape

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


@register
class Window(_Wrapper):
    """A transform of an inner box of the event; the frame around it passes untouched.

    The box has a first index and a length on each of the last ``len(start)`` axes, and `transform`
    keeps the shape of ``(..., *size)`` events.
    """

    def __init__(self, start: Shape, size: Shape, transform: Transform) -> None:
        super().__init__()
        if len(start) != len(size) or min(start) < 0 or min(size) < 1:
            raise ValueError(f"Window: start {start} and size {size} do not make a box")
        self.start, self.size, self.transform = tuple(start), tuple(size), transform

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        crops = list(zip(range(-len(self.start), 0), self.start, self.size, strict=True))
        views = [x]
        for axis, start, size in crops:
            views.append(views[-1].narrow(axis, start, size))
        z, log_det = run(self.transform, views.pop(), context, noise)
        for axis, start, size in reversed(crops):
            z = torch.slice_scatter(views.pop(), z, axis, start, start + size)
        return z, log_det

    def out_shape(self, shape: Shape) -> Shape:
        k = len(self.start)
        ends = [a + b for a, b in zip(self.start, self.size, strict=True)]
        if len(shape) < k or any(e > n for e, n in zip(ends, shape[-k:], strict=True)):
            raise ValueError(f"Window: a box from {self.start} to {ends} leaves events of {shape}")
        box = (*shape[:-k], *self.size)
        if self.transform.out_shape(box) != box:
            raise ValueError(f"Window: the transform must keep events of shape {box}")
        return shape

    def extra_repr(self) -> str:
        return f"start={self.start}, size={self.size}"
