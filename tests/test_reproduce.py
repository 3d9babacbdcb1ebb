"""Tables of the paper, run on made images at the smallest budget, and their claims."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixerflow.cli import main
from mixerflow.data import load as load_data
from mixerflow.experiments import TABLES, Claim, outcome, student
from mixerflow.experiments.claims import judge
from mixerflow.experiments.images import SeedImages
from mixerflow.experiments.outputs import markdown_text, rows_table
from mixerflow.experiments.references import keep_yardsticks
from mixerflow.experiments.results import collect, parameters
from mixerflow.runs import RunFolder


@pytest.fixture
def words(tmp_path, monkeypatch):
    """The command on sixty made images."""
    rng = np.random.default_rng(0)
    brightness = rng.integers(0, 200, (60, 1, 1, 1))
    pixels = (brightness + rng.integers(0, 40, (60, 8, 8, 3))).astype(np.uint8)
    np.savez(tmp_path / "made.npz", train_images=pixels[:48], test_images=pixels[48:])
    monkeypatch.chdir(tmp_path)
    return ["reproduce", "table-10", "--budget", "tiny", "--data", "made.npz", "--threads", "1"]


def results(path="results/table-10/tiny.json"):
    with open(path) as file:
        return json.load(file)


def rows(path="results/table-10/tiny.json"):
    return {row["row"]: row for row in results(path)["columns"][0]["rows"]}


def test_a_claim_holds_fails_or_is_undecided():
    worse = {0: 3.0, 1: 3.2, 2: 3.1}
    held = outcome({0: 2.9, 1: 3.0, 2: 2.95}, worse)  # differences 0.1, 0.2, 0.15
    assert held.difference == pytest.approx(0.15)
    assert held.standard_error == pytest.approx(0.05 / 3**0.5)
    assert held.half_width == pytest.approx(4.302653 * 0.05 / 3**0.5)
    assert (held.verdict, held.seeds) == ("holds", 3)
    assert outcome(worse, {0: 2.9, 1: 3.0, 2: 2.95}).verdict == "fails"
    assert outcome({0: 2.0, 1: 4.0, 2: 3.0}, worse).verdict == "undecided"  # 1, -0.8, 0.1
    # 3 standard errors: enough for a mean of many, not for one of three
    assert outcome({0: 2.9, 1: 2.97, 2: 2.98}, worse).verdict == "undecided"  # 0.1, 0.23, 0.12
    assert outcome({0: 2.0}, worse) == replace(
        held, difference=1.0, standard_error=None, half_width=None, seeds=1, verdict="undecided"
    )
    assert outcome({7: 2.0}, worse).difference is None
    # paired: seeds differ by far more than rows do, which the differences do not see
    far = {0: 1.0, 1: 9.0, 2: 5.0}
    assert outcome({0: 0.9, 1: 8.89, 2: 4.9}, far).verdict == "holds"


def test_student_s_quantiles_are_those_of_the_tables():
    known = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 10: 2.2281, 30: 2.0423}
    for freedom, value in known.items():
        assert student.quantile(freedom) == pytest.approx(value, abs=6e-5)
    assert student.quantile(10**4) == pytest.approx(1.96, abs=1e-3)
    assert student.quantile(5, 0.99) == pytest.approx(4.0321, abs=6e-5)
    with pytest.raises(ValueError, match="0 degrees"):
        student.quantile(0)


def test_equal_rows_get_a_verdict_in_one_of_twenty_cases():
    rng = np.random.default_rng(0)
    for seeds in (2, 3, 5):
        verdicts = [
            outcome(*(dict(enumerate(rng.normal(size=seeds))) for _ in range(2))).verdict
            for _ in range(2000)
        ]
        assert 0.03 < 1 - verdicts.count("undecided") / 2000 < 0.07  # 0.05 ± 4 standard errors


def test_figures_of_two_kinds_are_in_two_columns_and_in_no_claim():
    column = results(Path(__file__).parents[1] / "results/table-10/cpu.json")["columns"][0]
    head, cells = rows_table(column)
    assert "11.36M / 11.34M (+0.16 %)" in cells[-1]
    assert [name for name in head if name.startswith("ours")] == ["ours, mean ± s.e. over seeds"]
    for run in column["rows"][1]["runs"]:
        run |= {"density": "bound", "dequantization": "variational"}
    head, cells = rows_table(column)
    ours = [i for i, name in enumerate(head) if name.startswith("ours")]
    assert [head[i].split(": ")[1] for i in ours] == [
        "exact density, uniform dequantisation, single-sample",
        "lower bound of the density, variational dequantisation, single-sample",
    ]
    filled = [[bool(row[i]) for i in ours] for row in cells]
    assert filled == [[i != 1, i == 1] for i in range(len(cells))]
    assert {len(row) for row in cells} == {len(head)}
    judge(TABLES["table-10"], [column])
    for claim in column["claims"]:
        other = "layers" in (claim["better"], claim["worse"])
        assert (claim["seeds"] == 0) == other


def column_of(name, **figures):
    """A column whose rows have these bits/dim for seeds 0, 1, 2, and curves half a bit above."""
    same = {"training_sha256": "a", "images_sha256": "b", "density": "exact"}
    same |= {"dequantization": "uniform", "importance_samples": 1, "steps": 40}
    rows = [
        {
            "row": row,
            "paper": {"bits_per_dim": None},
            "runs": [
                {"seed": seed, "bits_per_dim": value, "curve": [[20, value + 1], [40, value]]}
                | {"curve_images": [9, 9]}
                | same
                for seed, value in enumerate(values)
            ],
        }
        for row, values in figures.items()
    ]
    return {"column": name, "minutes": 2.0, "rows": rows}


def test_a_loss_is_what_a_row_has_more_than_in_order():
    table = TABLES["table-5"]
    in_order = column_of("cifar10", mixer=[4.0, 4.1, 4.2], glow=[4.5, 4.6, 4.7], nsf=[5.0] * 3)
    shuffled = column_of(
        "cifar10-local", mixer=[4.2, 4.31, 4.4], glow=[5.1, 5.2, 5.31], nsf=[5.0] * 3
    )
    curve = shuffled["rows"][1]["runs"][1]["curve"]
    curve[1] = [30, curve[1][1] + 0.5]  # the last step that all curves have; on a straight line
    others = [
        column_of(f"imagenet32-old{end}", mixer=[], glow=[], nsf=[]) for end in ("", "-local")
    ]
    columns = [in_order, shuffled, *others]
    judge(table, columns)
    assert in_order["claims"] == []
    better, _, loss, other = shuffled["claims"]
    assert (better["against"], loss["against"]) == ("", "cifar10")
    assert better["difference"] == pytest.approx(0.9)
    assert loss["words"] == "MixerFlow loses less than Glow"
    # losses 0.2, 0.21, 0.2 and 0.6, 0.6, 0.61
    assert loss["difference"] == pytest.approx(0.4)
    assert loss["verdict"] == "holds"
    assert other["verdict"] == "fails", "NSF loses nothing here"
    assert better["at_equal_steps"]["step"] == 30
    assert better["at_equal_steps"]["difference"] == pytest.approx(0.9)
    assert shuffled["claims"][0]["seeds"] == 3
    assert columns[3]["claims"][0]["seeds"] == 0


def test_curves_of_other_images_are_not_compared():
    column = column_of("cifar10", mixer=[4.0, 4.1], glow=[4.5, 4.6], nsf=[5.0, 5.1])
    for row, images in zip(column["rows"], ([9, 9], [7, 7], [9, 30]), strict=True):
        for run in row["runs"]:
            run["curve_images"] = images
    table = replace(TABLES["table-6"], claims=TABLES["table-1"].claims[:2])
    judge(table, [column])
    glow, nsf = (claim["at_equal_steps"] for claim in column["claims"])
    assert glow["seeds"] == 0, "curves of 9 and of 7 images"
    assert (nsf["step"], nsf["seeds"]) == (20, 2), "the end is of 30 images, not 9"
    assert nsf["difference"] == pytest.approx(1.0)
    del column["rows"][0]["runs"][0]["curve_images"]  # an older version's
    judge(table, [column])
    assert column["claims"][1]["at_equal_steps"]["seeds"] == 1


def test_the_same_run_of_another_table_is_copied(words, capsys):
    flags = ["--rows", "mixer", "--columns", "cifar10", "--seeds", "1"]
    data = ["--data", "cifar10=made.npz"]
    tables = [["reproduce", name, *words[2:4], *data, *flags] for name in ("table-4", "table-5")]
    assert main(tables[0]) == 0
    assert "copied" not in capsys.readouterr().err
    assert main(tables[1]) == 0
    assert "copied from runs/table-4/tiny/mixer-cifar10/seed-0" in capsys.readouterr().err
    first, second = (results(f"results/{name}/tiny.json") for name in ("table-4", "table-5"))
    assert first["columns"][0]["rows"][0]["runs"] == second["columns"][0]["rows"][0]["runs"]
    assert first["columns"][0]["yardsticks"] == {}, "the smallest budget does not take their time"
    keep_yardsticks(Path("runs/table-5/tiny"), SeedImages.of(load_data("made.npz"), 0, "tiny"))
    known = collect(TABLES["table-5"], "tiny", Path("runs/table-5/tiny"))
    assert known["columns"][0]["yardsticks"]["uniform"] == 8
    said = markdown_text(known)
    assert "Without a flow, bits/dim on the same test images: uniform 8.00" in said
    assert "Not run: cifar10-local, imagenet32-old, imagenet32-old-local." in said


def test_few_images_are_so_many_or_refused(words, capsys):
    splits = load_data("made.npz")
    few, more = (SeedImages.of(splits, 1, "tiny", count).train.pixels for count in (5, 20))
    assert (len(few), len(more)) == (5, 20)
    assert {image.tobytes() for image in few} < {image.tobytes() for image in more}
    flags = ["--columns", "cifar10-500", "--rows", "mixer", "--seeds", "1"]
    assert main(["reproduce", "few-images", *words[2:], *flags]) == 2
    assert "500 training images of 46 that are not held out" in capsys.readouterr().err


def test_a_row_in_no_column_is_refused(words, capsys):
    flags = ["--rows", "mixer-cifar10", "--columns", "cifar10-global"]
    assert main(["reproduce", "table-4", *words[2:], *flags]) == 2
    assert "no row is in these columns" in capsys.readouterr().err


def test_measures_that_cannot_be_taken_are_left_out(words, capsys):
    pixels = np.full((60, 8, 8, 3), 7, np.uint8)
    pixels[:48] += np.arange(48, dtype=np.uint8)[:, None, None, None]
    np.savez("flat.npz", train_images=pixels[:48], test_images=pixels[48:])
    flags = ["--rows", "basic", "--seeds", "1", "--data", "flat.npz"]
    assert main([*words[:4], "--threads", "1", *flags]) == 0
    (run,) = rows()["basic"]["runs"]
    assert run["measures"]["high frequencies/test"] is None


@pytest.mark.parametrize(
    "budget",
    ["tiny", *(pytest.param(b, marks=pytest.mark.slow) for b in ("time", "cpu", "gpu"))],
)
def test_every_row_of_every_table_can_be_built(budget):
    for table in TABLES.values():
        names = [row.name for row in table.rows]
        assert len(set(names)) == len(names)
        for claim in table.claims:
            assert isinstance(claim, Claim)
            further = table.further
            others = further.references if claim.figure else ()
            assert {claim.better, claim.worse} <= {*names, *others}
            assert not claim.figure or claim.figure in {each.name for each in further.figures}
        for cell in table.cells:
            assert parameters(cell.model(budget), cell.column.shape) > 0
            base = cell.column.setups[budget].train
            stages = [config for _, config in cell.stages(budget, 3)]
            if base.steps is None:
                assert {config.minutes for config in stages} == {base.minutes}
            elif budget != "gpu" or not (cell.row.setups or cell.row.in_column):
                taken = sum(config.steps for config in stages)
                assert taken == base.steps, "rows are compared at equal steps"


def check_published(cells):
    for cell in cells:
        if cell.published.parameters is not None:
            full = parameters(cell.model("gpu"), cell.column.shape)
            # how the paper counts its KAN cannot be told from its text
            tolerance = 0.06 if cell.row.name == "kan" else 0.025
            assert full / 1e6 == pytest.approx(cell.published.parameters, rel=tolerance)


def test_the_rows_of_a_table_have_the_published_sizes():
    check_published(TABLES["table-8"].cells)


@pytest.mark.slow
def test_all_rows_have_the_published_sizes():
    check_published(cell for table in TABLES.values() for cell in table.cells)


def test_the_whole_table(words, capsys):
    assert main([*words, "--seeds", "2"]) == 0
    found = rows()
    assert set(found) == {"basic", "layers", "linear", "shift", "all"}
    for row in found.values():
        assert [run["seed"] for run in row["runs"]] == [0, 1]
        figures = [run["bits_per_dim"] for run in row["runs"]]
        assert row["bits_per_dim"] == pytest.approx(sum(figures) / 2)
        assert row["standard_error"] == pytest.approx(abs(figures[0] - figures[1]) / 2)
        for run in row["runs"]:
            assert run["split"] == "test"
            assert (run["images"], run["density"], run["steps"]) == (12, "exact", 6)
            assert run["dequantization"] == "uniform"
            assert run["machine"]["threads"] == 1
            assert "torch" in run["versions"]
            assert run["command"].startswith("mixerflow reproduce table-10")
            assert [step for step, _ in run["curve"]] == [3, 6]
    assert len({run["training_sha256"] for row in found.values() for run in row["runs"]}) == 2
    assert found["layers"]["model"]["layers"] == 2 * found["basic"]["model"]["layers"]
    for claim in results()["columns"][0]["claims"]:
        pairs = zip(found[claim["worse"]]["runs"], found[claim["better"]]["runs"], strict=True)
        differences = [w["bits_per_dim"] - b["bits_per_dim"] for w, b in pairs]
        assert claim["seeds"] == 2
        assert claim["difference"] == pytest.approx(sum(differences) / 2)
    with open("results/table-10/tiny.md") as file:
        said = file.read()
    assert "| 60 layers | 3.52 |" in said
    assert f"{found['all']['bits_per_dim']:.4f} ± {found['all']['standard_error']:.4f}" in said
    assert "11.34M" not in said, "the smallest budget does not count full models"
    assert "6 steps of 8 images; base model: layers 2, width 8, patches 4" in said
    assert "figures mean nothing" in said
    with open("results/report.html") as file:
        page = file.read()
    assert page.count("<figure>") == 5
    assert "src='http" not in page
    assert "<script" not in page
    assert "linear blocks help: <b class=" in page
    stamps = [run["seconds"] for run in found["basic"]["runs"]]
    assert main([*words, "--seeds", "2"]) == 0  # finished ones are not trained again
    assert [run["seconds"] for run in rows()["basic"]["runs"]] == stamps
    capsys.readouterr()
    assert main(["reproduce", "report"]) == 0
    assert capsys.readouterr().out == "results/report.html\n"


def test_what_another_process_is_at_is_left_to_it(words, capsys):
    words = [*words, "--seeds", "1", "--rows", "basic,linear"]
    with RunFolder(Path("runs/table-10/tiny/basic/seed-0")).lock():
        assert main(words) == 0
    assert f"basic, seed 0: process {os.getpid()} on" in capsys.readouterr().err
    assert [len(rows()[name]["runs"]) for name in ("basic", "linear")] == [0, 1]
    assert main(words) == 0
    assert [len(rows()[name]["runs"]) for name in ("basic", "linear")] == [1, 1]


def in_a_process(words):
    """Start the command in a forked process."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = main(words)
        finally:
            os._exit(code)
    return pid


@pytest.mark.parametrize(
    "rows_of_each",
    [
        ("basic,linear", "basic,linear"),
        pytest.param(("basic", "linear"), marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_share_a_table(words, rows_of_each):
    started = [in_a_process([*words, "--seeds", "1", "--rows", row]) for row in rows_of_each]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started] == [0, 0]
    counts = {name: len(row["runs"]) for name, row in rows().items()}
    assert counts == {"basic": 1, "layers": 0, "linear": 1, "shift": 0, "all": 0}
    claim = results()["columns"][0]["claims"][1]
    assert (claim["better"], claim["seeds"], claim["verdict"]) == ("linear", 1, "undecided")


def test_an_interrupted_table_goes_on(words, monkeypatch):
    """A signal in the second run: the first stays as it was, the second is gone on with."""
    from mixerflow.training.loop import Trainer

    plain, steps = Trainer.advance, []

    def advance(self):
        steps.append(self.step)
        if len(steps) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self)

    monkeypatch.setattr(Trainer, "advance", advance)
    words = [*words, "--seeds", "1", "--rows", "basic,linear"]
    assert main(words) == 130
    first = rows()
    assert len(first["basic"]["runs"]) == 1
    assert first["linear"]["runs"] == []
    assert results()["left_out"] == ["linear, seed 0: not finished"]
    assert main(words) == 0
    assert steps == [*range(6), *range(6)], "no step twice"
    last = rows()
    assert last["basic"] == first["basic"]
    # and the figures are those of a run that was never stopped
    assert main([*words, "--runs", "other", "--out", "others/table-10"]) == 0
    whole = rows("others/table-10/tiny.json")["linear"]
    assert whole["bits_per_dim"] == last["linear"]["bits_per_dim"]


def test_runs_of_other_settings_are_refused_and_not_counted(words, capsys):
    words = [*words, "--seeds", "1", "--rows", "basic"]
    assert main(words) == 0
    path = "runs/table-10/tiny/basic/seed-0/run.json"
    with open(path) as file:
        header = json.load(file)
    del header["crc32"]  # as whoever changes it by hand does
    del header["model"]["pixels"]["levels"]  # as if written before there was such a setting
    with open(path, "w") as file:
        json.dump(header, file)
    assert main(words) == 0
    header["train"]["lr"] = 0.5
    with open(path, "w") as file:
        json.dump(header, file)
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: another run is here: its train.lr is 0.5, not 0.005: ")
    assert "--runs" in said
    assert rows()["basic"]["runs"] == []
    assert "train.lr" in results()["left_out"][0]


def test_data_without_test_images_are_judged_by_those_held_out(words):
    with np.load("made.npz") as made:
        np.save("train.npy", made["train_images"])
    words[words.index("made.npz")] = "train.npy"
    assert main([*words, "--seeds", "1", "--rows", "basic"]) == 0
    assert rows()["basic"]["runs"][0]["split"] == "validation"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["table-01"], 2, "did you mean table-1?"),
        (["table-10", "--rows", "basic,liner"], 2, "did you mean linear?"),
        (["table-10", "--seeds", "0"], 2, "--seeds"),
        (["table-10", "--threads", "-1"], 2, "--threads"),
        (["table-10", "--budget", "huge"], 2, "--budget"),
        (["table-10", "--data", "/no/such/file"], 3, "/no/such/file"),
        (["report"], 2, "no tables so far"),
    ],
)
def test_errors_are_one_line(arguments, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_the_list(capsys):
    assert main(["reproduce", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in TABLES)


def test_an_empty_table_is_a_table(tmp_path):
    said = markdown_text(collect(TABLES["table-10"], "cpu", tmp_path))
    assert "| Basic | 3.81 |  | 0 | 10.71M |" in said
    assert "undecided (seeds: 0)" in said


def test_each_column_has_its_own_images(tmp_path, capsys):
    arguments = [
        "table-3",
        "--budget",
        "tiny",
        "--data",
        "mnist=/no/such",
        "--data",
        "cifar10=/not",
    ]
    assert main(["reproduce", *arguments, "--runs", str(tmp_path), "--rows", "made-mnist"]) == 3
    assert "/no/such" in capsys.readouterr().err
    assert main(["reproduce", *arguments, "--runs", str(tmp_path), "--rows", "made-cifar10"]) == 3
    assert "/not" in capsys.readouterr().err
    assert main(["reproduce", "table-3", "--budget", "tiny", "--data", "a", "--data", "b"]) == 2
    assert "--data mnist=IMAGES --data cifar10=IMAGES" in capsys.readouterr().err
