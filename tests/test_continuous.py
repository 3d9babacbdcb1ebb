"""Continuous flows against matrix exponentials, zuko, autograd and quadrature; their errors."""

import math

import pytest
import torch
from torch import nn

from mixerflow.core import (
    Along,
    Centre,
    Chain,
    ConvergenceWarning,
    Flow,
    Noise,
    values_alone,
)
from mixerflow.core.memory import through
from mixerflow.nets import Velocity
from mixerflow.transforms import LU, ActNorm, Continuous
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.continuous import Divergent


class LinearVelocity(nn.Module):
    """``A x``, or ``A x + t b``, of which autograd takes the trace."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor | float = 0.0) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), b

    def forward(self, t, x, context=None):
        return x @ self.a.T + t * self.b


class Plain(nn.Module):
    """A velocity without its own divergence."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t, x, context=None):
        return self.net(t, x, context)


def velocity(n: int = 4, *, context: int = 0, size: float = 1.5) -> Velocity:
    net = Velocity(n, width=8, context=context).double()
    perturb(net, size=size)
    return net


def rows(n: int = 4, batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, n, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_linear_equation_has_the_matrix_exponential(training):
    a, b = rows(5), rows(5, 1)[0]
    x = rows(5, 7)
    flow = Continuous(LinearVelocity(a, b), tolerance=1e-9, train_tolerance=1e-11).train(training)
    z, log_det = flow(x)
    # with t as one more coordinate of slope 1 the equation has no term of its own
    larger = torch.zeros(6, 6, dtype=torch.float64)
    larger[:5, :5], larger[:5, 5] = a, b
    starts = torch.cat([x, torch.zeros(7, 1)], 1)
    moved = larger.clone()
    moved = torch.cat([torch.cat([larger, torch.zeros(6, 1)], 1), torch.zeros(1, 7)], 0)
    moved[5, 6] = 1.0
    starts = torch.cat([starts, torch.ones(7, 1)], 1)
    wanted = (starts @ torch.linalg.matrix_exp(moved).T)[:, :5]
    torch.testing.assert_close(z, wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_det, a.trace().expand(7), rtol=1e-8, atol=1e-8)
    back, back_log_det = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back_log_det, -a.trace().expand(7), rtol=1e-8, atol=1e-8)


def test_gradients_of_a_linear_equation():
    a, x = 0.5 * rows(3, 3), rows(3)
    weight = rows(3)

    def loss(flow):
        z, log_det = flow(x)
        (found,) = torch.autograd.grad((z * weight).sum() + log_det.sum(), flow.net.a)
        return found

    exact = a.clone().requires_grad_()
    value = (x @ torch.linalg.matrix_exp(exact).T * weight).sum() + len(x) * exact.trace()
    (wanted,) = torch.autograd.grad(value, exact)
    for training in (False, True):
        flow = Continuous(LinearVelocity(a), tolerance=1e-11, train_tolerance=1e-10)
        found = loss(flow.train(training))
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("context", [0, 3])
def test_the_divergence_is_the_trace_of_the_jacobian(context):
    net = velocity(5, context=context)
    x, given = rows(5), rows(3) if context else None
    for t in (0.0, torch.tensor(0.7, dtype=torch.float64)):
        moved, trace = net.divergence(t, x, given)
        assert torch.equal(moved, net(t, x, given))
        for i in range(len(x)):
            part = None if given is None else given[i : i + 1]
            jacobian = torch.func.jacrev(lambda y, t=t, c=part: net(t, y[None], c)[0])(x[i])
            torch.testing.assert_close(trace[i], jacobian.trace(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [pytest.param(False, marks=pytest.mark.slow), True])
def test_closed_form_and_autograd_agree_gradients_too(training):
    net, x, given, weight = velocity(context=2), rows(), rows(2), rows()
    assert isinstance(net, Divergent) and not isinstance(Plain(net), Divergent)
    results = []
    for each in (net, Plain(net)):
        flow = Continuous(each).train(training)
        z, log_det = flow(x, given)
        loss = (z * weight).sum() + log_det.square().sum()
        results.append([z, log_det, *torch.autograd.grad(loss, list(net.parameters()))])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_zuko_gives_the_same():
    zuko = pytest.importorskip("zuko")
    net, x = velocity(), rows()
    theirs = zuko.transforms.FreeFormJacobianTransform(
        lambda t, y: net(t, y), phi=net.parameters(), atol=1e-9, rtol=1e-9
    )
    wanted = theirs.call_and_ladj(x)
    assert wanted[1].abs().min() > 0.001
    for training in (False, True):
        flow = Continuous(net, train_tolerance=1e-9).train(training)
        for got, expected in zip(flow(x), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_it_starts_as_the_identity():
    flow, x = Continuous(Velocity(4, width=8)), torch.randn(3, 4)
    for training in (False, True):
        z, log_det = flow.train(training)(x)
        assert torch.equal(z, x) and not log_det.any()


@pytest.mark.parametrize(
    ("least", "tolerances"),
    [(1e-7, (1e-3, 1e-5)), pytest.param(1e-9, (1e-3, 1e-5, 1e-7), marks=pytest.mark.slow)],
)
def test_the_reported_error_is_the_error(least, tolerances):
    net, x = velocity(size=4.0), rows(batch=40)
    net.requires_grad_(False)
    fine = Continuous(net, tolerance=least, most=12).eval()(x)
    with pytest.warns(ConvergenceWarning, match=rf"of 40 rows did not converge .* {least:.0e}"):
        Continuous(net, tolerance=least, steps=1, most=2).eval()(x)
    for tolerance in tolerances:
        z, log_det = Continuous(net, tolerance=tolerance, steps=2, most=12).eval()(x)
        error = ((z - fine[0]).abs() / (1 + fine[0].abs())).amax(1)
        error = torch.maximum(error, (log_det - fine[1]).abs() / (4 + fine[1].abs()))
        assert 1e-4 * tolerance < error.max() < 3 * tolerance


def test_rows_take_the_steps_that_they_need():
    counted = []

    class Counting(nn.Module):
        def forward(self, t, x, context=None):
            counted.append(t)
            return torch.where(x.abs() > 1, (8 * x).sin(), 0 * x)

    flow = Continuous(Counting(), steps=4).eval()
    easy, hard = torch.zeros(2, 1), torch.tensor([[0.0], [1.5]])
    flow(easy)
    assert len(counted) == 4 * (4 + 8)
    counted.clear()
    flow(hard)
    assert len(counted) > 4 * (4 + 8)


@pytest.mark.slow
def test_the_estimate_is_of_the_noise_alone():
    flow = Continuous(velocity(6), trace="hutchinson").eval()
    Flow(flow, (6,))  # numbers its stream
    x, noise = rows(6, 5), Noise(3, torch.arange(5))
    first, again = flow(x, None, noise), flow(x, None, noise)
    assert all(map(torch.equal, first, again))
    part = flow(x[2:4], None, noise[2:4])
    torch.testing.assert_close(part[1], first[1][2:4], rtol=1e-12, atol=1e-12)
    other = flow(x, None, Noise(4, torch.arange(5)))
    # steps follow the error of the log-det as well, so latents differ within tolerance
    torch.testing.assert_close(other[0], first[0], rtol=1e-7, atol=1e-7)
    # of the 32 sets of signs that differ in more than all of them, two draws may be the same
    assert ((other[1] - first[1]).abs() > 1e-6).sum() >= 3
    assert flow.density == "estimate" and Continuous(velocity()).density == "exact"
    back = flow.inverse(first[0], None, noise)
    torch.testing.assert_close(back, (x, -first[1]), rtol=1e-6, atol=1e-6)
    with values_alone():
        alone = flow.inverse(first[0])
    torch.testing.assert_close(alone[0], x, rtol=1e-6, atol=1e-6)
    assert not alone[1].any()
    assert flow(x, None, Centre())[0].isfinite().all()


@pytest.mark.parametrize("memory", ["checkpoint", "invert"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.filterwarnings("ignore:memory=:UserWarning")
def test_memory_modes_draw_the_same_noise(memory, trace):
    steps = [Along(-1, Chain(LU(4), Continuous(velocity(), trace=trace))) for _ in range(2)]
    flow = Chain(*steps).double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    results = []
    for mode in ("store", memory):
        torch.manual_seed(5)
        z, log_det = through(flow, x, memory=mode)
        loss = z.square().sum() - log_det.sum()
        found = torch.autograd.grad(loss, list(flow.parameters()))
        results.append([z, log_det, *found, torch.rand(1)])
    assert all(map(torch.equal, *results))


def test_rows_of_a_mixer_go_there_and_back():
    flow = Along(-1, Chain(ActNorm(6), LU(6), Continuous(velocity(6, context=3)))).double()
    perturb(flow)
    x, given = torch.randn(4, 5, 6, dtype=torch.float64), rows(3, 4)
    z, log_det = flow.train()(x, given)
    evaluated = flow.eval()(x, given)
    torch.testing.assert_close((z, log_det), evaluated, rtol=1e-3, atol=1e-3)
    back, back_log_det = flow.inverse(evaluated[0], given)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(back_log_det, -evaluated[1], rtol=1e-6, atol=1e-6)


def test_float32_under_autocast():
    flow = Continuous(velocity().float()).eval()
    x = rows().float()
    wanted = flow(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = flow(x)
        z, log_det = flow.train()(x.bfloat16())
    assert all(map(torch.equal, got, wanted))
    assert z.dtype == log_det.dtype == torch.float32


def test_training_may_take_equal_steps_too():
    flow, x = Continuous(velocity(), train_tolerance=None), rows()
    assert all(map(torch.equal, flow.train()(x), flow.eval()(x)))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Continuous(velocity(), trace="other"), "hutchinson.*'other'"),
        (lambda: Continuous(velocity(), steps=0), "steps=0"),
        (lambda: Continuous(velocity(), most=0), "most=0"),
        (lambda: Continuous(velocity(), tolerance=0.0), r"more than 0; got 0\.0"),
        (lambda: Continuous(velocity(4))(rows(5)), r"\(4,\).*\(5,\)"),
        (lambda: Continuous(velocity(4, context=2))(rows(4)), "built for a context"),
        (lambda: Continuous(Plain(lambda t, x, c: x[:, :2]))(rows(4)), r"\(2,\).*\(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_training_takes_a_batch_of_none():
    z, log_det = Continuous(velocity()).train()(rows(batch=0))
    assert z.shape == (0, 4) and log_det.shape == (0,)


@pytest.mark.slow
def test_a_fitted_density_integrates_to_one():
    torch.manual_seed(0)
    flow = Flow(Continuous(Velocity(2, width=32), tolerance=1e-6, train_tolerance=1e-4), (2,))
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)

    def draw(n: int) -> torch.Tensor:  # two arcs
        angle = math.pi * torch.rand(n)
        side = torch.where(torch.rand(n) < 0.5, 1.0, -1.0)
        arcs = torch.stack([side * (angle.cos() - 0.5), side * (angle.sin() - 0.25)], 1)
        return 1.5 * arcs + 0.15 * torch.randn(n, 2)

    for _ in range(80):
        optimizer.zero_grad()
        (-flow.log_prob(draw(256)).mean()).backward()
        optimizer.step()
    flow = flow.double().eval()
    axis = torch.linspace(-7, 7, 141, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum().item() * (axis[1] - axis[0]).item() ** 2
        gain = flow.log_prob(draw(1000).double()).mean()
        normal = torch.distributions.MultivariateNormal(torch.zeros(2), draw(5000).T.cov())
    assert abs(mass - 1) < 1e-4
    assert gain > normal.log_prob(draw(1000)).mean() + 0.3
