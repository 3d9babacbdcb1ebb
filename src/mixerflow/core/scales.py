"""Multi-scale flows: some channels are done early, the others go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mixerflow.core.composite import Composite
from mixerflow.core.noise import Noise
from mixerflow.core.transform import (
    Context,
    FixedShape,
    Mapped,
    PlacedLayer,
    Run,
    Shape,
    Transform,
    constant,
    expect,
)
from mixerflow.registry import register


@register
class MultiScale(FixedShape, Composite):
    """Transforms one after another, between which some channels go on and the others are done.

    ``(y_s, h_s) = split(t_s(h_{s-1}))`` with ``h_0 = x``; what is done, y, passes no other
    transform. The latent is one vector ``z = (y_1, ..., y_S)``, each y flattened with the first
    channel first; nothing of the last scale goes on. The log-det is the sum of the transforms'.

    The conditional Gaussian under which Glow scores what it factors out is an affine coupling at
    the end of a scale's transform, which changes that part given the rest.

    Args:
        shape: of the events, ``(C, *spatial)``.
        scales: a transform each, the first of events of `shape`.
        kept: how many channels go on after each scale but the last; None is half, ``n // 2`` of n.
        keep: which go on, the first channels or the last.

    Raises:
        ValueError: no scales, or nothing that could go on or be done; names the events.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP (2017), section 3.6.
        https://arxiv.org/abs/1605.08803
    """

    def __init__(
        self,
        shape: Shape,
        scales: Sequence[Transform],
        *,
        kept: Sequence[int] | None = None,
        keep: Literal["first", "last"] = "first",
    ) -> None:
        super().__init__(shape)
        if not scales or (kept is not None and len(kept) != len(scales) - 1):
            raise ValueError(f"MultiScale: {len(scales)} scales of events {shape}, kept={kept}")
        self.keep = keep
        self.scales = nn.ModuleList(scales)
        self.kept: list[int] = []
        self._taken, self._done = [self.shape], []
        for number, scale in enumerate(self.parts(), 1):
            n, *spatial = scale.out_shape(self._taken[-1])
            going_on = 0
            if number < len(scales):
                going_on = n // 2 if kept is None else kept[number - 1]
                if not 0 < going_on < n:
                    what = f"{going_on} channels cannot go on of events {(n, *spatial)}"
                    raise ValueError(f"MultiScale: after scale {number} {what}")
            self.kept.append(going_on)
            self._done.append((n - going_on, *spatial))
            self._taken.append((going_on, *spatial))
        self._lengths = [math.prod(done) for done in self._done]
        self.latent_shape = (sum(self._lengths),)

    def parts(self) -> Iterator[Transform]:
        """The scales' transforms."""
        return iter(self.scales)  # pyright: ignore[reportReturnType]

    def compose(
        self, run: Run, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_data(x)
        log_det, parts = constant(0.0, x), []
        for scale, kept in zip(self.parts(), self.kept, strict=True):
            if not scale.dormant:
                x, scale_log_det = run(scale, x, context, noise)
                log_det = log_det + scale_log_det
            sizes = [kept, x.shape[1] - kept]
            if self.keep == "first":
                x, done = x.split(sizes, 1)
            else:
                done, x = x.split(sizes[::-1], 1)
            parts.append(done.flatten(1))
        return torch.cat(parts, 1), log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        log_det, x = constant(0.0, z), None
        parts = list(zip(self.parts(), z.split(self._lengths, 1), self._done, strict=True))
        for scale, part, shape in reversed(parts):
            done = part.unflatten(1, shape)
            if x is None:
                x = done
            else:
                x = torch.cat((x, done) if self.keep == "first" else (done, x), 1)
            if not scale.dormant:
                x, scale_log_det = scale.inverse(x, context, noise)
                log_det = log_det + scale_log_det
        assert x is not None
        return x, log_det

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        expect(self, shape, self.shape)
        scales = zip(self.parts(), self._taken[:-1], strict=True)
        return [placed for scale, taken in scales for placed in scale.layer_shapes(taken)]

    def extra_repr(self) -> str:
        """The events, and what of them goes on, in ``print(flow)``."""
        return f"{self.shape}, kept={self.kept[:-1]}, keep={self.keep!r}"
