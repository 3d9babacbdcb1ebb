"""Noise is Philox, depends on the image and not on the batch, and has the right distribution."""

import pytest
import torch

from mixerflow.core import Centre, Noise
from mixerflow.core.noise import philox

ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("answer", ANSWERS.strip().splitlines())
def test_philox_gives_the_known_answers_of_random123(answer):
    words = [int(word, 16) for word in answer.split()]
    counter, (low, high), wanted = words[:4], words[4:6], words[6:]
    got = philox([torch.tensor([word]) for word in counter], low | high << 32)
    assert [word.item() for word in got] == wanted


def noise_of(*index: int, seed: int = 3) -> Noise:
    return Noise(seed, torch.tensor(index, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_an_image_has_the_same_noise_in_every_batch(kind):
    like = torch.empty(4, 3, 5)
    whole = getattr(noise_of(7, 1, 2**40 + 7, 9), kind)(like, 5)
    shuffled = getattr(noise_of(9, 7), kind)(like[:2], 5)
    assert torch.equal(shuffled, whole[[3, 0]])
    part = getattr(noise_of(7, 1, 8, 9)[1:2], kind)(like[:1], 5)
    assert torch.equal(part, whole[[1]])


def test_seed_image_stream_and_position_all_matter():
    like = torch.empty(1, 8)
    draws = [
        noise_of(1).uniform(like, 0),
        noise_of(2).uniform(like, 0),
        noise_of(1, seed=4).uniform(like, 0),
        noise_of(1, seed=3 + 2**32).uniform(like, 0),
        noise_of(1).uniform(like, 1),
    ]
    assert torch.cat(draws).unique().numel() == 5 * 8


def test_rows_have_noise_of_their_own_and_depend_on_the_image_alone():
    like = torch.empty(6, 4)
    rows = noise_of(5, 8).rows(3).uniform(like, 2)
    assert rows.unique().numel() == 24
    assert torch.equal(rows[3:], noise_of(8).rows(3).uniform(like[:3], 2))
    nested = noise_of(5, 8).rows(3).rows(2).uniform(torch.empty(12, 4), 2)
    assert nested.unique().numel() == 48
    assert torch.equal(nested[6:], noise_of(8).rows(3).rows(2).uniform(like, 2))
    part = noise_of(5, 8).rows(3)[4:5].uniform(like[:1], 2)
    assert torch.equal(part, rows[4:5])


def test_uniform_values_are_uniform_on_the_half_open_interval():
    u = noise_of(*range(200)).uniform(torch.empty(200, 1001, dtype=torch.float64), 0)
    error = u.numel() ** -0.5
    assert u.min() >= 0 and u.max() < 1
    assert (u.mean() - 1 / 2).abs() < 4 * error * 12**-0.5
    assert (u.square().mean() - 1 / 3).abs() < 4 * error * (4 / 45) ** 0.5
    counts = torch.histc(u, 64, 0, 1)
    chi2 = ((counts - u.numel() / 64).square() / (u.numel() / 64)).sum()
    assert chi2 < 63 + 4 * (2 * 63) ** 0.5
    assert torch.equal(u * 2**24, (u * 2**24).floor())
    neighbours = torch.corrcoef(torch.stack([u[:, 1:].flatten(), u[:, :-1].flatten()]))[0, 1]
    assert neighbours.abs() < 4 * error


def test_normal_values_are_normal():
    n = noise_of(*range(200)).normal(torch.empty(200, 1001, dtype=torch.float64), 0)
    error = n.numel() ** -0.5
    assert n.isfinite().all() and n.abs().max() < 6
    assert n.mean().abs() < 4 * error
    assert (n.square().mean() - 1).abs() < 4 * error * 2**0.5
    assert (n**4).mean().sub(3).abs() < 4 * error * 96**0.5


def test_draws_follow_the_dtype_and_shape_asked_for():
    for dtype in (torch.float32, torch.float64):
        for shape in ((2,), (2, 3), (2, 1, 5), (0, 3)):
            like = torch.empty(shape, dtype=dtype)
            for kind in ("uniform", "normal"):
                drawn = getattr(noise_of(*range(shape[0])), kind)(like, 0)
                assert drawn.shape == like.shape and drawn.dtype == dtype


def test_noise_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="noise for 2 images, a batch of 3"):
        noise_of(0, 1).uniform(torch.empty(3, 2), 0)


def test_the_centre_is_the_mean_of_the_noise():
    like = torch.empty(2, 3)
    for centre in (Centre(), Centre()[1:], Centre().rows(5)):
        assert torch.equal(centre.uniform(like, 4), torch.full((2, 3), 0.5))
        assert torch.equal(centre.normal(like, 4), torch.zeros(2, 3))
