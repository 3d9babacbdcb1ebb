"""Results are printed before they are kept, and what cannot be kept is said."""

import errno
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers import flow_of, images, small_run
from mixerflow import pictures, runs
from mixerflow.cli import main
from mixerflow.cli.train import _print_result
from mixerflow.data import Splits, make_images
from mixerflow.errors import DataError
from mixerflow.experiments import outputs, table
from mixerflow.experiments.reproduce import reproduce
from mixerflow.experiments.runs import Run
from mixerflow.runs import RunFolder, files
from mixerflow.temporary import sweep, temporary_path
from mixerflow.training import Trained

pytestmark = pytest.mark.filterwarnings(
    "always:no draws are kept", "always:the codecs' figures are not kept"
)


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def made(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


def block(path):
    """Make a path that nobody can write below, root neither."""
    path.touch()
    return path


@pytest.fixture
def full(monkeypatch):
    """A disk that is full for all new files."""

    def fails(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "replacing", fails)
    monkeypatch.setattr(Path, "write_bytes", fails)


def test_evaluate_gives_its_figure_where_nothing_can_be_kept(made, capsys):
    assert run("evaluate", made, "--no-codecs", "--json", "--images", 4) == 0
    wanted = json.loads(capsys.readouterr().out)
    shutil.rmtree(made / "evaluations")
    block(made / "evaluations")
    assert run("evaluate", made, "--no-codecs", "--json", "--images", 4) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["bits_per_dim"] == wanted["bits_per_dim"]
    _, first, second = said.err.splitlines()  # the first line says what was read
    assert first.startswith("warning: no draws are kept, so the evaluation cannot go on")
    assert second.startswith("warning: the figure is not kept: ")


@pytest.mark.parametrize("number", [1, 3])
def test_evaluate_on_a_full_disk(made, full, number, capsys):
    assert run("evaluate", made, "--images", 4, "--importance-samples", number) == 0
    said = capsys.readouterr()
    assert "bits/dim" in said.out and "webp" in said.out
    assert "warning: the figure is not kept: disk full" in said.err


def test_a_disk_that_fills_does_not_end_an_evaluation(made, monkeypatch, capsys):
    monkeypatch.setattr("mixerflow.runs.evaluations._SECONDS_BETWEEN_SAVES", 0.0)
    replacing = files.replacing

    def replacing_some(path, **given):
        if path.parent.name == "evaluations" and "draws-" in path.name:
            raise OSError(errno.EDQUOT, "quota")
        return replacing(path, **given)

    monkeypatch.setattr(files, "replacing", replacing_some)
    assert run("evaluate", made, "--no-codecs", "--batch", 1, "--images", 4) == 0
    said = capsys.readouterr()
    assert said.err.count("warning: no draws are kept") == 1 and "bits/dim" in said.out
    assert list((made / "evaluations").glob("*.json"))


def never(*_, **__):
    raise AssertionError("worked, for a result that cannot be written")


@pytest.mark.parametrize("command", ["report", "sample", "publish"])
def test_what_only_makes_a_file_refuses_before_it_works(
    command, made, monkeypatch, tmp_path, capsys
):
    for target in ("mixerflow.cli.sample.draw_pixels", "mixerflow.runs.Evaluator.score"):
        monkeypatch.setattr(target, never)
    monkeypatch.setattr("mixerflow.report.make_report", never)
    block(made / "samples")
    (made / "report.html").mkdir()
    place = block(tmp_path / "w") / "a.png"
    words = ["--to", place] if command == "publish" else []
    assert run(command, made, *words) == 5
    told = capsys.readouterr().err
    assert told.splitlines()[-1].startswith("error: cannot write")
    assert told.count("\n") <= 2  # before it, a line on what was read
    assert ("--out" in told) == (command != "publish")
    if command != "publish":
        assert run(command, made, "--out", place) == 5
        assert "--out" not in capsys.readouterr().err


def test_a_run_that_cannot_be_written_is_sampled_and_reported_elsewhere(made, tmp_path, capsys):
    block(made / "samples")
    (made / "report.html").mkdir()
    for command, name in (("sample", "a.png"), ("report", "a.html")):
        assert run(command, made, "--out", tmp_path / name) == 0
        assert (tmp_path / name).exists()
    capsys.readouterr()
    assert run("sample", made, "-n", 3, "--files", tmp_path / "files") == 0
    said = capsys.readouterr()
    assert said.err.startswith("warning: the grid is not kept") and "3 images" in said.out
    assert len(list((tmp_path / "files").iterdir())) == 3


@pytest.mark.parametrize("command", ["report", "sample", "publish"])
def test_a_disk_that_fills_costs_the_file_only(command, made, monkeypatch, tmp_path, capsys):
    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "replacing", fails)
    monkeypatch.setattr(pictures, "save", fails)
    words = {"publish": ["--to", tmp_path / "w"], "sample": ["--files", tmp_path / "f", "-n", 2]}
    assert run(command, made, *words.get(command, [])) == 5
    said = capsys.readouterr()
    assert ("clamped" if command == "sample" else "bits/dim") in said.out
    assert said.err.count("error: disk full") == (2 if command == "sample" else 1)


def test_training_gives_its_result_where_the_report_cannot_be_written(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    figure = "1.234 bits/dim"
    trained = Trained("finished", 7, figure, tmp_path, 0)
    _print_result(
        trained,
        tmp_path,
        Splits(make_images(np.zeros((3, 1, 4, 4), np.uint8), None, dataset_id="a"), None),
    )
    said = capsys.readouterr()
    assert said.out == "7 steps, validation 1.234 bits/dim\n"
    assert "warning: the report is not kept: cannot write (Is a directory)" in said.err


def test_a_table_is_printed_where_it_cannot_be_written(tmp_path, monkeypatch, capsys):
    chosen = table("table-10")
    calls = []

    def write(*_):
        calls.append(_)
        if len(calls) > 1:
            raise files.ResourceError("disk full", tmp_path)

    monkeypatch.setattr("mixerflow.experiments.outputs.write", write)
    monkeypatch.setattr("mixerflow.experiments.results.parameters", lambda *_: 1)  # which takes 4 s
    monkeypatch.setattr(Run, "train_and_score", lambda *_, **__: 0)
    with pytest.raises(files.ResourceError, match="disk full"):
        reproduce(
            chosen,
            chosen.cells[:2],
            {column.name: "fashion-mini" for column in chosen.columns},
            budget="tiny",
            seeds=1,
            runs=tmp_path / "runs",
            out=tmp_path / "out",
            device=None,
            load=lambda _: Splits(images(), None),
            command="",
        )
    said = capsys.readouterr()
    assert len(calls) == 3 and f"# {chosen.title}" in said.out
    assert said.err.count("warning: the table is not kept: disk full") == 2


@pytest.mark.parametrize("words", [["info"], ["reproduce"], []])
@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 5), (errno.EPIPE, 0)])
def test_a_stdout_that_cannot_be_written(words, number, code, monkeypatch, capsys):
    class Broken(io.TextIOWrapper):
        def write(self, text):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "stdout", Broken(io.BytesIO(), encoding="utf-8"))
    try:
        assert run(*words) == code
    except SystemExit as ended:
        assert ended.code in (None, 0)
    said = capsys.readouterr().err
    assert said.count("\n") == (number == errno.ENOSPC)
    assert ("could not be printed (No space left on device)" in said) == (code == 5)


def test_a_result_that_cannot_be_printed_is_kept(made, monkeypatch):
    class Broken(io.TextIOWrapper):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "gone")

    monkeypatch.setattr(sys, "stdout", Broken(io.BytesIO(), encoding="utf-8"))
    assert run("evaluate", made, "--no-codecs", "--images", 4) == 0
    assert list((made / "evaluations").glob("*.json"))


def test_json_of_an_evaluation_that_is_not_finite(made, monkeypatch, capsys):
    score = runs.Evaluator.score

    def broken(self, *given):
        figure = score(self, *given)
        object.__setattr__(figure, "bits_per_dim", float("nan"))
        return figure

    monkeypatch.setattr(runs.Evaluator, "score", broken)
    assert run("evaluate", made, "--no-codecs", "--json", "--images", 4) == 0
    printed = capsys.readouterr().out
    (kept,) = (made / "evaluations").glob("*.json")
    for text in (printed, kept.read_text()):
        read = json.loads(text, parse_constant=pytest.fail)
        assert read["bits_per_dim"] is None and read["not_finite"] == {"bits_per_dim": "nan"}


def test_files_of_an_earlier_draw_do_not_mix(made, tmp_path, capsys):
    folder, other = tmp_path / "files", tmp_path / "files" / "notes.txt"
    assert run("sample", made, "-n", 5, "--files", folder) == 0
    assert run("sample", made, "-n", 5, "--files", folder, "--seed", 1) == 0  # the same names
    capsys.readouterr()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run("sample", made, "-n", 2, "--files", folder) == 2
    told = capsys.readouterr().err
    assert "3 other files are there (00002.png)" in told and "--force" in told
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    other.touch()
    (folder / "1.png").touch()
    assert run("sample", made, "-n", 5, "--files", folder) == 2
    assert run("sample", made, "-n", 2, "--files", folder, "--force") == 0
    assert {p.name for p in folder.iterdir()} == {"00000.png", "00001.png", "1.png", "notes.txt"}


def test_grids_of_another_future_go(made):
    (made / "samples").mkdir()
    for name in ("step-1.png", "step-2.png", "step-30.png", "n4-t1-seed0.png", "step-x.png"):
        (made / "samples" / name).touch()
    RunFolder(made).cut_back(2)
    left = {path.name for path in (made / "samples").iterdir()}
    assert left == {"step-1.png", "step-2.png", "n4-t1-seed0.png", "step-x.png"}


def test_pictures_of_rows_that_are_no_more_go(tmp_path, monkeypatch):
    monkeypatch.setattr("mixerflow.experiments.results.parameters", lambda *_: 1)
    chosen, out = table("table-10"), tmp_path / "out"
    out.mkdir()
    old = [out / "tiny-curves.png", out / f"tiny-samples-{chosen.cells[0].name}.png"]
    stay = [out / "curves.png", out / "tiny-samples-of-mine.png"]
    for path in old + stay:
        path.touch()
    outputs.write(chosen, "tiny", tmp_path / "none", out)
    assert not any(path.exists() for path in old) and all(path.exists() for path in stay)


HOST = os.uname().nodename
DEAD = 2**22 + 1


@pytest.mark.parametrize(
    ("name", "old", "goes"),
    [
        (f".tmp-a-{DEAD}@{HOST}", False, True),
        (f".tmp-a-{DEAD}", False, True),  # as older versions wrote them
        (f".tmp-a-1@{HOST}", True, False),
        (f".tmp-a-{DEAD}@another-host", False, False),
        (f".tmp-a-{DEAD}@another-host", True, True),
        (".tmp-a-1@another-host", False, False),
        (".tmp-of-mine", True, False),
    ],
)
def test_temporaries_of_another_machine_stay_while_it_may_write(tmp_path, name, old, goes):
    (tmp_path / name).touch()
    if old:
        os.utime(tmp_path / name, (0, time.time() - 2 * 86400))
    sweep(tmp_path)
    assert (tmp_path / name).exists() != goes


def test_temporaries_of_pictures_are_swept_and_long_names_fit(tmp_path):
    grid = pictures.grid(np.zeros((1, 1, 4, 4), np.uint8))
    longest = tmp_path / ("é" * 125 + ".png")
    left = [temporary_path(longest), tmp_path / f".tmp-b.png-{DEAD}@{HOST}"]
    for path in left:
        path.touch()
    pictures.save(grid, longest)
    assert [path.name for path in tmp_path.iterdir()] == [longest.name]


def test_images_of_more_levels_than_the_run_s_are_refused():
    flow = flow_of()
    wide = make_images(np.full((5, *flow.shape), 4000, np.uint16), None, dataset_id="wide")
    with pytest.raises(DataError, match="pixels have 65,536 levels, the run's have 256: wide"):
        runs.Evaluator(wide, "test").score(flow, {})
