"""Mistakes in the words of a command are one line that names the fault and the way out."""

import os
import re

import pytest

from helpers import OF_RUNS, TO, small_run
from mixerflow import launch
from mixerflow.cli import info, main, pages
from mixerflow.parts import Model
from mixerflow.terminal import console


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("mistakes"))


def told(capsys, *words):
    """Exit code and the one line of an error."""
    code, said = main([str(word) for word in words]), capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return code, said.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("there", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize(
    "command",
    ["train", "info", *OF_RUNS],
)
def test_a_path_without_a_run_is_code_4_for_every_command(command, there, tmp_path, capsys):
    path = tmp_path / "nothing"
    if there:
        path.mkdir()
    more = TO.get(command, [])
    code, line = told(capsys, command, path, *more)
    assert code == 4 and line.startswith(f"no run here: {path}: name a folder that")


@pytest.mark.parametrize("command", ["train", "info", "evaluate", "report"])
def test_a_run_whose_description_is_no_file_says_so(command, tmp_path, capsys):
    os.mkfifo(tmp_path / "run.json")
    code, line = told(capsys, command, tmp_path)
    assert code == 4 and line.startswith(f"cannot read (it is no file): {tmp_path / 'run.json'}: ")


def test_a_bare_word_names_a_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixerflow-tiny").mkdir()  # a folder that is no run does not hide a recipe
    assert main(["info", "mixerflow-tiny"]) == 0
    capsys.readouterr()
    code, line = told(capsys, "info", "mixerflow-tny")
    assert code == 2 and line.startswith("no such recipe: mixerflow-tny: did you mean")


def test_a_missing_start_is_known_before_images_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mixerflow.cli.train.load_data", lambda *_, **__: pytest.fail("read"))
    missing, out = tmp_path / "missing", tmp_path / "out"
    code, line = told(capsys, "train", "mixerflow-tiny", "--from", missing, "--out", out)
    assert code == 4 and line.startswith(f"no run here: {missing}: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["report"], "no run given: mixerflow report: see mixerflow report --help"),
        (["publish"], "no run given: mixerflow publish: see mixerflow publish --help"),
        (["sample", "RUN", "--number"], "Missing value for argument '-n/--number'. Expected 1"),
        (["report", "RUN", "more"], "Unrecognized options: more: mixerflow report: see"),
        (["info", "--model.layers", "2"], "no recipe: mixerflow info RECIPE: name one before its"),
    ],
)
def test_words_that_are_missing_or_too_many(words, line, made, capsys):
    code, said = told(capsys, *(str(made) if word == "RUN" else word for word in words))
    assert code == 2 and said.startswith(line) and "---" not in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no command: mixerflow.launch: name one after torchrun's flags"),
        (["--nproc-per-node=2"], "no command: mixerflow.launch: name one after"),
        (["--foo", "train"], "unrecognized arguments: --foo: torchrun's flags: see"),
        (["--nproc-per-node=x", "train", "a"], "Unsupported nproc_per_node value: x: torchrun's"),
    ],
)
def test_mistakes_in_the_words_of_the_launcher(words, line, capsys):
    assert launch.main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"error: {line}") and said.err.count("\n") == 1


@pytest.mark.parametrize("columns", [80, 60, 40])
@pytest.mark.parametrize("words", [[], ["mixerflow-tiny"]], ids=["list", "chain"])
def test_info_fits_the_terminal(words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["info", *words]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns == console().width
    assert "…" not in said and "..." not in said
    if not words:
        assert len(re.findall(r"^ *mixerflow-mnist\b(?!-)", said, re.MULTILINE)) == 1
        return
    assert re.search(r"^      1  mixer layer:.* 105,878  $", said, re.MULTILINE)
    assert ("1 x 28 x 28" in said) == (columns > 40)
    assert re.search(r"^         \S", said, re.MULTILINE)  # later lines of a part
    assert not re.search(r"^  (49|2:26|7,)", said, re.MULTILINE)


def test_info_builds_the_model_of_a_run_once(made, capsys, monkeypatch):
    built, build = [], Model.build
    monkeypatch.setattr(Model, "build", lambda *given: built.append(given) or build(*given))
    assert main(["info", str(made)]) == 0 and len(built) == 1
    table = capsys.readouterr().out.split("\n", 1)[1]
    assert info.main([str(made), "--shape", "1", "8", "8"]) == 0 and len(built) > 2
    assert capsys.readouterr().out.split("\n", 1)[1] != table


def test_pages_that_are_read_count_as_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pages, "active", True)
    pages.keep("shown", "key")
    (mine,) = (tmp_path / "mixerflow" / "commands").iterdir()
    os.utime(mine, (0, 0))  # written long ago, and read today
    assert pages.read("key") == "shown"
    monkeypatch.setattr(pages, "_installed", lambda: "another source")
    pages.keep("shown", "key")
    assert mine.exists()
