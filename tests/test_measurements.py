"""Measurements, masks and fillings against plain loops, and the formulas of scores."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from gaussian_images import EVENT, MEASUREMENTS, drawn, matrix_of
from mixerflow.core import Noise
from mixerflow.errors import ConfigError, DataError
from mixerflow.restoration import (
    CentreMask,
    Downsampled,
    Masked,
    PictureMask,
    RandomMask,
    best_filter,
    blurred,
    harmonic,
    mask_of,
    psnr,
)


def loops_blur(x, width):
    """One line of pixels, blurred by plain loops."""
    reach, n = math.ceil(4 * width), len(x)
    out = []
    for i in range(n):
        weights = [math.exp(-0.5 * (k / width) ** 2) for k in range(-reach, reach + 1)]
        values = [x[min(max(i + k, 0), n - 1)] for k in range(-reach, reach + 1)]
        out.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    return out


def test_a_blur_is_a_mean_of_neighbours():
    x = torch.rand(2, 1, 5, 7, dtype=torch.float64)
    got = blurred(x, 1.3)
    rows = torch.tensor([[loops_blur(row, 1.3) for row in image[0].tolist()] for image in x])
    columns = torch.tensor([[loops_blur(c, 1.3) for c in image.T.tolist()] for image in rows])
    torch.testing.assert_close(got[:, 0], columns.transpose(1, 2).to(got))
    torch.testing.assert_close(blurred(torch.full_like(x, 3.0), 0.7), torch.full_like(x, 3.0))


def test_blocks_and_masks_by_plain_loops():
    x = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    small = Downsampled(factor=2).apply(x)
    for b, c, i, j in np.ndindex(2, 3, 2, 3):
        block = [x[b, c, 2 * i + di, 2 * j + dj].item() for di in (0, 1) for dj in (0, 1)]
        assert small[b, c, i, j].item() == pytest.approx(sum(block) / 4)
    masked = Masked(mask=CentreMask(2)).apply(x)
    for i, j in np.ndindex(4, 6):
        hidden = i in (1, 2) and j in (2, 3)
        wanted = torch.zeros(2, 3) if hidden else x[:, :, i, j]
        torch.testing.assert_close(masked[:, :, i, j], wanted.to(x))
    hidden = RandomMask(0.25, 9).hidden((3, 4, 6))
    assert int(hidden.sum()) == 6
    assert torch.equal(hidden, RandomMask(0.25, 9).hidden((1, 4, 6)))
    assert not torch.equal(hidden, RandomMask(0.25, 10).hidden((1, 4, 6)))


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_gradient_of_the_likelihood_has_the_adjoint(name):
    """``d/dx log N(y; A x, s^2) = A^T (y - A x) / s^2``; masked pixels are no measurements."""
    measurement, x = MEASUREMENTS[name], drawn(2).requires_grad_(True)
    y = measurement.measure(drawn(2), Noise.of(1, drawn(2)))
    value = measurement.log_likelihood(x, y)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    a = matrix_of(measurement)
    residual = y.flatten(1) - x.detach().flatten(1) @ a.T
    torch.testing.assert_close(gradient.flatten(1), residual @ a / measurement.sigma**2)
    seen = a.abs().sum(1) > 0
    normal = torch.distributions.Normal(0.0, measurement.sigma)
    torch.testing.assert_close(value.detach(), normal.log_prob(residual[:, seen]).sum(1))


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_have_the_noise_that_they_say(name):
    measurement = MEASUREMENTS[name]
    x = drawn(1).expand(4000, *EVENT) + torch.arange(4000)[:, None, None, None] * 1e-9
    y = measurement.measure(x, Noise.of(0, x))
    seen = (matrix_of(measurement).abs().sum(1) > 0).reshape(y.shape[1:])
    deviation = (y - measurement.apply(x)).std(0)
    torch.testing.assert_close(
        deviation[seen], torch.full_like(deviation[seen], measurement.sigma), rtol=0.06, atol=0
    )
    assert (y[:, ~seen] == 0).all()


def test_harmonic_filling_is_linear_on_a_line_and_solves_laplace_in_the_plane():
    known = torch.tensor([True, False, False, False, True, True])
    line = torch.tensor([[[2.0, 9, 9, 9, 10.0, 5.0]]])
    torch.testing.assert_close(harmonic(line, known)[0, 0], torch.tensor([2.0, 4, 6, 8, 10, 5]))
    x, known = torch.rand(2, 3, 6, 5), torch.rand(6, 5) > 0.6
    filled = harmonic(x * known, known)
    torch.testing.assert_close(filled[..., known], x[..., known])
    for i, j in np.ndindex(6, 5):
        if not known[i, j]:
            near = [(i + a, j + b) for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))]
            near = [filled[..., a, b] for a, b in near if 0 <= a < 6 and 0 <= b < 5]
            torch.testing.assert_close(filled[..., i, j], sum(near) / len(near), atol=1e-4, rtol=0)
    torch.testing.assert_close(harmonic(x[1:] * known, known), filled[1:])


def test_psnr_is_its_formula():
    truth = torch.tensor([[[[10.0, 200.0]]], [[[0.0, 255.0]]]])
    noisy = torch.tensor([[[[13.0, 204.0]]], [[[-50.0, 300.0]]]])  # the second is clamped: equal
    assert psnr(noisy, truth).tolist() == [
        pytest.approx(20 * math.log10(255 / 12.5**0.5)),
        math.inf,
    ]
    assert psnr(noisy[:1], truth[:1], top=65535.0).item() == pytest.approx(
        20 * math.log10(65535 / 12.5**0.5)
    )


def test_the_best_filter_is_the_nearest_one():
    truth = blurred(torch.rand(4, 1, 12, 12) * 255, 1.5)
    y = truth + 10 * torch.randn_like(truth)
    width, filtered = best_filter(y, truth, 255.0)
    error = (filtered - truth).square().mean()
    assert 0.3 < width < 3.0
    for other in (0.3, width * 0.8, width * 1.3, 3.0):
        assert error <= (blurred(y, other).clamp(0, 255) - truth).square().mean() * 1.02
    assert error < (y - truth).square().mean() / 2


def test_a_picture_is_a_mask(tmp_path):
    pixels = np.full((4, 4, 3), 255, np.uint8)
    pixels[1, 2] = 0
    pixels[0, 0] = (0, 0, 1)  # nearly black is measured
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    mask = mask_of(str(tmp_path / "mask.png"))
    assert isinstance(mask, PictureMask)
    assert torch.nonzero(mask.hidden((1, 4, 4))).tolist() == [[1, 2]]
    with pytest.raises(ConfigError, match="4 x 4"):
        mask.hidden((1, 8, 8))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError):
        mask_of(str(tmp_path / "text.png")).hidden((1, 4, 4))


@pytest.mark.parametrize(
    "words", ["centre:0", "centre:x", "random:0", "random:1", "random:x", "no.png"]
)
def test_words_that_are_no_mask(words):
    with pytest.raises(ConfigError, match="mask"):
        mask_of(words)
