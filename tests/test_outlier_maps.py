"""``mixerflow outliers --maps``: which images have maps, what is written, errors, and a stop."""

import csv
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mixerflow
from helpers import flow_of, images
from mixerflow.cli.commands import run
from mixerflow.cli.outlier_maps import MapFlags, mapped
from mixerflow.data import load as load_data
from mixerflow.detection import (
    GradientMap,
    OcclusionMap,
    OutlierMap,
    Outliers,
    SlopeMap,
    fit_scores,
    measure,
)
from mixerflow.detection.scores import BitsPerDim
from mixerflow.transforms.checks.subject import perturb
from mixers import mixer
from test_outliers_command import FLAGS, flat, rough

WINDOWS = ["--patch", "4", "--stride", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of rough images, and images to judge by it."""
    folder = tmp_path_factory.mktemp("maps")
    train, labels = rough(1000, 0)
    np.savez(folder / "rough.npz", train_images=train, train_labels=labels)
    np.savez(folder / "flat.npz", train_images=flat(20, 2))
    np.savez(folder / "mixed.npz", train_images=np.concatenate([train[:10], flat(8, 3)]))
    words = ["train", "mixerflow-tiny", "--data", str(folder / "rough.npz"), *FLAGS]
    assert run([*words, "--out", str(folder / "run"), "--steps", "5"]) == 0
    return folder


@pytest.fixture
def fresh(folder, tmp_path):
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


def judge(path, *words, data):
    return run(["outliers", str(path), "--data", str(data), "--threads", "1", *words])


def written(path):
    (arrays,) = (path / "outliers").glob("*-maps.npz")
    with np.load(arrays) as file:
        return dict(file), arrays


@pytest.mark.parametrize("score", ["", "bits"])
def test_maps_are_of_the_most_outlying_images(fresh, folder, score, capsys):
    words = ["--maps", "slope, occlusion", "--map-images", "5", *WINDOWS]
    words += ["--scores", score] if score else []
    assert judge(fresh, *words, data=folder / "mixed.npz") == 0
    said = capsys.readouterr().out
    maps, path = written(fresh)
    assert f"maps of the 5 most outlying images by {score or 'complexity'}" in said
    assert str(path) in said and str(path.with_suffix(".png")) in said
    (table,) = (fresh / "outliers").glob("*.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    scores = [float(row[score or "complexity"]) for row in rows]
    assert maps["images"].tolist() == sorted(range(len(rows)), key=lambda n: -scores[n])[:5]
    flow = mixerflow.load(fresh)
    x = load_data(str(folder / "mixed.npz")).train.pixels[maps["images"]]
    for word, each in (("slope", SlopeMap()), ("occlusion", OcclusionMap(4, 2))):
        wanted = each.map(flow, x).numpy()
        np.testing.assert_allclose(maps[word], wanted, rtol=1e-3, atol=1e-3)
    assert set(maps) == {"images", "slope", "occlusion"}
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (2 * 5 * 12, 2 * 3 * 12)  # images of 8 pixels, and 2 around each
        first = np.asarray(picture.convert("RGB"))[4:20:2, 4:20:2]
    np.testing.assert_array_equal(first, np.repeat(x[0, 0][..., None], 3, 2))


def test_without_the_flag_there_are_no_maps(fresh, folder, capsys):
    assert judge(fresh, data=folder / "flat.npz") == 0
    assert not list((fresh / "outliers").glob("*-maps*"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--maps", "slop"], "no map slop: --maps: did you mean slope?"),
        (["--maps", "occlusion"], "a window of 12 pixels leaves nothing of images of 8 x 8"),
        (["--maps", "occlusion", "--patch", "4", "--stride", "9"], "--stride: give 1 to 4"),
        (["--maps", "slope", "--patch", "4"], "--patch: give --maps occlusion too"),
        (["--maps", "slope", "--map-images", "0"], "0 images: --map-images: give at least 1"),
    ],
)
def test_mistakes_are_told_before_the_work(fresh, folder, words, line, capsys):
    assert judge(fresh, *words, data=folder / "flat.npz") == 2
    said = capsys.readouterr()
    assert line in said.err and said.err.count("\n") == 1 and not said.out
    assert not (fresh / "outliers").exists()


def test_a_stop_leaves_the_scores_and_no_maps(fresh, folder, monkeypatch, capsys):
    made = OutlierMap.map

    def stopped(self, *given, **settings):
        signal.raise_signal(signal.SIGINT)
        return made(self, *given, **settings)

    monkeypatch.setattr(OutlierMap, "map", stopped)
    assert judge(fresh, "--maps", "slope", data=folder / "flat.npz") == 130
    assert "stopped: no maps are written" in capsys.readouterr().err
    assert list((fresh / "outliers").glob("*.csv"))
    assert not list((fresh / "outliers").glob("*-maps*"))


def test_a_flow_of_classes_needs_none(tmp_path):
    """Its scores are of the mixture of its classes, and so are its maps."""
    model = mixer(layers=1, flow_layers=2, hidden=8, patch=2, classes=3)
    flow, x = flow_of(model), images(6)
    perturb(flow, size=0.3)
    measured = measure(flow, x.pixels)
    found = Outliers.of(measured, fit_scores(measured, [BitsPerDim()], false_alarms=0.5))
    given = MapFlags(maps="gradient", map_images=4)
    flags = SimpleNamespace(run=tmp_path, batch=8, json=True, map_images=4)
    flags.chosen_maps = given.chosen_maps
    (shown,) = mapped(
        flags,
        flow,
        {"data": {"classes": []}},
        x,
        tmp_path / "outliers" / "test.json",
        found,
        "bits",
    )
    assert shown[1].startswith(b"\x89PNG")
    maps, _ = written(tmp_path)
    wanted = GradientMap().map(flow, x.pixels[found.order("bits")[:4]])
    np.testing.assert_allclose(maps["gradient"], wanted, rtol=1e-4)
