"""Logistic mixtures and floored scales as laws: against closed forms, in the tails, and back."""

import math
import warnings

import pytest
import torch
from torch import distributions as D

from mixerflow.core import ConvergenceWarning, monotone_root
from mixerflow.nets import ResidualMLP
from mixerflow.transforms import Coupling, FlooredAffine, LogisticMixture
from mixerflow.transforms.logistic import Mixture

SINGLE, DOUBLE = torch.float32, torch.float64


def draw(law, size, *shape, dtype=DOUBLE, seed=0):
    """Raw parameters ``N(0, size^2)`` for values of that shape."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(law.params, *shape, dtype=DOUBLE, generator=generator) * size
    return raw.to(dtype)


def normal(n, scale=1.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, dtype=DOUBLE, generator=generator)


def mixture(law, raw):
    """The distribution whose CDF the law takes the logit of, by torch."""
    k = law.components
    logits, mean, log_scale = raw[2 : 2 + k], raw[2 + k : 2 + 2 * k], raw[2 + 2 * k :]
    gain = torch.linspace(0.5, 1.5, k, dtype=raw.dtype)[:, None]
    mean, scale = (gain * mean).mT, (gain.flip(0) * log_scale).mT.exp()
    uniform = D.Uniform(torch.zeros_like(mean), torch.ones_like(mean))
    shape = [D.SigmoidTransform().inv, D.AffineTransform(mean, scale)]
    logistic = D.TransformedDistribution(uniform, shape)
    return D.MixtureSameFamily(D.Categorical(logits=logits.mT), logistic)


@pytest.mark.parametrize("components", [1, 2, 5])
def test_same_as_torchs_mixture(components):
    law = LogisticMixture(components)
    x, raw = normal(4000, 3.0), draw(law, 1.0, 4000)
    other, a, b = mixture(law, raw), raw[0].tanh(), raw[1]
    below = other.cdf(x)
    above = 1 - below
    good = (below - 0.5).abs() < 0.499  # where 1 - F loses no more than three digits
    assert good.double().mean() > 0.9
    z, log_slope = law.forward(x, raw)
    wanted = (below / above).log() * a.exp() + b
    wanted_slope = other.log_prob(x) - below.log() - above.log() + a
    torch.testing.assert_close(z[good], wanted[good], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_slope[good], wanted_slope[good], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("components", [1, 3, 8])
@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_zero_is_the_identity(components, dtype):
    law = LogisticMixture(components)
    x = torch.cat([normal(2000, 4.0), torch.linspace(-1e4, 1e4, 101, dtype=DOUBLE)]).to(dtype)
    raw = draw(law, 0.0, len(x), dtype=dtype)
    units = 8 * torch.finfo(dtype).eps
    for function in (law.forward, law.inverse):
        z, log_slope = function(x, raw)
        assert ((z - x).abs() <= units * (1 + x.abs())).all()
        assert log_slope.abs().max() <= units


@pytest.mark.parametrize("size", [0.0, 1.0, 3.0])
def test_far_tails_are_finite(size):
    """Values, log-derivatives and gradients at +-1e4 and +-1e6 in float32; z grows linearly."""
    law = LogisticMixture(4)
    far = torch.tensor([1e4, 1e6])
    at = torch.cat([far, -far, torch.zeros(1)]).repeat(100, 1)
    for function in (law.forward, law.inverse):
        x = at.clone().requires_grad_()
        raw = draw(law, size, *at.shape, dtype=SINGLE).requires_grad_()
        z, log_slope = function(x, raw)
        for output in (z, log_slope):
            assert output.isfinite().all()
            for gradient in torch.autograd.grad(output.sum(), (x, raw), retain_graph=True):
                assert gradient.isfinite().all()
    raw = draw(law, size, 100, dtype=SINGLE)
    near, there = (law.forward(torch.full((100,), x), raw) for x in (1e15, 2e15))
    widest = mixture(law, raw).component_distribution.transforms[1].scale.log().amax(1)
    wanted = raw[0].tanh() - widest
    torch.testing.assert_close(near[1], wanted, rtol=1e-5, atol=1e-5)
    slope = (there[0] - near[0]) / 1e15
    torch.testing.assert_close(slope.log(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("components", [1, 2, 8])
def test_inverse(components):
    law = LogisticMixture(components)
    x, raw = normal(5000, 4.0), draw(law, 1.0, 5000)
    z, log_slope = law.forward(x, raw)
    back, back_log_slope = law.inverse(z, raw)
    # z's own rounding comes back divided by the slope
    rounding = 4e-16 * z.abs() * (-log_slope).exp()
    error = ((back - x).abs() - rounding) / (1 + x.abs())
    assert error.max() <= 1e-12, f"{error.max().item():.1e}"
    assert (log_slope + back_log_slope).abs().max() <= 1e-9


def test_derivatives_are_autograds():
    """Also those of the inverse, by the parameters, which the search itself does not give."""
    law = LogisticMixture(3)
    raw, x = draw(law, 0.7, 6).requires_grad_(), normal(6, 2.0).requires_grad_()
    for function in (law.forward, law.inverse):
        assert torch.autograd.gradcheck(function, (x, raw), atol=1e-6)
        z, log_slope = function(x, raw)
        (slope,) = torch.autograd.grad(z.sum(), x)
        torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-10)


def test_says_when_it_does_not_converge(monkeypatch):
    law = LogisticMixture(3)
    x, raw = normal(9, 3.0), draw(law, 1.0, 9)
    raw[:, 4] = 0  # the identity: its first guess is the root
    z = law.forward(x, raw)[0]

    def hurried(*given, most, **settings):
        return monotone_root(*given, most=1, **settings)

    law.inverse(z, raw)
    monkeypatch.setattr("mixerflow.transforms.logistic.monotone_root", hurried)
    named = r"LogisticMixture: 8 of 9 rows did not converge \(rows 0, 1, 2, 3, 5, 6, 7, 8;"
    with pytest.warns(ConvergenceWarning, match=named):
        law.inverse(z, raw)


def test_says_when_nothing_solves_it():
    law = LogisticMixture(2)
    z = torch.tensor([0.5, math.nan, -1.0])
    with pytest.warns(ConvergenceWarning, match=r"1 of 3 rows did not converge \(rows 1;"):
        law.inverse(z, draw(law, 1.0, 3, dtype=SINGLE))


def test_components_part():
    """Behind a zero-initialised net, one step of gradient descent makes components differ."""
    law = LogisticMixture(2)
    net = ResidualMLP(1, law.params, width=4)
    coupling = Coupling(-1, net, law).double()
    side = torch.tensor([-2.0, 2.0], dtype=DOUBLE).repeat(200)
    x = torch.stack([normal(400), side + normal(400, 0.3, seed=2)], 1)

    def loss():
        z, log_det = coupling(x)
        return (z.square() / 2).sum(1).mean() - log_det.mean()

    for first in (True, False):
        (gradient,) = torch.autograd.grad(loss(), net.leave.bias)
        means, scales = gradient[4:6], gradient[6:8]
        if first:
            assert means.allclose(torch.full_like(means, 0.0), atol=0.2)  # symmetric data
            assert scales[0] / scales[1] == pytest.approx(3.0)  # proportional: alike
        else:
            assert scales[0] / scales[1] != pytest.approx(3.0, rel=1e-2)
        with torch.no_grad():
            net.leave.bias -= 0.3 * gradient
    logits, means, scales = net.leave.bias.detach()[2:].view(3, 2)
    for name, (one, other) in {"logits": logits, "means": means, "scales": scales}.items():
        assert (one - other).abs() > 1e-3, name


def test_floor_of_the_log_scales():
    """A component cannot become narrower than its floor, nor the slope steeper."""
    law = LogisticMixture(2, floor=-3.0)
    raw = torch.zeros(law.params, 1, dtype=DOUBLE)
    raw[-2:] = -50.0
    log_slope = law.forward(torch.zeros(1, dtype=DOUBLE), raw)[1]
    torch.testing.assert_close(log_slope, torch.full_like(log_slope, 3.0))


@pytest.mark.parametrize("floor", [0.1, 0.5])
def test_floored_affine(floor):
    law = FlooredAffine(floor)
    x = normal(2000, 5.0)
    raw = draw(law, 2.0, 2000)
    raw[0, :2] = torch.tensor([-1e4, 1e4])
    scale = floor + (1 - floor) * 2 * raw[0].sigmoid()
    z, log_scale = law.forward(x, raw)
    torch.testing.assert_close(z, x * scale + raw[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_scale, scale.log(), rtol=1e-12, atol=1e-12)
    assert log_scale.exp().min() == pytest.approx(floor)
    assert log_scale.exp().max() == pytest.approx(2 - floor)
    back, back_log_scale = law.inverse(z, raw)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    assert torch.equal(back_log_scale, -log_scale)
    same, nothing = law.forward(x, torch.zeros_like(raw))
    assert torch.equal(same, x)
    assert not nothing.any()


@pytest.mark.parametrize("floor", [-0.1, 0.0, 1.0, 2.0, math.nan])
def test_refuses_floors(floor):
    with pytest.raises(ValueError, match=r"floor must be in \(0, 1\)"):
        FlooredAffine(floor)


@pytest.mark.parametrize("components", [0, -2])
def test_refuses_no_components(components):
    with pytest.raises(ValueError, match="needs a component at least; got"):
        LogisticMixture(components)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_search_of_a_hard_mixture_goes_to_and_fro(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    calls = []
    search = Mixture.search

    def counted(self):
        value = search(self)
        return lambda x: calls.append(1) or value(x)

    monkeypatch.setattr(Mixture, "search", counted)
    law = LogisticMixture(32)
    raw = 2 * torch.randn(law.params, 8000, dtype=torch.float64, generator=generator)
    z = 2 * torch.randn(8000, dtype=torch.float64, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Newton's steps alone never end for some of these
        law.inverse(z.to(dtype), raw.to(dtype))
    assert len(calls) < 70


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_search_evaluates_the_same_function_in_the_tails_too(dtype):
    law = LogisticMixture(5)
    raw = draw(law, 2.0, 400, dtype=dtype)
    mixture = law._read(raw)[2]
    x = torch.linspace(-300, 300, 400, dtype=dtype)
    for got, wanted in zip(mixture.search()(x), mixture.logit(x), strict=True):
        assert wanted.isfinite().all()
        tolerance = 1e-4 if dtype == torch.float32 else 1e-10
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
