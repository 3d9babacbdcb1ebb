"""Coupling: one part passes, a net reads it, and an elementwise map transforms the other part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, total
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise
from mixerflow.transforms.splits import Halves, Split


@register
class Coupling(Transform):
    """``z_a = x_a, z_b = elementwise(x_b; net(x_a, context))`` for two parts a and b of the event.

    ``log|det dz/dx|`` is the sum of the map's log-derivatives over b. Works on any axis of any
    event: rows with an MLP, feature maps with a convolutional net.

    Args:
        split: what a and b are, see `mixerflow.transforms.splits`. A number is short for
            ``Halves(split, flip)``: the halves of that event axis.
        net: maps a and the context to the raw parameters of b. For halves ``(B, ..., a, ...)`` to
            ``(B, ..., elementwise.params * b, ...)``; parameter k of feature j is feature
            ``k * b + j``. For the other splits so with the channels.
        elementwise: what happens to the transformed part.
        flip: with a number for `split`, condition on the second half instead of the first.

    Raises:
        ValueError: `flip` beside a split, which has its own.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), eq. 4 to 8.
        https://arxiv.org/abs/1605.08803
    """

    def __init__(
        self, split: int | Split, net: nn.Module, elementwise: Elementwise, *, flip: bool = False
    ) -> None:
        super().__init__()
        if isinstance(split, Split) and flip:
            raise ValueError(f"Coupling: {split} says itself what is flipped; leave out flip")
        self.split = split if isinstance(split, Split) else Halves(split, flip)
        self.net = net
        self.elementwise = elementwise

    @property
    def dim(self) -> int | None:
        """The event axis whose halves these are; None for another split."""
        return self.split.dim if isinstance(self.split, Halves) else None

    @property
    def flip(self) -> bool:
        """Whether the split is flipped."""
        return self.split.flip

    def _parameters_of(self, given: Tensor, changed: Tensor, context: Tensor | None) -> Tensor:
        axis, params = self.split.axis, self.elementwise.params
        raw = self.net(given, context).to(changed.dtype)
        expected = params * changed.shape[axis]
        if raw.shape[axis] != expected:
            raise ValueError(
                f"Coupling: {self.elementwise!r} takes {expected} parameters for "
                f"{changed.shape[axis]} features; the net gives {raw.shape[axis]} "
                f"from {tuple(given.shape)}"
            )
        return self.split.raw(raw, params)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(x.shape[1:]))
        given, changed = self.split.parts(x)
        changed, log_det = self.elementwise.forward(
            changed, self._parameters_of(given, changed, context)
        )
        return self.split.join(given, changed), total(self.split.counted(log_det))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.out_shape(tuple(z.shape[1:]))
        given, changed = self.split.parts(z)
        changed, log_det = self.elementwise.inverse(
            changed, self._parameters_of(given, changed, context)
        )
        return self.split.join(given, changed), total(self.split.counted(log_det))

    def out_shape(self, shape: Shape) -> Shape:
        self.split.check(shape)
        return shape

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The net too, where it has an `initialize` of its own: norms inside of conditioners."""
        self.out_shape(tuple(x.shape[1:]))
        start = getattr(self.net, "initialize", None)
        if callable(start):
            start(self.split.parts(x)[0], context)
        return self(x, context)[0]

    def extra_repr(self) -> str:
        """Split and elementwise map, in ``print(flow)``."""
        return f"{self.split!r}, elementwise={self.elementwise!r}"
