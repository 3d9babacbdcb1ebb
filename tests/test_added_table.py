"""The table of Flow++, VFlow, ANF and SurVAE, and what their couplings cost."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import coupling, parameters

from mixerflow.cli import main
from mixerflow.experiments import results
from mixerflow.experiments.added import ADDED_DIMENSIONS
from mixerflow.models import DenseFlow
from mixerflow.parts import DenseAttention, GatedAttention, GlowConv, WideningConv
from mixerflow.transforms import Affine, Augment, Coupling, LogisticMixture

NEW = ("dense-flowpp", "flowpp", "vflow", "anf", "survae-max", "survae-slice")


def test_twins_have_as_many_parameters_as_the_mixer_s():
    rows = parameters.counts(ADDED_DIMENSIONS, parameters.Arguments(ADDED_DIMENSIONS.name))
    found = {(row, column): share for row, column, _, share in rows}
    assert len(found) == 2 * len(ADDED_DIMENSIONS.rows) == 24
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.02)


def test_widths_are_tried_in_turn():
    given = parameters.Arguments(
        ADDED_DIMENSIONS.name, row="flowpp-mnist", setting="net.width", values=(4, 6)
    )
    (first, *_), (second, *_) = rows = list(parameters.counts(ADDED_DIMENSIONS, given))
    assert (first, second) == ("flowpp, net.width 4", "flowpp, net.width 6")
    assert [row[1] for row in rows] == ["mnist", "mnist"] and rows[0][2] < rows[1][2]


@pytest.mark.parametrize("column", ["cifar10", "mnist"])
def test_kinds_of_figures_and_every_row_gives_one(column):
    images = torch.randint(0, 256, (4, 3 if column == "cifar10" else 1, 8, 8), dtype=torch.uint8)
    bounds = {"vflow", "anf", "dense-variational", "dense-flowpp", "mixer-added"}
    for cell in ADDED_DIMENSIONS.choose([], [column]):
        flow = cell.model("tiny").build(tuple(images.shape[1:]))
        flow.initialize(images)
        with torch.no_grad():
            assert flow.eval().log_prob(images).isfinite().all()
        assert (flow.density == "bound") == (cell.row.name in bounds), cell.name
        learned = cell.row.name in {*NEW, "dense-variational", "mixer-variational"}
        assert flow.dequantization == ("variational" if learned else "uniform"), cell.name


def test_a_row_runs_with_weighted_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "parameters", lambda model, shape: 10**6)  # counting takes seconds
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "made.npz", train_images=pixels[:48], test_images=pixels[48:])
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", ADDED_DIMENSIONS.name, "--rows", "survae-max", "--columns", "mnist"]
    words += ["--budget", "tiny", "--data", "mnist=made.npz", "--threads", "1", "--seeds", "1"]
    assert main(words) == 0
    path = Path(f"results/{ADDED_DIMENSIONS.name}/tiny.json")
    column = json.loads(path.read_bytes())["columns"][1]
    (run,) = [run for row in column["rows"] for run in row["runs"]]
    assert (run["density"], run["dequantization"]) == ("exact", "variational")
    assert (run["weighted"]["importance_samples"], run["weighted"]["images"]) == (20, 12)
    claims = {(each["better"], each["worse"]) for each in column["claims"]}
    assert len(claims) == len(ADDED_DIMENSIONS.claims) == 20
    assert ("dense-variational", "dense-flowpp") in claims
    capsys.readouterr()


def test_noise_has_a_transform_of_its_own_where_it_is_named():
    settings = {"units": (2,), "modules": (1,), "growth": 2, "noise_net": WideningConv(1)}
    settings |= {"net": GatedAttention(4, 1, heads=1), "elementwise": LogisticMixture(2)}

    def maps(model):
        found = model.build((1, 4, 4)).transform.modules()
        return {type(m): m.elementwise for m in found if isinstance(m, Augment | Coupling)}

    same = maps(DenseFlow(**settings))
    assert same[Augment] == same[Coupling] == LogisticMixture(2)
    apart = maps(DenseFlow(**settings, noise_elementwise=Affine(2.0)))
    assert apart[Augment] == Affine(2.0) and apart[Coupling] == LogisticMixture(2)


SMALL = coupling.Arguments(
    dense=DenseAttention(4, growth=4, depth=1),
    gated=GatedAttention(4, 1, heads=1),
    glow=GlowConv(8),
    components=3,
    side=8,
    batch=2,
    rounds=1,
)


def test_couplings_are_measured_at_two_sizes(monkeypatch, tmp_path, capsys):
    words = "--dense.width 4 --dense.growth 4 --dense.depth 1 --gated.width 4 --gated.depth 1"
    words += " --gated.heads 1 --glow.width 8 --components 3 --side 8 --batch 2 --rounds 1"
    monkeypatch.setattr("sys.argv", ["coupling", *words.split(), "--out", f"{tmp_path}/cost.json"])
    coupling.main()
    rows = json.loads((tmp_path / "cost.json").read_bytes())["rows"]
    assert [row["coupling"] for row in rows[:5]] == [
        *("DenseFlow", "Flow++", "Glow"),
        *("Flow++", "Glow"),
    ]
    assert len(rows) == 10
    for row in rows:
        assert row["inverse_error"] < 1e-3 and row["peak_bytes"] > 1000
        assert row["step"]["net"] == row["inverse"]["net"] == 1
        logistic = row["coupling"] == "Flow++"
        assert row["step"]["mixture"] == int(logistic)
        assert (row["inverse"]["mixture"] > 3) == logistic
        if row["size"] == "equal parameters":
            first = rows[0 if row["place"] == rows[0]["place"] else 5]
            before = rows[rows.index(row) - 2]  # of the same coupling
            assert before["coupling"] == row["coupling"]
            gaps = [abs(each["parameters"] - first["parameters"]) for each in (row, before)]
            assert gaps[0] < gaps[1]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and lines[2].startswith("| 12x4x4, halves of the channels | DenseFlow")


def test_the_width_of_the_nearest_count_is_found():
    def count(net):
        if net.width % net.heads:
            raise ValueError("heads must divide the width")
        return net.width

    assert coupling.fitted(GatedAttention(4, heads=4), 11, count).width == 12
    assert coupling.fitted(GlowConv(512), 37, lambda net: net.width).width == 37


def test_outputs_of_random_nets_have_mean_square_1():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    shape, split = SMALL.places()["columns"]
    for net, elementwise in SMALL.kinds().values():
        made = coupling.started(coupling.coupling(net, elementwise, shape, split), x, 0)
        with torch.no_grad():
            raw = made.net(split.parts(x)[0], None)
        assert float(raw.square().mean()) == pytest.approx(1.0, rel=1e-3)


def test_a_mistake_is_told_in_a_line(monkeypatch, capsys):
    for module, words in ((coupling, "--rounds 0"), (parameters, "added-dimension")):
        monkeypatch.setattr("sys.argv", ["benchmark", *words.split()])
        with pytest.raises(SystemExit) as ended:
            module.main()
        told = capsys.readouterr().err
        assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
