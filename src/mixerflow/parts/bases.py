"""Bases as values: distributions of the latents."""

from __future__ import annotations

from dataclasses import dataclass

from mixerflow.core import Base, Cauchy, GaussianMixture, SpikeAndSlab, StandardNormal, StudentT
from mixerflow.registry import register


class BaseChoice:
    """A distribution of the latents."""

    def build(self) -> Base:
        """The distribution, at its start."""
        raise NotImplementedError


@register("normal")
@dataclass(frozen=True)
class NormalBase(BaseChoice):
    """The standard normal."""

    def build(self) -> Base:
        return StandardNormal()


@register("student-t")
@dataclass(frozen=True)
class StudentTBase(BaseChoice):
    """Student's t."""

    dof: float = 5.0
    """Degrees of freedom at the start."""
    learned: bool = True
    """Whether they are learned."""

    def build(self) -> Base:
        return StudentT(self.dof, learned=self.learned)


@register("cauchy")
@dataclass(frozen=True)
class CauchyBase(BaseChoice):
    """Student's t of one degree of freedom."""

    def build(self) -> Base:
        return Cauchy()


@register("mixture")
@dataclass(frozen=True)
class MixtureBase(BaseChoice):
    """A learned mixture of Gaussians, the same for all latents."""

    components: int = 8
    """Gaussians."""

    def build(self) -> Base:
        return GaussianMixture(self.components)


@register("spike-and-slab")
@dataclass(frozen=True)
class SpikeAndSlabBase(BaseChoice):
    """A narrow Gaussian and a wide one, for latents that are mostly near 0."""

    spike: float = 0.25
    """The narrow one's scale at the start."""
    slab: float = 1.25
    """The wide one's."""
    weight: float = 0.4
    """Of the narrow one at the start."""

    def build(self) -> Base:
        return SpikeAndSlab(self.spike, self.slab, self.weight)
