"""Noise is Philox, depends on the image and not on the batch, and has the right distribution."""

import pytest
import torch

from mixerflow.core import Centre, Noise
from mixerflow.core.noise import mixed, philox

ANSWERS = """
00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1
"""


@pytest.mark.parametrize("answer", ANSWERS.strip().splitlines())
def test_philox_gives_the_known_answers_of_random123(answer):
    words = [int(word, 16) for word in answer.split()]
    counter, (low, high), wanted = words[:4], words[4:6], words[6:]
    for kind in (int, torch.tensor):
        got = philox([torch.tensor([word]) for word in counter], kind(low), kind(high))
        assert [word.item() for word in got] == wanted


def test_several_keys_at_once_are_each_their_own():
    keys = torch.tensor([5, 2**32 - 1])
    both = philox([torch.tensor([7, 7]), *torch.arange(6).reshape(3, 2)], keys, 9)
    for i in range(2):
        alone = philox([torch.tensor([7]), *torch.arange(6).reshape(3, 2)[:, [i]]], int(keys[i]), 9)
        assert [word[i].item() for word in both] == [word.item() for word in alone]


def test_small_keys_and_draw_0_are_what_they_always_were():
    """Numbers of the time when keys were places in a data set: training still draws them."""
    noise = noise_of(0, 77, 2**32 - 1, seed=-4)
    got = noise.uniform(torch.empty(3, 2, dtype=torch.float64), 3) * 2**24
    assert got.long().tolist() == [[10773078, 15855800], [7871410, 2060528], [5546974, 1252086]]


def noise_of(*index: int, seed: int = 3) -> Noise:
    return Noise(seed, torch.tensor(index, dtype=torch.int64))


def drawn(*keys: int, draw: int) -> Noise:
    return Noise(3, torch.tensor(keys), draw=draw)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_an_image_has_the_same_noise_in_every_batch(kind):
    like = torch.empty(4, 3, 5)
    whole = getattr(noise_of(7, 1, 2**40 + 7, 9), kind)(like, 5)
    shuffled = getattr(noise_of(9, 7), kind)(like[:2], 5)
    assert torch.equal(shuffled, whole[[3, 0]])
    part = getattr(noise_of(7, 1, 8, 9)[1:2], kind)(like[:1], 5)
    assert torch.equal(part, whole[[1]])


def test_seed_image_stream_draw_and_position_all_matter():
    like = torch.empty(1, 8)
    draws = [
        *(drawn(1, draw=k).uniform(like, 0) for k in (1, 2, 255, 2**31)),
        noise_of(1 + 2**32).uniform(like, 0),
        noise_of(1 - 2**32).uniform(like, 0),
        noise_of(1 - 2**63).uniform(like, 0),
        noise_of(1).uniform(like, 0),
        noise_of(2).uniform(like, 0),
        noise_of(1, seed=4).uniform(like, 0),
        noise_of(1, seed=3 + 2**32).uniform(like, 0),
        noise_of(1).uniform(like, 1),
    ]
    assert torch.cat(draws).unique().numel() == 12 * 8


def test_no_draw_of_a_seed_is_another_small_seeds_or_trainings():
    words = [mixed(draw) for draw in range(10_000)]
    assert words[0] == 0 and len(set(words)) == len(words)
    assert not {0, 2**32 - 1} & set(words[1:])  # the upper words of small seeds, and of ~seed
    bits = torch.tensor(words[1:])[:, None] >> torch.arange(32) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.02


def test_parts_and_rows_keep_the_draw():
    like = torch.empty(4, 5)
    one, two = (drawn(3, 8, draw=draw) for draw in (1, 2))
    assert not torch.equal(one.rows(2).uniform(like, 0), two.rows(2).uniform(like, 0))
    part = two[1:].rows(2).uniform(like[:2], 0)
    assert torch.equal(part, two.rows(2).uniform(like, 0)[2:])


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


def pictures(n: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (n, 2, 3, 5), generator=torch.Generator().manual_seed(n))


def keys(images: torch.Tensor) -> list[int]:
    return Noise.of(0, images).keys.tolist()


def test_equal_images_have_equal_keys_in_any_company():
    x = pictures()
    whole = keys(x)
    assert len(set(whole)) == 6
    order = torch.tensor([4, 0, 0, 3])
    assert keys(x[order]) == [whole[i] for i in order]
    assert keys(x[2:3]) == whole[2:3]
    company = torch.stack([x[0].double(), torch.full((2, 3, 5), 0.5), torch.full((2, 3, 5), 1e9)])
    assert keys(company)[0] == whole[0]  # floats beside it do not change how it is written
    like = torch.empty(6, 4)
    assert torch.equal(
        Noise.of(7, x, draw=2).uniform(like, 3),
        Noise(7, torch.tensor(whole), draw=2).uniform(like, 3),
    )


@pytest.mark.parametrize("shift", [0, 200, -3])
def test_an_images_dtype_and_layout_do_not_count(shift):
    x = pictures() + shift
    wanted = keys(x)
    for dtype in (torch.int16, torch.int32, torch.float32, torch.float64):
        assert keys(x.to(dtype)) == wanted
    if shift == 0:
        for dtype in (torch.uint8, torch.uint16, torch.float16, torch.bfloat16):
            assert keys(x.to(dtype)) == wanted
    assert keys(x.to(memory_format=torch.channels_last)) == wanted
    assert keys(x.mT.contiguous().mT) == wanted
    columns = x.flatten(1)
    assert keys(columns.mT.contiguous().mT) == keys(columns) != wanted


def test_values_shape_and_sign_count_but_not_the_sign_of_zero():
    x = torch.tensor(
        [[0.0, 1.5, -2.0], [-0.0, 1.5, -2.0], [0.0, 1.5, 2.0], [0.0, 1.5 + 1e-7, -2.0]]
    )
    first, second, *others = keys(x)
    assert first == second and len({first, *others}) == 3
    assert keys(torch.tensor([[-0.0, 3.0]])) == keys(torch.tensor([[0, 3]]))
    assert keys(x[:1, None]) != keys(x[:1])
    assert len(set(keys(torch.tensor([[0], [255], [256], [2**31], [-(2**31)], [-1]])))) == 6
    assert keys(torch.tensor([[2.0**40]])) == keys(torch.tensor([[2**40]]))
    assert keys(torch.tensor([[torch.inf, torch.nan]]).repeat(2, 1))[0] != first
    assert keys(x[:0]) == [] and keys(torch.zeros(2, 0, 3))[0] == keys(torch.zeros(1, 0, 3))[0]


def test_keys_are_stable():
    """Another digest would move every figure that is known."""
    assert keys(torch.arange(6).reshape(1, 1, 2, 3)) == [1353646569710875707]


def test_a_probe_changes_the_draws_of_estimates_alone():
    keys = torch.tensor([4, 9])
    like = torch.empty(2, 5)
    first, second = Noise(1, keys, draw=2), Noise(1, keys, draw=2, probe=1)
    assert first.probing(7) == 7  # an estimate's first probe is what it always was
    assert torch.equal(first.uniform(like, 7), second.uniform(like, 7))
    assert not torch.equal(first.uniform(like, 7), second.uniform(like, second.probing(7)))
    rows = second[:1].rows(3)
    assert rows.probing(7) == second.probing(7)
