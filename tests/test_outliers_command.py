"""``mixerflow outliers``, as its users have it."""

import csv
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import mixerflow
from mixerflow.cli.commands import run
from mixerflow.data import hold_out
from mixerflow.data import load as load_data
from mixerflow.detection import fit_outliers
from mixerflow.runs import kept_fit
from mixerflow.runs.files import read_record

FLAGS = "--model.layers 1 --model.flow.net.width 8 --train.batch 16 --train.initial 16".split()
FLAGS += "--train.evaluate-every 1000 --steps 30 --threads 1".split()


def rough(count, seed):
    """Images of strong texture, of two classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    noise = random.normal(0, 40, (count, 8, 8))
    return (noise + 100 + 40 * labels[:, None, None]).clip(0, 255).astype(np.uint8), labels


def flat(count, seed):
    random = np.random.default_rng(seed)
    return np.broadcast_to(random.integers(90, 140, (count, 1, 1)), (count, 8, 8)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outliers")
    train, labels = rough(1000, 0)
    test, more = rough(90, 1)
    names = {"train_labels": labels, "test_labels": more}
    np.savez(folder / "rough.npz", train_images=train, test_images=test, **names)
    np.savez(folder / "flat.npz", train_images=flat(60, 2))
    mixed = np.concatenate([test[:40], flat(30, 3)])
    np.savez(folder / "mixed.npz", train_images=mixed, train_labels=[0] * 40 + [1] * 30)
    words = ["train", "mixerflow-tiny", "--data", str(folder / "rough.npz")]
    assert run([*words, "--out", str(folder / "run"), *FLAGS]) == 0
    mutated = ["--train.augmentation.mutation", "0.3", "--out", str(folder / "background")]
    assert run([*words, *mutated, *FLAGS]) == 0
    return folder


@pytest.fixture
def fresh(folder, tmp_path):
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run"


def judge(path, *words, data=None):
    named = [] if data is None else ["--data", str(data)]
    return run(["outliers", str(path), *named, "--threads", "1", *words])


def test_the_failure_and_its_cure_printed_and_kept(fresh, folder, capsys):
    assert judge(fresh, data=folder / "flat.npz") == 0
    printed = capsys.readouterr().out
    assert "inside: 40 images of npz:rough.npz, validation" in printed
    name = "npz-flat-npz-all"
    record = read_record(fresh / "outliers" / f"{name}.json", "")
    assert set(record["scores"]) == {"bits", "typicality", "complexity", "mixture"}
    bits, cured = (record["scores"][each]["detection"] for each in ("bits", "complexity"))
    assert bits["auroc"] < 0.1 < 0.9 < cured["auroc"]
    assert f"{100 * bits['auroc']:.1f} ± " in printed
    assert record["scores"]["bits"]["flagged"] == 0
    assert record["scores"]["complexity"]["larger"] == "more outlying"
    rows = list(csv.DictReader((fresh / "outliers" / f"{name}.csv").read_text().splitlines()))
    assert len(rows) == 60
    flow = mixerflow.load(fresh)
    pixels = np.load(folder / "flat.npz")["train_images"][:, None]
    scores = flow.bits_per_dim(pixels).numpy()
    assert np.array([float(row["bits"]) for row in rows]) == pytest.approx(scores, abs=1e-4)
    limit = record["scores"]["complexity"]["threshold"]["value"]
    for row in rows:
        assert int(row["complexity_outlier"]) == (float(row["complexity"]) > limit)
        assert int(row["complexity_outlier"]) == (float(row["complexity_rarity"]) < 1.01 / 21)


def test_the_kept_threshold_is_pythons_and_is_used_again(fresh, folder, capsys):
    assert judge(fresh, data=folder / "flat.npz") == 0
    kept = kept_fit(fresh)
    splits = load_data(str(folder / "rough.npz"))
    _, inside = hold_out(splits.train, seed=0)
    assert kept.images["images_sha256"] == inside.fingerprint()
    mine = fit_outliers(mixerflow.load(fresh), inside.pixels)
    assert [each.name for each in mine.scores] == [each.name for each in kept.fitted.scores]
    for one, two in zip(mine.thresholds, kept.fitted.thresholds, strict=True):
        assert one.value == pytest.approx(two.value, abs=1e-9)
    before = (fresh / "outliers" / "inside.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert judge(fresh, "--json", data=folder / "mixed.npz") == 0
    assert json.loads(capsys.readouterr().out)["inside"]["images"] == 40
    assert (fresh / "outliers" / "inside.safetensors").stat().st_mtime_ns == before
    assert judge(fresh, "--false-alarms", "0.2", "--group", "2", data=folder / "flat.npz") == 0
    assert kept_fit(fresh).fitted.thresholds[0].false_alarms == 0.2
    assert judge(fresh, data=folder / "flat.npz") == 0  # as kept
    assert kept_fit(fresh).fitted.group == 2
    assert judge(fresh, "--seed", "1", data=folder / "flat.npz") == 0
    told = capsys.readouterr().err
    assert "kept with the run: thresholds at 20 % false alarms, groups of 2, from 40" in told
    assert "other weights, background or seed: fitted for this call" in told
    assert kept_fit(str(fresh)).fitted.group == 2  # as before


def test_a_few_images_have_a_row_each(fresh, folder, capsys):
    assert judge(fresh, "--images", "2", data=folder / "flat.npz") == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.split()[:1] == ["1"]]
    rows = list(
        csv.DictReader(
            (fresh / "outliers" / "npz-flat-npz-all--first-2.csv").read_text().splitlines()
        )
    )
    score, rare = float(rows[1]["complexity"]), float(rows[1]["complexity_rarity"])
    assert f"{score:.4g} ({rare:.2g}) !" in row


def scores_in(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_images_of_a_folder_have_the_names_of_their_files(fresh, folder, tmp_path, capsys):
    pixels = {}
    for number, image in enumerate(np.concatenate([flat(6, 4), rough(6, 5)[0]])):
        name = f"{'fr'[number // 6]}/{number}.png"
        pixels[name] = image
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "new" / name)
    (tmp_path / "new" / "f" / "3.png").write_bytes(b"no image")
    del pixels["f/3.png"]
    assert judge(fresh, "--on-bad-image", "skip", data=tmp_path / "new") == 0
    rows = scores_in(fresh / "outliers" / "folder-new-all.csv")
    assert list(rows[0])[:2] == ["image", "file"]
    assert [row["file"] for row in rows] == sorted(pixels)
    assert rows[6]["file"] == "r/11.png", "the order is that of text"
    flow = mixerflow.load(fresh)
    for row in rows:
        score = flow.bits_per_dim(pixels[row["file"]][None, None]).item()
        assert float(row["bits"]) == pytest.approx(score, abs=1e-4)
    page = (fresh / "outliers" / "folder-new-all.html").read_text()
    for row in rows:
        cells = f"<td>{row['image']}</td><td>{row['file']}</td><td>{row['file'][0]}</td>"
        assert page.count(cells) == 2, "among the most and the least outlying"
    assert judge(fresh, data=folder / "flat.npz") == 0
    assert "file" not in scores_in(fresh / "outliers" / "npz-flat-npz-all.csv")[0]
    assert "<th scope='col'>file</th>" not in (
        (fresh / "outliers" / "npz-flat-npz-all.html").read_text()
    )


def test_names_of_files_may_be_anything(fresh, tmp_path, capsys):
    names = [b"<b>[red].png", b'a,"b".png', b"line\nend.png", b"not-\xff.png"]
    (tmp_path / "odd").mkdir()
    Image.fromarray(flat(1, 6)[0]).save(tmp_path / "one.png")
    for name in names:
        shutil.copy(tmp_path / "one.png", os.fsencode(tmp_path / "odd") + b"/" + name)
    assert judge(fresh, "--scores", "bits", data=tmp_path / "odd") == 0
    text = (fresh / "outliers" / "folder-odd-all.csv").read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    told = ["<b>[red].png", 'a,"b".png', "line\nend.png", "not-\\xff.png"]
    assert [row["file"] for row in rows] == told
    printed = capsys.readouterr().out
    for number, name in enumerate([*told[:2], "line\\nend.png", told[3]]):
        assert re.search(rf"^ *{number} +{re.escape(name)} +\d", printed, re.MULTILINE), name
    page = (fresh / "outliers" / "folder-odd-all.html").read_text()
    assert "<td>&lt;b&gt;[red].png</td>" in page and "<b>[red]" not in page


def test_the_page_says_which_images_are_inside_and_which_weights_judge(fresh, folder):
    assert judge(fresh, data=folder / "flat.npz") == 0
    page = (fresh / "outliers" / "npz-flat-npz-all.html").read_text()
    assert "The inside: 40 images of npz:rough.npz, its validation part." in page
    assert "Weights of the flow: best checkpoint, averaged." in page
    words = ["--checkpoint", "last", "--raw", "--inside", str(folder / "mixed.npz")]
    assert judge(fresh, *words, data=folder / "flat.npz") == 0
    page = (fresh / "outliers" / "npz-flat-npz-all.html").read_text()
    assert "The inside: 70 images of npz:mixed.npz.<" in page
    assert "Weights of the flow: last checkpoint, not averaged." in page


def test_inside_images_that_are_named(fresh, folder, capsys):
    words = ["--inside", str(folder / "rough.npz"), "--scores", "complexity"]
    assert judge(fresh, *words, data=folder / "flat.npz") == 0
    out = capsys.readouterr().out
    assert "inside: 90 images of npz:rough.npz, test" in out
    assert "complexity" in out and "mixture" not in out
    assert judge(fresh, "--inside", str(folder / "flat.npz"), data=folder / "mixed.npz") == 0
    assert kept_fit(fresh).images["dataset_id"] == "npz:flat.npz"


def test_images_that_trained_the_run_are_no_inside(fresh, folder, tmp_path, capsys):
    splits = load_data(str(folder / "rough.npz"))
    train, _ = hold_out(splits.train, seed=0)
    np.savez(tmp_path / "seen.npz", train_images=train.pixels[:, 0])
    assert judge(fresh, "--inside", str(tmp_path / "seen.npz"), data=folder / "flat.npz") == 3
    assert "the flow was trained on 960 of these 960 images" in capsys.readouterr().err
    part = np.concatenate([train.pixels[:20, 0], rough(80, 7)[0]])  # under another name, in part
    np.savez(tmp_path / "part.npz", train_images=part)
    assert judge(fresh, "--inside", str(tmp_path / "part.npz"), data=folder / "flat.npz") == 3
    assert "the flow was trained on 20 of these 100 images" in capsys.readouterr().err
    np.savez(tmp_path / "few.npz", train_images=part[18:])
    assert judge(fresh, "--inside", str(tmp_path / "few.npz"), data=folder / "flat.npz") == 0
    assert "warning: the flow was trained on 2 of these 82 images" in capsys.readouterr().err


def test_the_whole_file_that_trained_the_run_is_no_inside(folder, tmp_path, capsys):
    train, _ = rough(1000, 0)
    np.savez(tmp_path / "whole.npz", train_images=train)
    words = ["train", "mixerflow-tiny", "--data", str(tmp_path / "whole.npz")]
    assert run([*words, "--out", str(tmp_path / "run"), *FLAGS[:-4], "--steps", "2"]) == 0
    inside = ["--inside", str(tmp_path / "whole.npz")]
    assert judge(tmp_path / "run", *inside, data=folder / "flat.npz") == 3
    assert "the flow was trained on 960 of these 1,000 images" in capsys.readouterr().err


@pytest.mark.slow
def test_thresholds_of_weights_that_have_trained_further_are_fitted_again(fresh, folder, capsys):
    assert judge(fresh, data=folder / "flat.npz") == 0
    record = json.loads((fresh / "outliers" / "fitted.json").read_text())
    before = record["key"]["weights_sha256"]
    text = (fresh / "outliers" / "fitted.json").read_text().replace(before, "0" * 64)
    (fresh / "outliers" / "fitted.json").write_text(re.sub(r',\n  "crc32": \d+', "", text))
    assert judge(fresh, data=folder / "flat.npz") == 0
    told = capsys.readouterr().err
    assert "(inside: npz:rough.npz, validation) are of other weights" in told
    assert "fitted again" in told
    assert kept_fit(fresh).key["weights_sha256"] == before


def test_classes_that_are_inside(fresh, folder, capsys):
    words = ["--inside-classes", "0", "--json"]
    assert judge(fresh, *words, data=folder / "mixed.npz") == 0
    found = json.loads(capsys.readouterr().out)["scores"]["complexity"]["detection"]
    assert (found["inside"], found["outside"]) == (40, 30)
    assert found["auroc"] > 0.9
    for given, code, word in (
        ("7", 2, "no class 7: --inside-classes: the images have 0, 1"),
        ("0,1", 2, "all of the 70 images are inside"),
    ):
        assert judge(fresh, "--inside-classes", given, data=folder / "mixed.npz") == code
        assert word in capsys.readouterr().err
    assert judge(fresh, "--inside-classes", "0", data=folder / "flat.npz") == 3
    assert "images without classes" in capsys.readouterr().err


def test_the_likelihood_ratio_needs_a_background(fresh, folder, capsys):
    words = ["--background", str(folder / "background"), "--json"]
    assert judge(fresh, *words, data=folder / "flat.npz") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["scores"]["ratio"]["detection"]["outside"] == 60
    assert judge(fresh, "--json", data=folder / "flat.npz") == 0
    captured = capsys.readouterr()
    assert "ratio" not in json.loads(captured.out)["scores"]
    assert "fitted" not in captured.err
    assert "ratio" in [each.name for each in kept_fit(fresh).fitted.scores]  # they stay
    assert judge(fresh, "--scores", "ratio", data=folder / "flat.npz") == 2
    assert (
        "the score ratio needs background: --scores: give a --background" in capsys.readouterr().err
    )
    flow = mixerflow.load(fresh)
    background = mixerflow.load(folder / "background")
    x = np.load(folder / "flat.npz")["train_images"][:5, None]
    mine = flow.bits_per_dim(x).numpy() - background.bits_per_dim(x).numpy()
    fitted = fit_outliers(flow, x.repeat(10, 0), background=background)
    found = mixerflow.outliers(flow, x, fitted, background=background)
    assert found.scores["ratio"] == pytest.approx(mine, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--false-alarms", "0"], 2, "0.0 false alarms: --false-alarms: give a rate"),
        (["--false-alarms", "0.01"], 2, "give at least 198, or a higher rate"),
        (["--group", "0"], 2, "groups of 0 images: --group"),
        (["--scores", "bit"], 2, "no score bit: --scores"),
        (["--background", "nowhere"], 4, "no run here: nowhere"),
        (["--inside", "nowhere.npz"], 3, "nowhere.npz"),
    ],
)
def test_bad_input_is_one_line(fresh, folder, capsys, words, code, line):
    assert judge(fresh, *words, data=folder / "flat.npz") == code
    err = capsys.readouterr().err
    assert line in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_damaged_thresholds_are_fitted_again(fresh, folder, capsys):
    assert judge(fresh, data=folder / "flat.npz") == 0
    wanted = kept_fit(fresh).fitted
    place = fresh / "outliers"
    for path, harm in (
        (place / "inside.safetensors", lambda data: data[:-1]),
        (place / "fitted.json", lambda data: data.replace(b"Typicality", b"Typicalitx")),
        (place / "fitted.json", lambda data: b"[]"),
    ):
        path.write_bytes(harm(path.read_bytes()))
        assert judge(fresh, data=folder / "flat.npz") == 0
        assert "fitted again:" in capsys.readouterr().err
        assert kept_fit(fresh).fitted == wanted
    (place / "fitted.json").unlink()
    assert judge(fresh, data=folder / "flat.npz") == 0
    assert "fitted again: missing beside its inside images" in capsys.readouterr().err
    assert kept_fit(fresh).fitted == wanted


def test_a_folder_that_cannot_be_written_is_a_warning(fresh, folder, capsys):
    (fresh / "outliers").write_text("in the way")
    assert judge(fresh, data=folder / "flat.npz") == 0
    captured = capsys.readouterr()
    assert "complexity" in captured.out
    assert "warning: the result is not kept" in captured.err


def test_a_signal_stops_it(fresh, folder, capsys, monkeypatch):
    monkeypatch.setattr("mixerflow.cli.inside.Interrupt.requested", 2, raising=False)
    assert judge(fresh, data=folder / "flat.npz") == 130
    assert "stopped after 40 of 40 images of the inside" in capsys.readouterr().err
