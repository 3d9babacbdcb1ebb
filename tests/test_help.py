"""Help, `info` and mistakes in the words: known without torch once a command has kept them."""

import os
import subprocess
import sys

import pytest

from mixerflow.cli import early, main, pages
from mixerflow.errors import ConfigError, MixerFlowError

RUN = """
import sys
from mixerflow.cli import main
try:
    code = main(sys.argv[1:])
finally:
    print(f"torch {'torch' in sys.modules}", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def fresh(cache, *words, columns="80", program=RUN):
    """Exit code, stdout, stderr of a command in a process of its own, and whether torch came."""
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=os.environ | {"XDG_CACHE_HOME": str(cache), "COLUMNS": columns},
        capture_output=True,
        text=True,
        timeout=120,
    )
    *errors, last = done.stderr.splitlines()
    return done.returncode, done.stdout, "\n".join(errors), last == "torch True"


WITHOUT_TORCH = """
import sys
from mixerflow.cli import main, pages

pages.active = True
pages.keep("the page\\n", *pages.page_of("train", ["mixerflow-tiny", "--help"]))
pages.keep(["mixerflow-tiny"], "recipes")
known = {"flags": ["--from", "--data"], "settings": []}
pages.keep(known, "flags", "mixerflow train mixerflow-tiny")
commands = ["train mixerflow-tiny --help", "train mixerflow-tny", "train mixerflow-tiny --frm x"]
commands += ["evaluate /no/such", "train mixerflow-tiny --data /no/such"]
print([main(words.split()) for words in commands], "torch" in sys.modules)
"""


def test_what_is_kept_needs_no_torch(tmp_path):
    _, said, errors, _ = fresh(tmp_path, program=WITHOUT_TORCH + "sys.stderr.write('.')")
    assert said == "the page\n[0, 2, 2, 4, 3] False\n"
    assert errors.count("did you mean") == 2 and errors.count("\n") == 3


@pytest.mark.slow
def test_what_was_shown_before_needs_no_torch(cache):
    first = fresh(cache, "info", "mixerflow-cifar10")
    assert first[3] and fresh(cache, "info", "mixerflow-cifar10") == (*first[:3], False)
    lines = first[1].splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 45
    assert any(line.strip().startswith("29-30  as 1-3") for line in lines)
    helped = fresh(cache, "train", "mixerflow-tiny", "--help")
    assert helped[3] and "--model.flow.net.width" in helped[1] and not helped[0]
    assert fresh(cache, "train", "mixerflow-tiny", "--help") == (*helped[:3], False)
    for words in (["train", "mixerflow-cifr10"], ["train", "mixerflow-tiny", "--frm", "x"]):
        code, said, error, torch = fresh(cache, *words)
        assert (code, said, torch) == (2, "", False) and "did you mean" in error
    code, _, error, torch = fresh(cache, "train", "mixerflow-tiny", "--data", "/no/such")
    assert code == 3 and "no such path: /no/such" in error and not torch
    code, _, error, torch = fresh(cache, "evaluate", "/no/such")
    assert code == 4 and "no run here: /no/such" in error and not torch


@pytest.fixture
def keeping(monkeypatch, tmp_path):
    """A process that keeps and reads, as that of a command does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pages, "active", True)
    return tmp_path / "cache" / "mixerflow" / "commands"


def test_a_program_with_classes_of_its_own_neither_reads_nor_keeps(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["info"]) == 0  # here everything is imported already
    assert not (tmp_path / "mixerflow" / "commands").exists()


def test_pages_are_of_the_words_the_source_and_the_terminal(keeping, monkeypatch, tmp_path):
    def page():
        return pages.page_of("info", ["a"])

    pages.keep("shown", *page())
    assert pages.read(*page()) == "shown"
    pages.keep("shown again", *page())
    assert pages.read(*page()) == "shown"  # nothing is written twice
    assert pages.read(*pages.page_of("info", ["b"])) is None
    for name, value in (("COLUMNS", "41"), ("CC", "no-compiler"), ("MIXERFLOW_KERNELS", "0")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert pages.read(*page()) is None
    with monkeypatch.context() as changed:
        changed.setattr(pages, "_installed", lambda: "another source")
        assert pages.read(*page()) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert page() is None  # a folder, and no run
    (tmp_path / "a" / "run.json").write_text("{}")
    assert page() is not None and pages.read(*page()) is None
    assert pages.page_of("train", ["a"]) is None and pages.page_of("train", ["-h"]) is not None
    (file,) = keeping.glob("*/*.json")
    (tmp_path / "a" / "run.json").unlink()
    (tmp_path / "a").rmdir()
    file.write_text('"sho')  # damaged
    assert pages.read(*page()) is None
    pages.keep("mended", *page())
    assert pages.read(*page()) == "mended"


def test_what_others_kept_long_ago_is_removed(keeping):
    for name in ("old", "new"):
        (keeping / name).mkdir(parents=True)
    os.utime(keeping / "old", (0, 0))
    pages.keep("shown", "key")
    assert sorted(path.name == "new" for path in keeping.iterdir()) == [False, True]


def test_no_cache_is_no_error(keeping, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    pages.keep("shown", "key")
    assert pages.read("key") is None


def error_of(work) -> MixerFlowError:
    with pytest.raises(MixerFlowError) as caught:
        work()
    return caught.value


MISTAKES = [
    ["train", "mixerflow-tny"],
    ["train", "mixerflow-tiny", "--bach", "3"],
    ["train", "mixerflow-tiny", "--train.bach=3"],
    ["evaluate", "/no/such", "--foo"],
    ["evaluate", "/no/such"],
    ["sample", "/no/such"],
    ["train", "mixerflow-tiny", "--data", "/no/such"],
]


def test_early_errors_are_those_of_the_commands(keeping, capsys, monkeypatch):
    """`main` looks for no mistake early here, but lets its commands keep what they know."""
    monkeypatch.setattr("mixerflow.cli.commands.early.refuse", lambda command, words: None)
    codes, lines = [], []
    for words in MISTAKES:
        monkeypatch.setattr(pages, "active", True)
        codes.append(_main_keeping(words, monkeypatch))
        lines.append(capsys.readouterr().err)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(keeping.parents[1]))
    monkeypatch.setattr(pages, "active", True)
    for words, code, line in zip(MISTAKES, codes, lines, strict=True):
        error = error_of(lambda words=words: early.refuse(words[0], words[1:]))
        assert (error.exit_code, f"error: {error}\n") == (code, line)


def _main_keeping(words, monkeypatch):
    from mixerflow.cli import commands

    command, *rest = words
    module, function = commands._COMMANDS[command][0].split(".")
    work = getattr(__import__(f"mixerflow.cli.{module}", fromlist=["x"]), function)
    try:
        return work(rest)
    except MixerFlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def test_what_may_be_right_is_left_to_the_command(keeping):
    pages.keep(["mixerflow-tiny"], "recipes")
    known = {"flags": ["--train.batch", "--model.flow"], "settings": ["width", "shift_every"]}
    pages.keep(known, "flags", "mixerflow train mixerflow-tiny")
    for words in (
        ["--model.flow.net.width", "3"],  # of a part that another flag may choose
        ["--model.no-shift-every"],
        ["--train.batch", "3", "--bach", "--help"],
        ["--train.batch=8"],
    ):
        early.refuse("train", ["mixerflow-tiny", *words])
    early.refuse("train", [])
    early.refuse("evaluate", ["--seed", "3"])
    with pytest.raises(ConfigError, match="no such flag"):
        early.refuse("train", ["mixerflow-tiny", "--train.bach", "3"])
