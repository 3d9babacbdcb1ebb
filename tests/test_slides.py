"""The tables of the DenseFlow slides: what they quote, what is trained, and what it costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixerflow.cli import main
from mixerflow.cli import reproduce as command
from mixerflow.data import make_images
from mixerflow.experiments import TABLES, outputs, results
from mixerflow.experiments.cost import hours, scheduled_images, training_speed
from mixerflow.experiments.slides import ANF, FLOWPP, IDENSENET, RESIDUAL, SURVAE, VFLOW
from mixerflow.models import Glow
from mixerflow.optimizers import Adam, Adamax
from mixerflow.parts import GlowConv, ScaledPixels
from mixerflow.train_config import TrainConfig

DENSITY, COST, DISTANCE = (TABLES[f"denseflow-table-{n}"] for n in (1, 2, 3))
CIFAR10, OLD_32, NEW_32, OLD_64, NEW_64, FACES = (
    *("cifar10", "imagenet32-old", "imagenet32-new"),
    *("imagenet64-old", "imagenet64-new", "celeba64"),
)


def quoted(table, figure) -> dict[str, dict[str, Any]]:
    """Column -> label's first word -> a figure, of all that a table quotes."""
    return {
        column.name: {
            each.label.partition(",")[0]: each.figures[column.name][figure]
            for each in table.quoted
            if column.name in each.figures
        }
        for column in table.columns
    }


def test_the_slides_bits_are_quoted_as_printed():
    found = quoted(DENSITY, "bits/dim")
    assert len(DENSITY.quoted) == 25
    counts = {CIFAR10: 24, OLD_32: 17, OLD_64: 14, FACES: 5, NEW_32: 1, NEW_64: 1}
    assert {name: len(column) for name, column in found.items()} == counts
    assert sum(found[CIFAR10].values()) == pytest.approx(74.08)
    assert sum(found[OLD_32].values()) == pytest.approx(67.13)
    assert sum(found[OLD_64].values()) == pytest.approx(51.76)
    assert found[FACES] == {
        "BIVA": 2.48,
        "Image Transformer": 2.61,
        "Real NVP": 3.02,
        "NVAE": 2.03,
        "DenseFlow-74-10": 1.99,
    }
    assert found[CIFAR10]["Conv Draw"] == 3.58
    assert found[CIFAR10]["Real NVP"] == 3.49
    assert "SPN" not in found[CIFAR10]
    assert (found[OLD_32]["Flow++"], found[OLD_64]["Flow++"]) == (3.86, 3.69)
    assert (found[OLD_32]["δ-VAE"], found[OLD_64]["Routing transformer"]) == (3.77, 3.43)
    assert (found[NEW_32], found[NEW_64]) == ({"DenseFlow-74-10": 3.63}, {"DenseFlow-74-10": 3.35})


def test_the_slides_costs_and_distances_are_quoted_as_printed():
    kinds, counts, times, bits = (
        quoted(COST, name) for name in ("GPU type", "GPUs", "hours", "bits/dim")
    )
    assert times[CIFAR10] == {"VFlow": "~500", "NVAE": "55", "DenseFlow-74-10": "250"}
    assert times[OLD_32] == {"VFlow": "~1440", "NVAE": "70"}
    assert times[NEW_32] == {"DenseFlow-74-10": "310"}
    assert times[FACES] == {"VFlow": "n/a", "NVAE": "92", "DenseFlow-74-10": "224"}
    assert counts[CIFAR10] == {"VFlow": 16, "NVAE": 8, "DenseFlow-74-10": 1}
    assert (counts[OLD_32]["NVAE"], counts[FACES]["VFlow"]) == (24, "n/a")
    assert kinds[CIFAR10]["VFlow"] == "RTX 2080Ti"
    assert kinds[NEW_32]["DenseFlow-74-10"] == "Tesla V100"
    assert bits[FACES] == {"VFlow": None, "NVAE": 2.03, "DenseFlow-74-10": 1.99}
    fid = quoted(DISTANCE, "FID")[CIFAR10]
    assert len(fid) == len(DISTANCE.quoted) == 11
    assert sum(fid.values()) == pytest.approx(449.09)
    assert (fid["DA-StyleGAN V2"], fid["i-ResNet"], fid["DenseFlow-74-10"]) == (5.79, 65.01, 34.9)


def test_the_two_imagenets_never_share_a_column():
    for table in (DENSITY, COST, DISTANCE):
        for column in table.columns:
            ages = {name.rpartition("-")[2] for name in (column.name, column.source)}
            assert len(ages) == 1
        places = [(each.name, each.figures) for each in table.quoted]
        places += [(row.name, row.published) for row in table.rows]
        for name, figures in places:
            ages = {each.rpartition("-")[2] for each in figures if each.startswith("imagenet")}
            assert ages <= ({"new"} if name == "denseflow" else {"old"})


def test_twins_have_as_many_parameters_as_the_mixer_s():
    cells = {(cell.row.name, cell.column.name): cell for cell in DENSITY.cells}
    for columns in ((CIFAR10, NEW_32, OLD_32), (FACES, NEW_64, OLD_64)):
        counts = {}
        for row in DENSITY.rows:
            own = [cells[row.name, name] for name in columns]
            assert {cell.column.shape for cell in own} == {own[0].column.shape}
            trained = {cell.train("time", 0) for cell in own}
            if row in (RESIDUAL, IDENSENET):  # their own rate
                (config,) = trained
                assert (config.lr, config.clip) == (1e-2, 1.0)
                trained = {replace(config, lr=5e-3, clip=5.0, late_epochs=0.0)}
            if row in (FLOWPP, VFLOW, ANF, SURVAE):  # their own optimisers and rates
                (config,) = trained
                adamax = row in (ANF, SURVAE)
                assert config.optimizer == (Adamax() if adamax else Adam())
                assert config.lr == (1e-2 if adamax else 2e-3)
                wanted = own[0].column.setups["time"].train
                same = {name: getattr(wanted, name) for name in ("optimizer", "betas", "lr")}
                trained = {replace(config, **same)}
            assert trained == {own[0].column.setups["time"].train}
            (model,) = {cell.model("time") for cell in own} | {own[0].model("cpu")}
            flow = replace(model, pixels=ScaledPixels()).build(own[0].column.shape)
            counts[row.name] = sum(parameter.numel() for parameter in flow.parameters())
        for name, count in counts.items():
            assert count == pytest.approx(counts["mixer"], rel=0.02), name


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The command on sixty made images."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 250, (60, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "made.npz", train_images=pixels[:48], test_images=pixels[48:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "parameters", lambda model, shape: 10**6)  # counting takes seconds
    flags = ["--budget", "tiny", "--data", "made.npz", "--threads", "1", "--seeds", "1"]
    return [*flags, "--rows", "mixer"]


class Small(torch.nn.Module):
    """Features of a small net."""

    name = "small"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.eval()

    def forward(self, x):
        return self.conv(x.float() / 255).relu().mean((2, 3))


def made(table):
    return json.loads(Path(f"results/{table.name}/tiny.json").read_bytes())


def test_quoted_figures_are_marked_and_in_no_claim(words):
    root, out = Path("runs"), Path("results") / DENSITY.name
    outputs.write(DENSITY, "tiny", root, out)
    column, said = made(DENSITY)["columns"][0], (out / "tiny.md").read_text()
    assert [row["row"] for row in column["rows"]] == [row.name for row in DENSITY.rows]
    assert len(column["quoted"]) == 24
    assert all(each["quoted"] is True for each in column["quoted"])
    plain = results.collect(replace(DENSITY, quoted=()), "tiny", root)["columns"][0]
    assert plain["quoted"] == []
    assert plain["claims"] == column["claims"]
    claims = {(each["better"], each["worse"]): each for each in column["claims"]}
    assert claims["glow", "realnvp"]["paper_difference"] == pytest.approx(0.14)
    assert claims["macow", "glow"]["paper_difference"] is None, "a bound beside a density"
    assert "| group | model | quoted: bits/dim | quoted: kind |" in said
    assert "| Real NVP | 3.49 (exact density, uniform dequantisation, single-sample) |" in said
    page = outputs.write_page(Path("results")).read_text()
    assert "<th scope='col'>quoted: bits/dim</th>" in page
    assert "δ-VAE, Razavi et al. (2019)" in page


def test_costs_and_distances_of_one_run(words, capsys, monkeypatch):
    assert main(["reproduce", COST.name, *words, "--columns", CIFAR10]) == 0
    rows = {row["row"]: row for row in made(COST)["columns"][0]["rows"]}
    assert rows["mixer"]["bits_per_dim"] == rows["mixer"]["runs"][0]["bits_per_dim"]
    cost = rows["mixer"]["cost"]
    assert rows["denseflow"]["cost"] is None
    assert cost["scheduled_images"] == 400_000 * 512
    assert cost["hours"] * 3600 * cost["images_per_second"] == pytest.approx(400_000 * 512)
    assert (cost["batch"], cost["steps"], cost["machine"]["threads"]) == (8, 3, 1)
    said = capsys.readouterr().out
    assert "| MixerFlow | 13,771 |" in said, "the model of the budget tiny is measured"
    assert "3 training steps of 8 images after one" in said
    line = "| Normalising flows | VFlow, Chen et al. (2020) | Tesla V100 | 16 | ~1440 | 3.83 |"
    before, _, after = said.partition("## imagenet32-old, not run")
    assert line in after
    assert line not in before

    distances = ["reproduce", DISTANCE.name, *words]
    assert main(distances) == 0
    output = capsys.readouterr()
    assert "copied from runs/denseflow-table-2/tiny/mixer-cifar10/seed-0" in output.err
    assert "| no features given |" in output.out
    assert "https://" in output.out
    assert "--features PATH" in output.out
    monkeypatch.setattr(command, "load_features", lambda path, device, trust: Small())
    assert main([*distances, "--features", "weights.pth"]) == 0
    (run,) = next(r for r in made(DISTANCE)["columns"][0]["rows"] if r["row"] == "mixer")["runs"]
    assert run["frechet"]["samples"] == run["frechet"]["images"] == 12
    assert run["measures"]["Frechet distance (small)"] == run["frechet"]["distance"] > 0
    said = capsys.readouterr().out
    assert "no features given" not in said
    assert f"| {run['frechet']['distance']:.3f} |" in said
    kept = Path("runs/denseflow-table-3/tiny/mixer/seed-0/evaluations/frechet.json")
    stamp = kept.stat().st_mtime_ns
    assert main([*distances, "--features", "weights.pth"]) == 0
    assert kept.stat().st_mtime_ns == stamp, "computed once"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([DENSITY.name, "--rows", "nvae"], "nvae is quoted in denseflow-table-1"),
        ([DENSITY.name, "--rows", "glwo"], "did you mean glow?"),
        (["table-10", "--features", "weights.pth"], "table-10 compares no samples"),
        ([DISTANCE.name, "--features", "weights.pth"], "weights.pth"),
    ],
)
def test_errors_are_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) in (2, 3, 4)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_hours_are_the_schedule_s_images_over_the_speed():
    assert hours(420 * 50_000, 1.5) == pytest.approx(3888.889, abs=1e-3)
    epochs = TrainConfig(epochs=420, batch=64)
    assert scheduled_images(epochs, 50_000) == 420 * 50_000
    assert scheduled_images(replace(epochs, steps=100), 50_000) == 6400
    cells = {(cell.row.name, cell.column.name): cell.train("gpu", 0) for cell in COST.cells}
    assert scheduled_images(cells["denseflow", FACES], 162_770) == 55 * 162_770
    assert scheduled_images(cells["mixer", CIFAR10], 50_000) == 400_000 * 512


def test_the_speed_is_that_of_whole_steps():
    flow = Glow(scales=1, steps=1, net=GlowConv(4)).build((3, 8, 8))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    images = make_images(np.zeros((20, 3, 8, 8), np.uint8), None, dataset_id="made")
    speed = training_speed(flow, images, TrainConfig(steps=9), batch=4, steps=2)
    assert (speed.batch, speed.steps) == (4, 2)
    assert speed.images_per_second > 0
    assert any((flow.state_dict()[name] != value).any() for name, value in before.items())
