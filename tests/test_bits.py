"""Bits/dim of images: noise by content, importance samples, and what the figure says of itself."""

import json
import math

import numpy as np
import pytest
import torch

from mixerflow.core import Base, Chain, Flow, Noise, Transform, total
from mixerflow.errors import ConfigError
from mixerflow.evaluate import bits, kind_of
from mixerflow.nets import LipschitzMLP
from mixerflow.recipes import build
from mixerflow.transforms import Dequantize, Rescale, Residual
from mixerflow.transforms.checks import perturb
from mixers import mixer

SHAPE = (2, 4, 4)


def model(**settings) -> Flow:
    small = {"layers": 2, "patch": 2, "hidden": 8, "norm": "none", "shift": 0, **settings}
    flow = build(mixer(**small), SHAPE)
    perturb(flow, size=0.2)
    return flow.eval()


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *SHAPE), np.uint8)


def nats(flow: Flow, x: torch.Tensor, draws: int, seed: int = 0) -> torch.Tensor:
    """``log p(x + u_k)`` as ``(K, N)``."""
    each = [flow.log_prob(x, noise=Noise.of(seed, x, draw=k)) for k in range(draws)]
    return torch.stack(each).double().detach()


def test_one_draw_is_the_single_sample_figure():
    flow, x = model(), pixels(9)
    wanted = flow.bits_per_dim(x, noise=Noise.of(3, torch.from_numpy(x))).double()
    figure = bits(flow, x, seed=3, importance_samples=1)
    np.testing.assert_allclose(figure.per_image, wanted.numpy(), rtol=1e-6)
    assert figure.importance_samples == 1 and figure.dequantization == "uniform"
    assert figure.bits_per_dim == figure.per_image.mean()
    assert "curve" not in figure.as_dict()


def test_streaming_is_the_mean_of_all_draws_at_once():
    flow, x = model(), pixels(5)
    every = nats(flow.double(), torch.from_numpy(x), 7, seed=2)
    wanted = (math.log(7) - every.logsumexp(0)) / (flow.dims * math.log(2))
    figure = bits(flow, x, seed=2, importance_samples=7, batch=2)
    np.testing.assert_allclose(figure.per_image, wanted.numpy(), rtol=1e-12)
    assert figure.importance_samples == 7
    single = bits(flow, x, seed=2).per_image
    assert (figure.per_image != single).all() and every.std(0).min() > 0.1


class Steep(Transform):
    """Shifts the log-density of each image by -40 times the mean of what it is given."""

    def forward(self, x, context=None, noise=None):
        return x, -40.0 * total(x) / 1.0

    def inverse(self, z, context=None, noise=None):
        return z, 40.0 * total(z)


def test_weights_far_below_zero_do_not_underflow():
    flow = Flow(Chain(Dequantize(), Steep()), (8,), levels=256).double()
    x = torch.full((2, 8), 100, dtype=torch.uint8)
    x[1] = 60
    every = nats(flow, x, 50)
    assert every.max() < -1e4 and every.exp().sum() == 0 and every.std(0).min() > 10
    best = every.max(0).values
    wanted = best + (every - best).exp().mean(0).log()
    figure = bits(flow, x.numpy(), importance_samples=50)
    np.testing.assert_allclose(figure.per_image, -wanted / (8 * math.log(2)), rtol=1e-12)


class Ramp(Base):
    """``p(z) = 2 z / 256^2`` on ``[0, 256)``: pixel x has probability ``(2 x + 1) / 256^2``."""

    def log_prob(self, z, context=None):
        return total((2 * z / 256**2).log())


def test_many_draws_come_to_the_exact_probability():
    flow = Flow(Dequantize(), (1,), Ramp(), levels=256).double()
    x, draws = torch.tensor([[0], [1], [200]], dtype=torch.uint8), 600
    exact = -((2 * x[:, 0].double() + 1) / 256**2).log2()
    figure = bits(flow, x, importance_samples=draws)
    # a draw's p(x + u) / P(x) is (x + u) / (x + 1 / 2): its standard deviation, by the delta method
    error = 12**-0.5 / (x[:, 0].double() + 0.5) / math.log(2) / draws**0.5
    off = torch.from_numpy(figure.per_image) - exact
    assert (off.abs() < 4 * error).all() and off.any()
    # one draw's mean is the bound: for pixel 1 it lies -E log2 (1 + u) / 1.5 above
    one = flow.bits_per_dim(x[1:2].expand(4000, 1), noise=Noise(0, torch.arange(4000)))
    gap = (math.log(1.5) + 1) / math.log(2) - 2
    assert (one.mean() - exact[1]).item() == pytest.approx(gap, abs=gap / 2)


@pytest.mark.parametrize("draws", [1, 3])
def test_equal_images_have_equal_figures_in_any_company(draws):
    flow, x = model().double(), pixels(6)
    many = bits(flow, x, importance_samples=draws, batch=4).per_image
    alone = [bits(flow, x[[i]], importance_samples=draws).bits_per_dim for i in range(6)]
    np.testing.assert_allclose(many, alone, rtol=1e-12)
    twice = bits(flow, x[[5, 2, 5, 0]], importance_samples=draws).per_image
    assert twice[0] == twice[2]
    np.testing.assert_allclose(twice, many[[5, 2, 5, 0]], rtol=1e-12)
    floats = bits(flow, x.astype(np.float32), importance_samples=draws, batch=4).per_image
    assert np.array_equal(floats, many)


class Learned(Dequantize):
    """Stands for a dequantisation that is learned."""

    dequantization = "variational"


def test_the_figure_says_what_it_is():
    figure = bits(Flow(Chain(Learned(), Rescale(0.1)), SHAPE, levels=256), pixels(3))
    assert figure.dequantization == "variational"
    assert figure.kind == "exact density, variational dequantisation, single-sample"
    assert figure.kind in str(figure)
    floats = bits(Flow(Residual(LipschitzMLP(3, 3, width=4)), (3,)), torch.randn(4, 3))
    assert floats.dequantization == "none" and floats.kind == "exact density, no dequantisation"
    many = bits(model(), pixels(2), importance_samples=16)
    words = "exact density, uniform dequantisation, importance-weighted (K = 16)"
    assert many.kind == words == kind_of(json.loads(json.dumps(many.as_dict())))


def test_a_bound_draws_noise_without_dequantisation():
    """And a figure of before importance weighting had the words reads as a single sample."""
    old = {"density": "bound", "dequantization": "none"}
    assert kind_of(old) == "lower bound of the density, no dequantisation, single-sample"
    words = "lower bound of the density, no dequantisation, importance-weighted (K = 2,000)"
    assert kind_of(old | {"importance_samples": 2000}) == words


def test_draws_that_mean_nothing_are_refused():
    flow = model()
    with pytest.raises(ConfigError, match=r"0 draws an image: importance_samples"):
        bits(flow, pixels(2), importance_samples=0)
    estimated = Flow(Residual(LipschitzMLP(3, 3, width=4), log_det="unbiased"), (3,))
    assert bits(estimated, torch.randn(2, 3)).density == "estimate"
    with pytest.raises(ConfigError, match="overstate"):
        bits(estimated, torch.randn(2, 3), importance_samples=2)
    noiseless = Flow(Residual(LipschitzMLP(3, 3, width=4)), (3,))
    with pytest.raises(ConfigError, match="draws no noise"):
        bits(noiseless, torch.randn(2, 3), importance_samples=2)
