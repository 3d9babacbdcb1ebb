"""What the commands print on any terminal, and the words they take: nothing hides, nothing dies."""

import ast
import functools
import io
import json
import math
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy as np
import pytest

from helpers import OF_RUNS, TO, small_run
from mixerflow import markdown, page
from mixerflow.cli import commands, known, main
from mixerflow.cli.train import of_recipe
from mixerflow.errors import ConfigError, DataError, MixerFlowError, printable
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import json_text
from mixerflow.terminal import any_encoding, console, quoted, say, show, tell

SOURCE = Path(commands.__file__).parents[1]
ALL = ["train", *OF_RUNS, "decompress", "reproduce", "info"]
NASTY = [
    "two\nlines",
    "tab\tand\rreturn",
    "\x1b[2Jcleared",
    "\x9b2Jcleared",
    "bell\a\b",
    "\u202edorw\u2066",
    "separated\u2028here",
    "\udcff\udc80",
    "\ud800",
    "[red]marked[/red]",
    "emoji :smile:",
    "zero\u200bwidth\u200d",
    "del\x7f",
]


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of two classes, one of which is named by a number."""
    return small_run(tmp_path_factory.mktemp("shell"))


def acts(text):
    """Whether a text has a sign that acts on a terminal, hides, or cannot be encoded."""
    return any(not c.isprintable() for c in text)


@pytest.mark.parametrize("text", NASTY)
def test_every_stream_and_file_shows_a_nasty_name_in_one_line(text, capsys, tmp_path):
    assert not acts(printable(text)) and printable(printable(text)) == printable(text)
    lines = [lambda: say(f"a {text} b"), lambda: tell(f"a {text} b")]
    bar = ProgressBar(text, 3)
    lines += [lambda: bar.say(text), lambda: show(f"a {text.replace(chr(10), '')} b")]
    for line in lines:
        line()
        shown = "".join(capsys.readouterr())
        assert shown.count("\n") == 1 and not acts(shown[:-1])
        shown.encode()
    for kind in (ConfigError, DataError):
        error = kind(f"no {text}", text, f"remove {text}")
        assert not acts(str(error)) and ("[red]" in str(error)) == ("[red]" in text)
    assert "\n" not in markdown.plain(text) and not acts(markdown.plain(text))
    written = page.write(tmp_path / "a.html", text, [page.heading(text), page.table([], [[text]])])
    assert not acts(written.read_text().replace("\n", ""))
    line = quoted("mixerflow", text)
    assert not acts(line)
    if "$'" not in line:
        assert shlex.split(line) == ["mixerflow", text]
    assert json.loads(json_text({"name": text})) == {"name": text}


def test_a_shell_reads_back_what_is_quoted():
    for text in ("two\nlines", "it's\ta", "\x1b[2J\\n", "\udcff", "a b", "$(ls)"):
        told = subprocess.run(["bash", "-c", f"printf %s {quoted(text)}"], capture_output=True)
        assert told.stdout == text.encode("utf-8", "surrogateescape")


def test_a_table_shows_markup_as_it_is(capsys):
    from rich.table import Table

    table = Table("[bold]name[/bold]")
    table.add_row("[red]a\x1b[2J[/red]")
    show(table)
    shown = capsys.readouterr().out
    assert "[bold]name[/bold]" in shown and r"[red]a\x1b[2J[/red]" in shown
    assert console().encoding


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("command", ["evaluate", "train", "info", "report"])
def test_an_error_about_a_nasty_name_is_one_line(command, name, capsys):
    assert run(command, name) in (2, 4)
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    assert not acts(said.err[:-1]) and not said.out


def in_ascii(*words):
    """Exit code, stdout and stderr of a command on a terminal that knows ASCII only."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            code = run(*words)
        except SystemExit as ended:
            code = ended.code
    for stream in streams:
        stream.flush()
    return code, *(stream.buffer.getvalue().decode("ascii") for stream in streams)


@pytest.mark.parametrize("command", ALL)
def test_help_in_ascii(command):
    code, told, errors = in_ascii(command, "--help")
    assert code == 0 and "usage" in told and not errors


def test_commands_in_ascii(made, tmp_path):
    told = ""
    for words in (
        ["evaluate", made, "--images", 3, "--importance-samples", 2],
        ["sample", made, "-n", 2, "--out", tmp_path / "a.png"],
        ["report", made, "--out", tmp_path / "a.html"],
        ["publish", made, "--to", tmp_path / "w", "--images", 3],
        ["info", made],
        ["info"],
        ["reproduce"],
    ):
        code, said, errors = in_ascii(*words)
        assert code == 0 and "error" not in errors, errors
        told += said
    assert "+-" in told and "bits/dim" in told and "importance-" in told
    assert not re.search(r"\\x|\\u", told)


def test_streams_are_as_before_afterwards(capsys):
    before = sys.stdout.errors
    with any_encoding():
        assert sys.stdout.errors != before
    assert sys.stdout.errors == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_json_has_null_and_the_reason(value):
    record = {"a": 1.5, "b": [1, {"c": value}], "d": (value,)}
    read = json.loads(json_text(record), parse_constant=lambda word: pytest.fail(word))
    assert read["b"][1]["c"] is None and read["d"] == [None] and read["a"] == 1.5
    assert read["not_finite"] == {"b.1.c": str(value), "d.0": str(value)}
    assert "not_finite" not in json.loads(json_text({"a": 1.0}))


@functools.cache
def flags_of(command):
    """The flags of a command, from its help."""
    told = io.StringIO()
    parts = ["mixerflow-tiny", "--model.classes.count", 2, "--train.optimizer", "muon"]
    with redirect_stdout(told), suppress(SystemExit):
        run(command, *(parts if command == "train" else []), "--help")
    return set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*", told.getvalue()))


def words_of(path):
    """The texts in a file's errors: of calls that end in Error, and of what they are given."""
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in documented and not node.value.startswith('"""'):
                yield node.value


COMMAND_FILES = {"train": "train", "evaluate": "evaluate", "sample": "sample", "report": "report"}
COMMAND_FILES |= {"probe": "probe", "publish": "publish", "reproduce": "reproduce"}


def test_every_flag_that_the_source_names_is_some_commands():
    flags = {command: flags_of(command) for command in ALL}
    any_command = set.union(*flags.values()) | {"--debug", "--version", "--list"}
    pattern = r"(?<![\w`-])--[a-z][a-z-]*(?:\.[a-z-]+)*(?![.\w])"
    for path in SOURCE.rglob("*.py"):
        for text in words_of(path):
            named = set(re.findall(pattern, text)) - {"--nproc-per-node", "--no-"}
            assert named <= any_command, (path, text)
    for command, file in COMMAND_FILES.items():  # their own errors are not translated in vain
        for text in words_of(SOURCE / "cli" / f"{file}.py"):
            named = set(re.findall(r"^--[a-z][a-z-]*", text)) - {"--list"}
            assert named <= flags[command] | flags["publish"], (file, text)


@pytest.mark.parametrize("command", ALL)
def test_an_error_names_the_flags_of_its_command_and_no_others(command, monkeypatch, capsys):
    flags = flags_of(command)
    everything = set.union(*(flags_of(each) for each in ("train", "evaluate", "publish")))
    monkeypatch.setattr(known, "flags", flags)
    for flag in sorted(everything):
        problem = MixerFlowError("wrong", flag, f"give {flag} 3, or end it")
        name = "begin" if flag == "--from" else flag.rpartition("-")[2].rpartition(".")[2]
        assert "--" not in str(problem) and name in str(problem)
        assert commands._report(problem) == 1
        told = capsys.readouterr().err
        assert (flag in told) == (flag in flags)
        assert told.endswith(f"give {flag} 3, or end it\n" if flag in flags else ": end it\n")


def test_memory_is_saved_by_flags_that_there_are(monkeypatch):
    for flags, words in (({"--batch"}, "smaller --batch"), ({"--data"}, "end other programs")):
        monkeypatch.setattr(known, "flags", flags)
        assert words in str(commands._as_one_line(MemoryError()).remedy)


def test_whole_commands_and_paths_are_left_as_they_are():
    error = ConfigError("x", Path("a --lr"), "`mixerflow train RUN --from-step 3`")
    assert str(error) == "x: a --lr: `mixerflow train RUN --from-step 3`"
    assert error.for_command({"--data"}) == str(error)
    assert str(ConfigError("x", "--train.graph", "say --train.no-graph")).endswith("graph=False")


@pytest.mark.parametrize("word", ["", " ", "\t"])
@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", None],
        ["info", None],
        ["train", None],
        ["report", None],
        ["evaluate", "x", "--data", None],
        ["sample", "x", "--out", None],
        ["sample", "x", "--files", None],
        ["publish", "x", "--to", None],
        ["train", "mixerflow-tiny", "--from", None],
        ["train", "mixerflow-tiny", "--out", None],
        ["train", "mixerflow-tiny", "--cache", None],
        ["reproduce", "table-10", "--runs", None],
    ],
)
def test_empty_words_are_refused(words, word, capsys):
    forms = [[word if each is None else each for each in words]]
    if len(words) > 2:
        forms.append([*words[:-2], f"{words[-2]}={word}"])
    for form in forms:
        assert run(*form) == 2
        told = capsys.readouterr().err
        assert "an empty value" in told and told.count("\n") == 1
        assert words[-2] in told


@pytest.mark.parametrize(
    "command",
    [*OF_RUNS, "info", "train"],
)
def test_paths_that_are_no_run_folder(command, made, capsys):
    to = TO.get(command, [])
    for part in ("report.html", "checkpoints", "checkpoints/step-2", "run.json"):
        assert run(command, made / part, *to) == 2
        told = capsys.readouterr().err
        assert f"name the run folder, {made}" in told and told.count("\n") == 1
    for path in ("a" * 300, "/".join(["a" * 200] * 30)):
        assert run(command, path, *to) == 2
        told = capsys.readouterr().err
        assert "File name too long" in told and told.count("\n") == 1 and len(told) < 200


def test_weights_to_begin_from_are_checked_too(made, capsys):
    assert run("train", "mixerflow-tiny", "--from", made / "checkpoints") == 2
    assert "name the run folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ALL)
def test_threads_everywhere(command, made, capsys):
    first = {"reproduce": "table-10", "info": "mixerflow-tiny", "train": "mixerflow-tiny"}
    words = [command, first.get(command, made), *TO.get(command, [])]
    assert run(*words, "-j", "-1") == 2
    told = capsys.readouterr()
    assert "-1 threads: --threads" in told.err and told.err.count("\n") == 1


def test_classes_by_name(made, tmp_path, capsys):
    def drawn(label):
        out = tmp_path / f"{label}.png"
        assert run("sample", made, "-n", 2, "--label", label, "--out", out) == 0
        return out.read_bytes()

    assert drawn("cat") == drawn("1")  # no class is named 1: the number of "cat"
    assert drawn("0") != drawn("cat")  # a name that is a number is that name
    capsys.readouterr()
    for label in ("dog", "2", "-1", "Cat"):
        assert run("sample", made, "--label", label) == 2
        told = capsys.readouterr().err
        assert "choose one of 0, cat, or 0 to 1" in told and told.count("\n") == 1


def test_a_setting_of_another_choice_names_the_choice(capsys):
    for flag, first in (
        ("--train.schedule.cooldown", "--train.schedule constant"),
        ("--model.flow.net.grid", "--model.flow.net kan"),
    ):
        for words in ([flag, "1"], [f"{flag}=1"]):
            assert run("train", "mixerflow-tiny", *words) == 2
            assert f"no such flag: {flag}: choose {first} first" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["{}=none", "{} none"])
def test_none_is_a_value_of_every_optional_setting(form):
    optional = ["--steps", "--from", "--cache", "--train.minutes", "--train.schedule-steps"]
    words = [form.format(flag) for flag in [*optional, "--model.pixels.levels"]]
    given = of_recipe("mixerflow-tiny", " ".join(words).split())
    assert given.train.minutes is None and given.train.schedule_steps is None
    assert (given.steps, given.weights, given.cache, given.model.pixels.levels) == (None,) * 4
