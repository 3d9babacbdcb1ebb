"""Bases as values: distributions of the latents."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Base, Cauchy, GaussianMixture, SpikeAndSlab, StandardNormal, StudentT
from mixerflow.parts.base import Part
from mixerflow.registry import register


class BaseChoice(Part):
    """A distribution of the latents."""

    def build(self) -> Base:
        """Return the distribution, at its start."""
        return self.make()


@register("normal")
@dataclass(frozen=True)
class NormalBase(BaseChoice):
    """The standard normal."""

    makes = StandardNormal


@register("student-t")
@dataclass(frozen=True)
class StudentTBase(BaseChoice):
    """Student's t."""

    makes = StudentT

    dof: float = 5.0
    """Degrees of freedom at the start."""
    learned: bool = True
    """Whether the degrees of freedom are learned."""


@register("cauchy")
@dataclass(frozen=True)
class CauchyBase(BaseChoice):
    """Student's t of one degree of freedom."""

    makes = Cauchy


@register("mixture")
@dataclass(frozen=True)
class MixtureBase(BaseChoice):
    """A learned mixture of Gaussians, the same for all latents."""

    makes = GaussianMixture

    components: int = 8
    """Number of Gaussians."""


@register("spike-and-slab")
@dataclass(frozen=True)
class SpikeAndSlabBase(BaseChoice):
    """A narrow Gaussian and a wide one, for latents that are mostly near 0."""

    makes = SpikeAndSlab

    spike: float = 0.25
    """Scale of the narrow Gaussian at the start."""
    slab: float = 1.25
    """Scale of the wide Gaussian at the start."""
    weight: float = 0.4
    """Weight of the narrow Gaussian at the start."""
