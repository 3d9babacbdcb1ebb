"""Gaussianisation: normal quantiles, tails, data-dependent starts; Householder rotations."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from mixerflow.core import Chain, ConvergenceWarning, monotone_root
from mixerflow.transforms import Gaussianize, Householder
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.gaussianize import probit

SINGLE, DOUBLE = torch.float32, torch.float64


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def moved(n, components, *, size=0.5, dtype=DOUBLE):
    transform = Gaussianize(n, components).to(dtype)
    perturb(transform, size=size)
    return transform


def test_probit_is_the_normal_quantile():
    log_tail = torch.cat(
        [
            torch.linspace(-0.694, -30, 2000, dtype=DOUBLE),
            -torch.logspace(1, 300, 2000, dtype=DOUBLE),
        ]
    )
    z = probit(log_tail).numpy()
    back = scipy.special.log_ndtr(-z)
    assert np.max(np.abs(back / log_tail.numpy() - 1)) <= 1e-12
    central = log_tail > -30
    wanted = -scipy.special.ndtri(log_tail[central].exp().numpy())
    assert np.max(np.abs(z[central.numpy()] - wanted) / (1 + wanted)) <= 1e-12
    nothing = probit(torch.tensor([-math.log(2), -0.3, 0.0], dtype=DOUBLE))
    assert nothing.abs().max() <= 1e-15


def test_probits_float32_and_gradient():
    log_tail = -torch.logspace(math.log10(0.694), 30, 3000, dtype=DOUBLE)
    single = probit(log_tail.float())
    wanted = probit(log_tail.float().double())
    assert ((single - wanted).abs() / (1 + wanted)).max() <= 1e-6
    some = log_tail[:500:25].requires_grad_()
    (slope,) = torch.autograd.grad(probit(some).sum(), some)
    step = 1e-5
    with torch.no_grad():
        about = (probit(some + step) - probit(some - step)) / (2 * step)
    torch.testing.assert_close(slope[2:], about[2:], rtol=1e-6, atol=1e-9)


def test_same_as_scipy():
    """Values and log-dets of the normal quantile of the mixture's CDF, where that is a number."""
    transform = moved(3, 4)
    x = 1.5 * normal(1000, 3)
    logits, mean, log_scale = (p.detach().numpy() for p in transform.parameters())
    weight = scipy.special.softmax(logits, 0)[:, None]
    place, scale = mean[:, None], np.exp(log_scale)[:, None]
    below = (weight * scipy.stats.logistic.cdf(x.numpy(), place, scale)).sum(0)
    density = (weight * scipy.stats.logistic.pdf(x.numpy(), place, scale)).sum(0)
    wanted = scipy.special.ndtri(below)
    log_det = (np.log(density) - scipy.stats.norm.logpdf(wanted)).sum(1)
    with torch.no_grad():
        got = transform(x)
    assert np.abs(got[0].numpy() - wanted).max() <= 1e-10
    assert np.abs(got[1].numpy() - log_det).max() <= 1e-9


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("size", [0.0, 0.5])
def test_monotone_and_finite_far_out(dtype, size):
    transform = moved(1, 6, size=size, dtype=dtype)
    far = torch.logspace(-3, 30, 4000, dtype=DOUBLE).to(dtype)
    x = torch.cat([-far.flip(0), torch.zeros(1, dtype=dtype), far])[:, None].requires_grad_()
    z, log_det = transform(x)
    assert z.isfinite().all()
    assert log_det.isfinite().all()
    rise = (z[1:] - z[:-1]) / (torch.finfo(dtype).eps * z[1:].abs().clamp(min=1))
    assert rise.min() >= -4, f"falls by {-rise.min().item():.1f} units"
    assert rise.median() > 0
    for output in (z, log_det):
        wanted = (x, *transform.parameters())
        for gradient in torch.autograd.grad(output.sum(), wanted, retain_graph=True):
            assert gradient.isfinite().all()


def test_starts_near_the_identity():
    transform = Gaussianize(1).double()
    for extent, limit in ((3.0, 0.05), (4.0, 0.16)):
        x = torch.linspace(-extent, extent, 801, dtype=DOUBLE)[:, None]
        with torch.no_grad():
            assert (transform(x)[0] - x).abs().max() <= limit


def distance(z):
    """Kolmogorov-Smirnov's from N(0, 1), the largest of the columns'."""
    return max(scipy.stats.kstest(column.numpy(), "norm").statistic for column in z.T)


def test_initialize_makes_marginals_normal():
    side = torch.where(normal(4000, 3, seed=5) > 0.3, 2.0, -2.0)
    x = side + 0.4 * normal(4000, 3)
    x = x * torch.tensor([1.0, 20.0, 0.3]) + torch.tensor([0.0, -7.0, 100.0])
    transform = Gaussianize(3, 32, floor=0.01).double()
    with torch.no_grad():
        before = distance(transform((x - x.mean(0)) / x.std(0))[0])
        z = transform.initialize(x)
        assert torch.equal(z, transform(x)[0])
    after = distance(z)
    assert before > 0.15
    assert after < 0.02, f"{after:.3f}"
    # and of data that it has not seen
    side = torch.where(normal(4000, 3, seed=6) > 0.3, 2.0, -2.0)
    new = side + 0.4 * normal(4000, 3, seed=7)
    with torch.no_grad():
        new = new * torch.tensor([1.0, 20.0, 0.3]) + torch.tensor([0.0, -7.0, 100.0])
        assert distance(transform(new)[0]) < 0.05


def test_initialize_takes_few_and_equal_rows():
    transform = Gaussianize(2, 4)
    for x in (torch.zeros(1, 2), torch.ones(50, 2), torch.tensor([[0.0, 1.0], [2.0, 3.0]])):
        z = transform.initialize(x)
        assert z.isfinite().all()
        assert transform(x)[1].isfinite().all()
    with pytest.raises(ValueError, match="empty batch"):
        transform.initialize(torch.zeros(0, 2))


def moons(n, seed):
    """Two half circles of radius 1, the second one turned and moved, with noise."""
    angle = math.pi * torch.rand(n, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    second = torch.arange(n) % 2 == 1
    x = torch.where(second, 1 - angle.cos(), angle.cos())
    y = torch.where(second, 0.5 - angle.sin(), angle.sin())
    return torch.stack([x, y], 1) + 0.1 * normal(n, 2, seed=seed + 1)


def rotations(n=2, layers=3, components=8):
    generator = torch.Generator().manual_seed(0)
    parts = (
        part
        for _ in range(layers)
        for part in (Householder(n, generator=generator), Gaussianize(n, components))
    )
    return Chain(*parts).double()


def log_likelihood(flow, x):
    z, log_det = flow(x)
    return -z.square().sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi) + log_det


@pytest.mark.slow
def test_beats_a_gaussian_on_two_moons():
    """Three rotations and Gaussianisations, 0.5 nats a point better; they integrate to 1."""
    data, new = moons(500, seed=10), moons(1000, seed=20)
    flow = rotations()
    flow.initialize(data)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        (-log_likelihood(flow, data).mean()).backward()
        optimizer.step()
    plain = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov())
    with torch.no_grad():
        gain = (log_likelihood(flow, new).mean() - plain.log_prob(new).mean()).item()
        assert gain > 0.5, f"{gain:.2f} nats"
        side = torch.linspace(-5, 6, 501, dtype=DOUBLE)
        grid = torch.cartesian_prod(side, side)
        mass = log_likelihood(flow, grid).exp().sum() * (side[1] - side[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=1e-3)
        z = normal(500, 2)
        there = flow(flow.inverse(z)[0])[0]
    torch.testing.assert_close(there, z, rtol=0, atol=1e-8)


def test_says_when_it_does_not_converge(monkeypatch):
    transform = moved(2, 4)

    def hurried(*given, most, **settings):
        return monotone_root(*given, most=1, **settings)

    monkeypatch.setattr("mixerflow.transforms.logistic.monotone_root", hurried)
    with pytest.warns(ConvergenceWarning, match="Gaussianize: 5 of 5 rows did not converge"):
        transform.inverse(normal(5, 2))


def reflections(vectors):
    """``H_1 ... H_r``, one after the other."""
    product = torch.eye(vectors.shape[1], dtype=DOUBLE)
    for v in vectors.detach().double():
        product = product @ (torch.eye(len(v), dtype=DOUBLE) - 2 * torch.outer(v, v) / (v @ v))
    return product


@pytest.mark.parametrize(("n", "count"), [(1, 1), (3, 2), (5, 9), (64, None)])
def test_householder_is_orthogonal(n, count):
    transform = Householder(n, count, generator=torch.Generator().manual_seed(3))
    eye = torch.eye(n)
    with torch.no_grad():
        matrix, log_det = transform(eye)
        back = transform.inverse(matrix)[0]
    assert not log_det.any()
    assert (matrix @ matrix.T - eye).abs().max() <= 5e-6
    assert (back - eye).abs().max() <= 5e-6
    wanted = reflections(transform.vectors)
    assert (matrix.T - wanted).abs().max() <= 5e-6
    sign = torch.linalg.slogdet(wanted)[0]
    assert sign == (-1) ** len(transform.vectors)


def test_householders_fused_copy_is_a_matrix():
    transform = Householder(64)
    fused = transform.fused()
    assert type(fused).__name__ == "Linear"
    x = normal(20, 64).float()
    with torch.no_grad():
        for direction in ("forward", "inverse"):
            wanted, got = getattr(transform, direction)(x), getattr(fused, direction)(x)
            torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=2e-5)
            torch.testing.assert_close(got[1], wanted[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("n", "count"), [(6, None), (6, 1), (9, 4), (1, 1)])
def test_a_principal_start_turns_the_first_components_into_the_first_axes(n, count):
    transform = Householder(n, count, start="principal").double()
    x = normal(200, n) * torch.linspace(0.5, 3, n).double() @ normal(n, n) + 2
    z = transform.initialize(x)
    r = len(transform.vectors)
    variance, components = np.linalg.eigh(np.cov(x.numpy().T, bias=True).reshape(n, n))
    wanted = x @ torch.from_numpy(components[:, ::-1].copy())[:, :r]
    signs = (wanted * z[:, :r]).sum(0).sign()
    torch.testing.assert_close(z[:, :r], wanted * signs, rtol=0, atol=1e-9)
    torch.testing.assert_close(transform.vectors.norm(dim=1), torch.full((r,), n**0.5).double())
    covariance = z.mT.cov(correction=0).reshape(n, n)
    diagonal = torch.from_numpy(variance[::-1].copy())[:r].diag()
    torch.testing.assert_close(covariance[:r, :r], diagonal, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        covariance[:r, r:], torch.zeros(r, n - r).double(), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(transform.inverse(z)[0], x, rtol=0, atol=1e-9)


def test_a_principal_start_of_images_that_do_not_vary_is_a_rotation():
    transform = Householder(4, start="principal").double()
    x = torch.ones(3, 4).double()
    z = transform.initialize(x)
    torch.testing.assert_close(z.norm(dim=1), x.norm(dim=1))


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="3 numbers have 3 principal components; got 4"):
        Householder(3, 4, start="principal")
    with pytest.raises(ValueError, match="start must be random or principal; got 'pca'"):
        Householder(3, start="pca")
    with pytest.raises(ValueError, match="two components at least; got 1"):
        Gaussianize(3, 1)
    with pytest.raises(ValueError, match="one reflection at least; got 0"):
        Householder(3, 0)
    for transform in (Gaussianize(3), Householder(3)):
        for function in (transform.forward, transform.inverse, transform.initialize):
            with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
                function(torch.zeros(2, 4))
