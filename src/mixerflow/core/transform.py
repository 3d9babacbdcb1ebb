"""A transform is a module with two directions, each with its own log-det."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mixerflow.core.noise import Noise
from mixerflow.precision import wide
from mixerflow.registry import forget_arguments

Shape = tuple[int, ...]
Context = Tensor | None
"""The condition of each event ``(B, K)``; None for an unconditional transform."""
Mapped = tuple[Tensor, Tensor]
"""A batch of events ``(B, *event)`` and their log-dets ``(B,)``."""
Density = Literal["exact", "bound", "estimate", "estimated bound"]
"""Kind of a log-probability: exact; a lower bound in expectation over noise; an unbiased estimate
of the one, or of the other."""
Dequantization = Literal["uniform", "variational", "none"]


def is_estimated(density: str | None) -> bool:
    """Whether a log-probability of that kind is an unbiased estimate, whatever it is of."""
    return density in ("estimate", "estimated bound")


def total(values: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Sum each row's values in float32 or wider: ``(B, ...)`` to ``(B,)``.

    Thirty layers of log-dets summed in bfloat16 are wrong by 0.01 bits/dim; hence the width.
    """
    return values.flatten(1).sum(1, dtype=wide(values.dtype))


def constant(log_det: Float[Tensor, ""] | float, x: Shaped[Tensor, "batch *event"]) -> Tensor:
    """Repeat one log-det for each row of `x`: ``(B,)`` in float32 or wider."""
    dtype = wide(x.dtype)
    if isinstance(log_det, Tensor):
        log_det = log_det if log_det.dtype in (dtype, torch.float64) else log_det.to(dtype)
        return log_det.expand(x.shape[0])
    return torch.full((x.shape[0],), log_det, dtype=dtype, device=x.device)


def expect(module: object, shape: Shape, wanted: Shape) -> None:
    """Raise a ValueError that names both shapes unless `shape` is the `wanted` event shape."""
    if tuple(shape) != tuple(wanted):
        name = type(module).__name__
        raise ValueError(f"{name}: takes events {tuple(wanted)}; got shape {tuple(shape)}")


def floating(module: nn.Module) -> Tensor:
    """Return the first floating tensor of a module, whose dtype and device are the module's."""
    held = chain(module.parameters(), module.buffers())
    return next((t for t in held if t.is_floating_point()), torch.zeros(()))


@runtime_checkable
class Foldable(Protocol):
    """A part of a model with a shorter form for inference, which `folded` returns.

    The part is a copy, in eval mode and float64, and may change.
    """

    def folded(self) -> nn.Module: ...


def fold_parts(module: nn.Module) -> None:
    """Replace each part by its folded form; search the parts that have none."""
    for name, part in module._modules.items():
        if isinstance(part, Foldable):
            setattr(module, name, part.folded())
        elif part is not None:
            fold_parts(part)


_FIRST_STREAM = 3
"""Stream of the first transform that draws; another number would change every score."""


def number_streams(module: nn.Module) -> None:
    """Give each transform in `module` that draws noise, in either direction, its own stream."""
    transforms = (m for m in module.modules() if isinstance(m, Transform))
    drawing = (
        m for m in transforms if m.draws or (m.inverse_draws and not isinstance(m, Composite))
    )
    for stream, transform in enumerate(drawing, _FIRST_STREAM):
        transform.stream = stream


class MixesPlaces(ValueError):
    """A transform, or a base, that has no density of each place by itself."""


class PlacedLayer(NamedTuple):
    """A layer with the event shapes that it takes and gives at its place in a flow."""

    layer: Transform
    taken: Shape
    given: Shape


Runner = Callable[["Transform", Tensor, Context, Noise | None], Mapped]
"""Runs a transform forward, ``run(transform, x, context, noise)``; see `Transform.walk`."""
See = Callable[["Transform", Tensor, Tensor], None]
"""Is told of a layer with the numbers before and after it, ``(B, F)``; see `Transform.watch`."""


class Transform(nn.Module):
    """An invertible map with its log-det in both directions.

    A surjection is one that forgets a part of x, such as a sign: `forward` is deterministic, and
    its log-det is ``log p(x | z)``, so that the density through it is exact; `inverse` draws what z
    leaves open, and its log-det is minus that number at the x that it draws.

    Subclasses implement `forward` and `inverse`; `mixerflow.transforms.checks` proves that they
    obey the laws.

    Attributes:
        density: whether a flow's log-probability through this transform is exact, a lower bound,
            or an unbiased estimate of one of the two.
        draws: whether this transform itself, not a part of it, draws noise in `forward`.
        inverse_draws: whether `inverse` draws what z leaves open; of a `Composite`, that of a part.
        stream: number of the noise stream of a transform that draws; a `Flow` assigns it.
        dequantization: the noise by which this transform makes real numbers of integers.
        invertible: whether `inverse` gives the input back to rounding, in training mode too.
            Training may then forget the input, see `mixerflow.core.memory`.
        affine: whether z is a fixed affine map of x and has its shape. A dense map next to it can
            then absorb it, see `fused`.
        takes_columns: whether a transform of vectors ``(n,)`` also takes matrices ``(B, n, m)``,
            whose m columns it transforms one by one; log-dets are of all columns together.
        shares_contexts: whether a transform of vectors also takes contexts ``(G, K)``, each of
            ``B / G`` vectors that follow each other.
        rearranges: whether z has the values of x, integers or real numbers, in another order.
    """

    density: Density = "exact"
    draws: bool = False
    inverse_draws: bool = False
    stream: int = 0
    dequantization: Dequantization = "none"
    invertible: bool = True
    affine: bool = False
    takes_columns: bool = False
    shares_contexts: bool = False
    rearranges: bool = False

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        """Map data to latent: ``(B, *event)`` to z and ``log|det dz/dx|`` ``(B,)``."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        """Map latent to data: z to x and ``log|det dx/dz|`` ``(B,)``.

        An inverse that draws (`inverse_draws`) draws from `noise`, or, where it is None, from
        torch's generator: a `Noise` makes the result a pure function.
        """
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """Return the latent's event shape; a ValueError names both shapes if they do not fit."""
        return shape

    def latent_shapes(self, shape: Shape) -> list[Shape]:
        """List the pieces of the latent, whose flattened values it has in order; one by default."""
        return [tuple(self.out_shape(shape))]

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        """Set data-dependent parameters from a batch; return the output of `forward` after it."""
        return self(x, context)[0]

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        """List the layers of this transform, data to latent, for data events of `shape`.

        Memory modes, sharding and learning rates by layer treat a layer as one unit. A transform
        is one layer by default; a `Composite` has the layers of its parts.
        """
        return [PlacedLayer(self, tuple(shape), tuple(self.out_shape(shape)))]

    def walk(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        """`forward`, with each layer called by ``run(layer, x, context, noise)``."""
        return run(self, x, context, noise)

    def watch(self, see: See, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        """`forward`, with ``see(layer, before, after)`` called after each layer.

        `before` and `after` are all numbers that the latent is made of, ``(B, F)``: what the layer
        takes or gives, behind what a `MultiScale` has factored out by then.
        """
        z, log_det = self(x, context, noise)
        see(self, x.flatten(1), z.flatten(1))
        return z, log_det

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        """`forward` of events ``(C, *spatial)``, with the log-det of each place, ``(B, places)``.

        A transform has it if z at a place is a function of x at this place alone. Its log-det is
        then the sum of those of the places, which lie in row-major order.

        Raises:
            MixesPlaces: z at a place depends on x at others, or is not known not to.
        """
        raise MixesPlaces(f"{type(self).__name__} reads more than one place at a time")

    def become_exact(self) -> None:
        """Compute the log-det exactly from now on, in place of an estimate; see `Flow.exact`.

        A transform whose density is no estimate has nothing to change.
        """

    @torch.no_grad()
    def fused(self) -> Transform:
        """Return a folded copy for inference, in eval mode and without gradients.

        It computes the same to rounding. Folding is done in float64 and rounded once.
        """
        mine = copy.deepcopy(self).double().eval().folded()
        forget_arguments(mine)  # or the parts that were folded away would stay in memory
        return mine.to(floating(self).dtype).eval().requires_grad_(False)

    def folded(self) -> Transform:
        """Return the form for inference of this transform, a copy in float64 that `fused` made."""
        fold_parts(self)
        return self

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        """Return one transform equal to `before` then `after` (one is `self`), or None."""
        return None

    def same_as(self, other: Transform) -> bool:
        """Whether both are known to be the same map."""
        return self is other


class FixedShape(Transform):
    """A transform of data events of one shape; an integer n stands for vectors ``(n,)``.

    A subclass begins `forward` with ``self.check_data(x)`` and `inverse` with
    ``self.check_latent(z)``; one that computes its latent's shape may set ``latent_shape`` later.
    """

    def __init__(self, shape: Shape | int, latent_shape: Shape | None = None) -> None:
        super().__init__()
        self.shape: Shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.latent_shape: Shape = self.shape if latent_shape is None else tuple(latent_shape)

    def check_data(self, x: Tensor) -> None:
        """Raise a ValueError unless `x` is a batch ``(B, *shape)``."""
        expect(self, tuple(x.shape[1:]), self.shape)

    def check_latent(self, z: Tensor) -> None:
        """Raise a ValueError unless `z` is a batch ``(B, *latent_shape)``."""
        expect(self, tuple(z.shape[1:]), self.latent_shape)

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, self.shape)
        return self.latent_shape


class Composite(Transform):
    """Several transforms that work together, and whose layers are the layers of this one.

    A subclass lists them (`parts`), gives their layers' shapes (`layer_shapes`), and combines them
    (`compose`, `inverse`, `out_shape`). It is as exact, and as invertible, as its weakest part.
    """

    def parts(self) -> Iterable[Transform]:
        """The transforms that this one consists of."""
        raise NotImplementedError

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        """`forward`, with each part called by ``run(part, x, context, noise)``."""
        raise NotImplementedError

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        raise NotImplementedError

    @property
    def density(self) -> Density:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weakest density among the parts."""
        kinds = {part.density for part in self.parts()}
        bounded = not kinds.isdisjoint(("bound", "estimated bound"))
        if any(map(is_estimated, kinds)):
            return "estimated bound" if bounded else "estimate"
        return "bound" if bounded else "exact"

    @property
    def invertible(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are invertible."""
        return all(part.invertible for part in self.parts())

    @property
    def inverse_draws(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the inverse of a part draws."""
        return any(part.inverse_draws for part in self.parts())

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self.compose(nn.Module.__call__, x, context, noise)

    def walk(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        return self.compose(lambda part, *inputs: part.walk(run, *inputs), x, context, noise)

    def watch(self, see: See, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        return self.compose(lambda part, *inputs: part.watch(see, *inputs), x, context, noise)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        def run(part: Transform, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
            return part.initialize(x, context), constant(0.0, x)

        return self.compose(run, x, context, None)[0]
