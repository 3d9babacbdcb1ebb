"""Lipschitz nets, residual and monotone maps: constants, oracles, estimates, derivatives."""

import math
import warnings

import pytest
import torch
from torch import nn

from mixerflow.core import Along, Chain, ConvergenceWarning, Noise
from mixerflow.nets import CLipSwish, LipschitzDense, LipschitzMLP, LipSwish, spectral_bound
from mixerflow.transforms import LU, ActNorm, Monotone, Residual
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.series import GeometricTail


def seeded(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def mlp(n, **settings):
    return LipschitzMLP(n, n, width=16, **settings)


def dense(n, **settings):
    return LipschitzDense(n, n, width=7, **settings)


def moved(module, size=3.0, factor=1.0):
    """Far from the start: norms well above what the nets allow."""
    module = module.double()
    perturb(module, size=size)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= factor
    return module.eval()


@pytest.mark.parametrize("shape", [(6, 6), (3, 9), (9, 3), (1, 5), (1, 1), (64, 64)])
def test_spectral_bound_is_above_and_close(shape):
    weight = seeded(*shape)
    for scale in (1e-6, 1.0, 1e6):
        norm = torch.linalg.matrix_norm(scale * weight, 2)
        ratio = spectral_bound(scale * weight) / norm
        assert 1 - 1e-12 <= ratio <= min(shape) ** (1 / 514) + 1e-12
        single = spectral_bound((scale * weight).float()) / norm
        assert 1 - 1e-5 <= single <= min(shape) ** (1 / 514) + 1e-5
    same = torch.eye(6, dtype=torch.float64)  # equal singular values: as far off as it gets
    assert spectral_bound(same).item() == pytest.approx(6 ** (1 / 514), rel=1e-12)


def test_spectral_bound_of_nothing_has_finite_derivatives():
    for dtype in (torch.float32, torch.float64):
        weight = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
        bound = spectral_bound(weight)
        (gradient,) = torch.autograd.grad(bound, weight)
        assert 0 <= bound < 1e-6 and gradient.isfinite().all()
    weight = seeded(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(spectral_bound, (weight,))


@pytest.mark.parametrize("activation", [LipSwish, CLipSwish])
def test_activations_are_one_lipschitz_and_barely(activation):
    function = activation().double()
    x = torch.linspace(-12, 12, 100_001, dtype=torch.float64, requires_grad=True)
    outs = function(x[:, None])
    slopes = [
        torch.autograd.grad(outs[:, i].sum(), x, retain_graph=True)[0]
        for i in range(activation.copies)
    ]
    most = torch.stack(slopes).square().sum(0).sqrt().max()
    assert 0.999 < most <= 1


@pytest.mark.parametrize("make", [mlp, dense])
@pytest.mark.parametrize("factor", [1.0, 10.0])
@pytest.mark.parametrize("activation", [LipSwish, CLipSwish])
def test_nets_keep_their_lipschitz_constant_wherever_their_weights_are(make, factor, activation):
    net = moved(make(5, coefficient=0.9, activation=activation, context=2), factor=factor)
    x, context = 2 * seeded(64, 5, seed=1), seeded(64, 2, seed=2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, c: net(x[None], c[None])[0]))(x, context)
    assert torch.linalg.matrix_norm(jacobian, 2).max() <= 0.9
    a, b = net(x, context), net(x.flip(0), context)
    assert ((a - b).norm(dim=1) <= 0.9 * (x - x.flip(0)).norm(dim=1)).all()
    single, x32 = net.float(), x.float()
    with torch.no_grad():  # and what folds out of it computes the same
        wanted = single(x32, context.float())
        for i, linear in enumerate(single.linears):
            single.linears[i] = linear.folded()
        torch.testing.assert_close(single(x32, context.float()), wanted)
    assert all(type(linear) is nn.Linear for linear in single.linears)


def test_a_linear_net_reaches_its_constant():
    """The bound is not bought with a net that can do nothing."""
    net = mlp(4, depth=1, coefficient=0.9, activation=Identity).double()
    with torch.no_grad():
        for linear in net.linears:
            nn.init.eye_(linear.weight)
            linear.weight *= 5
    jacobian = torch.func.jacrev(lambda x: net(x[None])[0])(seeded(4))
    assert 0.88 < torch.linalg.matrix_norm(jacobian, 2) <= 0.9


class Identity(LipSwish):
    def forward(self, x):
        return x


def test_dense_shares_are_normalised_and_learned():
    net = moved(dense(4))
    torch.testing.assert_close(net.shares().norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert (dense(4).shares() - 0.5**0.5).abs().max() < 1e-6


@pytest.mark.parametrize("transform", [Residual, Monotone])
@pytest.mark.parametrize("make", [mlp, dense])
def test_start_is_the_identity(transform, make):
    x = seeded(6, 5)
    z, log_det = transform(make(5)).double()(x)
    assert torch.equal(z, x) and not log_det.any()


@pytest.mark.parametrize("wrong", [{"coefficient": 1.0}, {"coefficient": 0.0}, {"depth": 0}])
def test_settings_that_guarantee_nothing_are_refused(wrong):
    for make in (mlp, dense):
        with pytest.raises(ValueError, match=r"coefficient must lie|depth must be"):
            make(3, **wrong)
    with pytest.raises(ValueError, match="exact, unbiased or truncated"):
        Residual(mlp(3), log_det="biased")
    with pytest.raises(ValueError, match="stop between"):
        GeometricTail(1.0)


@pytest.mark.parametrize("make", [mlp, dense])
def test_exact_log_det_is_that_of_normflows(make):
    module = pytest.importorskip("normflows.flows.residual")
    net, x = moved(make(2)), seeded(32, 2)
    theirs = module.Residual(net, reverse=False, brute_force=True).double().eval()
    z, log_det = Residual(net).double()(x)
    their_z, their_log_det = theirs(x.clone())
    torch.testing.assert_close(z, their_z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, their_log_det, rtol=1e-10, atol=1e-10)
    net, x = moved(make(6)), seeded(16, 6)
    theirs = module.Residual(net, reverse=False, exact_trace=True, n_power_series=600).double()
    z, log_det = Residual(net).double()(x)
    their_z, their_log_det = theirs.train()(x.clone())
    torch.testing.assert_close(z, their_z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det, their_log_det, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_estimate_is_unbiased_and_so_is_its_gradient(training):
    """With K = 1 the roulette carries weight; means of 20000 draws within 4 standard errors."""
    net, x = moved(mlp(4, coefficient=0.7)), seeded(1, 4)
    exact = Residual(net).train(training)
    unbiased = Residual(net, log_det="unbiased", terms=1, eval_terms=1).train(training)
    parameters = [net.linears[0].weight, net.linears[-1].weight]
    wanted = exact(x)[1]
    gradients = torch.autograd.grad(wanted.sum(), parameters)
    draws, groups = 20_000, 50
    values, found = [], []
    for group in range(groups):
        numbers = torch.arange(draws // groups) + group * (draws // groups)
        log_det = unbiased(x.expand(len(numbers), 4), None, Noise(0, numbers))[1]
        values.append(log_det.detach())
        found.append(torch.autograd.grad(log_det.mean(), parameters))
    values = torch.cat(values)
    assert (values.mean() - wanted).abs() < 4 * values.std() * draws**-0.5
    assert values.std() > 1e-3
    for i, gradient in enumerate(gradients):
        each = torch.stack([g[i] for g in found])
        # along the exact gradient, one number; and all of them by their mean square score
        along = (each * gradient).flatten(1).sum(1)
        error = (along.mean() - gradient.square().sum()).abs()
        assert error < 4 * along.std() * groups**-0.5
        score = (each.mean(0) - gradient) / (each.std(0) * groups**-0.5)
        assert score.square().mean() < 2


def test_terms_that_come_rarely_weigh_more():
    """``g(x) = 0.6 x`` of one number: the signs add no noise, the roulette alone does."""

    class Scaled(nn.Module):
        def forward(self, x, context=None):
            return 0.6 * x

    for stop in (0.3, 0.5):
        transform = Residual(
            Scaled(), log_det="unbiased", eval_terms=1, tail=GeometricTail(stop)
        ).eval()
        x = seeded(1, 1).expand(20_000, 1)
        got = transform(x, None, Noise(0, torch.arange(len(x))))[1]
        error = (got.mean() - math.log(1.6)).abs()
        assert error < 4 * got.std() * len(x) ** -0.5
        assert 0.01 < got.std() < 0.5


def test_many_exact_terms_leave_the_probe_alone_as_noise():
    """n = 1: signs are exact, so the estimate in eval is the series, exact but for its tail."""
    net, x = moved(mlp(1, coefficient=0.5)), seeded(9, 1)
    wanted = Residual(net)(x)[1]
    got = Residual(net, log_det="unbiased", eval_terms=40).eval()(
        x, None, Noise(1, torch.arange(9))
    )
    torch.testing.assert_close(got[1], wanted, rtol=0, atol=1e-9)


def test_torchs_generator_draws_where_there_is_no_noise():
    transform = moved(Residual(mlp(4), log_det="unbiased"), size=1.0).train()
    x = seeded(5, 4)
    torch.manual_seed(0)
    one, two = transform(x)[1], transform(x)[1]
    torch.manual_seed(0)
    assert torch.equal(transform(x)[1], one) and not torch.equal(one, two)


@pytest.mark.parametrize("make", [mlp, dense])
@pytest.mark.parametrize("n", [1, 4])
def test_monotone_is_the_cayley_transform(make, n):
    """``x = (u + G(u)) / 2`` gives ``z = (u - G(u)) / 2``; the log-det is that of the quotient."""
    net, u = moved(make(n, coefficient=0.95)), seeded(16, n)
    g = net(u)
    z, log_det = Monotone(net)((u + g) / 2)
    torch.testing.assert_close(z, (u - g) / 2, rtol=0, atol=1e-11)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: net(x[None])[0]))(u)
    unit = torch.eye(n, dtype=torch.float64)
    ratio = torch.linalg.slogdet(torch.linalg.solve(unit + jacobian, unit - jacobian))[1]
    torch.testing.assert_close(log_det, ratio, rtol=0, atol=1e-10)


def test_monotone_slopes_leave_what_a_residual_map_reaches():
    """One number: the slope gets below 1 - L, and stays within (1 - L) / (1 + L) of 1."""
    net = mlp(1, depth=1, coefficient=0.9, activation=Identity).double()
    with torch.no_grad():
        for linear in net.linears:
            linear.weight.fill_(3 * 16**-0.5)
            linear.bias.zero_()
    slope = Monotone(net)(seeded(3, 1))[1].exp()
    torch.testing.assert_close(slope, torch.full_like(slope, 0.1 / 1.9), rtol=0.01, atol=0)


def unrolled(function, start, steps=400):
    x = start
    for _ in range(steps):
        x = function(x)
    return x


@pytest.mark.parametrize("name", ["residual inverse", "monotone forward", "monotone inverse"])
def test_gradients_are_those_of_the_unrolled_iteration(name):
    net = moved(mlp(3, coefficient=0.8, context=2))
    x, context = seeded(4, 3).requires_grad_(), seeded(4, 2).requires_grad_()
    weight = seeded(4, 3, seed=5)

    def g(u):
        return net(u, context)

    unit = torch.eye(3, dtype=torch.float64)

    def log_det(u, sign):
        rows = [torch.autograd.grad(g(u)[:, i].sum(), u, create_graph=True)[0] for i in range(3)]
        return torch.linalg.slogdet(unit + sign * torch.stack(rows, 1))[1]

    if name == "residual inverse":
        ours = Residual(net).inverse(x, context)
        solution = unrolled(lambda u: x - g(u), x)
        theirs = solution, -log_det(solution, 1)
    else:
        sign = 1 if name == "monotone forward" else -1
        transform = Monotone(net)
        ours = (transform if sign == 1 else transform.inverse)(x, context)
        solution = unrolled(lambda u: 2 * x - sign * g(u), 2 * x)
        theirs = solution - x, log_det(solution, -sign) - log_det(solution, sign)
    inputs = [x, context, *net.parameters()]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    losses = [(z * weight).sum() + 0.7 * log_det.sum() for z, log_det in (ours, theirs)]
    found = [torch.autograd.grad(loss, inputs) for loss in losses]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_are_finite_differences(direction):
    transform = moved(Monotone(mlp(2, coefficient=0.8)))
    function = getattr(transform, direction)
    assert torch.autograd.gradcheck(lambda x: function(x), (seeded(2, 2).requires_grad_(),))
    residual = moved(Residual(dense(2, coefficient=0.8)))
    function = getattr(residual, direction)
    assert torch.autograd.gradcheck(lambda x: function(x), (seeded(2, 2).requires_grad_(),))


def test_rows_that_do_not_converge_are_told():
    for transform in (Residual(mlp(3), most=3), Monotone(mlp(3), most=3)):
        with pytest.warns(ConvergenceWarning, match=r"rows did not converge.*smaller coefficient"):
            moved(transform).inverse(seeded(4, 3))

    class Expansion(nn.Module):
        def forward(self, x, context=None):
            return 1.5 * x

    with pytest.warns(ConvergenceWarning, match="4 of 4 rows"):
        Residual(Expansion(), most=50).inverse(seeded(4, 3))


@pytest.mark.parametrize("log_det", ["exact", "unbiased"])
def test_mixes_the_rows_of_a_patch_matrix(log_det):
    make = Along(
        -1, Chain(ActNorm(6), LU(6), Residual(LipschitzMLP(6, 6, width=16), log_det=log_det))
    )
    transform = moved(make, size=1.0).train()
    x = seeded(3, 5, 6)
    assert transform.density == ("exact" if log_det == "exact" else "estimate")
    z, found = transform(x)
    assert found.shape == (3,)
    loss = 0.5 * z.square().sum() - found.sum()
    gradients = torch.autograd.grad(loss, list(transform.parameters()))
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    back, inverted = transform.inverse(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    if log_det == "exact":
        torch.testing.assert_close(inverted, -found, rtol=0, atol=1e-9)


def rings(n, generator):
    """A ring of radius 2: no Gaussian is near it."""
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    radius = 2 + 0.25 * torch.randn(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Residual, Monotone])
def test_a_fitted_density_integrates_to_one_and_beats_a_gaussian(kind):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    blocks = [(kind(LipschitzDense(2, 2, width=16, coefficient=0.9)), ActNorm(2)) for _ in range(3)]
    flow = Chain(ActNorm(2), *[step for block in blocks for step in block])
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)

    def log_prob(x):
        z, log_det = flow(x)
        return log_det - 0.5 * z.square().sum(1) - math.log(2 * math.pi)

    for _ in range(150):
        optimizer.zero_grad()
        loss = -log_prob(rings(256, generator)).mean()
        loss.backward()
        optimizer.step()
    test = rings(4000, generator)
    gaussian = torch.distributions.MultivariateNormal(test.mean(0), test.T.cov()).log_prob(test)
    flow.double().eval()
    with torch.no_grad(), warnings.catch_warnings():
        gain = log_prob(test.double()).mean() - gaussian.mean()
        axis = torch.linspace(-12, 12, 241, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        mass = log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 2e-3
    assert gain > 0.1
