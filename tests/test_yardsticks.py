"""What takes no training: fitted Gaussians, codecs, and the power of high frequencies."""

import math

import numpy as np
import pytest
import torch

from mixerflow.evaluate import gaussian_bits, high_frequency_power, yardsticks


def correlated(count, seed):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 1, 1, 1))
    values = 100 + 30 * common + 9 * rng.normal(size=(count, 2, 2, 2))
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("full", [False, True])
def test_a_gaussian_s_bits_are_those_of_torch_s_own(full):
    """The expectation over the noise, beside the mean over many draws of it."""
    train, test = correlated(500, 0), correlated(7, 1)
    x = torch.from_numpy(train).double().flatten(1)
    covariance = x.mT.cov(correction=0) + torch.eye(8) / 12
    if not full:
        covariance = torch.diag(covariance.diagonal())
    gaussian = torch.distributions.MultivariateNormal(x.mean(0) + 0.5, covariance)
    y = torch.from_numpy(test).double().flatten(1)
    noise = torch.rand(20000, *y.shape, generator=torch.Generator().manual_seed(0)).double()
    bits = -gaussian.log_prob(y + noise) / 8 / math.log(2)
    error = 4 * bits.mean(1).std().item() / len(noise) ** 0.5
    assert error < 1e-3
    assert gaussian_bits(train, test, full=full) == pytest.approx(bits.mean().item(), abs=error)


def test_the_covariance_helps_where_values_vary_together():
    train, test = correlated(500, 0), correlated(200, 1)
    found = yardsticks(train, test, 256)
    assert found["uniform"] == 8
    assert found["one Gaussian"] < found["independent Gaussians"] - 0.5
    assert "PNG" not in found, "PNG has no images of two channels"


def test_what_cannot_be_measured_is_left_out():
    rng = np.random.default_rng(0)
    few = rng.integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)  # fewer images than values
    found = yardsticks(few, few, 256)
    assert {"uniform", "independent Gaussians", "PNG", "WebP"} <= set(found)
    assert "one Gaussian" not in found
    with pytest.raises(ValueError, match="more images than values"):
        gaussian_bits(few, few, full=True)


def test_the_power_of_high_frequencies():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    slow = torch.cos(2 * math.pi * torch.arange(8) / 8).expand(1, 1, 8, 8)
    assert high_frequency_power(board) == pytest.approx(1)  # Parseval: all of its mean square
    assert high_frequency_power(slow) == pytest.approx(0, abs=1e-12)
    assert high_frequency_power(slow + 2 * board) == pytest.approx(4)
    noise = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    share = 1 - (7 / 16) ** 2  # of 16 frequencies of an axis, 7 lie below a quarter of a cycle
    assert high_frequency_power(noise) == pytest.approx(share, rel=0.03)
    for bad in (torch.zeros(0, 1, 4, 4), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match="takes images"):
            high_frequency_power(bad)
