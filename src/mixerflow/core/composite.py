"""Transforms made of several, each of which may have layers of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mixerflow.core.noise import Noise
from mixerflow.core.transform import (
    Context,
    Density,
    Mapped,
    PlacedLayer,
    Run,
    Shape,
    Transform,
    constant,
)


class Composite(Transform):
    """Several transforms at work together, whose layers are the layers of this one.

    A subclass says which they are (`parts`), where they stand (`layer_shapes`), and how they work
    together (`compose`), besides `inverse` and `out_shape`. It is as exact, and as invertible, as
    the weakest of its parts.
    """

    def parts(self) -> Iterable[Transform]:
        """The transforms that it is made of."""
        raise NotImplementedError

    def compose(
        self, run: Run, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        """`forward`, with each part called by ``run(part, x, context, noise)``."""
        raise NotImplementedError

    def layer_shapes(self, shape: Shape) -> list[PlacedLayer]:
        raise NotImplementedError

    @property
    def density(self) -> Density:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weakest of the parts' kinds."""
        kinds = {part.density for part in self.parts()}
        if "estimate" in kinds:
            return "estimate"
        return "bound" if "bound" in kinds else "exact"

    @property
    def invertible(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all parts are."""
        return all(part.invertible for part in self.parts())

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self.compose(_forward, x, context, noise)

    def walk(
        self, run: Run, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.compose(lambda part, *given: part.walk(run, *given), x, context, noise)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.compose(_initialize, x, context)[0]


def _forward(
    part: Transform, x: Tensor, context: Tensor | None, noise: Noise | None
) -> tuple[Tensor, Tensor]:
    return part(x, context, noise)


def _initialize(
    part: Transform, x: Tensor, context: Tensor | None, noise: Noise | None
) -> tuple[Tensor, Tensor]:
    return part.initialize(x, context), constant(0.0, x)
