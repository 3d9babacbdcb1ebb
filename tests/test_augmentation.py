"""Augmentation: what it may give, how often, and that draws depend on seed and place only."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from helpers import flow_of, settings
from helpers import images as ramps
from mixerflow import augmentation
from mixerflow.augmentation import Augmentation
from mixerflow.core import Flow, Noise
from mixerflow.data import hold_out, make_images
from mixerflow.errors import ConfigError
from mixerflow.evaluate import bits
from mixerflow.processes import SINGLE
from mixerflow.training import train
from mixerflow.training.batches import Batches
from mixerflow.transforms import Dequantize

CPU = torch.device("cpu")
BOTH = Augmentation(flip=True, shift=1)


def batches(images, batch=6, seed=0, augmentation=BOTH, **given):
    return Batches(
        images, batch, seed=seed, device=CPU, conditional=False, augmentation=augmentation, **given
    )


def outcomes(image, flip, shift):
    """Every image that may become of one, by whether it is mirrored and its shifts."""
    sides = image.shape[1:]
    padded = np.pad(image, [(0, 0), *[(shift, shift)] * len(sides)], mode="edge")
    found = {}
    for offsets in itertools.product(range(-shift, shift + 1), repeat=len(sides)):
        cut = [slice(shift + o, shift + o + n) for o, n in zip(offsets, sides, strict=True)]
        for mirrored in (False, True)[: 1 + flip]:
            seen = padded[(slice(None), *cut)]
            found[mirrored, *offsets] = seen[..., ::-1] if mirrored else seen
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
@pytest.mark.parametrize(
    ("shape", "flip", "shift"),
    [
        ((2, 9), True, 3),
        ((3, 4, 6), True, 1),
        ((1, 5, 4), False, 2),
        ((2, 3, 4), True, 0),
        ((1, 3, 2, 4), True, 1),
    ],
)
def test_each_image_is_one_of_those_allowed_and_all_are_as_frequent(dtype, shape, flip, shift):
    image = torch.randperm(int(np.prod(shape)), generator=torch.Generator().manual_seed(0))
    image = image.reshape(shape).to(dtype)
    allowed = outcomes(image.numpy(), flip, shift)
    each = 100
    noise = Noise(3, torch.arange(each * len(allowed)))
    given = image.expand(len(noise.keys), *shape)
    seen = Augmentation(flip, shift).augmented(given, noise)
    assert seen.dtype == dtype and seen.shape == given.shape and seen.is_contiguous()
    counts = {which: 0 for which in allowed}
    by_bytes = {value.tobytes(): which for which, value in allowed.items()}
    assert len(by_bytes) == len(allowed)
    for one in seen.numpy():
        counts[by_bytes[one.tobytes()]] += 1  # a KeyError: an image that is not allowed
    freedom = len(allowed) - 1
    chi2 = sum((count - each) ** 2 / each for count in counts.values())
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 1


def test_labels_stay_and_images_are_those_of_the_order():
    pixels = np.arange(23, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4), np.uint8)
    images = make_images(pixels, np.arange(23), dataset_id="numbered")
    for step in (0, 3, 9):
        x, labels = batches(images).at(step)
        plain, same = batches(images, augmentation=Augmentation()).at(step)
        assert torch.equal(labels, same) and torch.equal(x, plain)  # constant images cannot change
        assert torch.equal(x[:, 0, 0, 0].long(), labels)


def test_the_draw_is_a_function_of_seed_step_and_place():
    image = np.arange(96, dtype=np.uint8).reshape(1, 1, 8, 12)
    images = make_images(np.repeat(image, 40, axis=0), None, dataset_id="equal")
    augmentation = Augmentation(flip=True, shift=3)
    drawn = {
        (seed, step): batches(images, 16, seed, augmentation).at(step)[0]
        for seed in (0, 1)
        for step in (0, 1, 7)
    }
    again = batches(images, 16, 1, augmentation)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    for step in (7, 0, 1):  # in any order, whatever was drawn before
        assert torch.equal(again.at(step)[0], drawn[1, step])
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in itertools.combinations(drawn, 2):
        assert not torch.equal(drawn[a], drawn[b])
    for x in drawn.values():
        assert len(x.unique(dim=0)) > 8  # by place
    halves = batches(images, 8, 0, augmentation)  # the place in the run counts, not the batch
    assert torch.equal(torch.cat([halves.at(2)[0], halves.at(3)[0]]), drawn[0, 1])


def test_streams_are_not_those_of_a_flow():
    flow = Flow(Dequantize(), (1, 4, 4), levels=256)
    assert 0 <= augmentation._STREAM < flow.transform.stream


def test_shares_of_processes_make_up_the_batch_of_one():
    whole = batches(ramps(), 12, parts=2)
    shares = [
        batches(ramps(), 12, parts=2, processes=dataclasses.replace(SINGLE, rank=r, world=2))
        for r in range(2)
    ]
    for step in (0, 5):
        x = torch.stack([share.at(step)[0].reshape(2, 3, 1, 4, 4) for share in shares], 1)
        assert torch.equal(x.flatten(0, 2), whole.at(step)[0])


def test_initialisation_and_validation_see_the_images_as_they_are(monkeypatch):
    plain = batches(ramps(), augmentation=Augmentation())
    assert torch.equal(batches(ramps()).first(9)[0], plain.first(9)[0])
    given, seen = flow_of(), []
    initialize = given.initialize
    monkeypatch.setattr(given, "initialize", lambda x, *rest: seen.append(x) or initialize(x))
    config = settings(augmentation=Augmentation(flip=True, shift=2), steps=3)
    result = train(given, ramps(), config=config, quiet=True)
    rest, held_out = hold_out(ramps(), seed=0)
    assert torch.equal(seen[0], batches(rest, augmentation=Augmentation()).first(16)[0])
    assert result.validation is not None
    figure = bits(given, held_out.pixels, seed=0)
    assert result.validation.bits_per_dim == figure.bits_per_dim


@pytest.mark.parametrize("shift", [4, 9])
def test_a_shift_beyond_the_image_is_refused_and_leaves_no_folder(tmp_path, shift):
    config = settings(augmentation=Augmentation(shift=shift))
    with pytest.raises(ConfigError, match=r"shift of . pixels.*side of 4.*train\.aug.*at most 3"):
        train(flow_of(), ramps(), config=config, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(ValueError, match="at least 0"):
        Augmentation(shift=-1)


@pytest.mark.parametrize(("dtype", "levels"), [(torch.uint8, 256), (torch.int32, 65536)])
def test_a_share_of_the_values_mutates_to_any_level(dtype, levels):
    images = torch.full((400, 3, 8, 8), 7, dtype=dtype)
    noise = Noise(3, torch.arange(400))
    seen = Augmentation(mutation=0.3).augmented(images, noise, levels)
    changed = seen != 7
    assert seen.dtype == dtype
    share = 0.3 * (1 - 1 / levels)
    assert changed.double().mean().item() == pytest.approx(
        share, abs=4 * (0.21 / changed.numel()) ** 0.5
    )
    values = seen[changed].double()
    assert values.mean().item() == pytest.approx((levels - 1) / 2, rel=0.02)
    assert 0 <= values.min() < 0.01 * levels and 0.99 * levels < values.max() < levels
    again = Augmentation(mutation=0.3).augmented(images[5:6], Noise(3, torch.tensor([5])), levels)
    assert torch.equal(again, seen[5:6])  # by the image's key alone
    assert torch.equal(Augmentation(mutation=0.0).augmented(images, noise), images)


def test_mutation_follows_mirroring_and_leaves_its_draws_alone():
    images = torch.arange(2 * 5 * 4, dtype=torch.uint8).reshape(1, 2, 5, 4).repeat(50, 1, 1, 1)
    noise = Noise(0, torch.arange(50))
    moved = BOTH.augmented(images, noise)
    both = dataclasses.replace(BOTH, mutation=0.25).augmented(images, noise)
    kept = both == moved
    assert 0.6 < kept.double().mean() < 0.9


def test_impossible_mutations_are_refused():
    with pytest.raises(ValueError, match="mutation must be 0 to 1"):
        Augmentation(mutation=1.5)
    floats = make_images(np.zeros((9, 1, 4, 4), np.float32), None, dataset_id="floats")
    with pytest.raises(ConfigError, match="float data have no levels to draw from"):
        batches(floats, augmentation=Augmentation(mutation=0.1))
