"""Tables whose rows have figures of several kinds, and importance-weighted ones beside them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixerflow.cli import main
from mixerflow.experiments import Claim
from mixerflow.experiments.claims import judge
from mixerflow.experiments.dense import MIXER_DENSE


def column(**kinds):
    """A column of rows, each with figures of its own kind for two seeds, 1 and 2 bits/dim apart."""
    rows = []
    for number, (row, (density, dequantization)) in enumerate(kinds.items()):
        kind = {"density": density, "dequantization": dequantization, "importance_samples": 1}
        same = {"training_sha256": "a", "images_sha256": "b", "curve": [], "steps": 4, **kind}
        runs = [
            {"seed": s, "bits_per_dim": 3.0 + number * (1.0 + 0.01 * s), **same} for s in (0, 1)
        ]
        rows.append({"row": row, "paper": {"bits_per_dim": None}, "runs": runs})
    return {"column": "cifar10", "minutes": None, "rows": rows}


def test_only_a_claim_that_says_so_compares_figures_of_two_kinds():
    claim = Claim("a", "b", "a is better than b")
    table = replace(MIXER_DENSE, claims=(claim, replace(claim, kinds="any")))
    same = column(a=("exact", "uniform"), b=("exact", "uniform"))
    other = column(a=("exact", "uniform"), b=("bound", "variational"))
    for each in (same, other):
        judge(table, [each])
    assert [each["seeds"] for each in same["claims"]] == [2, 2]
    assert [each["seeds"] for each in other["claims"]] == [0, 2]
    assert other["claims"][1]["difference"] == pytest.approx(1.005)


@pytest.mark.slow
def test_importance_weighted_figures_stand_apart(tmp_path, monkeypatch, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "made.npz", train_images=pixels[:48], test_images=pixels[48:])
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "mixer-dense", "--rows", "combined", "--seeds", "1"]
    words += ["--budget", "tiny", "--data", "made.npz", "--threads", "1"]
    assert main(words) == 0
    rows = json.loads(Path("results/mixer-dense/tiny.json").read_bytes())["columns"][0]["rows"]
    (run,) = [run for row in rows for run in row["runs"]]
    assert run["importance_samples"] == 1
    weighted = run["weighted"]
    assert (weighted["importance_samples"], weighted["images"]) == (20, 12)
    assert weighted["gain"] > 0, "twenty draws bound more tightly than one"
    # all test images are among the first 200: the first draws are the figure's own
    single = weighted["bits_per_dim"] + weighted["gain"]
    assert single == pytest.approx(run["bits_per_dim"], abs=1e-6)
    text = Path("results/mixer-dense/tiny.md").read_text()
    kind = "lower bound of the density, uniform dequantisation, single-sample"
    assert "Importance-weighted, 20 draws an image, of the same weights" in text
    assert f"single-sample figures are: {kind}." in text
    assert "| MixerFlow in DenseFlow |" in text
    claims = [line for line in text.splitlines() if "figures of any kind" in line]
    assert len(claims) == 10
    path = Path("runs/mixer-dense/tiny/combined/seed-0/evaluations/reproduce.json")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "weighted"}))
    assert main(words) == 0
    assert json.loads(path.read_bytes())["weighted"] == record["weighted"], "it is made again"
    capsys.readouterr()
