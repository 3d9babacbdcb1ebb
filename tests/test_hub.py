"""Weights by name: those of the package, and of the hub, by a stand-in server on the loopback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import flow_of, images, settings
from hub_server import TOKEN, serving
from mixerflow import named
from mixerflow.cli import main
from mixerflow.data import load as load_data
from mixerflow.errors import CheckpointError, ConfigError, ResourceError
from mixerflow.evaluate import load_features
from mixerflow.named import HubName, hub_name
from mixerflow.runs import (
    Evaluator,
    RunFolder,
    begin_from,
    kept_fit,
    load,
    located,
    publish,
    read_metadata,
)
from mixerflow.runs.files import sealed, unsealed
from mixerflow.runs.weights import read_weights
from mixerflow.scoring import Scorer
from mixerflow.training import train
from mixers import mixer

constants = pytest.importorskip("huggingface_hub.constants")

LARGE = mixer(layers=2, flow_layers=2, hidden=40, patch=2, shift=1)


SERVED = ("ETAG_TIMEOUT", 0.5), ("DOWNLOAD_TIMEOUT", 0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps, on images of two classes in a file beside it."""
    out = tmp_path_factory.mktemp("hub") / "run"
    own = images(1200, classes=2)
    np.savez(out.parent / "own.npz", x=np.moveaxis(own.pixels, 1, -1), y=own.labels)
    data = str(out.parent / "own.npz")
    config = settings(steps=8, ema=0.5)
    metadata = {"recipe": "small", "source": {"data": data}}
    train(
        flow_of(LARGE), load_data(data).train, out=out, config=config, metadata=metadata, quiet=True
    )
    return out


@pytest.fixture(scope="module")
def published(run):
    to = run.parent / "weights"
    publish(run, to, Evaluator(images(64, 5), "test"))
    return to


@pytest.fixture(scope="module")
def address():
    with serving() as served:
        yield served


@pytest.fixture
def server(address, tmp_path, monkeypatch):
    """The server, anew for each test, with short time limits and a cache of the test's own."""
    served, url = address
    served.__init__()
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    named_values = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
    named_values |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True}
    named_values |= {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_OFFLINE": False}
    named_values |= {f"HF_HUB_{name}": value for name, value in SERVED}
    for name, value in named_values.items():
        monkeypatch.setattr(constants, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(located, "_fetched", {})
    monkeypatch.chdir(tmp_path)
    return served


def files_of(folder):
    """The files below a folder, by name."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def same(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def told(capsys, *words):
    """Exit code, stdout and the lines of stderr of a command."""
    code, said = main([str(word) for word in words]), capsys.readouterr()
    return code, said.out, said.err.splitlines()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://a/b", HubName("a/b")),
        ("hf:/a/b", HubName("a/b")),
        ("hf://A-1/b_2.c@v1.0", HubName("A-1/b_2.c", "v1.0")),
        ("hf://a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("runs/hf", None),
        ("weights/x", None),
    ],
)
def test_names_of_the_hub(text, name):
    assert hub_name(text) == hub_name(Path(text)) == name
    if name is not None:
        assert str(name) == text.replace("hf:/a", "hf://a") and hub_name(str(name)) == name


@pytest.mark.parametrize(
    "text",
    ["hf://a", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/..", "hf://a/b c", "hf://a--x/b"],
)
def test_what_is_no_name_of_the_hub(text):
    with pytest.raises(ConfigError, match="give hf://OWNER/NAME"):
        hub_name(text)


def test_weights_of_the_hub_are_bit_equal_and_pinned(server, published):
    first = server.add("me/ramps", files_of(published))
    local = load(published)
    assert same(load("hf://me/ramps"), local)
    assert same(load(Path(f"hf://me/ramps@{first}")), local)
    weights = read_weights(Path("hf://me/ramps"))
    assert weights.named == {
        "sha256": read_weights(published).sha256,
        "source": "hf://me/ramps",
        "revision": first,
    }
    assert read_metadata("hf://me/ramps") == read_metadata(published)
    second = server.add("me/ramps", {"README.md": b"nothing else"})
    server.tags["me/ramps", "v1"] = first
    located._fetched.clear()
    with pytest.raises(ConfigError, match=r"no card.json in this repository: hf://me/ramps"):
        load("hf://me/ramps")
    assert same(load(f"hf://me/ramps@{first}"), local)
    assert same(load("hf://me/ramps@v1"), local)
    assert second not in str(read_weights(Path("hf://me/ramps@v1")).path)
    with pytest.raises(ConfigError, match=r"no such revision on the hub: hf://me/ramps@v2"):
        load("hf://me/ramps@v2")


def test_a_process_sees_one_commit_and_asks_for_it_once(server, published):
    server.add("me/ramps", files_of(published))
    load("hf://me/ramps")
    asked = len(server.asked)
    server.add("me/ramps", {})
    read_weights(Path("hf://me/ramps"))
    assert kept_fit("hf://me/ramps") is None and len(server.asked) == asked


def test_only_known_files_are_fetched(server, published):
    server.add("me/ramps", files_of(published) | {"more.pt": b"x", "run.json": b"{}"})
    load("hf://me/ramps")
    wanted = {each.partition("/resolve/")[2].partition("/")[2] for each in server.asked}
    assert wanted == set(located.FILES)


def test_a_fetched_commit_needs_no_hub(server, published, monkeypatch):
    commit = server.add("me/ramps", files_of(published))
    flow = load("hf://me/ramps")
    server.fault[""] = 503
    located._fetched.clear()
    asked = len(server.asked)
    assert same(load(f"hf://me/ramps@{commit}"), flow) and len(server.asked) == asked
    with pytest.warns(UserWarning, match=rf"cannot be reached; revision {commit[:12]}, fetched"):
        assert same(load("hf://me/ramps"), flow)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    located._fetched.clear()
    assert same(load("hf://me/ramps"), flow)
    with pytest.raises(ResourceError, match=r"not among what was fetched.*unset HF_HUB_OFFLINE"):
        load("hf://me/other")


def test_files_that_others_have_changed_are_refused(server, published):
    files = files_of(published)
    data = bytearray(files["model.safetensors"])
    data[-1] ^= 1
    server.add("me/ramps", files | {"model.safetensors": bytes(data)})
    with pytest.raises(CheckpointError, match=r"SHA-256 differs\): hf://me/ramps@[0-9a-f]{40}: "):
        load("hf://me/ramps")
    server.add("me/ramps", files | {"card.json": files["card.json"].replace(b"ramps", b"ramqs")})
    with pytest.raises(CheckpointError, match=r"card.json: SHA-256 differs"):
        load("hf://me/ramps")
    server.add("me/ramps", files | {"card.json": b"[" * 100_000})
    with pytest.raises(CheckpointError, match="damaged"):
        load("hf://me/ramps")


def test_files_that_are_too_large_are_not_fetched(server, published):
    server.add("me/ramps", files_of(published))
    for file, size in (("model.safetensors", 10**7), ("card.json", 10**9), ("card.md", 2 << 20)):
        server.sizes = {file: size}
        with pytest.raises(ResourceError, match=rf"a file of {size:,} bytes, of at most"):
            load("hf://me/ramps")
        assert not [each for each in server.asked if each.startswith("GET ") and file in each]
        server.asked.clear()


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (
            401,
            ConfigError,
            "the hub refuses the token: hf://me/ramps: run `hf auth login`",
        ),
        (403, ConfigError, "the token may not do this there: hf://me/ramps"),
        (404, ConfigError, "no such repository on the hub: hf://me/ramps"),
        (429, ResourceError, "too many requests to the hub"),
        (500, ResourceError, "the hub answers 500"),
        ("hang", ResourceError, "the hub does not answer: hf://me/ramps"),
    ],
)
def test_faults_of_the_hub(server, published, fault, kind, words):
    server.add("me/ramps", files_of(published))
    server.fault["resolve"] = fault
    with pytest.raises(kind) as caught:
        load("hf://me/ramps")
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_refused_connection_and_an_unknown_repository(server, monkeypatch, capsys):
    with pytest.raises(ConfigError, match="no such repository on the hub: hf://me/none"):
        load("hf://me/none")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    code, out, lines = told(capsys, "sample", "hf://me/ramps")
    assert (code, out) == (5, "")
    remedy = "check the network, or HF_ENDPOINT"
    assert lines == [f"error: the hub cannot be reached: hf://me/ramps: {remedy}"]


def test_without_the_hubs_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixerflow\[hub\]'"):
        load("hf://me/ramps")
    code, _, lines = told(capsys, "sample", "hf://me/ramps")
    assert code == 2 and lines[0].endswith("hf://me/ramps: pip install 'mixerflow[hub]'")


def test_a_scorer_and_a_run_begin_from_the_hub(server, published, tmp_path):
    commit = server.add("me/ramps", files_of(published))
    pixels = images(5, 3).pixels
    there = Scorer("hf://me/ramps")(pixels)
    assert np.array_equal(there["bits_per_dim"], Scorer(published)(pixels)["bits_per_dim"])
    origin = begin_from(flow_of(LARGE), Path("hf://me/ramps"))
    assert (origin["path"], origin["source"]) == ("hf://me/ramps", "hf://me/ramps")
    assert origin["revision"] == commit and origin["steps"] == 8
    given = {"config": settings(steps=2), "out": tmp_path / "on", "quiet": True}
    train(flow_of(LARGE), images(200), begin=Path("hf://me/ramps"), **given)
    assert RunFolder(tmp_path / "on").read_started()["origin"] == origin
    trained = train(flow_of(LARGE), images(200), begin="hf://me/ramps", **given)  # has finished
    assert trained.step == 2


def test_train_takes_names(server, package, published, run, capsys):
    server.add("me/ramps", files_of(published))
    words = ("train", "mixerflow-tiny", "--data", run.parent / "own.npz", "--out", "out")
    for name in ("hf://me/ramps", "weights/ramps"):
        code, _, lines = told(capsys, *words, "--model.patching.shift", 0, "--from", name)
        assert code == 2 and lines[-1].startswith("error: its model.") and name in lines[-1]
        code, _, lines = told(capsys, "train", name)
        assert (code, lines) == (
            2,
            [f"error: weights, not a recipe: {name}: mixerflow train RECIPE --from {name}"],
        )
    code, _, lines = told(capsys, *words, "--from", "hf://me")
    assert code == 2 and lines[-1].startswith("error: no name of a repository of the hub: hf://me:")


def test_a_command_brings_weights_to_a_folder_here(server, published, run, capsys):
    commit = server.add("me/ramps", files_of(published))
    code, out, lines = told(capsys, "sample", "hf://me/ramps", "-n", 2)
    size = sum(map(len, files_of(published).values()))
    brought = f"brought to weights/me/ramps from hf://me/ramps, revision {commit}: "
    assert code == 0 and lines == [f"{brought}4 files, {size:,} bytes"]
    assert "in weights/me/ramps/samples/n2-t1-seed0.png" in out
    own = files_of(Path("weights/me/ramps"))
    assert files_of(published).items() <= own.items()
    assert own.keys() - files_of(published).keys() == {"source.json", "samples/n2-t1-seed0.png"}
    server.add("me/ramps", {})
    assert told(capsys, "sample", "hf://me/ramps", "-n", 2)[::2] == (0, [])  # the local one
    assert told(capsys, "sample", f"hf://me/ramps@{commit[:9]}", "-n", 2)[::2] == (0, [])
    few = ("--data", run.parent / "own.npz", "--images", 20)
    code, out, lines = told(capsys, "evaluate", "weights/me/ramps", "--json", *few)
    assert code == 0 and json.loads(out)["weights"] == {
        "checkpoint": "best",
        "averaged": True,
        "sha256": read_weights(published).sha256,
        "source": "hf://me/ramps",
        "revision": commit,
    }
    assert list(Path("weights/me").iterdir()) == [Path("weights/me/ramps")]


def test_a_folder_of_another_revision_is_in_the_way(server, published, capsys):
    first = server.add("me/ramps", files_of(published))
    assert told(capsys, "sample", "hf://me/ramps", "-n", 2)[0] == 0
    second = server.add("me/ramps", files_of(published) | {"card.md": b"another"})
    located._fetched.clear()
    code, out, lines = told(capsys, "sample", f"hf://me/ramps@{second}", "-n", 2)
    there = f"error: revision {first[:12]} is there, and {second} is {second[:12]}"
    assert (code, out) == (2, "") and lines[0].startswith(f"{there}: weights/me/ramps: move it")
    server.tags["me/ramps", "v1"] = first
    assert told(capsys, "sample", "hf://me/ramps@v1", "-n", 2)[0] == 0
    shutil.rmtree("weights")
    shutil.copytree(published, "weights/me/ramps")
    code, _, lines = told(capsys, "sample", "hf://me/ramps", "-n", 2)
    assert code == 0 and lines[0].startswith("weights/me/ramps, which is here, is used")
    code, _, lines = told(capsys, "sample", "hf://me/ramps@v1", "-n", 2)
    assert code == 2 and lines[0].startswith("error: other weights than hf://me/ramps@v1 are there")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(server, published, tmp_path, capsys):
    server.add("me/ramps", files_of(published))
    (tmp_path / "weights").mkdir(mode=0o500)
    code, _, lines = told(capsys, "sample", "hf://me/ramps")
    assert code == 5 and lines[0].startswith("error: cannot write (Permission denied): weights")


def test_a_file_in_the_folders_place_is_one_line(server, published, tmp_path, capsys):
    server.add("me/ramps", files_of(published))
    (tmp_path / "weights").write_text("mine")
    code, _, lines = told(capsys, "sample", "hf://me/ramps")
    assert code == 5 and len(lines) == 1 and lines[0].startswith("error: cannot write (")
    assert (tmp_path / "weights").read_text() == "mine"


@pytest.fixture
def package(published, tmp_path, monkeypatch):
    """A package that ships the published weights as ``weights/ramps``."""
    shutil.copytree(published, tmp_path / "package" / "ramps")
    monkeypatch.setattr(named, "SHIPPED", tmp_path / "package")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "package"


def test_weights_that_ship_are_found_by_name(package, published):
    assert same(load("weights/ramps"), load(published))
    assert read_metadata("weights/ramps") == read_metadata(published)
    assert kept_fit("weights/ramps") is None
    origin = begin_from(flow_of(LARGE), Path("weights/ramps"))
    assert (origin["path"], origin["source"]) == ("weights/ramps", "weights/ramps")
    shutil.copytree(published, "weights/ramps")
    assert read_weights(Path("weights/ramps")).path == Path("weights/ramps")  # what is here
    assert not list(Path().rglob("source.json"))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("weights/ramqs", "did you mean weights/ramps?"),
        ("weights/other-ones", "choose one of weights/ramps"),
    ],
)
def test_unknown_names(package, name, remedy, capsys):
    with pytest.raises(CheckpointError, match=rf"no such weights: {name}: ") as caught:
        load(name)
    assert str(caught.value).endswith(remedy)
    for command in ("sample", "info", "train"):
        assert told(capsys, command, name) == (4, "", [f"error: {caught.value}"])
    words = ("train", "mixerflow-tiny", "--from", name)
    assert told(capsys, *words) == (4, "", [f"error: {caught.value}"])


def test_commands_take_weights_that_ship(package, published, run, tmp_path, capsys):
    assert told(capsys, "info")[1].count("weights/ramps") == 1
    assert "published, 8 steps" in told(capsys, "info", "weights/ramps")[1]
    assert not Path("weights").exists()
    remedy = "mixerflow train RECIPE --from weights/ramps"
    assert told(capsys, "train", "weights/ramps")[2] == [
        f"error: weights, not a recipe: weights/ramps: {remedy}"
    ]
    code, out, lines = told(capsys, "sample", "weights/ramps", "-n", 2)
    assert code == 0 and "in weights/ramps/samples/n2-t1-seed0.png" in out
    assert len(lines) == 1 and lines[0].startswith("brought to weights/ramps from the package: 4")
    assert same(load("weights/ramps"), load(published))
    assert told(capsys, "sample", "weights/ramps", "-n", 2)[::2] == (0, [])


def test_names_are_known_without_torch(package):
    code = f"""
import sys, pathlib
from mixerflow import named
named.SHIPPED = pathlib.Path({str(package)!r})
from mixerflow.cli import main
assert main(["sample", "weights/ramqs"]) == 4
assert main(["sample", "hf://x"]) == 2
assert "torch" not in sys.modules and "huggingface_hub" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    said = ["no such weights: weights/ramqs", "no name of a repository of the hub: hf://x"]
    assert [line[7:].rpartition(": ")[0] for line in done.stderr.splitlines()] == said


@pytest.fixture
def signed_in(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return server


def front(text):
    """The entries at the head of a model card, whose values are JSON."""
    _, head, rest = text.split("---\n", 2)
    return {k: json.loads(v) for k, v in (line.split(": ", 1) for line in head.splitlines())}, rest


def test_a_run_is_published_and_pushed_in_one_commit(signed_in, run, capsys):
    data = ("--data", run.parent / "own.npz", "--images", 50)
    push = ("--push", "me/ramps", "--license", "apache-2.0", "--private", "--thresholds")
    code, out, lines = told(capsys, "publish", run, "--to", "out", *data, *push)
    assert code == 0, lines
    (_, made), (commit, files) = signed_in.repositories["me/ramps"]
    assert list(made) == [".gitattributes"] and signed_in.private["me/ramps"]
    url = f"{constants.ENDPOINT}/me/ramps"
    assert out.splitlines()[-1] == f"pushed to {url}, commit {commit}"
    own = files_of(Path("out"))
    assert own.keys() == set(located.FILES)
    assert files.keys() == {*own, ".gitattributes", "README.md"}
    assert own.items() <= files.items()
    assert set(signed_in.large.values()) == {
        data for name, data in own.items() if name.endswith((".safetensors", ".png"))
    }
    entries, rest = front(files["README.md"].decode())
    assert signed_in.readme == [files["README.md"].decode()]
    assert entries["license"] == "apache-2.0" and entries["library_name"] == "mixerflow"
    assert entries["pipeline_tag"] == "unconditional-image-generation"
    (result,) = entries["model-index"][0]["results"]
    (metric,) = result["metrics"]
    card = read_metadata(Path("out"))
    assert metric["value"] == card["figure"]["bits_per_dim"]
    assert metric["name"] == (
        "bits/dim, exact density, uniform dequantisation, single-sample, noise of seed 0"
    )
    assert result["dataset"]["name"] == "npz:own.npz" and "datasets" not in entries
    assert rest.lstrip().startswith("# ramps\n") and "](samples.png)" in rest
    assert same(load("hf://me/ramps"), load("out"))
    scorer = Scorer("hf://me/ramps")
    assert scorer.fitted is not None and "outlier_bits" in scorer.columns


@pytest.fixture
def folder(published, tmp_path):
    """Published weights with thresholds, in a folder of the test's own."""
    return shutil.copytree(published, tmp_path / "mine")


def test_published_weights_are_pushed_as_they_are(signed_in, folder, capsys):
    code, out, lines = told(capsys, "publish", folder, "--push", "me/ramps")
    assert (code, lines) == (0, []) and out.startswith("pushed to ")
    stale = dict(signed_in.files("me/ramps")[1])
    stale |= {"outliers/fitted.json": b"{}", "outliers/inside.safetensors": b"", "own.txt": b"1"}
    signed_in.add("me/ramps", stale)
    code, out, lines = told(capsys, "publish", folder, "--push", "hf://me/ramps")
    commit, files = signed_in.files("me/ramps")
    assert (code, lines) == (0, []) and commit in out
    assert files.keys() == {*files_of(folder), ".gitattributes", "README.md", "own.txt"}
    pushed = [each for each in signed_in.asked if "/commit/main" in each]
    assert len(pushed) == 2


@pytest.mark.filterwarnings("default:the thresholds there")
def test_thresholds_of_other_weights_stay_behind(signed_in, run, folder, capsys):
    inside = ("--data", run.parent / "own.npz", "--images", 20)
    assert told(capsys, "outliers", folder, "--json", *inside)[0] == 0
    assert kept_fit(folder) is not None
    fitted = folder / "outliers" / "fitted.json"
    record = unsealed(json.loads(fitted.read_text()))
    record["key"]["weights_sha256"] = "0" * 64
    fitted.write_bytes(sealed(record))
    code, _, lines = told(capsys, "publish", folder, "--push", "me/ramps")
    assert code == 0 and "thresholds there are of other weights, and are left out" in lines[0]
    assert not [name for name in signed_in.files("me/ramps")[1] if name.startswith("outliers")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "these weights are published already: WEIGHTS: name a run folder, or give --push"),
        (("--push", "ramps"), "no name of a repository of the hub: hf://ramps: give hf://OWNER"),
        (("--push", "me/ramps@v1"), "no name of a repository: --push me/ramps@v1: give OWNER/NAME"),
        (("--push", "me/ramps", "--to", "x"), "these weights are published already: WEIGHTS: name"),
        (("--private",), "only what is pushed has it: --private: give --push OWNER/NAME"),
        (("--license", "mit"), "only what is pushed has it: --license: give --push OWNER/NAME"),
        (("--push", "you/ramps"), "the token may not do this there: hf://you/ramps: use a token"),
    ],
)
def test_what_cannot_be_pushed(signed_in, folder, words, line, capsys):
    code, out, lines = told(capsys, "publish", folder, *words)
    assert (code, out) == (2, "") and len(lines) == 1
    assert lines[0].startswith("error: " + line.replace("WEIGHTS", str(folder)))


@pytest.mark.parametrize(
    ("pattern", "fault", "code", "line"),
    [
        ("repos/create", 401, 2, "the hub refuses the token: hf://me/ramps: run `hf auth login`"),
        ("repos/create", 403, 2, "the token may not do this there: hf://me/ramps: use a token"),
        ("repos/create", 500, 5, "the hub answers 500 ("),
        ("repos/create", "hang", 5, "the hub does not answer: hf://me/ramps: check the network"),
        ("POST .*/commit/", 500, 5, "the hub answers 500 ("),
        ("POST .*/commit/", "hang", 5, "the hub does not answer: hf://me/ramps"),
        ("PUT /large", 403, 2, "the token may not do this there"),
    ],
)
def test_faults_while_pushing(signed_in, folder, pattern, fault, code, line, capsys):
    signed_in.fault[pattern] = fault
    said = told(capsys, "publish", folder, "--push", "me/ramps")
    assert said[:2] == (code, "") and len(said[2]) == 1
    assert said[2][0].startswith(f"error: {line}")


def test_pushing_needs_a_token_and_the_hubs_package(server, run, monkeypatch, capsys):
    words = ("publish", run, "--to", "out", "--push", "me/ramps")
    assert told(capsys, *words) == (
        2,
        "",
        ["error: no token of the hub: hf://me/ramps: run `hf auth login`, or set HF_TOKEN"],
    )
    assert not server.asked and not Path("out").exists()  # known before any work
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert told(capsys, *words)[2] == [
        "error: the hub's package is missing: hf://me/ramps: pip install 'mixerflow[hub]'"
    ]


def test_thresholds_go_along_where_the_run_has_some(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = shutil.copytree(run, tmp_path / "run")
    data = ("--data", run.parent / "own.npz", "--images", 30)
    assert told(capsys, "outliers", mine, "--json", "--false-alarms", 0.1, *data)[0] == 0
    code, _, lines = told(capsys, "publish", mine, "--to", "out", *data)
    assert code == 0 and "thresholds at 10 % false alarms" in lines[-1]
    before, after = kept_fit(mine), kept_fit("out")
    assert after.images == before.images and after.images["split"] == "validation"
    assert after.key["weights_sha256"] == read_weights(Path("out")).sha256
    assert after.key["weights_sha256"] != before.key["weights_sha256"]
    assert np.allclose(after.inside.log_prob, before.inside.log_prob, atol=0.2)
    assert told(capsys, "publish", mine, "--to", "no", "--no-thresholds", *data)[0] == 0
    assert kept_fit("no") is None
    other = tmp_path / "other.npz"
    np.savez(other, x=np.moveaxis(images(40, 9).pixels, 1, -1))
    assert told(capsys, "outliers", mine, "--json", "--inside", other, *data)[0] == 0
    code, _, lines = told(capsys, "publish", mine, "--to", "new", *data)
    assert code == 0 and "--inside takes them along" in lines[-1] and kept_fit("new") is None
    words = ("publish", mine, "--to", "new", "--force", "--inside", other)
    assert told(capsys, *words, *data)[0] == 0
    assert kept_fit("new").images["dataset_id"] == "npz:other.npz"


def test_features_of_the_hub(server, monkeypatch, tmp_path):
    buffer = tmp_path / "net.pth"
    torch.save({"weight": torch.zeros(3)}, buffer)
    server.add("owner/name", {"no-net.pth": buffer.read_bytes()})
    with pytest.raises(CheckpointError, match=r"no features net.*no-net\.pth"):
        load_features("hub:owner/name/no-net.pth")
    with pytest.raises(ConfigError, match=r"no gone\.pth in this repository: hf://owner/name"):
        load_features("hub:owner/name/gone.pth")
    with pytest.raises(ConfigError, match="hub:OWNER/NAME/FILE"):
        load_features("hub:name/file.pth")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixerflow\[hub\]'"):
        load_features("hub:owner/name/no-net.pth")


@pytest.mark.slow
def test_a_process_of_its_own_finds_the_hub_by_the_environment(server, published, tmp_path):
    commit = server.add("me/ramps", files_of(published))
    settings = {"HF_ENDPOINT": constants.ENDPOINT, "HF_HUB_CACHE": str(tmp_path / "cache")}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "mixerflow", "sample", "hf://me/ramps", "-n", "2"]
    done = subprocess.run(
        words, env={**os.environ, **settings}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert f"revision {commit}" in done.stderr and done.stderr.count("\n") == 1
    assert Path("weights/me/ramps/samples/n2-t1-seed0.png").exists()


def test_weights_that_ship_are_whole_small_and_have_thresholds():
    folders = [path for path in named.SHIPPED.glob("*") if path.is_dir()]
    assert sorted(folders) == [*named.shipped().values()]
    for name, folder in named.shipped().items():
        files = files_of(folder)
        assert files.keys() == set(located.FILES) and sum(map(len, files.values())) <= 4_000_000
        weights, fit = read_weights(Path(name)), kept_fit(name)
        assert weights.flow(torch.device("cpu")).levels is not None
        assert fit is not None and fit.key["weights_sha256"] == weights.sha256
        assert "](samples.png)" in files["card.md"].decode()
        with Image.open(folder / "samples.png") as picture:
            picture.verify()
