"""``mixerflow train --objective hybrid`` and ``mixerflow classify``, as their users have them."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

import mixerflow
from mixerflow.cli.commands import run
from mixerflow.runs.files import read_record

FLAGS = "--model.layers 1 --model.flow.net.width 8 --train.batch 16 --train.initial 16".split()
FLAGS += "--train.evaluate-every 1000 --threads 1".split()


def data_of(path, count=60, classes=3, labels=True):
    rng = np.random.default_rng(0)
    classes_of = np.arange(count) % classes
    pixels = rng.integers(0, 60, (count, 8, 8)) + 60 * classes_of[:, None, None]
    arrays = {"train_images": pixels.astype(np.uint8), "test_images": pixels[:21].astype(np.uint8)}
    if labels:
        arrays |= {"train_labels": classes_of, "test_labels": classes_of[:21]}
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    data, out = data_of(folder / "bright.npz"), folder / "run"
    words = ["train", "mixerflow-tiny", "--data", data, "--objective", "hybrid", "--lambda", "0.1"]
    assert run([*words, "--steps", "120", "--out", str(out), *FLAGS]) == 0
    return out


def test_the_head_has_as_many_classes_as_the_images(hybrid):
    stored = json.loads((hybrid / "run.json").read_text())
    assert stored["model"]["head"] == {"type": "LinearHead", "classes": 3}
    assert stored["train"]["objective"] == {"type": "Hybrid", "weight": 0.1}


def test_classify_prints_and_keeps_its_figures(hybrid, capsys):
    assert run(["classify", str(hybrid), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    folder = hybrid / "classifications"
    name = "npz-bright-npz-test"
    record = read_record(folder / f"{name}.json", "")
    assert record["accuracy"] > 0.9
    assert f"{100 * record['accuracy']:.2f}" in printed
    assert np.array(record["confusion"]).sum() == record["images"] == 21
    assert np.trace(record["confusion"]) == round(21 * record["accuracy"])
    assert sum(each["images"] for each in record["reliability"]) == 21
    names = {path.name for path in folder.glob("*.png")}
    assert names == {f"{name}-{kind}.png" for kind in ("calibration", "confusion", "least-sure")}


def test_classify_as_json(hybrid, capsys):
    assert run(["classify", str(hybrid), "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 3


def test_predictions_need_no_labels(hybrid, tmp_path, capsys):
    bare = data_of(tmp_path / "bare.npz", labels=False)
    words = ["classify", str(hybrid), "--data", bare, "--threads", "1"]
    assert run(words) == 3
    assert "no labels to compare with" in capsys.readouterr().err
    out = tmp_path / "said.csv"
    assert run([*words, "--predictions", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 21
    shares = np.array([[float(row[f"p({k})"]) for k in range(3)] for row in rows])
    assert np.allclose(shares.sum(1), 1, atol=1e-4)
    assert [int(row["class"]) for row in rows] == shares.argmax(1).tolist()


def test_files_of_a_folder_are_named(tmp_path, capsys):
    rng, data, out = np.random.default_rng(0), tmp_path / "data", tmp_path / "run"
    for part, count in (("train", 40), ("test", 12)):
        for number in range(count):
            kind = number * 2 // count
            path = data / part / ("dark", "light")[kind] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (8, 8)) + 120 * kind
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    (data / "test" / "light" / "6.png").write_bytes(b"no image")
    words = ["--data", str(data), "--on-bad-image", "skip"]
    train = ["train", "mixerflow-tiny", *words, "--objective", "hybrid", "--lambda", "0.1"]
    assert run([*train, "--steps", "120", "--out", str(out), *FLAGS]) == 0
    capsys.readouterr()
    said = tmp_path / "said.csv"
    assert run(["classify", str(out), *words, "--predictions", str(said)]) == 0
    rows = list(csv.DictReader(said.read_text().splitlines()))
    assert list(rows[0])[:3] == ["image", "file", "class"]
    numbers = [0, 1, 2, 3, 4, 5, 10, 11, 7, 8, 9]
    names = [f"test/{'dark' if n < 6 else 'light'}/{n}.png" for n in numbers]
    assert [row["file"] for row in rows] == names
    assert [row["class"] for row in rows] == ["dark"] * 6 + ["light"] * 5
    least = re.findall(r"image (\d+) \((\S+\.png)\) is", capsys.readouterr().out)
    assert len(least) == 3
    assert all(rows[int(number)]["file"] == name for number, name in least)


def test_some_labels_are_missing(hybrid, tmp_path, capsys):
    with np.load(data_of(tmp_path / "full.npz")) as full:
        arrays = dict(full)
    arrays["test_labels"] = np.where(np.arange(21) < 6, -1, arrays["test_labels"])
    np.savez(tmp_path / "some.npz", **arrays)
    words = ["classify", str(hybrid), "--data", str(tmp_path / "some.npz"), "--threads", "1"]
    assert run(words) == 0
    assert "15 images; 6 without a label left out" in capsys.readouterr().out


def test_a_run_without_classes_is_refused(tmp_path, capsys):
    data, out = data_of(tmp_path / "bright.npz"), tmp_path / "run"
    words = ["train", "mixerflow-tiny", "--data", data, "--steps", "2", "--out", str(out)]
    assert run([*words, *FLAGS]) == 0
    assert run(["classify", str(out)]) == 2
    assert "this flow tells no classes" in capsys.readouterr().err
    frozen = ["train", "mixerflow-tiny", "--data", data, "--objective", "frozen"]
    frozen += ["--from", str(out), "--steps", "3", "--out", str(tmp_path / "head")]
    assert run([*frozen, *FLAGS]) == 0
    assert run(["classify", str(tmp_path / "head"), "--threads", "1"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--objective", "hybrid", "--lambda", "-1"], "weight must lie in [0, 1e+09]"),
        (["--lambda", "1"], "no lambda without a hybrid objective: --lambda"),
        (["--objective", "hybrid", "--model.classes.count", "3"], "told"),
        (["--model.head", "linear"], "the likelihood does not train the model's head"),
        (["--objective", "hybrid", "--train.labels-per-class", "99"], "99 labels of class 0"),
        (
            ["--objective", "hybrid", "--model.head", "linear", "--model.head.classes", "2"],
            "2 classes",
        ),
        (["--objective", "hybrid", "--model.head", "mean", "--model.head.patch", "3"], "patch=3"),
        (["--objective", "hybrids"], "hybrid"),
        (["--objective", "hybrid", "--model.head", "none"], "no head for the objective"),
        (["--objective", "frozen"], "a frozen flow that has learned nothing"),
        (["--train.labels-per-class", "2"], "an objective that learns from none"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, words, said):
    data = data_of(tmp_path / "bright.npz")
    command = ["train", "mixerflow-tiny", "--data", data, "--out", str(tmp_path / "run")]
    assert run([*command, "--steps", "1", *FLAGS, *words]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert said in errors[0]


def test_images_without_labels_have_no_head(tmp_path, capsys):
    data = data_of(tmp_path / "bare.npz", labels=False)
    words = ["train", "mixerflow-tiny", "--data", data, "--objective", "hybrid", "--steps", "1"]
    assert run([*words, "--out", str(tmp_path / "run"), *FLAGS]) == 2
    said = capsys.readouterr().err
    assert "images without class labels: --objective: give images with class labels" in said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(60, int), "labels of fewer than two classes"),
        (np.arange(60) * 10**7, "a label is 590000000, of 60 images"),
        (np.full(60, -1), "labels of fewer than two classes"),
    ],
    ids=["one class", "no numbers of classes", "no label"],
)
def test_labels_that_are_no_classes_are_of_the_data(tmp_path, capsys, labels, said):
    with np.load(data_of(tmp_path / "bright.npz")) as full:
        np.savez(tmp_path / "some.npz", **{**full, "train_labels": labels})
    words = ["train", "mixerflow-tiny", "--data", str(tmp_path / "some.npz"), "--objective"]
    assert run([*words, "hybrid", "--steps", "1", "--out", str(tmp_path / "run"), *FLAGS]) == 3
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["classify", "probe", "restore"])
def test_images_of_more_levels_are_refused(hybrid, tmp_path, capsys, command):
    with np.load(data_of(tmp_path / "bright.npz")) as full:
        arrays = {k: v.astype(np.uint16) * 257 if "images" in k else v for k, v in full.items()}
    np.savez(tmp_path / "deep.npz", **arrays)
    extra = ["--noise", "5"] if command == "restore" else []
    assert run([command, str(hybrid), "--data", str(tmp_path / "deep.npz"), *extra]) == 3
    assert "pixels have 65,536 levels, the run's have 256" in capsys.readouterr().err


def test_numbers_of_images_are_those_of_the_file(hybrid, tmp_path, capsys):
    with np.load(data_of(tmp_path / "full.npz")) as full:
        arrays = dict(full)
    arrays["test_labels"] = np.where(np.arange(21) % 2 == 0, -1, arrays["test_labels"])
    np.savez(tmp_path / "some.npz", **arrays)
    assert run(["classify", str(hybrid), "--data", str(tmp_path / "some.npz")]) == 0
    numbers = re.findall(r"image (\d+) is", capsys.readouterr().out)
    assert len(numbers) == 3
    assert all(int(number) % 2 for number in numbers)


def test_a_hybrid_s_flow_goes_on_by_likelihood(hybrid, tmp_path):
    data = data_of(tmp_path / "bright.npz")
    words = ["train", "mixerflow-tiny", "--data", data, "--from", str(hybrid), "--steps", "2"]
    assert run([*words, "--out", str(tmp_path / "run"), *FLAGS]) == 0
    assert mixerflow.load(tmp_path / "run").head is None
