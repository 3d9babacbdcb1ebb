"""A base distribution with a part for each class, whose posterior is a classifier."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mixerflow.core.bases import Base, StandardNormal
from mixerflow.core.inputs import class_numbers
from mixerflow.core.transform import Context
from mixerflow.precision import widen
from mixerflow.registry import register


@register
class ClassGaussians(Base):
    """``p(z) = 1/K sum_k N(z; m_k, I)``, a Gaussian of all latents for each class k.

    `scores` are ``log p(z | k)`` up to a constant, so their softmax is ``p(k | z)``. The means
    start as draws of ``N(0, distance^2 / (2 D) I)``, the same for all flows of D
    latents and K classes.

    Departs from the paper: its means are draws of ``N(0, I)``, a `distance` of ``sqrt(2 D)``, which
    is 78 standard deviations for CIFAR-10: all classes but one then have probability 0 in float32.

    Args:
        dims: D.
        classes: K.
        distance: distance between two means, in expectation.
        learned: whether the means are learned.

    Raises:
        ValueError: a distance that is no positive number.

    Reference: Izmailov et al., Semi-supervised learning with normalizing flows (2020),
        arXiv:1912.13025.
    """

    means: Tensor

    def __init__(
        self, dims: int, classes: int, distance: float = 10.0, *, learned: bool = True
    ) -> None:
        super().__init__()
        if not 0 < distance < math.inf:
            raise ValueError(f"ClassGaussians: distance must be positive; got {distance}")
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(classes, dims, generator=generator) * (distance / math.sqrt(2 * dims))
        if learned:
            self.means = nn.Parameter(drawn)
        else:
            self.register_buffer("means", drawn)

    def scores(self, z: Float[Tensor, "batch dims"]) -> Float[Tensor, "batch classes"]:
        """Return ``log p(z | k) - log N(z; 0, I)``: ``m_k z - |m_k|^2 / 2``."""
        z, means = widen(z), self.means
        means = means.to(z.dtype)
        return z @ means.T - 0.5 * means.square().sum(1)

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        scores = self.scores(z)
        return StandardNormal().log_prob(widen(z)) + scores.logsumexp(1) - math.log(scores.shape[1])

    @torch.no_grad()
    def sample(self, like: Tensor, generator: Generator | None, context: Context = None) -> Tensor:
        """Draw from the mixture, or from the Gaussians of classes ``(B,)`` int64, if given."""
        count, device = len(self.means), like.device
        if context is not None and context.dtype == torch.int64:
            classes = class_numbers(context.to(device), count)
        else:
            classes = torch.randint(count, (len(like),), device=device, generator=generator)
        return self.means.to(like.dtype)[classes] + StandardNormal().sample(like, generator)

    def extra_repr(self) -> str:
        return f"{self.means.shape[1]}, classes={len(self.means)}"
