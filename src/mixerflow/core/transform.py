"""A transform is a module with two directions, each with its own log-det."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mixerflow.core.noise import Noise

Shape = tuple[int, ...]
Density = Literal["exact", "bound", "estimate"]


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


class Transform(nn.Module):
    """An invertible map with its log-det in both directions.

    Subclasses implement `forward` and `inverse`; `mixerflow.transforms.checks` proves that they
    obey the laws. ``density`` says what a flow's log-probability through this transform is: exact,
    a lower bound, or an unbiased estimate. Flows number their transforms' ``stream``, so that each
    stochastic one draws its own noise. ``invertible`` says whether `inverse` gives the input back
    to rounding, in training mode too; training may then forget it, see `mixerflow.core.memory`.
    """

    density: Density = "exact"
    stream: int = 0
    invertible: bool = True

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> tuple[Tensor, Tensor]:
        """Data to latent: ``(B, *event)`` to z and ``log|det dz/dx|`` ``(B,)``."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data: z to x and ``log|det dx/dz|`` ``(B,)``."""
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
