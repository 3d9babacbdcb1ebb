"""Splits: which part of an event a coupling transforms, and which part its net reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mixerflow.core import Shape
from mixerflow.registry import register


def halves(n: int, *, flip: bool = False) -> tuple[int, int]:
    """Sizes of the conditioning and the transformed part of `n` features.

    The first part has the larger half where `n` is odd; unflipped couplings condition on it.
    """
    first, second = (n + 1) // 2, n // 2
    return (second, first) if flip else (first, second)


class Split(ABC):
    """A rule that cuts events into what a net reads and what is transformed; a value.

    Subclasses are frozen dataclasses with a field ``flip``, which swaps the two parts.
    """

    flip: bool

    @property
    def axis(self) -> int:
        """Axis of a batch on which a net's output has ``params`` numbers for each entry.

        Parameter k of entry j, of n, is number ``k n + j``.
        """
        return 1

    def sizes(self, n: int) -> tuple[int, int]:
        """Entries on `axis` of what is read and what is transformed, for events with n there."""
        return n, n

    @abstractmethod
    def check(self, shape: Shape) -> None:
        """Raise a ValueError that names the shape unless its events have two parts."""

    @abstractmethod
    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the net reads, and what is transformed."""

    @abstractmethod
    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        """The event of both parts: `parts` undone."""

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

    Unflipped couplings condition on the first.
    """

    dim: int = 0
    """Event axis: 0 is the first (an image's channels), -1 the last."""
    flip: bool = False
    """Condition on the second half instead."""

    @property
    def axis(self) -> int:
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
class Checkerboard(Split):
    """The two colours of a board of pixels ``(C, *spatial)``, at full resolution.

    The net reads the image with 0 in place of the transformed colour, and gives parameters for all
    pixels; those of the other colour are not used. Unflipped, the pixels are transformed whose
    coordinates have an even sum, the top left one among them.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.4.
        https://arxiv.org/abs/1605.08803
    """

    flip: bool = False
    """Transform the pixels whose coordinates have an odd sum instead."""

    def check(self, shape: Shape) -> None:
        if not 2 <= len(shape) <= 4 or max(shape[1:]) < 2:
            raise ValueError(
                f"Coupling: a checkerboard takes events (C, *spatial) of 1 to 3 spatial axes and 2 "
                f"pixels at least; got {shape}"
            )

    def _changes(self, x: Tensor) -> Tensor:
        """Where pixels are transformed: ``(*spatial)``, after any leading axes of x."""
        place = torch.zeros((), dtype=torch.int64, device=x.device)
        for n in x.shape[2:]:
            place = place[..., None] + torch.arange(n, device=x.device)
        return place % 2 == int(self.flip)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        changes = self._changes(x)
        return x.where(~changes, 0.0), x.where(changes, 0.0)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return changed.where(self._changes(given), given)

    def raw(self, out: Tensor, params: int) -> Tensor:
        # what is not used must not overflow: the gradient of its infinity would be NaN
        return super().raw(out.where(self._changes(out), 0.0), params)

    def counted(self, log_slope: Tensor) -> Tensor:
        return log_slope.where(self._changes(log_slope), 0.0)


@register
@dataclass(frozen=True)
class Columns(Split):
    """Even and odd columns of ``(C, *spatial)``: the last axis, two images of half the width.

    Columns count from 0; unflipped couplings condition on the even ones.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++ (2019), whose "checkerboard" this is.
        https://arxiv.org/abs/1902.00275
    """

    flip: bool = False
    """Condition on the odd columns instead."""

    def check(self, shape: Shape) -> None:
        if len(shape) < 2 or shape[-1] % 2 or not shape[-1]:
            raise ValueError(
                f"Coupling: the columns of events {shape} are no pairs; the last of 2 axes or more "
                f"must be even"
            )

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        even, odd = x[..., 0::2], x[..., 1::2]
        return (odd, even) if self.flip else (even, odd)

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        pair = (changed, given) if self.flip else (given, changed)
        return torch.stack(pair, -1).flatten(-2)


@register
@dataclass(frozen=True)
class NoSplit(Split):
    """All of an event ``(C, *spatial)``; the net reads zeros, and the context: a learned prior.

    Of each class, where there are some. Behind a flow it is a learned Gaussian in the place of the
    standard one, if what it does is `Affine`.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018): the prior
        of the last scale, in its published code. https://arxiv.org/abs/1807.03039
    """

    reads: Shape
    """Shape of the zeros: as many channels as the net wants, and the event's spatial axes."""
    flip = False  # there is nothing to swap

    def sizes(self, n: int) -> tuple[int, int]:
        return self.reads[0], n

    def check(self, shape: Shape) -> None:
        if tuple(shape[1:]) != tuple(self.reads[1:]):
            what = f"the net reads zeros {self.reads}"
            raise ValueError(f"Coupling: {what}, and events are {tuple(shape)}")

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(x.shape[0], *self.reads), x

    def join(self, given: Tensor, changed: Tensor) -> Tensor:
        return changed
