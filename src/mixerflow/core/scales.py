"""Multi-scale flows: after each scale some channels are factored out, the others go on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mixerflow.core.noise import Noise
from mixerflow.core.transform import (
    Composite,
    Context,
    FixedShape,
    Mapped,
    PlacedLayer,
    Runner,
    See,
    Shape,
    Transform,
    constant,
    expect,
)
from mixerflow.registry import register


@register
class MultiScale(FixedShape, Composite):
    """Transforms one after another; after each of them some channels are factored out.

    ``(y_s, h_s) = split(t_s(h_{s-1}))`` with ``h_0 = x``; what is factored out, y, passes no other
    transform. The latent is one vector ``z = (y_1, ..., y_S)``, each y flattened with the first
    channel first; the last scale factors out all channels. The log-det is the sum of the
    transforms'.

    The conditional Gaussian under which Glow scores what it factors out is an affine coupling at
    the end of a scale's transform, which changes that part given the rest.

    Args:
        shape: of the events, ``(C, *spatial)``.
        scales: the transform of each scale, the first of events of `shape`.
        kept: how many channels go on after each scale but the last; None is half, ``n // 2`` of n.
        keep: which channels go on, the first or the last.

    Raises:
        ValueError: no scales, or a scale that keeps none or all of its channels; names the events.

    Reference: Dinh et al., Real NVP (2017), section 3.6, arXiv:1605.08803.
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
        self._scale_shapes, self._factored_shapes = [], []
        scale_shape = self.shape
        for number, scale in enumerate(self.parts(), 1):
            n, *spatial = scale.out_shape(scale_shape)
            going_on = 0
            if number < len(scales):
                going_on = n // 2 if kept is None else kept[number - 1]
                if not 0 < going_on < n:
                    what = f"{going_on} channels cannot go on of events {(n, *spatial)}"
                    raise ValueError(f"MultiScale: after scale {number} {what}")
            self.kept.append(going_on)
            self._scale_shapes.append(scale_shape)
            self._factored_shapes.append((n - going_on, *spatial))
            scale_shape = (going_on, *spatial)
        self._lengths = [math.prod(factored) for factored in self._factored_shapes]
        self.latent_shape = (sum(self._lengths),)

    def parts(self) -> Iterator[Transform]:
        return iter(self.scales)  # pyright: ignore[reportReturnType]

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        self.check_data(x)
        log_det, factored = constant(0.0, x), []
        for scale, kept in zip(self.parts(), self.kept, strict=True):
            x, scale_log_det = run(scale, x, context, noise)
            log_det = log_det + scale_log_det
            x, y = self._split(x, kept)
            factored.append(y.flatten(1))
        return torch.cat(factored, 1), log_det

    def _split(self, x: Tensor, kept: int) -> tuple[Tensor, Tensor]:
        """Split a scale's output in the `kept` channels that go on, and those factored out."""
        sizes = [kept, x.shape[1] - kept]
        if self.keep == "first":
            x, y = x.split(sizes, 1)
        else:
            y, x = x.split(sizes[::-1], 1)
        return x, y

    def watch(self, see: See, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        factored: list[Tensor] = []

        def run(scale: Transform, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
            def see_all(layer: Transform, before: Tensor, after: Tensor) -> None:
                see(layer, *(torch.cat([*factored, each], 1) for each in (before, after)))

            x, log_det = scale.watch(see_all, x, context, noise)
            _, y = self._split(x, self.kept[len(factored)])
            factored.append(y.flatten(1))
            return x, log_det

        return self.compose(run, x, context, noise)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        log_det, x = constant(0.0, z), None
        factored = z.split(self._lengths, 1)
        scales = list(zip(self.parts(), factored, self._factored_shapes, strict=True))
        for scale, flat, shape in reversed(scales):
            y = flat.unflatten(1, shape)
            if x is None:
                x = y
            else:
                x = torch.cat((x, y) if self.keep == "first" else (y, x), 1)
            x, scale_log_det = scale.inverse(x, context, noise)
            log_det = log_det + scale_log_det
        assert x is not None
        return x, log_det

    def latent_shapes(self, shape: Shape) -> list[Shape]:
        expect(self, shape, self.shape)
        return list(self._factored_shapes)

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        expect(self, shape, self.shape)
        scales = zip(self.parts(), self._scale_shapes, strict=True)
        return [placed for scale, taken in scales for placed in scale.layer_shapes(taken)]

    def extra_repr(self) -> str:
        return f"{self.shape}, kept={self.kept[:-1]}, keep={self.keep!r}"
