"""What a flow returns: latents with their log-probabilities, and images with what went wrong."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor


class NonFiniteWarning(RuntimeWarning):
    """Some values of decoded or drawn images are NaN or infinite."""


class Encoded(NamedTuple):
    """A flow's output for a batch: latents ``(B, D)``; log-probability and log-det ``(B,)``."""

    z: Tensor
    log_prob: Tensor
    log_det: Tensor


class Inverted(NamedTuple):
    """What latents are the latents of, ``(B, *shape)``, and the base's log-density ``(B,)``."""

    x: Tensor
    log_base: Tensor


class Samples(NamedTuple):
    """Drawn or decoded images ``(n, *shape)``, and which of their values are no values of images.

    Attributes:
        images: the images; for a flow with levels, integers that are clamped into them, 0 where a
            value is not finite.
        clamped: number of finite values that were clamped.
        nonfinite: mask ``(n, *shape)`` of the values that the flow gave as NaN or infinity.
    """

    images: Tensor
    clamped: int
    nonfinite: Tensor

    @property
    def nonfinite_values(self) -> int:
        """Number of values that are NaN or infinite."""
        return int(self.nonfinite.sum())

    @property
    def nonfinite_images(self) -> int:
        """Number of images with such a value."""
        return int(self.nonfinite.flatten(1).any(1).sum())

    def warned(self) -> Tensor:
        """Return the images; warn (`NonFiniteWarning`) of values that are not finite."""
        if torch.compiler.is_compiling():  # an exported program cannot warn
            return self.images
        if count := self.nonfinite_values:
            which = torch.nonzero(self.nonfinite.flatten(1).any(1)).flatten().tolist()
            numbers = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
            given = "stay so" if self.images.is_floating_point() else "are given as 0"
            what = f"{count} values in {len(which)} of {len(self.images)} images ({numbers})"
            remedy = "Flow.draw and Flow.decode_samples say which"
            warnings.warn(f"{what} are not finite and {given}: {remedy}", NonFiniteWarning, 3)
        return self.images


def samples_of(x: Tensor, levels: int | None) -> Samples:
    """Return a flow's real numbers ``(n, *shape)`` as images of that many levels."""
    nonfinite = ~x.isfinite()
    if levels is None:
        return Samples(x, 0, nonfinite)
    clamped = 0  # an exported program counts nothing
    if not torch.compiler.is_compiling():
        clamped = int((((x < 0) | (x >= levels)) & ~nonfinite).sum())
    dtype = torch.uint8 if levels <= 256 else torch.int32
    images = x.masked_fill(nonfinite, 0.0).clamp(0, levels - 1).to(dtype)
    return Samples(images, clamped, nonfinite)


def joined(parts: list[Samples]) -> Samples:
    """Return the samples of several batches as one."""
    images, clamped, nonfinite = zip(*parts, strict=True)
    return Samples(torch.cat(images), sum(clamped), torch.cat(nonfinite))
