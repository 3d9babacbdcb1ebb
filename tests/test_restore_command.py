"""``mixerflow restore``: what it prints and writes, its errors, and a stop."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import small_run
from mixerflow.cli import main
from mixerflow.core import Noise
from mixerflow.data import load as load_data
from mixerflow.restoration import ImageSearch, Masked, RandomMask, psnr, restore
from mixerflow.runs import load
from mixerflow.runs.files import read_record

QUICK = ["--steps", "4", "--threads", "1"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def made(tmp_path):
    return small_run(tmp_path)


def written(folder) -> tuple[dict, Path]:
    (path,) = folder.glob("*.json")
    return read_record(path, ""), path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--noise", "25"], ["truth", "measurement", "filter", "restored"]),
        (["--mask", "centre:2"], ["truth", "mean", "harmonic", "restored"]),
        (["--mask", "random:0.4", "--noise", "3"], ["truth", "mean", "harmonic", "restored"]),
        (["--blur", "0.7"], ["truth", "measurement", "restored"]),
        (["--downsample", "2"], ["truth", "repeated", "linear", "restored"]),
        (["--noise", "9", "--space", "latent"], ["truth", "measurement", "filter", "restored"]),
    ],
)
def test_a_table_figures_and_pictures(made, words, names, capsys):
    assert run("restore", made, *words, *QUICK, "--images", 5, "--batch", 2, "--scale", 1) == 0
    said = capsys.readouterr()
    assert all(name in said.out for name in (*names, "PSNR, dB", "bits/dim"))
    result, path = written(made / "restorations")
    assert [row["name"].split()[0] for row in result["rows"]] == names
    assert [len(row["bits_per_dim_per_image"]) for row in result["rows"]] == [5] * len(names)
    assert str(path) in said.out and str(path.with_suffix(".png")) in said.out
    with Image.open(path.with_suffix(".png")) as picture:
        rows = len({*names, "measurement"})
        assert picture.size == (5 * 8, rows * 8)  # images of 4 pixels, and 2 around each
        first = np.asarray(picture)[2:6, 2:6]
    images = load_data(str(made.parent / "images")).train.pixels
    np.testing.assert_array_equal(first, images[0, 0])


def test_it_is_the_function_of_python(made, capsys):
    words = ["--mask", "random:0.4", "--seed", 3, "--images", 4, *QUICK, "--json"]
    assert run("restore", made, *words) == 0
    printed = json.loads(capsys.readouterr().out)
    flow = load(made)
    images = load_data(str(made.parent / "images")).train
    x, labels = torch.from_numpy(images.pixels[:4]).float(), images.labels[:4]
    measurement = Masked(mask=RandomMask(0.4, 3))
    y = measurement.measure(x, Noise.of(3, x))
    wanted = restore(flow, y, measurement, labels=labels, search=ImageSearch(4))
    (row,) = [row for row in printed["rows"] if row["name"] == "restored"]
    assert row["psnr_per_image"] == pytest.approx(psnr(wanted.images, x).tolist(), rel=1e-5)
    assert row["psnr"] == pytest.approx(psnr(wanted.images, x).mean().item(), rel=1e-5)
    assert printed["gain_per_image"] == pytest.approx(wanted.gain.tolist(), rel=1e-3, abs=1e-3)
    assert written(made / "restorations")[0]["rows"] == printed["rows"]


def test_pictures_with_holes_are_filled(made, tmp_path, capsys):
    holes = np.full((4, 4), 255, np.uint8)
    holes[1:3, 1] = 0
    Image.fromarray(holes).save(tmp_path / "holes.png")
    words = ["--data", made.parent / "images", "--measured", "--mask", tmp_path / "holes.png"]
    words += ["--out", tmp_path / "out", "--files", tmp_path / "files", *QUICK]
    assert run("restore", made, *words) == 0
    said = capsys.readouterr().out
    assert "truth" not in said and "PSNR" not in said and "restored" in said
    result, _ = written(tmp_path / "out")
    assert result["measured"] and not any("psnr" in row for row in result["rows"])
    images = load_data(str(made.parent / "images")).train.pixels
    files = sorted((tmp_path / "files").iterdir())
    assert len(files) == len(images) == 12
    filled = np.stack([np.asarray(Image.open(file)) for file in files])
    assert (np.abs(filled - images[:, 0].astype(float))[:, holes > 0] <= 1).all()
    assert (filled != images[:, 0])[:, holes == 0].any()
    assert not (made / "restorations").exists()
    assert run("restore", made, *words) == 0  # its own files may be written again
    (tmp_path / "files" / "other.txt").touch()
    assert run("restore", made, *words) == 2
    assert "1 other file is there (other.txt)" in capsys.readouterr().err


def test_small_pictures_are_enlarged(made, tmp_path, capsys):
    small, values = tmp_path / "small", np.array([[9, 200], [90, 30]], np.uint8)
    for name in ("0", "cat"):  # the run's classes
        (small / name).mkdir(parents=True)
        Image.fromarray(values).save(small / name / "a.png")
    words = ["--measured", "--downsample", 2, "--files", tmp_path / "files", *QUICK]
    assert run("restore", made, "--data", small, *words) == 0
    with Image.open(tmp_path / "files" / "00000.png") as picture:
        assert picture.size == (4, 4)
        blocks = np.asarray(picture).reshape(2, 2, 2, 2).mean((1, 3))
    assert np.abs(blocks - values).max() < 60  # 4 steps only
    capsys.readouterr()
    large = ["--data", made.parent / "images"]
    assert run("restore", made, *large, *words) == 3
    said = "images are (1, 4, 4), measurements of the run's images are (1, 2, 2)"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "no measurement named: restore: give --mask, --noise, --blur or --downsample"),
        (["--mask", "centre:2", "--blur", "1"], 2, "two measurements: --mask and --blur"),
        (["--mask", "centre:9"], 2, "it hides all pixels of 4 x 4: --mask centre:9"),
        (["--mask", "center:9"], 2, "no such mask or file: --mask center:9"),
        (["--mask", "random:1.5"], 2, "a share of 1.5: --mask"),
        (["--noise", "0"], 2, "--noise"),
        (["--noise", "nan"], 2, "--noise"),
        (["--blur", "-1"], 2, "--blur"),
        (["--downsample", "3"], 2, "3 does not divide the sides of images of 4 x 4"),
        (["--noise", "9", "--steps", "0"], 2, "0 steps: --steps"),
        (["--noise", "9", "--rate", "inf"], 2, "--rate"),
        (["--noise", "9", "--space", "hyper"], 2, "--space"),
        (["--noise", "9", "--scale", "0"], 2, "--scale"),
        (["--noise", "9", "--force"], 2, "--force: give --files too"),
        (["--noise", "9", "--measured"], 2, "--measured: name some with --data"),
        (["--noise", "9", "--data", "/no/such"], 3, "/no/such"),
        (["--noise", "9", "--out", "/proc/no"], 5, "/proc/no"),
    ],
)
def test_errors_are_one_line(made, words, code, said, capsys):
    assert run("restore", made, *words) == code
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err.splitlines()[-1]
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert not (made / "restorations").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [3, 6])
def test_a_stop_keeps_the_batches_that_are_done(made, step, number, code, monkeypatch, capsys):
    done, advance = [], torch.optim.Adam.step

    def advance_and_signal(self):
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), number)
        return advance(self)

    monkeypatch.setattr(torch.optim.Adam, "step", advance_and_signal)
    assert run("restore", made, "--noise", 9, "--batch", 5, *QUICK) == code
    said = capsys.readouterr()
    if step < 4:
        assert "stopped after 0 of 12 images" in said.err and said.out == ""
        assert not (made / "restorations").exists()
    else:
        assert "stopped after 5 of 12 images" in said.err and "5 images; noise 9" in said.out
        assert written(made / "restorations")[0]["images"] == 5


def test_a_run_that_cannot_be_written_is_restored_from(made, capsys):
    (made / "restorations").write_text("a file")
    assert run("restore", made, "--noise", 9, *QUICK) == 0
    said = capsys.readouterr()
    assert "warning: the restoration is not kept" in said.err and "restored" in said.out
