"""The table of the earlier variant: its rows, and how far samples are from images in detail."""

import json
import math

import numpy as np
import pytest

from mixerflow.cli import main
from mixerflow.evaluate import grid_artefacts, high_frequency_power
from mixerflow.experiments import TABLES
from mixerflow.experiments.profile import sharpness
from mixerflow.experiments.results import parameters
from mixerflow.recipes import RECIPES

TABLE = TABLES["profile"]
MODELS = {cell.row.name: cell for cell in TABLE.cells}


def smooth(n=40, seed=0):
    """Images whose neighbours are alike."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3, 16, 16)).cumsum(2).cumsum(3)


def test_rows_are_the_recipes_and_differ_as_they_say():
    for budget, end in (("gpu", ""), ("cpu", "-tiny")):
        assert MODELS["profile"].model(budget) == RECIPES[f"mixerflow-profile{end}"].model
    assert MODELS["paper"].model("gpu") == RECIPES["mixerflow-cifar10"].model
    shapes = (3, 32, 32)
    for row, kinds in (("profile", 4), ("profile-same", 1), ("paper", 2), ("still", 1)):
        model = MODELS[row].model("cpu")
        assert len(model.patching.kinds(shapes, model.layers)) == kinds, row
    turns = MODELS["turns"].model("cpu")
    assert [turns.patching.of(shapes, k, 4)[2][0] for k in range(1, 5)] == [0, 1, 2, 3]
    counts = {name: parameters(cell.model("cpu"), shapes) for name, cell in MODELS.items()}
    assert counts["glow"] == pytest.approx(counts["paper"], rel=0.06)
    assert parameters(MODELS["profile"].model("gpu"), shapes) == pytest.approx(7.5e6, rel=0.01)
    assert len({cell.train("cpu", 0).steps for cell in TABLE.cells}) == 1


def test_sharpness_is_1_for_images_alike_and_far_for_blur_and_noise():
    test, other = smooth(), smooth(seed=1)
    same = sharpness(test, test)
    assert (same["detail"], same["grid_2"], same["grid_4"]) == (1, 1, 1)
    assert same["detail_off"] == same["grid_off"] == 0
    noise = other + np.random.default_rng(2).normal(size=other.shape) * 9
    blur = np.mean([np.roll(other, each, (2, 3)) for each in np.ndindex(3, 3)], 0)
    found = [sharpness(each, test) for each in (other, noise, blur)]
    assert found[1]["detail"] > 2 and found[2]["detail"] < 0.7
    assert max(found[1]["detail_off"], found[2]["detail_off"]) > 4 * found[0]["detail_off"]
    assert found[1]["detail_off"] == pytest.approx(math.log2(found[1]["detail"]))
    assert found[2]["detail_off"] == pytest.approx(-math.log2(found[2]["detail"]))


def test_the_grid_that_shows_more_counts():
    test, blocks = smooth(), smooth(seed=1)
    offsets = np.random.default_rng(3).normal(size=(40, 3, 4, 4)) * 6
    blocks = blocks + np.kron(offsets, np.ones((4, 4)))
    found = sharpness(blocks, test)
    ratios = [grid_artefacts(blocks, k).ratio / grid_artefacts(test, k).ratio for k in (2, 4)]
    assert [found["grid_2"], found["grid_4"]] == pytest.approx(ratios)
    assert found["grid_off"] == pytest.approx(max(abs(math.log2(each)) for each in ratios))
    assert ratios[1] > ratios[0] > 1
    power = high_frequency_power(blocks) / high_frequency_power(test)
    assert found["detail"] == pytest.approx(power)


def test_constant_samples_have_no_sharpness():
    black = np.zeros((9, 3, 16, 16))
    assert set(sharpness(black, smooth()).values()) == {None}


def test_the_command_measures_samples_and_judges_by_them(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "made.npz", train_images=pixels[:48], test_images=pixels[48:])
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "profile", "--budget", "tiny", "--data", "made.npz", "--threads", "1"]
    assert main([*words, "--rows", "still,turns", "--seeds", "1"]) == 0
    (column,) = json.loads((tmp_path / "results/profile/tiny.json").read_text())["columns"]
    rows = {row["row"]: row for row in column["rows"]}
    for name in ("still", "turns"):
        (run,) = rows[name]["runs"]
        assert run["further"]["drawn"] == 64
        assert run["further"]["figures"]["detail"] > 0
    claims = {(c["better"], c["worse"], c.get("figure")): c for c in column["claims"]}
    judged = claims["turns", "still", "detail_off"]
    own = [rows[name]["further"]["detail_off"]["mean"] for name in ("still", "turns")]
    assert judged["difference"] == pytest.approx(own[0] - own[1])
    assert judged["verdict"] == "undecided" and judged["seeds"] == 1
    assert "7.5 Million" in (tmp_path / "results/profile/tiny.md").read_text()
    np.savez("small.npz", train_images=pixels[:48, :4, :4], test_images=pixels[48:, :4, :4])
    assert main([*words[:4], "--data", "small.npz", "--runs", "other"]) == 2
    assert "have no borders of patches of 4" in capsys.readouterr().err
