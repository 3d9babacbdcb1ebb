"""Coupling: one part passes, a net reads it, and an elementwise map transforms the other part.

A split says which part of an event a net reads and which part is transformed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, total
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise


def halves(n: int, *, flip: bool = False) -> tuple[int, int]:
    """Sizes of the conditioning and the transformed part of `n` features.

    The first part has one more where `n` is odd; unflipped couplings condition on it.
    """
    first, second = (n + 1) // 2, n // 2
    return (second, first) if flip else (first, second)


class Split(ABC):
    """A rule that cuts an event into the part that a net reads and the part that is transformed.

    Subclasses are frozen dataclasses, so values, with a field ``flip``, which swaps the two parts.
    On `axis` of a batch a net's output has ``params`` numbers for each entry: parameter k of entry
    j, of n, is number ``k n + j``.
    """

    flip: bool
    axis = 1
    disjoint = True
    """Whether the parts are pieces of the event, each without gaps, not the event with gaps."""

    def sizes(self, n: int) -> tuple[int, int]:
        """Entries on `axis` of the part read and the part transformed, for n entries in all."""
        return n, n

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Raise a ValueError that names the shape unless its events have two parts."""

    @abstractmethod
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The part that the net reads, and the part that is transformed."""

    @abstractmethod
    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        """Put the two parts together again: the inverse of `parts`."""

    def raw(self, out: Tensor, params: int) -> Tensor:
        """A net's output as raw parameters of the transformed part: ``(params, *part.shape)``."""
        axis = self.axis % out.dim()
        return out.unflatten(axis, (params, out.shape[axis] // params)).movedim(axis, 0)

    def counted(self, log_slope: Tensor) -> Tensor:
        """Log-derivatives of the transformed part, 0 where nothing is transformed."""
        return log_slope


@register
@dataclass(frozen=True)
class Halves(Split):
    """The two halves of one axis; the first has the middle entry of an odd number.

    Unflipped couplings condition on the first half.
    """

    dim: int = 0
    """Event axis: 0 is the first (an image's channels), -1 the last."""
    flip: bool = False
    """Condition on the second half instead."""

    @property
    def axis(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.dim + 1 if self.dim >= 0 else self.dim

    def sizes(self, n: int) -> tuple[int, int]:
        return halves(n, flip=self.flip)

    def check(self, shape: Shape) -> None:
        if not -len(shape) <= self.dim < len(shape) or shape[self.dim] < 2:
            raise ValueError(f"Coupling: axis {self.dim} of events {shape} has no two parts")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axis = self.axis
        first = x.narrow(axis, 0, (x.shape[axis] + 1) // 2)
        second = x.narrow(axis, first.shape[axis], x.shape[axis] // 2)
        return (second, first) if self.flip else (first, second)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, given) if self.flip else (given, changed), self.axis)


@register
@dataclass(frozen=True)
class Leading(Split):
    """The first channels of an event ``(C, *spatial)``, and the others.

    Unflipped couplings condition on the first channels.
    """

    count: int
    """How many channels are the first part."""
    flip: bool = False
    """Condition on the others instead."""

    def sizes(self, n: int) -> tuple[int, int]:
        first, others = self.count, n - self.count
        return (others, first) if self.flip else (first, others)

    def check(self, shape: Shape) -> None:
        if not shape or not 0 < self.count < shape[0]:
            what = f"{self.count} leading channels of events {tuple(shape)}"
            raise ValueError(f"Coupling: {what} leave no two parts")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x[:, : self.count], x[:, self.count :]
        return (second, first) if self.flip else (first, second)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return torch.cat((changed, given) if self.flip else (given, changed), 1)


@register
@dataclass(frozen=True)
class Checkerboard(Split):
    """The two colours of a board of pixels ``(C, *spatial)``, at full resolution.

    The net reads the image with 0 in place of the transformed colour. It gives parameters for all
    pixels; the parameters of the other colour are not used. Unflipped, the pixels whose coordinates
    have an even sum, such as the top left pixel, are transformed.

    Reference: Dinh et al., Real NVP (2017), section 3.4, arXiv:1605.08803.
    """

    flip: bool = False
    """Transform the pixels whose coordinates have an odd sum instead."""
    disjoint = False

    def check(self, shape: Shape) -> None:
        if not 2 <= len(shape) <= 4 or max(shape[1:]) < 2:
            wanted = "events (C, *spatial) of 1 to 3 spatial axes and 2 pixels at least"
            raise ValueError(f"Coupling: a checkerboard takes {wanted}; got {shape}")

    def _transformed(self, x: Tensor) -> Tensor:
        """The mask ``(*spatial)`` of the pixels of `x` ``(..., *spatial)`` that are transformed."""
        coordinate_sum = torch.zeros((), dtype=torch.int64, device=x.device)
        for n in x.shape[2:]:
            coordinate_sum = coordinate_sum[..., None] + torch.arange(n, device=x.device)
        return coordinate_sum % 2 == int(self.flip)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        transformed = self._transformed(x)
        return x.where(~transformed, 0.0), x.where(transformed, 0.0)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return changed.where(self._transformed(given), given)

    def raw(self, out: Tensor, params: int) -> Tensor:
        # parameters that are not used must not overflow: an infinity would have a NaN gradient
        return super().raw(out.where(self._transformed(out), 0.0), params)

    def counted(self, log_slope: Tensor) -> Tensor:
        return log_slope.where(self._transformed(log_slope), 0.0)


@register
@dataclass(frozen=True)
class Columns(Split):
    """Even and odd columns of ``(C, *spatial)``: the last axis, two images of half the width.

    Columns are numbered from 0; unflipped couplings condition on the even columns.

    Reference: Ho et al., Flow++ (2019), which calls this split a "checkerboard", arXiv:1902.00275.
    """

    flip: bool = False
    """Condition on the odd columns instead."""

    def check(self, shape: Shape) -> None:
        if len(shape) < 2 or shape[-1] % 2 or not shape[-1]:
            what = f"the columns of events {tuple(shape)} do not make pairs"
            raise ValueError(f"Coupling: {what}; the last of 2 axes or more must be even")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        even, odd = x[..., 0::2], x[..., 1::2]
        return (odd, even) if self.flip else (even, odd)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        pair = (changed, given) if self.flip else (given, changed)
        return torch.stack(pair, -1).flatten(-2)


@register
@dataclass(frozen=True)
class NoSplit(Split):
    """All of an event ``(C, *spatial)`` is transformed; the net reads zeros and the context.

    A coupling with it is a learned prior, one for each class where labels are the context: behind a
    flow, with `Affine`, a learned Gaussian in place of the standard one.

    Reference: Kingma, Dhariwal, Glow (2018): the prior of the last scale, in its published code,
        arXiv:1807.03039.
    """

    reads: Shape
    """Shape of the zeros: the number of channels that the net takes, and the spatial axes."""
    flip = False  # there are no two parts to swap
    disjoint = False

    def sizes(self, n: int) -> tuple[int, int]:
        return self.reads[0], n

    def check(self, shape: Shape) -> None:
        if tuple(shape[1:]) != tuple(self.reads[1:]):
            what = f"the net reads zeros {self.reads}, and events are {tuple(shape)}"
            raise ValueError(f"Coupling: {what}")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(x.shape[0], *self.reads), x

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return changed


@register
class Coupling(Transform):
    """``z_a = x_a, z_b = elementwise(x_b; net(x_a, context))`` for two parts a and b of the event.

    ``log|det dz/dx|`` is the sum of the map's log-derivatives over b. Works on any axis of any
    event: rows with an MLP, feature maps with a convolutional net.

    Args:
        split: the rule that cuts an event into a and b, see `Split`. A number
            is short for ``Halves(split, flip)``: the halves of that event axis.
        net: maps a and the context to the raw parameters of b. For halves ``(B, ..., a, ...)`` to
            ``(B, ..., elementwise.params * b, ...)``; parameter k of feature j is feature
            ``k * b + j``. For the other splits the same holds of the channels.
        elementwise: the map of the transformed part.
        flip: only with a number for `split`: condition on the second half instead of the first.

    Reference: Dinh et al., Real NVP (2017), eq. 4 to 8, arXiv:1605.08803.
    """

    def __init__(
        self, split: int | Split, net: nn.Module, elementwise: Elementwise, *, flip: bool = False
    ) -> None:
        super().__init__()
        if isinstance(split, Split) and flip:
            raise ValueError(f"Coupling: {split} has a flip of its own; leave out flip")
        self.split = split if isinstance(split, Split) else Halves(split, flip)
        self.net = net
        self.elementwise = elementwise

    @property
    def dim(self) -> int | None:
        """The event axis of the halves; None for another split."""
        return self.split.dim if isinstance(self.split, Halves) else None

    @property
    def flip(self) -> bool:
        """Whether the net reads the second part."""
        return self.split.flip

    def _parameters_of(self, given: Tensor, changed: Tensor, context: Tensor | None) -> Tensor:
        """The raw parameters ``(params, *changed.shape)`` that the net gives."""
        axis, params = self.split.axis, self.elementwise.params
        raw = self.net(given, context).to(changed.dtype)
        expected = params * changed.shape[axis]
        if raw.shape[axis] != expected:
            count, got = changed.shape[axis], f"{raw.shape[axis]} from {tuple(given.shape)}"
            wanted = f"{self.elementwise!r} takes {expected} parameters for {count} features"
            raise ValueError(f"Coupling: {wanted}; the net gives {got}")
        return self.split.raw(raw, params)

    def _transform(self, event: Tensor, context: Context, *, inverse: bool) -> Mapped:
        """One direction: the given part passes, and the elementwise map changes the other part."""
        self.out_shape(tuple(event.shape[1:]))
        given, changed = self.split.parts(event)
        function = self.elementwise.inverse if inverse else self.elementwise.forward
        changed, log_slope = function(changed, self._parameters_of(given, changed, context))
        return self.split.join(given, changed), total(self.split.counted(log_slope))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._transform(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._transform(z, context, inverse=True)

    def out_shape(self, shape: Shape) -> Shape:
        self.split.check(shape)
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Initialise the net too, where it has norms that start from data."""
        self.out_shape(tuple(x.shape[1:]))
        start = getattr(self.net, "initialize", None)
        if callable(start):
            start(self.split.parts(x)[0], context)
        return self(x, context)[0]

    def extra_repr(self) -> str:
        return f"{self.split!r}, elementwise={self.elementwise!r}"
