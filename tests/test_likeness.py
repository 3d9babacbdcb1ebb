"""How much samples look like their data: the net that judges, each figure, and the command."""

import dataclasses
import functools
import json
import math
import sys

import numpy as np
import pytest
import torch

from helpers import MODEL, flow_of, small_run
from mixerflow.cli import main
from mixerflow.cli.likeness import print_likeness
from mixerflow.data import make_images
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import (
    JudgeSettings,
    border_ratio,
    compare_likeness,
    frechet_distance,
    judge_of,
    likeness,
)
from mixerflow.evaluate.likeness import SURE
from mixerflow.evaluate.samples import draw_in_parts
from mixerflow.parts import Classes

SETTINGS = JudgeSettings(images=6000)


def bars(n, seed, side=12, labelled=True):
    """Images of three classes: level bars, upright bars, and squares, at random places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    pixels = rng.integers(0, 40, (n, 1, side, side))
    for image, label in zip(pixels, labels, strict=True):
        i, j = rng.integers(1, side - 4, 2)
        rows, columns = (2, side - 4, 3)[label], (side - 4, 2, 3)[label]
        i, j = (i if label != 1 else 2), (j if label != 0 else 2)
        image[0, i : i + rows, j : j + columns] += 180
    return make_images(pixels.astype(np.uint8), labels if labelled else None, dataset_id="bars")


def dots(n, seed, labelled=True):
    """Images of the shape of `flow_of`, dark and bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    pixels = rng.integers(0, 60, (n, *flow_of().shape)) + 150 * labels.reshape(-1, 1, 1, 1)
    return make_images(pixels.astype(np.uint8), labels if labelled else None, dataset_id="dots")


TRAIN, TEST = bars(600, 0), bars(400, 1)


@pytest.fixture(scope="module")
def judge():
    return judge_of(TRAIN, TEST, SETTINGS)[0]


def test_real_images_score_near_the_yardstick_and_noise_and_blur_worse(judge):
    one, other = TEST.take(np.arange(200)), TEST.take(np.arange(200, 400))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, one.pixels.shape).astype(np.uint8)
    noisy = np.clip(one.pixels + rng.normal(0, 60, one.pixels.shape), 0, 255).astype(np.uint8)
    near = [np.roll(one.pixels, s, (2, 3)) for s in np.ndindex(3, 3)]
    blurred = np.mean(near, 0).astype(np.uint8)
    only = other.take(np.flatnonzero(other.labels == 0))
    real, random, rough, soft, alike = (
        likeness("", each, one.pixels, judge=judge)
        for each in (other.pixels, noise, noisy, blurred, only.pixels)
    )
    assert real.sure > 0.8 and real.classes > 2.8 and real.fewest > 0.2
    assert 0.95 < real.detail < 1.05 and real.border == pytest.approx(border_ratio(one), rel=0.1)
    for worse in (random, rough, soft, alike):
        assert worse.distance > 5 * real.distance
    assert rough.detail > 1.3 * real.detail and random.detail > 3
    assert soft.detail < 0.5 and soft.sure < real.sure
    assert alike.classes < 1.2 and alike.fewest < 0.05
    assert random.border == pytest.approx(1, abs=0.1) and real.border < 0.2


def test_each_figure_equals_a_second_computation(judge):
    images, reference = TEST.pixels[:150], TEST.pixels[150:300]
    found = likeness("some", images, reference, judge=judge, labels=TEST.labels[:150])
    with torch.no_grad():
        features = [
            np.stack([judge.features(torch.from_numpy(x.reshape(1, -1)))[0].numpy() for x in part])
            for part in (images, reference)
        ]
    weights = judge.head.weight.detach().numpy(), judge.head.bias.detach().numpy()
    scores = (features[0] @ weights[0].T + weights[1]).astype(np.float64)
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    said = probabilities.argmax(1)
    shares = np.array([(said == k).mean() for k in range(3)])
    assert found.sure == pytest.approx((probabilities.max(1) > SURE).mean())
    assert found.classes == pytest.approx(math.prod(q**-q for q in shares if q))
    assert found.fewest == pytest.approx(shares.min())
    assert found.right == pytest.approx((said == TEST.labels[:150]).mean())
    means, covariances = (
        [torch.from_numpy(f(each.astype(np.float64))) for each in features]
        for f in (lambda x: x.mean(0), lambda x: np.cov(x.T))
    )
    pairs = (means[0], covariances[0], means[1], covariances[1])
    assert found.distance == pytest.approx(frechet_distance(*pairs), rel=1e-3)
    inside = np.zeros((12, 12), bool)
    inside[1:-1, 1:-1] = True
    squares = (images.astype(float) ** 2).mean((0, 1))
    assert found.border == pytest.approx(squares[~inside].mean() / squares[inside].mean())
    k = np.arange(12)
    waves = np.exp(-2j * np.pi * np.outer(k, k) / 12)
    high = np.minimum(k, 12 - k) / 12 >= 0.25
    powers = [
        (np.abs(waves @ part @ waves) ** 2)[..., high[:, None] | high[None]].sum() / len(part)
        for part in (images.astype(float), reference.astype(float))
    ]
    assert found.detail == pytest.approx(powers[0] / powers[1])


def test_a_border_is_a_sixteenth_of_each_axis():
    x = np.zeros((2, 3, 17, 32))
    x[:, :, 2:-2, 2:-2] = 2.0
    assert border_ratio(x) == 0
    x[:, :, :2], x[:, :, -2:], x[..., :2], x[..., -2:] = 1, 1, 1, 1
    assert border_ratio(x) == pytest.approx(1 / 4)
    assert border_ratio(np.zeros((1, 1, 8, 8))) is None
    with pytest.raises(ValueError, match="with an inside"):
        border_ratio(np.zeros((1, 1, 2, 8)))


def test_constant_images_have_no_ratio():
    black = np.zeros((9, 1, 8, 8), np.uint8)
    found = likeness("black", black, black)
    assert (found.border, found.detail, found.sure, found.distance) == (None,) * 4


def test_a_judge_is_a_function_of_seed_and_images_and_is_kept(tmp_path, recwarn):
    few, settings = TRAIN.first(200), JudgeSettings(images=1000)
    seen = []
    args = (few, TEST, settings)
    first, accuracy = judge_of(*args, cache=tmp_path, on_image=seen.append)
    assert sum(seen) == 1000 and accuracy > 0.6
    again, same = judge_of(*args, cache=tmp_path, on_image=pytest.fail)  # from the file
    anew, _ = judge_of(*args)
    other, _ = judge_of(few, TEST, JudgeSettings(images=1000, seed=1))
    x = torch.from_numpy(TEST.pixels).flatten(1)
    with torch.no_grad():
        assert torch.equal(first(x), again(x)) and same == accuracy
        torch.testing.assert_close(first(x), anew(x))
        assert not torch.allclose(first(x), other(x), atol=1e-2)
    labels = np.roll(few.labels, 1)
    changed = make_images(few.pixels, labels, dataset_id="bars")
    with pytest.raises(DataError, match="no better than chance"):  # and not what the file has
        judge_of(changed, TEST, settings, cache=tmp_path)
    assert not recwarn.list
    path = min(tmp_path.iterdir(), key=lambda each: each.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="trained again: SHA-256 differs"):
        third, _ = judge_of(*args, cache=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(first(x), third(x))


def test_a_net_that_is_no_better_than_chance_is_refused():
    rng = np.random.default_rng(5)
    sets = [
        make_images(each.pixels, rng.integers(0, 3, len(each)), dataset_id="chance")
        for each in (TRAIN, TEST)
    ]
    with pytest.raises(DataError, match=r"tells \d+ % of test images right, no better than chance"):
        judge_of(*sets, JudgeSettings(images=1200))
    alike = make_images(TRAIN.pixels, np.zeros(600, int), dataset_id="one")
    with pytest.raises(DataError, match="fewer than two classes"):
        judge_of(alike, TEST)


def test_large_images_and_16_bits_are_judged_too():
    train, test = (
        make_images(
            np.kron(each.pixels, np.ones((1, 1, 4, 4), np.uint8)).astype(np.uint16) * 257,
            each.labels,
            dataset_id="large",
        )
        for each in (TRAIN.first(200), TEST.first(100))
    )
    _, accuracy = judge_of(train, test, JudgeSettings(images=1600))
    assert accuracy > 0.6

    flow = flow_of()
    table = compare_likeness(
        flow, dots(40, 0, labelled=False), dots(60, 1), samples=20, temperatures=(1.0, 0.0)
    )
    assert table.without == "the images have no class labels" and table.accuracy is None
    real, warm, cold = table.rows
    assert {row.images for row in table.rows} == {20}
    assert real.sure is None and real.distance is None and real.detail > 0
    assert warm.detail > cold.detail, "the mode has less detail than samples"
    seed = compare_likeness(flow, dots(40, 0, labelled=False), dots(60, 1), samples=20, seed=1)
    assert seed.rows[1].detail != warm.detail


@pytest.fixture
def quick(monkeypatch):
    """A judge that trains for a second."""
    module = sys.modules["mixerflow.evaluate.likeness"]
    monkeypatch.setattr(module, "JudgeSettings", functools.partial(JudgeSettings, images=2000))


@pytest.mark.usefixtures("quick")
def test_samples_of_a_class_are_told_by_it():
    train, test, done = dots(200, 0), dots(200, 1), []
    plain = compare_likeness(
        flow_of(), train, test, samples=50, on_progress=lambda *each: done.append(each)
    )
    assert plain.rows[0].right > 0.9 and plain.accuracy > 0.9
    assert plain.rows[1].right is None, "nobody asked for a class"
    assert done[-1] == (2050, 2050)
    flow = flow_of(dataclasses.replace(MODEL, classes=Classes(2, 3)))
    table = compare_likeness(flow, train, test, samples=50, temperatures=(2.0,))
    judge, _ = judge_of(train, test, JudgeSettings(images=2000))
    ((drawn, asked),) = draw_in_parts(flow, 50, seed=0, temperature=2.0)
    said = judge.judged(drawn.images.numpy().astype(np.uint8)).predicted
    assert asked.tolist() == [0, 1] * 25
    assert table.rows[1].right == pytest.approx((said == asked).double().mean().item())


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def there(tmp_path, monkeypatch, quick):
    """A run without training, and images with labels and without beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = small_run(tmp_path)
    header = json.loads((out / "run.json").read_text())
    header["data"]["classes"] = []  # labels have no names
    (out / "run.json").write_text(json.dumps(header))
    arrays = {}
    for split, images in (("train", dots(200, 0)), ("test", dots(60, 1))):
        arrays[f"{split}_images"] = np.moveaxis(images.pixels, 1, -1)
        arrays[f"{split}_labels"] = images.labels
    np.savez(tmp_path / "labelled.npz", **arrays)
    return out


def test_from_samples_to_the_table(there, tmp_path, capsys):
    words = ["evaluate", there, "--no-codecs", "--likeness", "-j", 1]
    data = ["--data", tmp_path / "labelled.npz"]
    warm = ["--temperatures", 1, 0.5]
    assert run(*words, *data, *warm, "--json") == 0
    found = json.loads(capsys.readouterr().out)["likeness"]
    assert [row["images"] for row in found["rows"]] == [30, 30, 30]
    assert found["accuracy"] > 0.9 and found["temperatures"] == [1, 0.5]
    (file,) = (there / "evaluations").glob("*likeness-30-temperature-1-0-5.json")
    assert json.loads(file.read_text())["likeness"] == found
    assert len(list((tmp_path / "cache" / "mixerflow" / "judges").iterdir())) == 1
    assert run(*words, *data, *warm) == 0
    shown = capsys.readouterr().out
    assert "30 of each" in shown and "temperature" in shown and "told right, %" in shown
    assert f"{100 * found['accuracy']:.1f} % of the test" in shown
    print_likeness(compare_likeness(flow_of(), dots(40, 0, labelled=False), dots(60, 1)))
    shown = capsys.readouterr().out
    assert "the images have no class labels: no net judges" in shown
    assert "sure" not in shown and "border" in shown


def test_flags_that_cannot_be_are_one_line(there, tmp_path, capsys):
    data = ["--no-codecs", "--data", tmp_path / "labelled.npz"]
    for words, code, said in (
        (["--temperatures", "1"], 2, "no samples are judged: --temperatures: give --likeness too"),
        (["--likeness-samples", "9"], 2, "give --likeness too"),
        (["--likeness", "--temperatures", "-1"], 2, "--temperatures: give 0 or more, finite"),
        (["--likeness", "--split", "train"], 2, "trained on these images: --split train"),
        (["--likeness", "--likeness-samples", "31"], 2, "give 8 to 30, half of the 60 images"),
        (["--likeness", "--images", "9"], 3, "9 images, half of them"),
    ):
        assert run("evaluate", there, *data, *words) == code, words
        assert said in capsys.readouterr().err
    own = ["evaluate", there, "--no-codecs", "--likeness"]  # 12 images, without a test part
    assert run(*own) == 3
    assert "give at least 16" in capsys.readouterr().err


def test_what_has_no_picture_is_refused():
    flow = flow_of()
    few = make_images(np.zeros((40, *flow.shape), np.float32), None, dataset_id="floats")
    with pytest.raises(ConfigError, match="have no picture"):
        compare_likeness(flow, few, few)
