"""Normal scores of pixels: exact marginals, a density that integrates to one, and the way back."""

import math

import pytest
import torch

from mixerflow import MixerFlow
from mixerflow.core import Chain, Flow
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.parts import NormalScorePixels, Patching
from mixerflow.transforms import Dequantize, NormalScores

MARGIN = 2.0**-14


def pixels(count=200, shape=(2, 3, 3), levels=8, seed=0):
    """Mostly level 0, in each channel with another distribution."""
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    powers = torch.arange(2, 2 + shape[0]).view(-1, *(1,) * (len(shape) - 1))
    return (x**powers * levels).floor()


def shares(x, levels, smoothing):
    """The shares of the levels in each channel, of pixels with the channels first."""
    counts = torch.stack([each.flatten().long().bincount(minlength=levels) for each in x])
    return (1 - smoothing) * counts / counts.sum(1, keepdim=True) + smoothing / levels


@pytest.fixture
def flow():
    transform = Chain(Dequantize(8), NormalScores((2, 3, 3), 8, smoothing=0.02))
    flow = Flow(transform, (2, 3, 3), levels=8)
    flow.initialize(pixels())
    return flow


def test_alone_they_give_each_value_the_bits_of_its_share(flow):
    x = pixels(seed=1, count=5)
    expected = shares(pixels().transpose(0, 1), 8, 0.02) * (1 - 2 * MARGIN)
    nats = [expected[c][x[:, c].long()].log().flatten(1).sum(1) for c in range(2)]
    assert torch.allclose(flow.log_prob(x), sum(nats).float(), atol=2e-4)  # for any noise


def test_the_density_integrates_to_one():
    transform = NormalScores((1, 1, 1), 4).double()
    transform.initialize(pixels(shape=(1, 1, 1), levels=4).double())
    normal = torch.distributions.Normal(0.0, 1.0)

    def mass(start, end, count):
        points = start + (end - start) * (torch.arange(count).double() + 0.5) / count
        z, log_det = transform(points.view(-1, 1, 1, 1))
        assert (z.flatten().diff() > 0).all()
        density = (normal.log_prob(z.flatten()) + log_det).exp()
        return density.sum().item() * (end - start) / count

    assert mass(0, 4, 4000) == pytest.approx(1 - 2 * MARGIN, abs=1e-9)
    assert mass(-3, 0, 400_000) == pytest.approx(MARGIN, rel=1e-3)  # beyond the levels
    assert mass(4, 7, 400_000) == pytest.approx(MARGIN, rel=1e-3)


@pytest.mark.parametrize("levels", [2, 256, 2**16])
def test_the_inverse_finds_the_value_of_every_level(levels):
    transform = NormalScores((1, 2, 1), levels)
    few = torch.randint(0, min(levels, 20), (50, 1, 2, 1)).float()
    transform.initialize(few + 0.5)
    x = torch.arange(0, levels, max(1, levels // 500)).float()
    x = torch.stack([x, x.flip(0)], 1).view(-1, 1, 2, 1)
    for inside in (0.0, 0.25, 1 - 2**-8):
        back, _ = transform.inverse(transform(x + inside)[0])
        assert (back - x - inside).abs().max() < (0.02 if levels < 2**16 else 0.6)


def test_beyond_the_levels_both_directions_are_one_line():
    transform = NormalScores((1, 1), 16).double()
    transform.initialize(torch.zeros(10_000, 1, 1))
    x = (
        torch.tensor([-1000.0, -1.0, 0.0, 7.5, 16 - 1e-3, 16.0, 17.0, 300.0])
        .double()
        .view(-1, 1, 1)
    )
    z, log_det = transform(x)
    assert z.isfinite().all() and (z.flatten().diff() > 0).all()
    assert z[2:6].abs().max() < 3.9 and z[[1, 6]].abs().min() > 3.84
    back, other = transform.inverse(z)
    assert torch.allclose(back, x, rtol=1e-9, atol=1e-9) and torch.allclose(other, -log_det)
    outside, _ = transform.inverse(torch.tensor([-4.5, 4.5, -30.0, 30.0]).double().view(-1, 1, 1))
    assert (outside.flatten()[[0, 2]] < 0).all() and (outside.flatten()[[1, 3]] > 16).all()


def test_what_is_no_number_stays_none():
    transform = NormalScores((1, 2), 4)
    for way in (transform, transform.inverse):
        y, _ = way(torch.tensor([[[math.nan, 1.5]]]))
        assert y[0, 0, 0].isnan() and y[0, 0, 1].isfinite()


def test_a_few_values_are_little_evidence():
    transform = NormalScores((1, 2), 2**16)
    transform.initialize(torch.full((5, 1, 2), 7.0))
    assert transform.shares.sum().item() == pytest.approx(1)
    assert transform.shares[0, 7].item() == pytest.approx(11 / (2**16 + 10))
    transform.initialize(torch.full((10_000, 1, 2), 7.0))
    assert transform.shares[0, 7] < 0.3


def test_they_are_saved_with_the_weights_and_do_not_train(flow):
    other = Flow(Chain(Dequantize(8), NormalScores((2, 3, 3), 8)), (2, 3, 3), levels=8)
    other.load_state_dict(flow.state_dict())
    assert torch.equal(*([*each.transform][1].shares for each in (flow, other)))
    assert not [*flow.parameters()]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="levels must be 2 to 65536"):
        NormalScores((1, 2), 1)
    with pytest.raises(ValueError, match="smoothing must be in"):
        NormalScores((1, 2), smoothing=0.0)
    with pytest.raises(ValueError, match="empty batch"):
        NormalScores((1, 2)).initialize(torch.zeros(0, 1, 2))
    with pytest.raises(ConfigError, match="smoothing"):
        MixerFlow(pixels=NormalScorePixels(smoothing=2.0)).build((1, 8, 8))


def test_a_model_of_images_with_a_black_background_gains_what_the_noise_costs_it():
    """Behind normal scores the start is better than the best normal fit of the spike can be."""
    x = pixels(400, (1, 8, 8), 256, seed=2)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.8] = 0
    images = make_images(x.numpy().astype("uint8"), None, dataset_id="spikes")
    settings = {"layers": 1, "flow_layers": 1, "patching": Patching(4, shift=0)}
    figures = []
    for kind in ({}, {"pixels": NormalScorePixels()}):
        flow = MixerFlow(**settings, **kind).build(images.shape)
        flow.initialize(torch.from_numpy(images.pixels[:200]))
        figures.append(flow.bits_per_dim(images.pixels[200:]).mean().item())
    spike = shares(x[:200].transpose(0, 1), 256, 0.01)[0]
    entropy = -(spike * spike.log2()).sum().item()
    assert figures[1] < entropy + 0.15 and figures[0] > figures[1] + 1
    assert math.isfinite(figures[0])
