"""The flags that say how images are read: recorded, the run's own by default, and what is said."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import MODEL, flow_of, images, settings
from mixerflow import train
from mixerflow.cli import main
from mixerflow.data import folder as folder_module
from mixerflow.data import make_images
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import Bits
from mixerflow.parts import Classes
from mixerflow.report import Report

RNG = np.random.default_rng(0)
TINY = ["--model.layers", 1, "--model.flow.net.width", 4, "--model.flow-layers", 2]
QUICK = [*TINY, "--threads", 1, "--steps", 2, "--train.batch", 4, "--train.initial", 4]


@pytest.fixture(autouse=True)
def short_reports(monkeypatch, request):
    """A report takes a second: only tests that ask for `real_reports` write one."""

    def make(run, images, *_, **__):
        figure = Bits(1.0, 0.0, 1, "exact", "uniform", 1, images.dataset_id, "", 0, [], ())
        return Report(figure, run.name, [images.dataset_id])

    if "real_reports" not in request.fixturenames:
        monkeypatch.setattr("mixerflow.report.make_report", make)


@pytest.fixture
def real_reports():
    """Ask for whole reports."""


def run(*words) -> int:
    return main([str(word) for word in words])


def put(path: Path, height=8, width=12, level=None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels if level is None else np.full_like(pixels, level)).save(path)


def train_on(data, out, *words) -> int:
    return run("train", "mixerflow-tiny", "--data", data, "--out", out, *QUICK, *words)


def recorded(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


@pytest.fixture
def photographs(tmp_path):
    for index, sides in enumerate([(20, 30), (30, 20), (16, 16), (40, 24), (9, 9)] * 2):
        put(tmp_path / "photos" / f"{index}.png", *sides)
    return tmp_path / "photos"


READ = ["--crop", "1:1", "--resize", "8", "--filter", "box", "--grey", "--on-bad-image", "skip"]
AS_READ = "folder:photos (crop 1:1, grey, resize 8x8 box)"


def evaluated(capsys, out, *words) -> dict:
    capsys.readouterr()
    assert run("evaluate", out, "--no-codecs", "--json", *words) == 0
    return json.loads(capsys.readouterr().out)


def test_a_runs_reading_is_recorded_and_its_own_by_default(photographs, tmp_path, capsys):
    out = tmp_path / "run"
    assert train_on(photographs, out) == 3
    assert "--crop 1:1 --resize" in capsys.readouterr().err
    assert train_on(photographs, out, *READ) == 0
    wanted = {"crop": "1:1", "resize": "8x8", "filter": "box", "grey": True}
    wanted |= {"on_bad_image": "skip", "transparency": "refuse", "data": str(photographs)}
    assert recorded(out)["source"] == wanted
    assert recorded(out)["data"]["dataset_id"] == AS_READ and recorded(out)["data"]["shape"][0] == 1
    assert run("train", out) == 0 and recorded(out)["source"] == wanted
    assert train_on(photographs, out, *READ) == 0
    assert evaluated(capsys, out)["dataset_id"] == AS_READ
    assert run("report", out) == 0
    assert AS_READ in (out / "report.html").read_text()
    assert run("publish", out, "--to", tmp_path / "weights") == 0
    assert evaluated(capsys, tmp_path / "weights")["dataset_id"] == AS_READ
    for words, name in (
        (["--filter", "bicubic"], "folder:photos (crop 1:1, grey, resize 8x8 bicubic)"),
        (["--crop", "9x9"], "folder:photos (crop 9x9, grey, resize 8x8 box)"),
        (["--resize=none", "--crop=8"], "folder:photos (crop 8x8, grey)"),
    ):
        assert evaluated(capsys, out, *words)["dataset_id"] == name
    for words, code in (
        (["--no-grey"], 3),
        (["--resize", "none"], 3),
        (["--crop", "64"], 3),
        (["--resize", "none", "--filter", "bicubic"], 2),
        (["--on-bad-image", "stop", "--resize", "16"], 3),
        (["--crop", "tall"], 2),
    ):
        capsys.readouterr()
        assert run("report", out, *words) == code, words
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    for command in (["evaluate", out], ["publish", out, "--to", tmp_path]):
        assert run(*command, "--no-grey") == 3
    assert train_on(photographs, out, *READ, "--no-grey") == 2  # another run is here


def test_a_run_that_knows_no_such_settings_loads_as_before(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    for index in range(8):
        put(data / f"{index}.png")
    assert train_on(data, out) == 0
    old = recorded(out)
    del old["crc32"]
    first = evaluated(capsys, out)
    old["source"] = {"data": str(data), "transparency": "refuse", "on_bad_image": "stop"}
    old["train"]["validation"] = "held-out"
    old["data"]["skipped"] = ["a line of another version"]
    (out / "run.json").write_text(json.dumps(old))
    assert evaluated(capsys, out) == first
    assert run("train", out) == 0 and recorded(out)["train"]["validation"] == "held-out"
    (out / "run.json").write_text(json.dumps(old))
    assert train_on(data, out) == 0  # the same words as then


def test_classes_and_counts_are_said(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    for split, count in (("train", 2), ("test", 1)):
        for name in "abcdefg":
            for index in range(count):
                put(data / split / name / f"{index}.png")
    (data / "test" / "a" / "bad.png").write_bytes(b"")
    assert train_on(data, out, "--on-bad-image", "skip") == 0
    said = "folder:data: 14 training, 7 test images of 12 x 8 x 3; 7 classes: a, b, c, d, e, ..."
    lines = capsys.readouterr().err.splitlines()
    assert f"{said}; validation on 4 % of the training images, held out" in lines
    assert f"skipped {data / 'test' / 'a' / 'bad.png'}: an empty file" in lines
    for command in ("evaluate", "report"):
        assert run(command, out) == 0
        assert said in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("words", "count", "said"),
    [
        ([], 3, "their own validation images"),
        (["--train.validation", "held-out"], 1, "held out, not on their own"),
        (["--train.validation", "test"], 5, "the test images, not on their own"),
    ],
)
def test_which_images_validate(tmp_path, capsys, words, count, said):
    out = tmp_path / "run"
    for split, number in (("train", 10), ("val", 3), ("test", 5)):
        for index in range(number):
            put(tmp_path / "data" / split / f"{index}.png")
    assert train_on(tmp_path / "data", out, *words) == 0
    assert said in capsys.readouterr().err
    assert recorded(out)["data"]["validation_images"] == count
    if not words:  # the default, auto
        assert evaluated(capsys, out, "--split", "validation")["images"] == 3
        assert evaluated(capsys, out)["images"] == 5


def test_a_split_that_is_not_there(tmp_path, capsys):
    for index in range(4):
        put(tmp_path / "data" / f"{index}.png")
    assert train_on(tmp_path / "data", tmp_path / "run") == 0
    assert run("evaluate", tmp_path / "run", "--split", "validation") == 2
    assert "error: no validation images" in capsys.readouterr().err
    assert train_on(tmp_path / "data", tmp_path / "b", "--train.validation", "test") == 2
    assert "--train.validation auto" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("test_labels", "fragment"),
    [([0, 3], "labels of 4 classes in test images"), (None, "test images without labels")],
)
def test_labels_of_the_test_images_are_looked_at_first(tmp_path, capsys, test_labels, fragment):
    arrays = {
        f"{split}_images": np.zeros((n, 8, 8), np.uint8) for split, n in (("train", 6), ("test", 2))
    }
    arrays["train_labels"] = np.arange(6) % 3
    if test_labels:
        arrays["test_labels"] = np.array(test_labels)
    np.savez(tmp_path / "a.npz", **arrays)
    assert train_on(tmp_path / "a.npz", tmp_path / "run", "--model.classes.count", 3) == 2
    assert fragment in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"pixels": np.zeros((3, 1, 4, 5), np.uint8)}, "(1, 4, 5)"),
        ({"pixels": np.zeros((3, 1, 4, 4), np.float32)}, "floats"),
        ({"pixels": np.full((3, 1, 4, 4), 300, np.uint16)}, "300"),
        ({"labels": None}, "no labels"),
        ({"labels": np.array([0, 1, 4])}, "a label is 4"),
    ],
)
def test_validation_images_that_do_not_fit_are_found_before_the_first_step(
    change, fragment, tmp_path
):
    flow = flow_of(replace(MODEL, classes=Classes(2, 4)))
    given = {"pixels": np.zeros((3, 1, 4, 4), np.uint8), "labels": np.array([0, 1, 0])} | change
    validation = make_images(**given, dataset_id="others")
    with pytest.raises(ConfigError, match="validation images of others") as caught:
        train(
            flow, images(classes=2), validation=validation, out=tmp_path / "run", config=settings()
        )
    assert fragment in str(caught.value) and not (tmp_path / "run").exists()


# --- the order of classes


def with_names(names, seed=0):
    """Images of three classes, whose labels number these names in this order."""
    of_class = images(classes=3, seed=seed)
    number = np.array([names.index(name) for name in ("1", "2", "10")])
    labels = number[of_class.labels]
    return make_images(of_class.pixels, labels, dataset_id="ramps", classes=names)


def test_a_run_resumes_with_its_own_order_of_classes(tmp_path):
    """Classes named by numbers were once in the order of their texts."""
    model, old, new = replace(MODEL, classes=Classes(3, 4)), ("1", "10", "2"), ("1", "2", "10")
    config, kept = settings(steps=4, evaluate_every=2), {}
    whole = train(flow_of(model), with_names(old), out=tmp_path / "a", config=config, quiet=True)
    train(flow_of(model), with_names(old), out=tmp_path / "b", config=config, quiet=True)
    kept = recorded(tmp_path / "b")
    again = train(
        flow_of(model),
        with_names(new),
        out=tmp_path / "b",
        config=config,
        from_step=2,
        quiet=True,
    )
    assert again.validation.bits_per_dim == whole.validation.bits_per_dim
    assert recorded(tmp_path / "b")["data"] == kept["data"]
    assert kept["data"]["classes"] == list(old)


def test_validation_images_are_numbered_as_the_training_images(tmp_path):
    model = replace(MODEL, classes=Classes(3, 4))
    figures = {
        train(
            flow_of(model),
            with_names(("1", "10", "2")),
            validation=with_names(names, seed=1),
            config=settings(steps=2),
            quiet=True,
        ).validation.bits_per_dim
        for names in (("1", "10", "2"), ("1", "2", "10"), ("10", "2", "1"))
    }
    assert len(figures) == 1
    others = replace(with_names(("1", "2", "10")), classes=("1", "2", "11"))
    with pytest.raises(DataError, match="'11' is not among the training classes"):
        train(flow_of(model), with_names(("1", "2", "10")), validation=others, config=settings())


@pytest.mark.slow
def test_a_run_in_the_order_of_texts_is_evaluated_in_it(tmp_path, capsys, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "run"
    for number, name in enumerate(("1", "2", "10")):
        for index in range(4):
            put(data / name / f"{index}.png", level=60 * number + index)
    words = ["--model.classes.count", 3, "--train.evaluate-every", 1, "--train.lr", 0.05]
    with monkeypatch.context() as old:
        old.setattr(folder_module, "_ordered", lambda names: tuple(sorted(names)))
        assert train_on(data, out, *words) == 0
        first = evaluated(capsys, out)
    assert recorded(out)["data"]["classes"] == ["1", "10", "2"]
    assert evaluated(capsys, out, "--seed", 0)["bits_per_dim"] == first["bits_per_dim"]
    assert run("train", out, "--from-step", 1) == 0
    assert recorded(out)["data"]["classes"] == ["1", "10", "2"]
    assert evaluated(capsys, out)["bits_per_dim"] == first["bits_per_dim"]
    assert run("report", out) == 0


# --- words that name nothing, and odd names


def test_no_path_is_one_line_of_every_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index in range(4):
        put(tmp_path / "data" / f"{index}.png")
    assert train_on("data", "run") == 0
    for command in (
        ["train", "run"],
        ["evaluate", "run"],
        ["report", "run"],
        ["publish", "run", "--to", "weights"],
    ):
        for spec in ("", "cifar10:", "fashion-mini:"):
            capsys.readouterr()
            assert run(*command, "--data", spec) == (3 if spec else 2)
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and ("give a path" if spec else "an empty value") in said


ODD = [os.fsdecode(name) for name in (b"a\xff", b"a\nb", b"\x1b[31mred", b"[bold]", b"caf\xc3\xa9")]


@pytest.mark.usefixtures("real_reports")
def test_runs_on_folders_with_odd_names(tmp_path, capsys):
    data, out = tmp_path / "".join(ODD), tmp_path / "run"
    for each in ODD:
        for index in range(3):
            put(data / each / f"{each}{index}.png", level=40 * index)
    assert train_on(data, out, "--model.classes.count", len(ODD)) == 0
    assert recorded(out)["data"]["classes"] == sorted(ODD)
    assert recorded(out)["source"]["data"] == str(data)
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())
    assert evaluated(capsys, out)["images"] == 3 * len(ODD)
    for command in (["evaluate", out], ["publish", out, "--to", tmp_path / "w"], ["train", out]):
        assert run(*command) == 0
