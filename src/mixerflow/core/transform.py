"""A transform is a module with two directions, each with its own log-det."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mixerflow.core.noise import Noise
from mixerflow.registry import forget_arguments

Shape = tuple[int, ...]
Context = Tensor | None
"""``(B, K)``: what each event of a batch is transformed given; None for nothing."""
Mapped = tuple[Tensor, Tensor]
"""A batch of events ``(B, *event)`` and their log-dets ``(B,)``."""
Density = Literal["exact", "bound", "estimate"]
Dequantization = Literal["uniform", "variational", "none"]


def total(values: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
    """Sum each row's values in float32 or wider: ``(B, ...)`` to ``(B,)``.

    Thirty layers of log-dets summed in bfloat16 are wrong by 0.01 bits/dim; hence the width.
    """
    return values.flatten(1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def constant(log_det: Float[Tensor, ""] | float, x: Shaped[Tensor, "batch *event"]) -> Tensor:
    """The same log-det for each row of `x`, as ``(B,)`` in float32 or wider."""
    dtype = torch.float32
    if x.is_floating_point():
        dtype = torch.promote_types(x.dtype, dtype)
    if isinstance(log_det, Tensor):
        return log_det.to(torch.promote_types(log_det.dtype, dtype)).expand(x.shape[0])
    return torch.full((x.shape[0],), log_det, dtype=dtype, device=x.device)


def expect(what: object, shape: Shape, wanted: Shape) -> None:
    """Raise a ValueError that names both shapes unless events of `shape` are the `wanted` ones."""
    if tuple(shape) != tuple(wanted):
        name = type(what).__name__
        raise ValueError(f"{name}: takes events {tuple(wanted)}; got shape {tuple(shape)}")


def floating(module: nn.Module) -> Tensor:
    """The first floating tensor of a module: its dtype and device are the module's."""
    held = chain(module.parameters(), module.buffers())
    return next((t for t in held if t.is_floating_point()), torch.zeros(()))


@runtime_checkable
class Foldable(Protocol):
    """A part of a model with a shorter form for inference."""

    def folded(self) -> nn.Module:
        """That form; may take this one apart, which is a copy in eval mode and float64."""
        ...


def fold_parts(module: nn.Module) -> None:
    """Put each part's folded form in its place; looks inside parts that have none."""
    for name, part in module._modules.items():
        if isinstance(part, Foldable):
            setattr(module, name, part.folded())
        elif part is not None:
            fold_parts(part)


def inside(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all in it; ten times as quick as `modules`, and shared ones come repeatedly."""
    left: list[nn.Module] = [module]
    while left:
        module = left.pop()
        yield module
        left.extend(part for part in module._modules.values() if part is not None)


class PlacedLayer(NamedTuple):
    """A layer, and the shapes of the events that it takes and gives where it stands."""

    layer: Transform
    taken: Shape
    given: Shape


Run = Callable[["Transform", Tensor, Tensor | None, Noise | None], tuple[Tensor, Tensor]]
"""Runs a transform forward on x, context and noise, in a way of its own; see `Transform.walk`."""


class Transform(nn.Module):
    """An invertible map with its log-det in both directions.

    Subclasses implement `forward` and `inverse`; `mixerflow.transforms.checks` proves that they
    obey the laws. ``density`` says what a flow's log-probability through this transform is: exact,
    a lower bound, or an unbiased estimate. ``draws`` says that this transform itself, not a part of
    it, draws noise: flows number the ``stream`` of those that do, so that each has its own.
    ``dequantization`` names the noise by which this one makes real numbers of integers.
    ``invertible`` says whether `inverse` gives the input back to rounding, in training mode too;
    training may then forget it, see `mixerflow.core.memory`. ``affine`` says that z is a fixed
    affine map of x and has its shape: a dense map next to it can take it in, see `fused`.
    ``dormant`` says that this is the identity for now, and that a `Chain` may pass it over;
    training by stages sets it.
    """

    density: Density = "exact"
    draws: bool = False
    stream: int = 0
    dequantization: Dequantization = "none"
    invertible: bool = True
    affine: bool = False
    dormant: bool = False

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        """Data to latent: ``(B, *event)`` to z and ``log|det dz/dx|`` ``(B,)``."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        """Latent to data: z to x and ``log|det dx/dz|`` ``(B,)``.

        `noise` is for inverses that draw: those of surjections, which forget part of the data.
        """
        raise NotImplementedError

    def out_shape(self, shape: Shape) -> Shape:
        """The latent's event shape for data events of `shape`.

        Raises:
            ValueError: this transform cannot take such events; names both shapes.
        """
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Set data-dependent parameters from a batch and return what `forward` then makes of it."""
        return self(x, context)[0]

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        """The layers that this is made of, data to latent, for data events of `shape`.

        A layer is what memory modes, sharding, learning rates by layer and growth take as one. A
        transform is one by default; a `Composite` has those of its parts.
        """
        return [PlacedLayer(self, tuple(shape), tuple(self.out_shape(shape)))]

    def walk(
        self, run: Run, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, with each layer called by ``run(layer, x, context, noise)``."""
        return run(self, x, context, noise)

    @torch.no_grad()
    def fused(self) -> Transform:
        """A copy for inference: in eval mode, without gradients, with whatever folds folded.

        It computes the same to rounding. Folding is done in float64 and rounded once.
        """
        mine = copy.deepcopy(self).double().eval().folded()
        forget_arguments(mine)  # or the parts that were folded away would stay in memory
        return mine.to(floating(self).dtype).eval().requires_grad_(False)

    def folded(self) -> Transform:
        """For `fused`, on its copy in float64: this transform's form for inference.

        By default itself with its parts folded.
        """
        fold_parts(self)
        return self

    def merged(self, before: Transform, after: Transform) -> Transform | None:
        """Two neighbours as one transform, where this one, being either, can make one of them."""
        return None

    def same_as(self, other: Transform) -> bool:
        """Whether both are known to be the same map."""
        return self is other


class FixedShape(Transform):
    """A transform of events of one shape.

    A subclass begins `forward` with ``self.check_data(x)`` and `inverse` with
    ``self.check_latent(z)``; one that computes its latent's shape may set ``latent_shape`` later.

    Args:
        shape: of the data's events; an integer n stands for vectors ``(n,)``.
        latent_shape: of the latent's events; None for the data's shape.
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
