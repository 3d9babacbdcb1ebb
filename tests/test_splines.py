"""Rational-quadratic splines against nflows, at their knots, and far outside them."""

import math

import pytest
import torch

from mixerflow.transforms import RationalQuadratic

FLOOR = 1e-3
SINGLE, DOUBLE = torch.float32, torch.float64


def draw(spline, size, *shape, dtype=DOUBLE, seed=0):
    """Raw parameters ``N(0, size^2)`` for values of that shape."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(spline.params, *shape, dtype=DOUBLE, generator=generator) * size
    return raw.to(dtype)


def uniform(*shape, low, high, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, dtype=DOUBLE, generator=generator)


def elsewhere(spline, x, raw, *, inverse):
    """The same spline by nflows: same floors, knots and derivatives."""
    module = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    widths, heights, slopes = raw.movedim(0, -1).split([spline.bins] * 2 + [spline.bins - 1], -1)
    # theirs is floor + softplus; the inverse softplus of our derivative less the floor
    excess = (1 - FLOOR) * torch.nn.functional.softplus(slopes, beta=math.log(2))
    slopes = excess + (-torch.expm1(-excess)).log()
    return module.unconstrained_rational_quadratic_spline(
        x, widths, heights, slopes, inverse=inverse, tail_bound=spline.tail
    )


@pytest.mark.parametrize("bins", [2, 3, 4, 8])
@pytest.mark.parametrize("tail", [1.0, 3.0])
def test_same_as_nflows(bins, tail):
    spline = RationalQuadratic(bins, tail)
    x, raw = uniform(4000, low=-1.2 * tail, high=1.2 * tail), draw(spline, 1.0, 4000)
    for inverse, function in ((False, spline.forward), (True, spline.inverse)):
        wanted = elsewhere(spline, x, raw, inverse=inverse)
        for name, ours, theirs in zip(("value", "log-det"), function(x, raw), wanted, strict=True):
            error = (ours - theirs).abs().max().item()
            assert error <= 1e-10, f"inverse {inverse}, {name}: {error:.1e} apart"
    bent = spline.forward(x, raw)[0] - x
    assert bent.abs().max() > 0.3 * tail  # so that agreement says something


def at_knots(spline, size, dtype, axis, columns=500):
    """Each knot (of x: axis 0; of z: 1) with both neighbours in that dtype, ordered, and raws."""
    raw = draw(spline, size, columns, dtype=dtype)
    knots = spline.knots(raw)[axis]
    far = torch.full_like(knots, math.inf)
    near = torch.stack([knots.nextafter(-far), knots, knots.nextafter(far)], 1)
    return near.flatten(0, 1), raw


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("size", [1.0, 5.0])
@pytest.mark.parametrize("bins", [3, 8])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_at_every_knot(direction, bins, size, dtype):
    """Finite, and not falling by more than 4 units in the last place of the interval's end.

    z is x and a difference of places, each as exact as numbers of the interval's size are.
    """
    spline = RationalQuadratic(bins, 3.0)
    x, raw = at_knots(spline, size, dtype, 0 if direction == "forward" else 1)
    z, log_slope = getattr(spline, direction)(x, raw[:, None].expand(-1, len(x), -1))
    assert z.isfinite().all()
    assert log_slope.isfinite().all()
    fall = (z[:-1] - z[1:]) / (2 * torch.finfo(dtype).eps)  # of numbers from 2 to 4
    assert fall.max() <= 4, f"falls by {fall.max().item():.1f} units"


@pytest.mark.parametrize("size", [1.0, 5.0])
def test_knots_meet(size):
    """The spline takes each knot's place to its height, with its derivative, from both sides."""
    spline = RationalQuadratic(6, 2.0)
    near, raw = at_knots(spline, size, DOUBLE, 0)
    places, heights, slopes = spline.knots(raw)
    z, log_slope = spline.forward(near, raw[:, None].expand(-1, len(near), -1))
    wanted = heights.repeat_interleave(3, 0)
    # a unit in the last place of x is more of z, as much as the spline is steep
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-11)
    steep = slopes.repeat_interleave(3, 0).log()
    torch.testing.assert_close(log_slope, steep, rtol=0, atol=1e-6)
    torch.testing.assert_close(places[[0, -1]].abs(), torch.full_like(places[:2], 2.0))


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_outside_is_the_identity(dtype):
    spline = RationalQuadratic(4, 1.5)
    far = torch.tensor([1.5, 1.5 + 1e-6, 2.0, 7.0, 1e30], dtype=dtype)
    x = torch.cat([far, -far])
    raw = draw(spline, 5.0, len(x), dtype=dtype)
    for function in (spline.forward, spline.inverse):
        z, log_slope = function(x, raw)
        assert torch.equal(z, x)
        assert not log_slope.any()


@pytest.mark.parametrize("size", [0.0, 1.0, 5.0])
def test_gradients_are_finite(size):
    """At 0, +-tail and far outside in float32, of x and of the parameters."""
    spline = RationalQuadratic(5, 3.0)
    far = torch.tensor([0.0, 2.9999998, 3.0, 1e30, 3.4e38])
    at = torch.cat([far, -far]).repeat(50, 1)
    for function in (spline.forward, spline.inverse):
        x = at.clone().requires_grad_()
        raw = draw(spline, size, *at.shape, dtype=SINGLE).requires_grad_()
        z, log_slope = function(x, raw)
        for output in (z, log_slope):
            for gradient in torch.autograd.grad(output.sum(), (x, raw), retain_graph=True):
                assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("bins", [2, 3, 4, 8, 31, 100])
def test_zero_is_the_identity(bins, dtype):
    spline = RationalQuadratic(bins, 3.0)
    x = uniform(5000, low=-4.0, high=4.0).to(dtype)
    raw = draw(spline, 0.0, 5000, dtype=dtype)
    for function in (spline.forward, spline.inverse):
        z, log_slope = function(x, raw)
        assert torch.equal(z, x)
        assert not log_slope.any()


def test_round_trip():
    spline = RationalQuadratic(8, 3.0)
    x = uniform(20_000, low=-3.3, high=3.3)
    for size, limit in ((1.0, 1e-12), (5.0, 1e-10)):
        raw = draw(spline, size, 20_000)
        z, log_slope = spline.forward(x, raw)
        back, back_log_slope = spline.inverse(z, raw)
        # z's rounding comes back divided by the slope
        error = (back - x).abs() / (1 + (-log_slope).exp() * 1e-3)
        assert error.max() <= limit, f"size {size}: {error.max().item():.1e}"
        assert (log_slope + back_log_slope).abs().max() <= 1e3 * limit


def test_log_derivative_is_autograds():
    spline = RationalQuadratic(4, 3.0)
    for size in (1.0, 3.0):
        raw = draw(spline, size, 3000)
        for function in (spline.forward, spline.inverse):
            x = uniform(3000, low=-3.5, high=3.5).requires_grad_()
            z, log_slope = function(x, raw)
            (slope,) = torch.autograd.grad(z.sum(), x)
            torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_float32_is_as_exact_as_its_knots(direction, monkeypatch):
    """With the same float32 knots, the formulas in float32 give what they give in float64."""
    spline = RationalQuadratic(8, 3.0)
    raw = draw(spline, 1.0, 20_000, dtype=SINGLE)
    x = uniform(20_000, low=-3.0, high=3.0).to(SINGLE)
    got = getattr(spline, direction)(x, raw)
    knots = spline.knots(raw).double()
    monkeypatch.setattr(RationalQuadratic, "knots", lambda self, raw: knots)
    wanted = getattr(spline, direction)(x.double(), raw.double())
    for ours, exact, limit in zip(got, wanted, (1e-6, 3e-5), strict=True):
        error = (ours - exact).abs() / (1 + exact.abs())
        assert error.max() <= limit, f"{error.max().item():.1e}"
        assert error.median() <= 1e-7


@pytest.mark.parametrize("bins", [-1, 0, 1, 1000, 5000])
def test_refuses_bins(bins):
    with pytest.raises(ValueError, match="bins must be"):
        RationalQuadratic(bins)


@pytest.mark.parametrize("tail", [0.0, -1.0, math.inf, math.nan])
def test_refuses_tails(tail):
    with pytest.raises(ValueError, match="tail must be"):
        RationalQuadratic(4, tail)
