"""The command line: what it says, in how many lines, with which exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from mixerflow import kernels
from mixerflow.cli import main
from mixerflow.data import load as load_data
from mixerflow.evaluate import Draws
from mixerflow.pictures import installed
from mixerflow.registry import describe
from mixerflow.runs import RunFolder, labels_of, load
from mixerflow.runs.files import read_record
from mixerflow.training import Augmentation, Constant, TrainConfig

TINY = [
    "--model.layers",
    "1",
    "--model.flow.net.width",
    "8",
    "--model.flow-layers",
    "2",
    "--threads",
    "1",
]
QUICK = [*TINY, "--steps", "4", "--train.batch", "8", "--train.evaluate-images", "20"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def small_images(where):
    """Forty-two small images, as files."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 30), ("test", 12)):
        (where / split).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.integers(0, 200) + rng.integers(0, 30, (8, 12, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(where / split / f"{i}.png")
    return where


@pytest.fixture
def folder(tmp_path):
    return small_images(tmp_path / "images")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run that is made once."""
    path = tmp_path_factory.mktemp("first")
    images, out = small_images(path / "images"), path / "run"
    assert run("train", "mixerflow-tiny", "--data", images, "--out", out, *QUICK) == 0
    return out


@pytest.fixture
def trained(first, tmp_path):
    """A copy of that run."""
    return shutil.copytree(first, tmp_path / "run", symlinks=True)


def in_a_process(*arguments):
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mixerflow", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    return done, time.monotonic() - begun


def test_a_run_is_judged_as_it_was_trained(folder, tmp_path, capsys):
    """Its images are read in its own way, unless another is asked for."""
    for path in folder.glob("*/*.png"):
        with Image.open(path) as image:
            image.putalpha(200)
            image.save(path)
    out = tmp_path / "run"
    words = ["--data", folder, "--out", out, "--transparency", "white", *QUICK]
    assert run("train", "mixerflow-tiny", *words) == 0
    assert run("evaluate", out, "--images", "4") == 0
    assert run("publish", out, "--to", tmp_path / "weights") == 0
    assert run("evaluate", tmp_path / "weights", "--images", "4") == 0
    capsys.readouterr()
    assert run("evaluate", out, "--transparency", "refuse") == 3
    assert "--transparency" in capsys.readouterr().err


def test_help_is_quick_because_it_imports_little():
    done, seconds = in_a_process("--help")
    assert done.returncode == 0
    assert "mixerflow COMMAND" in done.stdout
    assert not any(name in done.stderr for name in ("torch", "numpy", "rich"))
    assert seconds < 1


COMMANDS = ["train", "evaluate", "sample", "info", "report"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        run(command, "--help")
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


HELP = """
import sys
from mixerflow.cli import main

for command in sys.argv[1:]:
    try:
        code = main([command, "--help"])  # a kept page
    except SystemExit as ended:
        code = ended.code
    assert code == 0
    print("helped with", command)
print("plots:", [name for name in sys.modules if name.startswith("matplotlib")])
"""


def test_help_needs_no_plots():
    commands = [*COMMANDS, "outliers", "reproduce"]
    done = subprocess.run(
        [sys.executable, "-c", HELP, *commands], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [c for c in commands if f"helped with {c}\n" in done.stdout] == commands
    assert done.stdout.endswith("plots: []\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], 2, "did you mean train?"),
        (["train", "mixerflow-cifar"], 2, "did you mean mixerflow-cifar10?"),
        (["train"], 2, "no recipe"),
        (["train", "mixerflow-tiny", "--model.layrs", "3"], 2, "did you mean --model.layers?"),
        (["train", "mixerflow-tiny", "--no-train.graph"], 2, "did you mean --train.no-graph?"),
        (["train", "mixerflow-tiny", "--model.layers", "x"], 2, "--model.layers"),
        (["train", "mixerflow-tiny", "--train.lr", "-1"], 2, "--train.lr"),
        (
            ["train", "mixerflow-tiny", "--model.flow", "mfa"],
            2,
            "error: no such part 'mfa': --model.flow: did you mean maf?",
        ),
        (
            ["train", "mixerflow-tiny", "--model.patching.size", "5", "--steps", "1"],
            2,
            "1, 2, 4, 7, 14, 28",
        ),
        (["train", "mixerflow-tiny", "--device", "cuda:7", "--steps", "1"], 2, "--device"),
        (["train", "mixerflow-tiny", "--data", "/no/such/folder"], 3, "/no/such/folder"),
        (["train", "mixerflow-tiny", "--data", "mnits"], 3, "mnist"),
        (["evaluate", "/no/such/run"], 4, "/no/such/run"),
        (["evaluate"], 2, "run"),
        (["sample", "/no/such/run"], 4, "/no/such/run"),
        (["train", "mixerflow-tiny", "--steps", "1e3"], 2, "'1e3' does not fit --steps"),
        (["train", "mixerflow-tiny", "--steps", "0"], 2, "--steps"),
        (["train", "mixerflow-tiny", "--threads", "-1"], 2, "--threads"),
        (["train", "mixerflow-tiny", "--threads", "100000"], 2, "--threads"),
        (["train", "mixerflow-tiny", "--train.seed", str(2**64)], 2, "--train.seed"),
        (["train", "mixerflow-tiny", "--train.augmentation.shift", "-1"], 2, "augmentation.shift:"),
        (["train", "mixerflow-tiny", "--device", "meta", "--steps", "1"], 2, "--device"),
        (["info", "mixerflow-cifr10"], 2, "did you mean mixerflow-cifar10?"),
    ],
)
def test_errors_are_one_line_with_a_code(arguments, code, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err


def test_train_evaluate_sample_and_report(trained, tmp_path, capsys):
    capsys.readouterr()
    assert run("evaluate", trained, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["split"] == "test"
    assert result["images"] == 12
    assert result["density"] == "exact"
    assert result["dequantization"] == "uniform"
    assert set(result["codecs"]) == {f"{c}, {k}" for c in installed() for k in KINDS}
    kept = list((trained / "evaluations").glob("*.json"))
    assert [json.loads(path.read_text())["bits_per_dim"] for path in kept] == [
        result["bits_per_dim"]
    ]
    assert result["importance_samples"] == 1
    assert run("evaluate", trained, "--importance-samples", 3, "--json") == 0
    weighted = json.loads(capsys.readouterr().out)
    assert weighted["importance_samples"] == 3
    assert weighted["bits_per_dim"] < result["bits_per_dim"]
    assert read_record(kept[0], "") == result  # its figure stays beside
    files = tmp_path / "files"
    assert run("sample", trained, "-n", 5, "--temperature", 0.7, "--files", files) == 0
    assert "values clamped" in capsys.readouterr().out
    assert len(list(files.glob("*.png"))) == 5
    with Image.open(files / "00000.png") as image:
        assert image.size == (12, 8)
    page = (trained / "report.html").read_text()
    for title in ("Training", "Samples", "Reconstructions", "Fewest", "Most", "Settings"):
        assert title in page
    assert "src='data:image/png;base64," in page
    assert "src='http" not in page
    assert "<script" not in page
    assert "(0 of " in page, "every pixel comes back from its latents"


KINDS = ("a file an image", "one sheet")


def evaluated(trained, capsys, *words):
    capsys.readouterr()
    assert run("evaluate", trained, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_evaluations_that_differ_have_files_of_their_own(trained, capsys):
    names, folder = set(), trained / "evaluations"
    for words in ([], ["--seed", 1], ["--raw"], ["--checkpoint", "last"]):
        before = set(folder.glob("*.json"))
        assert evaluated(trained, capsys, "--images", 2, "--no-codecs", *words)["codecs"] == {}
        names |= set(folder.glob("*.json")) - before
    assert len(names) == 4


def test_bounds_of_several_kinds_have_columns_of_their_own(trained, capsys):
    words = ["--images", 3, "--importance-samples", 20]
    curve = evaluated(trained, capsys, *words)["curve"]
    assert [bound["importance_samples"] for bound in curve] == [1, 10, 20]
    assert run("evaluate", trained, *words) == 0
    told = capsys.readouterr().out
    flow, codecs = told.split("lossless code")
    assert "3 images; exact density, uniform dequantisation\n" in flow
    assert "single-sample" in flow and flow.count("importance-") == 2
    assert "(K = 10)" in flow and "(K = 20)" in flow and "webp" in codecs
    rows = {line.split()[0]: line.split()[1:] for line in flow.splitlines() if line.strip()}
    assert rows["bits/dim"] == [f"{bound['bits_per_dim']:.3f}" for bound in curve]
    assert rows["gain"] == [f"{bound['gain']:.4f}" for bound in curve[1:]]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_evaluation_goes_on(trained, capsys, monkeypatch, number, code):
    words = ["--importance-samples", 12]
    whole = evaluated(trained, capsys, *words)
    for path in (trained / "evaluations").glob("draws-*"):
        path.unlink()
    add, added = Draws.add, []

    def add_and_signal(self, rows, log_weights):
        add(self, rows, log_weights)
        added.extend(rows)
        if len(added) == 30:
            signal.raise_signal(number)

    monkeypatch.setattr(Draws, "add", add_and_signal)
    assert run("evaluate", trained, *words, "--batch", 5, "--json") == code
    said = capsys.readouterr()
    assert said.out == "" and "stopped after 30 of 144 draws: the same command goes on" in said.err
    (kept,) = (trained / "evaluations").glob("draws-*")
    other = evaluated(trained, capsys, "--importance-samples", 12, "--seed", 1)
    assert kept.exists() and len(added) == 30 + 144  # of another seed: nothing to go on with
    goes_on = evaluated(trained, capsys, *words)
    assert len(added) == 144 + 144 and kept.exists()  # a larger K could go on from it
    assert goes_on["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], abs=1e-6)
    assert abs(other["bits_per_dim"] - whole["bits_per_dim"]) > 1e-5
    assert goes_on["curve"][1]["gain"] == pytest.approx(whole["curve"][1]["gain"], abs=1e-6)


def test_the_same_words_go_on_with_a_run_and_so_does_its_folder(folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "mixerflow-tiny", "--data", folder, "--out", out, *QUICK]
    assert run(*words) == 0
    first = json.loads((out / "run.json").read_text())["result"]
    assert run(*words) == 0
    assert run("train", out) == 0
    assert json.loads((out / "run.json").read_text())["result"] == first
    capsys.readouterr()
    assert run(*words, "--train.lr", 0.5) == 2
    assert "another run is here" in capsys.readouterr().err


def test_optimiser_schedule_and_augmentation_are_flags(folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", "mixerflow-tiny", "--data", folder, "--out", out, *QUICK]
    words += ["--train.schedule", "constant", "--train.schedule.cooldown=0.5"]
    words += ["--train.augmentation.flip", "--train.augmentation.shift", "1"]
    words += ["--train.optimizer", "adamax"]
    assert run(*words) == 0
    header = json.loads((out / "run.json").read_text())
    wanted = TrainConfig(
        optimizer="adamax",
        schedule=Constant(cooldown=0.5),
        augmentation=Augmentation(flip=True, shift=1),
    )
    changed = ("optimizer", "schedule", "augmentation")
    assert all(header["train"][name] == describe(getattr(wanted, name)) for name in changed)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == [0.01, 0.01, 2e-5, 2e-5]
    assert "cooldown_lr" in (out / "report.html").read_text()
    assert run("train", out) == 0  # its own settings are the defaults
    assert run("publish", out, "--to", tmp_path / "weights", "--images", "4") == 0
    (piece,) = json.loads((tmp_path / "weights" / "card.json").read_text())["pieces"]
    assert all(piece[name] == header["train"][name] for name in changed)
    capsys.readouterr()
    assert run("train", out, "--train.schedule", "cosine") == 2
    assert "its train.schedule is constant, not cosine" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_offered(trained, capsys):
    (last,) = {p.name for p in (trained / "checkpoints").glob("step-4")}
    path = trained / "checkpoints" / last / "ema.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert run("train", trained) == 4
    said = capsys.readouterr().err
    assert str(path) in said
    assert "--from-step" in said
    step = said.split("--from-step ")[1].split("`")[0]
    assert run("train", trained, "--from-step", step) == 0
    assert run("evaluate", trained) == 0


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_signals_save_and_exit_with_their_code(folder, tmp_path, number, code):
    out = tmp_path / "run"
    child = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mixerflow",
            "train",
            "mixerflow-tiny",
            "--data",
            str(folder),
            "--out",
            str(out),
            *TINY,
            "--steps",
            "1000000",
            "--train.batch",
            "8",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists() and time.monotonic() < deadline:
        if (out / "checkpoints" / "last").exists():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(child.pid, number)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == code, errors
    assert "resume with: mixerflow train" in said
    header = json.loads((out / "run.json").read_text())
    assert header["status"] == "interrupted"
    assert int((out / "checkpoints" / "last").read_text().split()[0]) > 0


def test_info_shows_the_papers_counts(capsys):
    for name, count in (("cifar10", 11.34), ("imagenet64", 18.90), ("mnist", 3.10)):
        assert run("info", f"mixerflow-{name}") == 0
        said = capsys.readouterr().out
        assert f"the paper's count: {count:.2f}M" in said
        assert (
            kernels.unsupported_reason(torch.zeros(1)) or "60 of 60 row flows by a kernel" in said
        )
        assert "shift layer" in said or name == "mnist"
    assert run("info") == 0
    assert "mixerflow-galaxy32-tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "--batch", "0"], "--batch"),
        (["evaluate", "--images", "0"], "--images"),
        (["evaluate", "--seed", "-1"], "--seed"),
        (["evaluate", "--device", "nonsense"], "--device"),
        (["sample", "-n", "0"], "-n"),
        (["sample", "--temperature", "inf"], "--temperature"),
        (["sample", "--temperature", "nan"], "--temperature"),
        (["sample", "--seed", str(2**64)], "--seed"),
        (["sample", "--scale", "0"], "--scale"),
        (["sample", "--label", "0"], "--label"),
        (["sample", "--out", "noending"], "--out"),
        (["train", "--out", "elsewhere"], "--out"),
    ],
)
def test_values_that_cannot_be_are_refused(trained, arguments, words, capsys):
    capsys.readouterr()
    command, *rest = arguments
    assert run(command, trained, *rest) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


@pytest.fixture
def clothes(tmp_path):
    """Make a folder of classes, each with its own brightness."""

    def make(name, *classes):
        for number, each in enumerate(classes):
            (tmp_path / name / each).mkdir(parents=True)
            for i in range(8):
                pixels = np.full((8, 12, 3), 30 * number + i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / each / f"{i}.png")
        return tmp_path / name

    return make


def test_classes_are_matched_by_name(clothes, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--model.classes.count", 3, "--out", out, *QUICK]
    assert run("train", "mixerflow-tiny", "--data", clothes("all", "a", "b", "c"), *words) == 0
    capsys.readouterr()
    assert run("evaluate", out, "--data", clothes("two", "b", "c")) == 0
    assert run("evaluate", out, "--data", clothes("other", "a", "aa", "c")) == 3
    assert "are not the run's" in capsys.readouterr().err
    assert run("sample", out, "-n", 2, "--label", 3) == 2
    assert run("sample", out, "-n", 2, "--label", 2) == 0
    assert (out / "samples" / "n2-t1-seed0-label2.png").exists()
    labels = labels_of(
        load(out), RunFolder(out).read_metadata(), load_data(str(tmp_path / "two")).train
    )
    assert sorted(set(labels.tolist())) == [1, 2]


def test_the_cache_goes_where_it_is_told(folder, tmp_path, monkeypatch):
    told = []

    def load_and_tell(spec, *, cache, **options):
        told.append(cache)
        return load_data(spec, cache=cache, **options)

    monkeypatch.setattr("mixerflow.cli.train.load_data", load_and_tell)
    words = ["--data", folder, "--out", tmp_path / "run", "--cache", tmp_path / "kept", *QUICK]
    assert run("train", "mixerflow-tiny", *words) == 0
    assert told == [tmp_path / "kept"]


def test_a_run_among_its_images_is_refused(folder, capsys):
    assert run("train", "mixerflow-tiny", "--data", folder, "--out", folder / "r", *QUICK) == 2
    assert "--out" in capsys.readouterr().err


def test_a_damaged_run_json_is_named(trained, capsys):
    (trained / "run.json").write_text("{}")
    for command in ("evaluate", "sample", "info"):
        capsys.readouterr()
        assert run(command, trained) in (2, 4)
        assert capsys.readouterr().err.count("\n") == 1
