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
        split: the rule that cuts an event into a and b, see `mixerflow.transforms.splits`. A number
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
