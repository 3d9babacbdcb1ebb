"""The tables of outliers: what they measure of a trained flow, and what they need."""

from pathlib import Path

import numpy as np
import pytest

from mixerflow import load
from mixerflow.cli.commands import run
from mixerflow.data import hold_out
from mixerflow.data import load as load_data
from mixerflow.detection import detection, fit_outliers, outliers
from mixerflow.runs.files import read_record

WORDS = ["reproduce", "outliers-fashion", "--budget", "tiny", "--seeds", "1", "--threads", "1"]


@pytest.fixture
def sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (300, 8, 8), dtype=np.uint8)
    np.savez("rough.npz", train_images=rough, test_images=rough[:40] // 2)
    np.savez("flat.npz", train_images=rough[:30], test_images=rough[:24] // 32 + 90)
    np.savez("small.npz", train_images=rough[:30, :4, :8])


def table(*words, other="flat.npz"):
    data = ["--data", "fashion-mnist=rough.npz", "--data", f"mnist={other}"]
    return run([*WORDS, *data, *words])


@pytest.mark.slow
def test_a_table_measures_other_sets_corruptions_and_thresholds(sets, capsys):
    assert table("--rows", "mixer") == 0
    record = read_record(Path("results/outliers-fashion/tiny.json"), "")
    rows = {row["row"]: row for row in record["columns"][0]["rows"]}
    before = rows["mixer"]["runs"][0]["further"]
    assert "ratio" not in before["sets"]["mnist"]
    assert table("--rows", "background,mixer") == 0  # now there is a background: measured anew
    record = read_record(Path("results/outliers-fashion/tiny.json"), "")
    rows = {row["row"]: row for row in record["columns"][0]["rows"]}
    found = rows["mixer"]["runs"][0]["further"]
    assert {*found["sets"]["mnist"]} == {*before["sets"]["mnist"], "ratio"}
    assert found["sets"]["mnist"]["bits"] == before["sets"]["mnist"]["bits"]
    assert rows["mixer"]["further"]["mnist ratio"]["seeds"] == 1
    assert [len(each) for each in found["corruptions"].values()] == [5, 5, 5]
    assert found["thresholds"]["bits"]["splits"] == 10

    flow = load("runs/outliers-fashion/tiny/mixer/seed-0", which="last")
    splits = load_data("rough.npz")
    fitted = fit_outliers(flow, hold_out(splits.train, seed=0)[1].pixels, false_alarms=0.5)
    inside = outliers(flow, splits.test.pixels[:20], fitted)
    outside = outliers(flow, load_data("flat.npz").test.pixels[:20], fitted)
    for name, scores in inside.scores.items():
        mine = detection(scores, outside.scores[name]).as_dict()
        assert found["sets"]["mnist"][name] == pytest.approx(mine, abs=1e-9)
    text = Path("results/outliers-fashion/tiny.md").read_text()
    figure = rows["mixer"]["further"]["mnist bits"]["mean"]
    line = next(each for each in text.splitlines() if each.startswith("| MixerFlow | mnist |"))
    assert f"| {figure:.1f} |" in line
    assert Path("results/outliers-fashion/tiny-mixer-blur.png").read_bytes()[:4] == b"\x89PNG"


def test_other_sets_of_another_shape_are_refused_before_the_first_run(sets, capsys):
    assert table("--rows", "mixer", other="small.npz") == 3
    assert "the images mnist are (1, 4, 8), the table's are (1, 8, 8)" in capsys.readouterr().err
    assert not Path("runs").exists()
