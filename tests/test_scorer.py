"""`Scorer`: the figures of `bits`, `measure` and `class_log_probs`, as columns."""

import io
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mixerflow
from helpers import MODEL, SHAPE, flow_of, images, settings
from mixerflow import cli
from mixerflow.data import Reading, make_images
from mixerflow.detection import Outliers, fit_outliers, measure
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import bits, class_log_probs
from mixerflow.parts import Classes, Vectors
from mixerflow.runs import keep_fit, read_weights
from mixerflow.runs.thresholds import InsideFit
from mixerflow.scoring import Scorer, image_of, pixels_of

CONDITIONAL = replace(MODEL, classes=Classes(3, 4))


def trained(folder, model, **given):
    data = images(40, **given)
    mixerflow.train(flow_of(model), data, out=folder, config=settings(steps=4), quiet=True)
    return folder


def with_thresholds(run, *, seed=0, weights_sha256=None, scores=None, background=None):
    flow, inside = mixerflow.load(run), images(60, seed=5).pixels
    told = {"scores": scores, "background": background, "false_alarms": 0.2, "seed": seed}
    fitted = fit_outliers(flow, inside, **told)
    measured = measure(flow, inside, seed=seed, background=background)
    sha256 = weights_sha256 or read_weights(run).sha256
    key = {"weights_sha256": sha256, "background_sha256": None, "seed": seed}
    keep_fit(run, InsideFit(fitted, measured, key, {}))
    return fitted


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain") / "run", MODEL)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("classes") / "run", CONDITIONAL, classes=3)


@pytest.fixture
def fresh(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "run")


def test_the_figures_are_those_of_bits_and_measure(plain):
    pixels, flow = images(11, seed=1).pixels, mixerflow.load(plain)
    found, measured = Scorer(plain, batch=4)(pixels), measure(flow, pixels)
    np.testing.assert_allclose(found["bits_per_dim"], bits(flow, pixels).per_image, rtol=1e-5)
    for name in ("log_base", "log_det"):
        np.testing.assert_allclose(found[name], getattr(measured, name), rtol=1e-4, atol=1e-4)
    nats = (found["log_base"] + found["log_det"]) / (16 * np.log(2))
    np.testing.assert_allclose(found["bits_per_dim"], -nats, rtol=1e-6)
    np.testing.assert_array_equal(found["complexity"], measured.complexity / 16)
    assert [*found] == [*Scorer(plain).columns]


def test_a_seed_is_that_of_bits(plain):
    pixels, flow = images(5, seed=1).pixels, mixerflow.load(plain)
    found = Scorer(plain, seed=3)(pixels)["bits_per_dim"]
    np.testing.assert_allclose(found, bits(flow, pixels, seed=3).per_image, rtol=1e-5)
    assert np.abs(found - Scorer(plain)(pixels)["bits_per_dim"]).max() > 1e-3


def test_thresholds_flag_as_outliers_do(fresh):
    fitted, pixels = with_thresholds(fresh), images(30, seed=2).pixels
    pixels[::3] = np.random.default_rng(0).integers(0, 256, pixels[::3].shape)
    found, scorer = Scorer(fresh)(pixels), Scorer(fresh)
    expected = Outliers.of(measure(mixerflow.load(fresh), pixels), fitted)
    assert {n.removeprefix("outlier_") for n in found if n.startswith("outlier_")} == {
        *expected.scores
    }
    for name, values in expected.scores.items():
        column = found["bits_per_dim" if name == "bits" else f"score_{name}"]
        np.testing.assert_allclose(column, values, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(found[f"outlier_{name}"], expected.flags(name))
    assert found["outlier_bits"][::3].all()
    assert not found["outlier_bits"].all()
    assert scorer.note == ""


@pytest.mark.parametrize(
    ("changed", "given", "word"),
    [
        ({"weights_sha256": "0" * 64}, {}, "of other weights"),
        ({"seed": 1}, {}, "of noise of seed 1"),
        ({}, {"which": "last", "average": False}, "of other weights"),
    ],
    ids=["weights", "seed", "not averaged"],
)
def test_thresholds_of_others_are_not_used(fresh, changed, given, word):
    with_thresholds(fresh, **changed)
    scorer = Scorer(fresh, **given)
    assert scorer.fitted is None
    assert word in scorer.note
    assert not [name for name in scorer.columns if name.startswith("outlier_")]


def test_without_thresholds_the_note_says_how_to_get_some(plain):
    assert "`mixerflow outliers` fits them" in Scorer(plain).note


def test_a_score_that_needs_a_background_is_left_out(fresh):
    with_thresholds(fresh, scores=["bits", "ratio"], background=flow_of(seed=7))
    scorer = Scorer(fresh)
    assert scorer.note == "ratio needs a background flow"
    assert [name for name in scorer.columns if "_" in name and "outlier" in name] == [
        "outlier_bits"
    ]
    with_thresholds(fresh, scores=["ratio"], background=flow_of(seed=7))
    assert Scorer(fresh).fitted is None


def test_probabilities_of_a_mixture_of_classes(conditional):
    pixels, flow = images(9, seed=3).pixels, mixerflow.load(conditional)
    found = Scorer(conditional)(pixels)
    expected = class_log_probs(flow, pixels).exp()
    names = [f"p_{k}" for k in range(3)]
    assert [*found][-3:] == names
    np.testing.assert_allclose(np.stack([found[n] for n in names], 1), expected, atol=1e-4)
    every = np.stack([bits(flow, pixels, labels=np.full(9, k)).per_image for k in range(3)])
    mixed = -np.log2(np.mean(2.0 ** (-16 * every), 0)) / 16
    np.testing.assert_allclose(found["bits_per_dim"], mixed, rtol=1e-5)


def test_labels_are_the_condition(conditional):
    data, flow = images(9, seed=3, classes=3), mixerflow.load(conditional)
    scorer = Scorer(conditional, labels=True)
    assert scorer.classes == ()
    assert scorer.given_classes == 3
    assert scorer.fitted is None
    found = scorer(data.pixels, data.labels)["bits_per_dim"]
    expected = bits(flow, data.pixels, labels=data.labels).per_image
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    table = {"image": [*data.pixels[:, 0]], "label": data.labels.tolist(), "name": [*"abcdefghi"]}
    again = scorer(table)
    np.testing.assert_array_equal(again["bits_per_dim"], found)
    assert again["name"] == [*"abcdefghi"]
    names = [data.classes[label] if data.classes else label for label in data.labels.tolist()]
    np.testing.assert_array_equal(scorer(table | {"label": names})["bits_per_dim"], found)
    with pytest.raises(ValueError, match="labels=True, and called with none"):
        scorer(data.pixels)
    with pytest.raises(ValueError, match="labels=False, and called with some"):
        Scorer(conditional)(data.pixels, data.labels)


@pytest.mark.parametrize("label", [None, 1.5, True, "no class of the run", [1]])
def test_a_label_that_is_no_class_is_an_error_with_its_row(conditional, label):
    table = {"image": [*images(2).pixels[:, 0]], "label": [0, label]}
    with pytest.raises(DataError, match="row 1 has the label"):
        Scorer(conditional, labels=True)(table)


@pytest.mark.parametrize(
    "setting", [{"which": "middle"}, {"reading": "skip"}, {"seed": -1}, {"seed": 2**63}]
)
def test_a_setting_that_cannot_be_is_refused(plain, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Scorer(plain, **setting)


def test_columns_that_are_missing_are_named(conditional):
    scorer, table = Scorer(conditional, labels=True), {"image": [*images(2).pixels[:, 0]]}
    with pytest.raises(ConfigError, match=r"no column 'label': label_column: .* image"):
        scorer(table)
    with pytest.raises(ConfigError, match="no column 'image': column"):
        scorer({"picture": table["image"]})


def test_shallow_images_of_a_deep_run_are_refused(tmp_path):
    deep = make_images(images(40).pixels.astype(np.uint16) * 257, None, dataset_id="deep")
    flow = flow_of(replace(MODEL, pixels=replace(MODEL.pixels, levels=65536)))
    mixerflow.train(flow, deep, out=tmp_path / "run", config=settings(steps=2), quiet=True)
    scorer, shallow = Scorer(tmp_path / "run"), images(3).pixels[:, 0]
    with pytest.raises(DataError, match=r"256 levels, those of the run's images .* 65,536"):
        scorer({"image": [*shallow]})
    assert len(scorer({"image": [*deep.pixels[:3, 0]]})["bits_per_dim"]) == 3
    np.savez(tmp_path / "shallow.npz", images=shallow)
    words = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "shallow.npz")]
    assert cli.main(words) == 3


def test_measure_tells_no_classes_where_there_are_none(plain, conditional):
    data, remedy = images(3, classes=3), "leave them out"
    with pytest.raises(ConfigError, match=remedy):
        measure(mixerflow.load(plain), data.pixels, classes=True)
    with pytest.raises(ConfigError, match=remedy):
        measure(mixerflow.load(conditional), data.pixels, labels=data.labels, classes=True)


def test_it_is_pickled_without_its_flow(conditional):
    scorer, pixels = Scorer(conditional), images(4).pixels
    expected = scorer(pixels)
    data = pickle.dumps(scorer)
    shutil.move(conditional, conditional.with_name("moved"))  # the weights travel with it
    try:
        found = pickle.loads(data)(pixels)
    finally:
        shutil.move(conditional.with_name("moved"), conditional)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        encoded,
        lambda image: {"bytes": encoded(image), "path": "a.png"},
        Image.fromarray,
        lambda image: image,
        lambda image: image[..., None],
    ],
    ids=["bytes", "mapping", "Pillow", "(H, W)", "(H, W, C)"],
)
def test_images_of_a_mapping_may_be_of_any_kind(plain, kind):
    scorer, pixels = Scorer(plain), images(5, seed=4).pixels
    expected = scorer(pixels)
    found = scorer({"image": [kind(image) for image in pixels[:, 0]], "id": [*range(5)]})
    assert "image" not in found
    assert found.pop("id") == [*range(5)]
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_paths_and_whole_arrays(plain, tmp_path):
    scorer, pixels = Scorer(plain, column="picture"), images(3, seed=4).pixels
    (tmp_path / "a.png").write_bytes(encoded(pixels[0, 0]))
    expected = scorer(pixels)["bits_per_dim"]
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), {"path": str(tmp_path / "a.png")}):
        assert scorer({"picture": [one]})["bits_per_dim"] == expected[:1]
    np.testing.assert_array_equal(scorer({"picture": pixels[:, 0]})["bits_per_dim"], expected)


def test_no_images_have_no_rows(plain):
    scorer = Scorer(plain)
    for none in (np.empty((0, *SHAPE), np.uint8), {"image": []}, {"image": np.empty((0, 4, 4))}):
        assert {name: len(each) for name, each in scorer(none).items()} == dict.fromkeys(
            scorer.columns, 0
        )


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "no image"),
        (b"", "an empty file"),
        (b"hello", "not an image file"),
        (np.zeros((5, 4), np.uint8), r"an image is \(1, 5, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), r"an image is \(3, 4, 4\)"),
        (np.zeros((4, 4), np.uint16), "integers of 65,536 levels"),
        (np.zeros((1, 4, 4), np.float32), "pixels are floats"),
        ([[1, 2], [3]], "no array of pixels"),
    ],
)
def test_an_image_that_does_not_fit_is_named(plain, image, words):
    with pytest.raises(DataError, match=f"{words}.*image 1"):
        Scorer(plain)({"image": [np.zeros((4, 4), np.uint8), image]})


def test_reading_changes_images(plain):
    wide = np.random.default_rng(0).integers(0, 256, (4, 9, 8), np.uint8)
    reading = Reading(crop="8x8", resize="4x4", filter="box")
    expected = np.stack([reading.apply(image[None], "") for image in wide])
    np.testing.assert_array_equal(pixels_of([*wide], reading, SHAPE, 256), expected)
    found = Scorer(plain, reading=reading)({"image": [*wide]})["bits_per_dim"]
    np.testing.assert_allclose(found, Scorer(plain)(expected)["bits_per_dim"])
    with pytest.raises(DataError, match="floats are taken as they are"):
        image_of(np.zeros((1, 9, 8), np.float32), "it", reading, SHAPE, None)


def test_settings_that_cannot_be(plain, conditional, tmp_path):
    with pytest.raises(ConfigError, match="takes no labels"):
        Scorer(plain, labels=True)
    with pytest.raises(ConfigError, match=r"no column 'image'.*there are: a, b"):
        Scorer(plain)({"a": [1], "b": [2]})
    data = images(20)
    vectors = make_images(
        data.pixels, np.random.default_rng(0).random((20, 2)), dataset_id="vectors"
    )
    model = replace(MODEL, vectors=Vectors(2, width=4))
    out = tmp_path / "vectors"
    mixerflow.train(flow_of(model), vectors, out=out, config=settings(steps=2), quiet=True)
    with pytest.raises(ConfigError, match="conditional on vectors"):
        Scorer(out)


def test_threads_are_set_where_the_flow_is_built(plain, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    scorer = Scorer(plain, threads=3)
    assert asked == [3]
    pickle.loads(pickle.dumps(scorer))(images(2).pixels)
    assert asked == [3, 3]
