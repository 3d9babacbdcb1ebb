"""Weights by name: those of the package, and of the hub, by a stand-in server on the loopback."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import flow_of, images, settings
from hub_server import TOKEN, serving
from mixerflow import hub, named
from mixerflow.cli import main
from mixerflow.errors import CheckpointError, ConfigError, ResourceError
from mixerflow.hub import Fetched, fetch, fetch_file
from mixerflow.named import HubName, hub_name
from mixerflow.runs import Evaluator, begin_from, kept_fit, load, located, publish, read_metadata
from mixerflow.runs.weights import read_weights
from mixerflow.scoring import Scorer
from mixerflow.training import train
from mixers import mixer

constants = pytest.importorskip("huggingface_hub.constants")

LARGE = mixer(layers=2, flow_layers=2, hidden=40, patch=2, shift=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps, and its own images in a file."""
    out = tmp_path_factory.mktemp("hub") / "run"
    train(flow_of(LARGE), images(200), out=out, config=settings(steps=8), quiet=True)
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
    named_values |= {"HF_HUB_ETAG_TIMEOUT": 0.5, "HF_HUB_DOWNLOAD_TIMEOUT": 0.2}
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
    "text", ["hf://a", "hf://a/b/c", "hf://a/b@", "hf://../b", "hf://a/..", "hf://a/b c", "hf://a--x/b"]
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
        (401, ConfigError, "no such repository on the hub: hf://me/ramps: check the name; if it is"),
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


def test_the_package_imports_without_the_hubs():
    code = "import sys; sys.modules['huggingface_hub'] = None; import mixerflow.cli.publish as p"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
