"""Scores of places: their poolings, the scorer as an ONNX model, and the command on features."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

import mixerflow
from mixerflow.cli.commands import run
from mixerflow.detection import (
    POOLINGS,
    MaximumPlace,
    TopPlaces,
    detection,
    factorises,
    fit_outliers,
    measure,
    outliers,
    place_scores,
    scorer,
    threshold_of,
)
from mixerflow.errors import ConfigError
from mixerflow.models import FeatureFlow
from mixerflow.parts import MLP, Classes, RowCoupling, WoodburyMap
from mixerflow.transforms.checks import perturb

SHAPE, MODEL = (
    (5, 6, 7),
    FeatureFlow(layers=2, flow=RowCoupling(net=MLP(8, norm="none")), linear=WoodburyMap(2)),
)


def features(n, seed=0, *, broken=False):
    """Maps whose second channel follows the first; in a defect of 2 x 2 places it does not."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *SHAPE, generator=generator)
    second = x[:, 0] + 0.1 * x[:, 1]
    if broken:
        second[:, 1:3, 2:4] = x[:, 2, 1:3, 2:4]
    x[:, 1] = second
    return x


def made(model=MODEL):
    torch.manual_seed(0)
    flow = model.build(SHAPE)
    flow.initialize(features(50), torch.zeros(50, dtype=torch.int64) if model.classes else None)
    perturb(flow.transform, size=0.05)
    return flow


def test_scores_of_places_are_those_of_the_density_whatever_the_batch():
    flow, x = made().double(), features(11, 1)
    scores = place_scores(flow, x, batch=4)
    assert scores.shape == (11, 6, 7)
    assert flow.training  # and its mode is its own
    whole = -flow.eval().log_prob(x.double()).detach().numpy()
    assert scores.sum((1, 2)) == pytest.approx(whole, rel=1e-12)
    np.testing.assert_allclose(place_scores(flow, x.numpy(), batch=11), scores, rtol=1e-12)
    assert place_scores(flow, x[:0]).shape == (0, 6, 7)


def test_labels_of_a_conditional_flow():
    flow, x = made(dataclasses.replace(MODEL, classes=Classes(2, width=3))), features(4, 1)
    perturb(flow, size=0.3)
    first, second = (place_scores(flow, x, labels=np.full(4, label)) for label in (0, 1))
    assert (first != second).all()
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        place_scores(flow, x, labels=np.zeros(3, np.int64))


def test_a_flow_that_mixes_places_is_refused_in_one_line():
    flow = mixerflow.build("mixerflow-tiny", (1, 8, 8))
    assert not factorises(flow)
    assert factorises(made())
    for wrong in (
        lambda: place_scores(flow, torch.zeros(1, 1, 8, 8, dtype=torch.uint8)),
        lambda: scorer(flow, threshold=0.0),
    ):
        with pytest.raises(ConfigError, match=r"reads more than one place .* FeatureFlow"):
            wrong()
    with pytest.raises(ConfigError, match="0 images at a time"):
        place_scores(made(), features(1), batch=0)
    with pytest.raises(ConfigError, match="no pooling mode"):
        scorer(made(), threshold=0.0, pooling="mode")


def test_poolings_are_their_equations():
    maps = torch.rand(7, 4, 25)
    flat = maps.flatten(1)
    assert torch.equal(POOLINGS["maximum"].pool(flat), flat.amax(1))
    assert torch.allclose(POOLINGS["mean"].pool(flat), flat.mean(1))
    ordered = flat.sort(1).values
    assert torch.allclose(TopPlaces(0.05).pool(flat), ordered[:, -5:].mean(1))
    assert torch.equal(TopPlaces(0.001).pool(flat), ordered[:, -1])  # one place at least
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share must be"):
            TopPlaces(share)


def test_outliers_of_features_by_the_largest_score_of_a_place():
    flow = made()
    fitted = fit_outliers(flow, features(60, 2), false_alarms=0.1)
    assert {score.name for score in fitted.scores} == {"bits", "typicality", "maximum", "top"}
    found = outliers(flow, features(30, 3, broken=True), fitted)
    maps = place_scores(flow, features(30, 3, broken=True))
    assert found.scores["maximum"] == pytest.approx(maps.max((1, 2)), rel=1e-6)
    assert found.flags("maximum").mean() > 0.6
    assert outliers(flow, features(200, 4), fitted).flags("maximum").mean() < 0.3
    good = measure(flow, features(30, 4), lengths=False, places=True)
    largest = MaximumPlace()(good)
    assert largest == pytest.approx(place_scores(flow, features(30, 4)).max((1, 2)), rel=1e-6)
    assert detection(largest, found.scores["maximum"], resamples=0).auroc > 0.9


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(  # each exports anew; the top ones sort and take a mean
    "pooling", [p if p == "top" else pytest.param(p, marks=pytest.mark.slow) for p in POOLINGS]
)
def test_the_onnx_scorer_gives_the_scores_and_its_threshold_can_be_replaced(pooling, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    flow = made().eval()
    maps = torch.from_numpy(place_scores(flow, features(60, 2)))
    scores = POOLINGS[pooling].pool(maps.flatten(1))
    threshold = threshold_of(scores.numpy(), 0.1)
    model = scorer(flow, threshold=threshold, pooling=pooling)
    mixerflow.export.onnx(model, tmp_path / "scorer.onnx")
    session = runtime.InferenceSession(tmp_path / "scorer.onnx")
    assert [each.name for each in session.get_outputs()] == ["places", "score", "outlier"]
    for batch in (1, 2, 5):
        x = features(batch, 3, broken=True)
        places, score, outlier = session.run(None, {"features": x.numpy()})
        wanted = torch.from_numpy(place_scores(flow, x))
        pooled = POOLINGS[pooling].pool(wanted.flatten(1)).numpy()
        np.testing.assert_allclose(places, wanted.numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(score, pooled, rtol=1e-4, atol=1e-4)
        assert (outlier == (score > np.float32(threshold.value))).all()
        for limit, flag in ((-1e9, True), (1e9, False)):
            given = {"features": x.numpy(), "threshold": np.array(limit, np.float32)}
            assert (session.run(["outlier"], given)[0] == flag).all()


def test_the_scorer_module_has_the_same_scores_as_a_program():
    flow, x = made().eval(), features(3, 5, broken=True)
    model = scorer(flow, threshold=12.0, pooling=MaximumPlace())
    program = mixerflow.export.program(model).module()
    for made_by in (model, program):
        places, score, outlier = made_by(features=x, threshold=torch.tensor(12.0))
        wanted = torch.from_numpy(place_scores(flow, x)).float()
        torch.testing.assert_close(places, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(score, MaximumPlace().pool(wanted.flatten(1)))
        assert torch.equal(outlier, score > 12.0)
    broken = model(x * torch.nan, torch.tensor(12.0))
    assert broken[2].all()  # what is not a number is an outlier


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run on features, good maps, and good and broken ones with masks."""
    folder = tmp_path_factory.mktemp("features")
    np.save(folder / "train.npy", features(80, 6).half().numpy())
    np.save(folder / "inside.npy", features(60, 7).double().numpy())
    mixed = torch.cat([features(20, 8), features(20, 9, broken=True)]).numpy()
    np.savez(folder / "test.npz", images=mixed, labels=np.repeat([0, 1], 20))
    masks = np.zeros((40, 6, 7), np.uint8)
    masks[20:, 1:3, 2:4] = 1
    np.save(folder / "masks.npy", masks)
    words = ["--model.layers", "2", "--model.flow.net.width", "8", "--train.warmup", "2"]
    words += ["--train.batch", "8", "--threads", "1"]
    data = ["--data", str(folder / "train.npy"), "--out", str(folder / "run"), "--steps", "20"]
    assert run(["train", "feature-flow", *data, *words]) == 0
    return folder


def command(name, files, *words):
    return run([name, str(files / "run"), *map(str, words), "--threads", "1"])


def test_the_command_writes_maps_scores_and_figures(files, capsys):
    given = ("--data", files / "test.npz", "--inside", files / "inside.npy", "--inside-classes", 0)
    assert command("outliers", files, *given, "--masks", files / "masks.npy", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    maps = np.load(files / "run" / "outliers" / "npz-test-npz-all-places.npy")
    flow = mixerflow.load(files / "run")
    x, masks = np.load(files / "test.npz")["images"], np.load(files / "masks.npy").astype(bool)
    np.testing.assert_allclose(maps, place_scores(flow, x), rtol=1e-5, atol=1e-4)
    table = (files / "run/outliers/npz-test-npz-all.csv").read_text()
    rows = csv.DictReader(table.splitlines())
    largest = [float(row["maximum"]) for row in rows]
    assert largest == pytest.approx(maps.max((1, 2)), rel=1e-5)
    scores = record["scores"]["maximum"]
    wanted = detection(maps.max((1, 2))[:20], maps.max((1, 2))[20:], resamples=0)
    assert scores["detection"]["auroc"] == pytest.approx(wanted.auroc, abs=0.01)
    assert wanted.auroc > 0.8
    places = detection(maps[~masks], maps[masks], resamples=0)
    assert record["places"]["auroc"] == pytest.approx(places.auroc, abs=1e-3)
    assert places.auroc > 0.75
    inside = place_scores(flow, np.load(files / "inside.npy")).max((1, 2))
    assert scores["threshold"]["value"] in [pytest.approx(each, rel=1e-5) for each in inside]


def test_wrong_masks_are_one_line(files, capsys, tmp_path):
    given = ("--data", files / "test.npz", "--inside", files / "inside.npy")
    wrong = {
        "for images with places (40, 6, 7)": np.zeros((40, 6, 5), np.uint8),
        "no masks of whole numbers": np.zeros((40, 6, 7)),
        "all places alike": np.zeros((40, 6, 7), bool),
    }
    for words, masks in wrong.items():
        np.save(tmp_path / "masks.npy", masks)
        assert command("outliers", files, *given, "--masks", tmp_path / "masks.npy") == 3
        assert words in capsys.readouterr().err
    assert command("outliers", files, *given, "--masks", tmp_path / "none.npy") == 3


def test_every_command_takes_features_or_says_no_in_one_line(files, capsys, tmp_path):
    test = ("--data", files / "test.npz")
    assert command("evaluate", files, *test) == 0
    assert "no files of images with 5 channels of float32" in capsys.readouterr().out
    assert command("report", files, *test) == 0
    page = (files / "run" / "report.html").read_text()
    assert "the largest difference is" in page
    assert command("sample", files, "-n", 3) == 0
    drawn = np.load(files / "run" / "samples" / "n3-t1-seed0.npy")
    assert drawn.shape == (3, *SHAPE)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert command("publish", files, *test, "--to", tmp_path / "published") == 0
    assert run(["evaluate", str(tmp_path / "published"), *map(str, test), "--no-codecs"]) == 0
    assert run(["info", str(files / "run")]) == 0
    capsys.readouterr()
    np.save(tmp_path / "whole.npy", np.zeros((9, 6, 7, 5), np.uint8))
    refusals = {
        ("sample", "--out", tmp_path / "x.png"): (2, "have no picture"),
        ("sample", "--files", tmp_path / "x"): (2, "are one file"),
        ("restore", *test, "--noise", 3): (2, "floats, without levels"),
        ("classify", *test): (2, "tells no classes"),
        ("evaluate", "--data", tmp_path / "whole.npy"): (3, "the run's images are floats"),
        ("evaluate", "--data", "fashion-mini"): (3, "the run's are (5, 6, 7)"),
    }
    for (name, *words), (code, text) in refusals.items():
        assert command(name, files, *words) == code
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert text in error
        assert error.startswith("error: ")


def test_files_of_floats_that_cannot_be_used_are_one_line(capsys, tmp_path):
    good = features(8).numpy()
    bad = good.copy()
    bad[3, 0, 0, 0] = np.nan
    large = good.astype(np.float64)
    large[2] = 1e60
    wrong = {
        "the channels last": np.moveaxis(good[..., :6], 1, -1),
        "image 3 has a value that is NaN": bad,
        "image 2 has a value that is NaN, infinite or beyond float32": large,
        "numpy.rint(images * 255).astype('uint8')": np.random.default_rng(0).random((4, 8, 8, 3)),
    }
    for text, array in wrong.items():
        np.save(tmp_path / "x.npy", array)
        words = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--steps", "2"]
        assert run(["train", "feature-flow", *words]) == 3
        assert text in capsys.readouterr().err
    np.save(tmp_path / "x.npy", good)
    words[-2:] = ["--steps", "2"]
    assert run(["train", "feature-flow", *words, "--resize", "2"]) == 3
    assert "floats are taken as they are" in capsys.readouterr().err
    assert run(["train", "mixerflow-tiny", *words]) == 2
    assert "--model.pixels.levels: set it to none" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_load_channels_first_as_float32(dtype, tmp_path):
    x = features(6).numpy().astype(dtype)
    np.save(tmp_path / "small.npy", x[..., :1, :1])  # of one place
    assert mixerflow.data.load(tmp_path / "small.npy").train.shape == (5, 1, 1)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", train_features=x, test_features=x[:2])
    one, several = (mixerflow.data.load(tmp_path / name) for name in ("x.npy", "x.npz"))
    for images in (one.train, several.train, several.test):
        assert images.pixels.dtype == np.float32
        assert images.levels is None
        assert images.shape == SHAPE
    np.testing.assert_array_equal(one.train.pixels, x.astype(np.float32))
    if dtype == np.float32:
        assert isinstance(one.train.pixels, np.memmap)  # large files stay on the disk
