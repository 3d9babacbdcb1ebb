"""Base distributions of the latents of a flow, independent for each latent number."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mixerflow.core.transform import Context, total
from mixerflow.precision import widen
from mixerflow.registry import register


class Base(nn.Module):
    """A distribution of latent vectors ``(D,)``, independent of the data's shape.

    A conditional one reads the context that the flow's transforms see, ``(B, K)`` of
    ``context_net``, one row an image; the others ignore it.

    Attributes:
        alike: whether all latent numbers are independent, of one distribution. Then the density of
            any of them is `log_prob` of those.
    """

    alike: bool = False

    def log_prob(self, z: Tensor, context: Context = None) -> Float[Tensor, " batch"]:
        """Return each row's log-density in nats, ``(B, D)`` to ``(B,)``, in float32 or wider."""
        raise NotImplementedError

    def sample(self, like: Tensor, generator: Generator | None, context: Context = None) -> Tensor:
        """Draw with the shape ``(B, D)``, dtype and device of `like`; a row for each context."""
        raise NotImplementedError

    def folded(self) -> Base:
        """Return the form for inference of this distribution, a copy that may be changed."""
        return self


def _uniform(like: Tensor, generator: Generator | None) -> Tensor:
    """Draw uniformly on ``(0, 1]`` in float64: float32 has only 2^24 values, so no far tails."""
    drawn = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
    return 1 - drawn


def _log_sum(logs: Tensor) -> Tensor:
    """``log sum_k exp(l_k)`` over the last axis, whose gradients add up to 1.

    Those of `torch.logsumexp` do not where the l_k are so large that adding log K is lost: they are
    then 1 for each of the K terms.
    """
    top = logs.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top == -math.inf, 0.0)
    return (logs - top).exp().sum(-1).log() + top.squeeze(-1)


@register
class StandardNormal(Base):
    """``N(0, I)``."""

    alike = True

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        return -0.5 * total(z * z + math.log(2 * math.pi))  # `square` doubles z for its gradient

    def sample(self, like: Tensor, generator: Generator | None, context: Context = None) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


_FAR = 1e9
"""Beyond it the logarithm of a density is that of its tail to rounding, and squares may overflow.
"""
LEAST_DOF = 0.5
"""Draws with fewer degrees of freedom would exceed float32's range."""


@register
class StudentT(Base):
    """Student's t: ``p(z) ~ (1 + z^2 / dof)^(-(dof + 1) / 2)``, heavier tails for smaller ``dof``.

    Location and scale are left to the flow, whose last transform can learn them.

    Args:
        dof: degrees of freedom, more than `LEAST_DOF`; their initial value, if learned.
        learned: whether they are learned, one number for all latents, as
            ``LEAST_DOF + exp(raw_dof)``.

    References:
        Alexanderson, Henter, Robust model training and generalisation with Studentising flows
        (2020), arXiv:2006.06599.
        Bailey, Polar generation of random variates with the t-distribution (1994),
        doi:10.2307/2153537.
    """

    alike = True

    def __init__(self, dof: float = 5.0, *, learned: bool = True) -> None:
        super().__init__()
        if not LEAST_DOF < dof < math.inf:
            raise ValueError(f"StudentT: dof must be finite and more than {LEAST_DOF}; got {dof}")
        self.fixed = None if learned else float(dof)
        raw = torch.full((1,), math.log(dof - LEAST_DOF))  # FSDP2 shards no scalars
        self.raw_dof = nn.Parameter(raw) if learned else None

    def dof(self) -> Float[Tensor, "1"]:
        """Degrees of freedom ``(1,)``, in float64 because the peak is a small difference."""
        if self.raw_dof is None:
            return torch.tensor([self.fixed], dtype=torch.float64)
        return LEAST_DOF + self.raw_dof.double().exp()

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        z = widen(z)
        if self.fixed is not None:
            dof, half = self.fixed, (self.fixed + 1) / 2
            peak = math.lgamma(half) - math.lgamma(dof / 2) - 0.5 * math.log(math.pi * dof)
        else:
            dof = self.dof()
            half = (dof + 1) / 2
            peak = torch.lgamma(half) - torch.lgamma(dof / 2) - 0.5 * (math.pi * dof).log()
            dof, half, peak = (t.to(z.dtype) for t in (dof, half, peak))
        ratio = z.abs() / dof**0.5
        # log(1 + r^2) is 2 log(r) for large r, whose square would overflow
        near, far = ratio.clamp(max=_FAR), ratio.clamp(min=_FAR)
        return total(peak - half * (near.square().log1p() + 2 * (far / _FAR).log()))

    def sample(self, like: Tensor, generator: Generator | None, context: Context = None) -> Tensor:
        # Box and Muller's radius with another tail: sqrt(dof (u^(-2 / dof) - 1)) cos(2 pi v)
        dof = self.dof().detach().to(like.device)
        u, v = _uniform(like, generator), _uniform(like, generator)
        radius = (dof * torch.expm1(-2 / dof * u.log())).sqrt()
        return (radius * (2 * math.pi * v).cos()).to(like.dtype)

    def folded(self) -> Base:
        """Return a Student's t whose degrees of freedom are fixed."""
        if type(self) is not StudentT:
            return self
        return StudentT(float(self.dof().detach()), learned=False).train(self.training)

    def extra_repr(self) -> str:
        return f"dof={float(self.dof().detach()):g}, learned={self.fixed is None}"


@register
class Cauchy(StudentT):
    """``p(z) = 1 / (pi (1 + z^2))``: Student's t of one degree of freedom, without a mean."""

    def __init__(self) -> None:
        super().__init__(1.0, learned=False)


class _Mixture(Base):
    """A mixture of Gaussians with learned weights, the same for each latent."""

    alike = True

    logits: nn.Parameter
    means: Tensor
    log_scales: nn.Parameter

    def log_prob(self, z: Tensor, context: Context = None) -> Tensor:
        z, mine = widen(z).unsqueeze(-1), (self.logits, self.means, self.log_scales)
        logits, means, log_scales = (t.to(z.dtype) for t in mine)
        peaks = logits.log_softmax(0) - log_scales - 0.5 * math.log(2 * math.pi)
        near = z.clamp(-_FAR, _FAR)
        log_densities = peaks - 0.5 * ((near - means) * (-log_scales).exp()).square()
        # far out the widest component is all there is; a difference of squares has no NaN there
        far = z.squeeze(-1).abs().clamp(min=_FAR)
        tail = 0.5 * (far - _FAR) * (far + _FAR) * (-2 * log_scales.amax()).exp()
        return total(_log_sum(log_densities) - tail)

    @torch.no_grad()
    def sample(self, like: Tensor, generator: Generator | None, context: Context = None) -> Tensor:
        edges = self.logits.double().softmax(0).cumsum(0)[:-1]  # the last component has no edge
        component = torch.bucketize(_uniform(like, generator), edges)
        normal = StandardNormal().sample(like, generator)
        means, scales = self.means.to(like.dtype), self.log_scales.exp().to(like.dtype)
        return means[component] + scales[component] * normal


@register
class GaussianMixture(_Mixture):
    """``p(z) = sum_k w_k N(z; m_k, s_k^2)`` for each latent, learned, and the same for all of them.

    It starts near the standard normal, with mean 0 and variance 1. The components' means start at
    the normal's quantiles, so that the components can learn different things.

    Reference: Izmailov et al., Semi-supervised learning with normalizing flows (2020), with classes
        as components, arXiv:1912.13025.
    """

    def __init__(self, components: int = 8) -> None:
        super().__init__()
        if components < 1:
            raise ValueError(f"GaussianMixture: components must be at least 1; got {components}")
        scale = 1.0 if components == 1 else 0.5
        middles = (torch.arange(components, dtype=torch.float64) + 0.5) / components
        means = torch.special.ndtri(middles)
        means = means * ((1 - scale**2) / means.square().mean().clamp_min(1e-9)).sqrt()
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(means.float())
        self.log_scales = nn.Parameter(torch.full((components,), math.log(scale)))

    def extra_repr(self) -> str:
        return f"components={len(self.logits)}"


@register
class SpikeAndSlab(_Mixture):
    """``p(z) = w N(z; 0, spike^2) + (1 - w) N(z; 0, slab^2)``: latents that are mostly near 0.

    Weight w, between 0 and 1, and both scales are learned from the given start, the same for all
    latents.
    """

    def __init__(self, spike: float = 0.25, slab: float = 1.25, weight: float = 0.4) -> None:
        super().__init__()
        if not 0 < spike < slab < math.inf:
            raise ValueError(f"SpikeAndSlab: wants 0 < spike < slab; got {spike} and {slab}")
        if not 0 < weight < 1:
            raise ValueError(f"SpikeAndSlab: weight must lie between 0 and 1; got {weight}")
        self.logits = nn.Parameter(torch.tensor([weight, 1 - weight]).log())
        self.log_scales = nn.Parameter(torch.tensor([spike, slab]).log())
        self.register_buffer("means", torch.zeros(2), persistent=False)

    def extra_repr(self) -> str:
        spike, slab = self.log_scales.detach().exp().tolist()
        weight = self.logits.detach().softmax(0)[0].item()
        return f"spike={spike:.3g}, slab={slab:.3g}, weight={weight:.3g}"
