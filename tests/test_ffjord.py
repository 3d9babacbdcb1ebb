"""FFJORD and its parts: counts, log-dets, end times, rows of their own, estimates, inverses."""

import dataclasses
import math

import pytest
import torch

from mixerflow.core import ConvergenceWarning, Noise, counting, values_alone
from mixerflow.models import FFJORD
from mixerflow.models.ffjord import scales_of
from mixerflow.nets import ConvVelocity
from mixerflow.parts import Classes, ConvVelocityNet, LogitPixels
from mixerflow.recipes import RECIPES, build
from mixerflow.transforms import Continuous
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.continuous import Directional
from mixerflow.transforms.ode import adapted_steps, equal_steps

SMALL = FFJORD(scales=2, blocks=1, net=ConvVelocityNet(4, depth=2))
COUNTS = {"ffjord-cifar10": 1_358_882, "ffjord-mnist": 800_646}


def moved(model=SMALL, shape=(1, 4, 4), size=1.0):
    """In eval mode and float64, all parameters moved away from the identity."""
    flow = model.build(shape)
    perturb(flow.transform, size=size)
    for part in flow.modules():
        if isinstance(part, Continuous) and part.root_end is not None:
            part.root_end.data.fill_(1.1)
    return flow.double().eval()


def velocity(channels=2, size=1.5, **settings):
    net = ConvVelocity(channels, **{"width": 5, "depth": 2, **settings}).double()
    perturb(net, size=size)
    return net


def images(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", COUNTS)
def test_the_recipes_have_the_published_codes_counts(name):
    with torch.device("meta"):
        flow = build(name)
    assert sum(p.numel() for p in flow.parameters()) == COUNTS[name]
    solves = [part for part in flow.modules() if isinstance(part, Continuous)]
    assert all(part.trace == "hutchinson" and part.root_end.numel() == 1 for part in solves)


def test_the_twins_have_every_mechanism():
    for name in COUNTS:
        flow = build(f"{name}-tiny")
        solves = [part for part in flow.modules() if isinstance(part, Continuous)]
        assert flow.density == "estimate" and len(flow.transform.steps[-1].scales) > 1
        assert all(part.root_end is not None and part.train_tolerance for part in solves)


def test_scales_go_on_while_sides_have_four_pixels():
    sides = {3: 1, 4: 1, 7: 1, 8: 2, 28: 3, 32: 4, 64: 5}
    assert {side: scales_of((1, side, 2 * side)) for side in sides} == sides


@pytest.mark.parametrize(("axes", "context"), [(1, 0), (2, 3), (3, 0)])
def test_the_velocity_is_convolutions_of_time_and_image(axes, context):
    """Against the convolutions of the time's channel and the image's, one behind the other."""
    net = velocity(2, axes=axes, context=context)
    x, given = images(3, 2, *(4, 3, 5)[:axes]), images(3, context) if context else None
    times = images(3, *[1] * (axes + 1))
    for t in (0.3, times):
        h = x
        for number, layer in enumerate(net.layers):
            h = h if number == 0 else torch.nn.functional.softplus(h)
            plane = torch.as_tensor(t, dtype=x.dtype).expand(3, 1, *x.shape[2:])
            h = layer(torch.cat([plane, h], 1))
            if number == 0 and context:
                h = h + net.context(given).view(3, 5, *[1] * axes)
        torch.testing.assert_close(net(t, x, given), h, rtol=1e-8, atol=1e-8)


def test_the_slope_along_a_direction_is_the_jacobians():
    net, x, e = velocity(context=3), images(3, 2, 4, 3), images(3, 2, 4, 3)
    assert isinstance(net, Directional)
    for t in (0.0, images(3, 1, 1, 1)):
        given = images(3, 3)
        wanted = torch.func.jvp(lambda y, t=t, c=given: net(t, y, c), (x,), (e,))
        torch.testing.assert_close(net.along(t, x, e, given), wanted, rtol=1e-12, atol=1e-12)


def test_the_net_starts_at_zero_and_refuses_other_images():
    net = ConvVelocity(2, width=4)
    assert not net(0.5, torch.randn(2, 2, 4, 4)).any()
    for wrong in (torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4)):
        with pytest.raises(ValueError, match="2 channels and 2 axes"):
            net(0.0, wrong)


@pytest.mark.parametrize("training", [False, True])
def test_the_exact_log_det_is_the_jacobians(training):
    flow = moved(dataclasses.replace(SMALL, log_det="exact", tolerance=1e-7, train_tolerance=1e-8))
    steps = flow.train(training).transform.steps[1:]  # behind dequantisation
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 255

    def forward(event):
        z, log_det = event, 0.0
        for step in steps:
            z, each = step(z)
            log_det = log_det + each
        return z, log_det

    log_det = forward(x)[1]
    for row in range(2):
        one = x[row : row + 1]
        jacobian = torch.autograd.functional.jacobian(lambda y: forward(y)[0][0], one)
        wanted = torch.linalg.slogdet(jacobian.reshape(16, 16))[1]
        assert abs(wanted - forward_of_the_identity(one)) > 0.05
        torch.testing.assert_close(log_det[row], wanted, rtol=1e-6, atol=1e-6)


def forward_of_the_identity(x):
    """The log-det of the pixels' own maps."""
    pixels = LogitPixels(0.05).steps(tuple(x.shape[1:]))[1:]
    total = 0.0
    for step in pixels:
        x, each = step(x)
        total = total + each
    return total.item()


@pytest.mark.parametrize(
    "classes", [pytest.param(None, marks=pytest.mark.slow), Classes(3, width=4)]
)
def test_images_come_back_through_all_scales(classes):
    flow = moved(dataclasses.replace(SMALL, scales=3, classes=classes), (2, 8, 8))
    x = torch.randint(0, 256, (5, 2, 8, 8), dtype=torch.uint8)
    labels = None if classes is None else torch.arange(5) % 3
    assert torch.equal(flow.decode(flow.encode(x, labels), labels), x)
    assert flow.sample(2, None if labels is None else labels[:2]).shape == (2, 2, 8, 8)


@pytest.mark.slow
def test_the_end_times_gradient_is_a_finite_difference():
    for training in (False, True):
        part = Continuous(velocity(), trace="hutchinson", learned_end=True, tolerance=1e-9)
        part.train_tolerance = 1e-9
        part.double().train(training)
        x, weight, noise = images(3, 2, 4, 4), images(3, 2, 4, 4), Noise(0, torch.arange(3))

        def loss(root, part=part, x=x, weight=weight, noise=noise):
            part.root_end.data.fill_(root)
            z, log_det = part(x, None, noise)
            return (z * weight).sum() + log_det.sum()

        loss(1.2).backward()
        with torch.no_grad():
            wanted = (loss(1.2 + 1e-4) - loss(1.2 - 1e-4)) / 2e-4
        torch.testing.assert_close(part.root_end.grad, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_end_time_is_a_longer_way():
    """T = root^2: the flow over [0, T] of a velocity that is solved without an end time."""
    net, x = velocity(), images(3, 2, 4, 4)
    part = Continuous(net, learned_end=True).double().eval()
    assert part.end() == 1 and sum(p.numel() for p in [part.root_end]) == 1
    part.root_end.data.fill_(1.5)
    plain = Continuous(net)._field()
    start = (x, x.new_zeros(3))
    with torch.no_grad():
        wanted = equal_steps(plain, start, (None, None), (0.0, 2.25), 64)
        torch.testing.assert_close(part(x), wanted, rtol=1e-6, atol=1e-6)


def test_the_estimate_is_unbiased():
    draws, net = 1000, velocity(size=2.0)
    part = Continuous(net, trace="hutchinson", tolerance=1e-4).double().eval()
    exact = Continuous(net, tolerance=1e-6).double().eval()
    x = images(1, 2, 3, 3)
    with torch.no_grad():
        wanted = exact(x)[1]
        keys = torch.arange(draws)
        found = part(x.expand(draws, -1, -1, -1), None, Noise(1, keys, probe=2))[1]
        inverse = part.inverse(exact(x)[0].expand(draws, -1, -1, -1), None, Noise(3, keys))[1]
    for each, mean in ((found, wanted), (inverse, -wanted)):
        assert each.std() > 0.05
        assert (each.mean() - mean[0]).abs() < 3 * each.std() * draws**-0.5


def test_an_estimates_inverse_is_minus_the_estimate():
    part = Continuous(velocity(), trace="hutchinson", learned_end=True, tolerance=1e-6)
    part.double().eval()
    x, noise = images(4, 2, 4, 4), Noise(2, torch.arange(4))
    z, log_det = part(x, None, noise)
    back, back_log_det = part.inverse(z, None, noise)
    torch.testing.assert_close((back, back_log_det), (x, -log_det), rtol=1e-4, atol=1e-4)
    with values_alone(), counting() as solves:
        again, none = part.inverse(z)
    torch.testing.assert_close(again, x, rtol=1e-4, atol=1e-4)
    assert not none.any() and solves[0].direction == "inverse"
    part.become_exact()
    torch.testing.assert_close(part.inverse(z)[1], -part(x)[1], rtol=1e-4, atol=1e-4)


class Uneven(torch.nn.Module):
    """Rows of large numbers shrink fast and need short steps."""

    def forward(self, t, x, context=None):
        return -8 * x * x.square().mean((1, 2, 3), keepdim=True).tanh()


@pytest.mark.parametrize("training", [False, True])
def test_no_row_depends_on_the_others(training, monkeypatch):
    """In evaluation to the bit, also where some rows go on in calls of their own."""
    monkeypatch.setattr("mixerflow.transforms.ode.BLOCK", 3 * 2 * 4 * 4)
    x = 0.5 * images(8, 2, 4, 4).clamp(-2, 2)
    other = x.clone()
    other[[0, 1, 5]] = 3 * images(3, 2, 4, 4)
    other[3] = x[3]
    for net in (Uneven(), velocity(size=1.5)):
        part = Continuous(net, trace="hutchinson", tolerance=1e-5, train_tolerance=1e-4)
        part.double().train(training)
        noise = Noise(0, torch.arange(8))
        with counting() as solves:
            mine, theirs = part(x, None, noise), part(other, None, noise)
        kept = torch.tensor([2, 3, 4, 6, 7])
        for a, b in zip(mine, theirs, strict=True):
            if training:
                torch.testing.assert_close(a[kept], b[kept], rtol=1e-12, atol=1e-12)
            else:
                assert torch.equal(a[kept], b[kept])
        if isinstance(net, Uneven):
            assert solves[1].calls > solves[0].calls
            assert solves[1].rows < 0.8 * solves[1].calls * 8  # rows that are done have left


def test_calls_and_rows_are_counted():
    part = Continuous(ConvVelocity(1, width=2), trace="hutchinson", steps=2)
    x = torch.randn(5, 1, 4, 4)
    with counting() as solves:
        part.eval()(x)
        part.train()(x)
    assert solves[0].calls == 4 * (2 + 4) and solves[0].rows == 5 * solves[0].calls
    assert solves[0].batch == 5 and solves[0].direction == "forward"
    assert (solves[1].calls - 1) % 6 == 0
    part(x)
    assert len(solves) == 2  # nothing is counted outside of it


def test_torchdiffeq_gives_the_same():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    net, x = velocity(size=2.5), images(4, 2, 4, 4)
    start, given = (x, x.new_zeros(4)), (None, None)
    field = Continuous(net)._field()
    with torch.no_grad():
        wanted = torchdiffeq.odeint(
            lambda t, state: field(t, state[0], given),
            start,
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            rtol=1e-9,
            atol=1e-9,
        )
    for tolerance in (1e-4, 1e-8):
        with torch.no_grad():
            (z, log_det), worst = adapted_steps(field, start, given, tolerance=tolerance)
        assert worst.max() <= tolerance
        torch.testing.assert_close(z, wanted[0][-1], rtol=200 * tolerance, atol=200 * tolerance)
        torch.testing.assert_close(log_det, wanted[1][-1], rtol=1e3 * tolerance, atol=1e-6)


def test_the_error_falls_with_the_tolerance():
    net, x = velocity(size=2.5), images(4, 2, 4, 4)
    start, field = (x, x.new_zeros(4)), Continuous(net)._field()
    with torch.no_grad():
        fine = equal_steps(field, start, (None, None), (0.0, 1.0), 128)
        errors = []
        for tolerance in (1e-3, 1e-5, 1e-7):
            found = adapted_steps(field, start, (None, None), tolerance=tolerance)[0]
            errors.append((found[0] - fine[0]).abs().max().item())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-5


def test_a_row_that_is_not_finite_ends_alone():
    def field(t, x, given):
        return x.square(), x.new_zeros(len(x))  # x(1) = x0 / (1 - x0)

    x = torch.tensor([[0.5], [math.nan], [-1.0]], dtype=torch.float64)
    (z, _), _ = adapted_steps(field, (x, x.new_zeros(3)), (), tolerance=1e-8)
    torch.testing.assert_close(z[[0, 2], 0], torch.tensor([1.0, -0.5]).double(), rtol=1e-6, atol=0)
    assert z[1].isnan()


def test_steps_that_are_too_long_are_reported(monkeypatch):
    monkeypatch.setattr("mixerflow.transforms.ode.LEAST", 2.0**-5)

    class Fast(torch.nn.Module):
        def forward(self, t, x, context=None):
            return (3e4 * x).sin()

    part = Continuous(Fast(), train_tolerance=1e-9).double().train()
    with pytest.warns(ConvergenceWarning, match="of 2 rows did not converge"):
        part(torch.ones(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("name", [*COUNTS])
def test_every_parameter_learns(name):
    flow = dataclasses.replace(RECIPES[f"{name}-tiny"].model, net=ConvVelocityNet(2)).build(
        RECIPES[name].shape
    )
    perturb(flow.transform, size=0.1)
    x = torch.randint(0, 256, (2, *flow.shape), dtype=torch.uint8)
    (-flow.log_prob(x).sum()).backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
