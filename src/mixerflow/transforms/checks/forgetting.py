"""Laws of surjections, whose inverse draws what the latent leaves open, and of these turned round.

With data ``x ~ N(0, I / 4)`` and ``z = f(x)``, two facts pin the density ``p(x | z)`` that
`forward` states as its log-det: the draws of `inverse` have it, up to a factor for each z
("exchange"), and that factor is 1 ("mass"). Data as narrow as these give no large weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mixerflow.core import Noise, Transform
from mixerflow.transforms.checks.subject import Batch, Subject, law, normal

_DRAWS = 50_000
_SCALE = 0.5
"""Standard deviation of the data."""


def _log_normal(x: Tensor) -> Tensor:
    """Log-densities of data ``(B,)``."""
    log_densities = -0.5 * (x / _SCALE).square() - math.log(_SCALE * math.sqrt(2 * math.pi))
    return log_densities.flatten(1).sum(1)


@law("deterministic")
def deterministic(subject: Subject) -> None:
    """`forward` draws nothing: any noise, and none, give the same to the bit."""
    batch = subject.data(4)
    wanted = subject.run("forward", batch)
    for noise in (Noise(1, batch.number), Noise(2, batch.number)):
        with torch.no_grad():
            got = subject.transform(batch.values, batch.context, noise)
        assert all(map(torch.equal, got, wanted)), "forward changes with the noise"


@law("turned draws")
@law("opposite log-dets")
def opposite_log_dets(subject: Subject) -> None:
    """The deterministic direction, after the one that draws, has the opposite log-det."""
    first, then = ("inverse", "forward") if subject.kind.forgets else ("forward", "inverse")
    batch = subject.batch(first, 8)
    drawn, log_det = subject.run(first, batch)
    got = subject.run(then, batch._replace(values=drawn))[1]
    subject.check_close(f"log-det of {then} after {first}", got, -log_det, subject.kind.log_det)


@law("inverse draws")
def inverse_draws(subject: Subject) -> None:
    """A part has ``inverse_draws``, the transform too; noise, and torch's generator, are drawn."""
    parts = [part for part in subject.transform.modules() if isinstance(part, Transform)]
    declared = subject.transform.inverse_draws and any(part.stream for part in parts)
    assert declared, "its inverse draws, but it has not `inverse_draws` True"
    assert not subject.transform.invertible, "`inverse` does not give x back: it is not invertible"
    z, context, number = subject.batch("inverse", 64)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(subject.seed)
        noises = (Noise(1, number), Noise(2, number), Noise(1, number, draw=1), None, None)
        drawn = [subject.transform.inverse(z, context, noise)[0] for noise in noises]
        again = subject.transform.inverse(z, context, noises[0])[0]
    assert torch.equal(again, drawn[0]), "inverse is no function of its noise"
    for other in drawn[1:]:
        assert not torch.equal(other, drawn[0]), "inverse draws the same for all noise"
    assert not torch.equal(drawn[3], drawn[4]), "inverse draws nothing from torch's generator"


def _drawn_pairs(subject: Subject) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """Data, other data of the same latents, and log-dets of both as `forward` states them."""
    assert subject.inputs is normal, "the law takes normal events"
    data = subject.data(_DRAWS)
    data = data._replace(values=_SCALE * data.values)
    z, log_det = subject.run("forward", data)
    other = subject.run("inverse", data._replace(values=z))[0]
    return data, other, log_det, subject.run("forward", data._replace(values=other))[1]


@law("exchange")
def exchange(subject: Subject) -> None:
    """Draws of `inverse` have the density that `forward` states: exchanging x for one changes none.

    A step of Metropolis and Hastings with the draw x' as its proposal, accepted
    with the probability ``min(1, p(x') p(x | z) / (p(x) p(x' | z)))``, keeps the distribution of x:
    means of any function are as before.
    """
    data, other, log_det, other_log_det = _drawn_pairs(subject)
    x = data.values
    log_ratio = _log_normal(other) - _log_normal(x) + log_det - other_log_det
    accepted = log_ratio.clamp(max=0.0).exp()
    generator = torch.Generator().manual_seed(subject.seed)
    size = math.prod(subject.shape)
    direction = torch.randn(size, 8, dtype=x.dtype, generator=generator)
    features = [torch.tanh(t.flatten(1) + 0.3) @ direction for t in (x, other)]
    gain = accepted[:, None] * (features[1] - features[0])
    error = gain.mean(0).abs() / (gain.std(0) * _DRAWS**-0.5).clamp(min=1e-12)
    assert accepted.mean() > 0.02, "too few proposals are accepted for a verdict"
    assert error.max() <= 4.5, f"a mean moves by {error.max().item():.1f} standard errors"


@law("mass")
def mass(subject: Subject) -> None:
    """``p(x | z)`` has mass 1: it gives the share of latents in a box.

    With z uniform in the box, of volume V, and x a draw of `inverse`, the share is ``V E p(x) /
    p(x | z)``, where z is no latent of any x counting as 0.
    """
    data, *_ = _drawn_pairs(subject)
    z = subject.run("forward", data)[0].flatten(1)
    centre, half = z.mean(0), z.std(0)
    inside = ((z - centre).abs() < half).all(1).to(z.dtype)
    generator = torch.Generator().manual_seed(subject.seed + 1)
    places = torch.rand(z.shape, dtype=z.dtype, generator=generator) * 2 - 1
    shape = subject.transform.out_shape(subject.shape)
    latents = (centre + half * places).reshape(-1, *shape)
    x, _ = subject.run("inverse", data._replace(values=latents))
    back, log_det = subject.run("forward", data._replace(values=x))
    reached = ((back - latents).abs().flatten(1).amax(1) < 1e-9).to(z.dtype)
    weight = reached * (_log_normal(x) - log_det).exp() * (2 * half).prod()
    error = (weight.mean() - inside.mean()).abs()
    spread = ((weight.var() + inside.var()) / _DRAWS).sqrt()
    got = f"{weight.mean().item():.4g} by its draws, {inside.mean().item():.4g} by its latents"
    assert error <= 4 * spread, f"the share is {got}: {(error / spread).item():.1f} standard errors"
    assert spread < 0.05 * inside.mean(), "the share is too uncertain for a verdict"
