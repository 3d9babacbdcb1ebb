"""All of an event transformed by parameters that a net reads off the context alone."""

from __future__ import annotations

from torch import Tensor, nn

from mixerflow.core import Noise, Shape, Transform, total
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise


@register
class Conditioned(Transform):
    """``z = elementwise(x; net(0, context))``: a learned prior, of each class where there are some.

    ``log|det dz/dx|`` is the sum of the map's log-derivatives.

    Args:
        net: maps zeros ``(B, *reads)`` and the context to ``(B, elementwise.params * C, *spatial)``
            for events ``(C, *spatial)``; parameter k of channel c is channel ``k * C + c``.
        elementwise: what happens to each number.
        reads: shape of the zeros.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018): the prior
        of the last scale, in its published code. https://arxiv.org/abs/1807.03039
    """

    def __init__(self, net: nn.Module, elementwise: Elementwise, reads: Shape) -> None:
        super().__init__()
        self.net, self.elementwise, self.reads = net, elementwise, tuple(reads)

    def _raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        # without a context all images have the same: one row is enough
        rows = x.shape[0] if context is not None else 1
        raw = self.net(x.new_zeros(rows, *self.reads), context).to(x.dtype)
        params = self.elementwise.params
        if raw.shape[1:] != (params * x.shape[1], *x.shape[2:]):
            raise ValueError(
                f"Conditioned: {self.elementwise!r} takes {params} parameters for each number of "
                f"events {tuple(x.shape[1:])}; the net gives {tuple(raw.shape[1:])}"
            )
        raw = raw.expand(x.shape[0], *raw.shape[1:])
        return raw.unflatten(1, (params, x.shape[1])).movedim(1, 0)

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        z, log_det = self.elementwise.forward(x, self._raw(x, context))
        return z, total(log_det)

    def inverse(
        self, z: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        x, log_det = self.elementwise.inverse(z, self._raw(z, context))
        return x, total(log_det)

    def extra_repr(self) -> str:
        """The map, in ``print(flow)``."""
        return f"{self.elementwise!r}"
