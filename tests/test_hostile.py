"""Files of somebody else: refused by name in one line, before they take memory or time."""

import gzip
import hashlib
import io
import json
import os
import random
import resource
import signal
import stat
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from campaign import hostile
from campaign.images import check, damaged, samples

import mixerflow
from helpers import flow_of, images
from mixerflow import compiled
from mixerflow.cli import main
from mixerflow.errors import CheckpointError, ConfigError, DataError, MixerFlowError
from mixerflow.evaluate import bits, load_features
from mixerflow.kernels import library
from mixerflow.models import from_spec
from mixerflow.runs import RunFolder, bounded
from mixerflow.runs.bounded import flow_within
from mixerflow.runs.manifest import seal
from mixerflow.runs.reading import parse_json, read_file
from mixerflow.runs.weights import read_metadata

RUN = Path(__file__).parent / "fixtures" / "run-format-3"
STEP = "checkpoints/step-2"
GOOD = samples()


@pytest.fixture
def run(tmp_path):
    hostile.shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


def refused(path, match, kind=CheckpointError):
    with pytest.raises(kind, match=match) as caught:
        mixerflow.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    return caught.value


def edit(run, *path, value):
    content = json.loads((run / "run.json").read_bytes())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (run / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model", "shape"), [1, 10**6, 10**6]),
        (("model", "steps"), 10**9),
        (("model", "net", "width"), 10**12),
        (("model", "classes", "count"), 10**12),
        (("model", "scales"), 10**9),
    ],
)
def test_a_model_of_any_size_is_refused_before_it_takes_memory(run, path, value):
    edit(run, *path, value=value)
    begun = time.process_time()
    refused(run, "larger than the weights|make no model|do not fit|scale|divid")
    assert time.process_time() - begun < 3
    if path[-1] in ("shape", "width"):
        assert main(["info", str(run)]) == 4


@pytest.mark.parametrize("small", [0, 4096])
def test_the_bound_is_the_size_of_the_weights(small, monkeypatch):
    monkeypatch.setattr(bounded, "_SMALL", small)
    flow = mixerflow.build("mixerflow-tiny", (1, 8, 8))
    state = flow.state_dict()
    numbers = sum(tensor.numel() for tensor in state.values())
    found = flow_within(flow.spec, "here", numbers=numbers, parts=len(state))
    assert found.state_dict().keys() == state.keys() and not found.context_net
    for bounds in (
        {"numbers": numbers // 10, "parts": len(state)},
        {"numbers": numbers, "parts": -40},
    ):
        with pytest.raises(CheckpointError, match="larger than the weights: here"):
            flow_within(flow.spec, "here", **bounds)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("model",), 0.5, "model"),
        (("model", "shape"), [1, "4", 4], "model.shape.1"),
        (("data",), "text", "data"),
        (("data", "classes"), [1], "data.classes.0"),
        (("steps",), True, "steps"),
        (("result", "bits_per_dim"), "8", "result.bits_per_dim"),
        (("origin",), {"pieces": [{"steps": "2"}]}, "origin.pieces.0.steps"),
        (("data",), {"dataset_id": "x"}, "data.classes"),
        (("result", "density"), "about", "result.density"),
        (("result", "dequantization"), {"type": "Glow"}, "result.dequantization"),
        (("result",), {"bits_per_dim": 1.0}, "result.images"),
        (("source",), {"grey": False}, "source.data"),
    ],
)
def test_entries_of_another_kind_are_named(run, path, value, named):
    edit(run, *path, value=value)
    refused(run, rf"run.json is damaged \(its entry {named} is missing or of another kind\)")


@pytest.mark.parametrize("depth", [65, 900, 100_000])
def test_deep_nesting_is_refused(run, depth):
    (run / "run.json").write_text('{"format": 3, "a": ' + "[" * depth + "]" * depth + "}")
    refused(run, "nested too deeply")


def test_numbers_without_end_are_refused():
    for text in ("NaN", "1e999", "-Infinity", "1" * 30):
        with pytest.raises(ValueError, match=r"a number that|a whole number of"):
            parse_json(f'{{"a": [{text}]}}'.encode())
    assert parse_json(b'{"a": [1e300, 18446744073709551615]}')["a"][1] == 2**64 - 1


@pytest.mark.parametrize("name", ["run.json", f"{STEP}/manifest.json", f"{STEP}/ema.safetensors"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "sparse"])
def test_what_is_no_file_is_not_read(run, name, kind):
    path = run / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to(kind)
    refused(run, "it is no file|it has more than")


def test_a_pointer_that_is_a_device_is_passed_over(run):
    (run / "checkpoints/best").unlink()
    (run / "checkpoints/best").symlink_to("/dev/zero")
    with pytest.warns(UserWarning, match="best is damaged: taking step 2"):
        mixerflow.load(run)


def forge(run, name, data):
    hostile._put(run, name, data)


def test_forged_weights_are_refused_by_tensor(run):
    data = (run / STEP / "ema.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = next(each for each in header if header[each]["dtype"] == "F32" and header[each]["shape"])
    header[name]["dtype"] = "I32"
    text = json.dumps(header).encode()
    forge(run, "ema.safetensors", struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(
        run, rf"do not fit run.json's model \({name}: torch.int32 .* where it has torch.float32"
    )
    header[name] |= {"dtype": "F32", "shape": ["x" * 10_000]}
    text = json.dumps(header).encode()
    forge(run, "ema.safetensors", struct.pack("<Q", len(text)) + text + data[8 + length :])
    refused(run, "checkpoint damaged .cannot be parsed")


@pytest.mark.parametrize("entry", [{"bytes": {}}, {"sha256": "0"}, {}])
def test_a_manifest_of_other_kinds_is_damaged(run, entry):
    path = run / STEP / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["sha256"]
    content["files"]["ema.safetensors"] = entry
    path.write_bytes(seal(content))
    refused(run, "checkpoint damaged")


@pytest.mark.parametrize("entry", [{"density": {"type": "Glow"}}, {"importance_samples": "many"}])
def test_metrics_of_another_kind_name_their_line(run, entry):
    folder = RunFolder(run)
    number = len(folder.read_metrics()) + 1
    folder.append({"kind": "validation", "step": 2} | entry)
    with pytest.raises(CheckpointError, match=f"damaged metrics: .*, line {number}"):
        folder.read_metrics()


def test_a_forged_optimiser_is_refused(tmp_path):
    words = {"out": tmp_path, "quiet": True, "steps": 2}
    mixerflow.train(flow_of(), images(), **words)
    state = torch.load(tmp_path / STEP / "state.pt", weights_only=True)
    first = next(iter(state["trainer"]["optimizer"]["state"].values()))
    first["exp_avg"] = [1.0]
    file = io.BytesIO()
    torch.save(state, file)
    forge(tmp_path, "state.pt", file.getvalue())
    with pytest.raises(CheckpointError, match=r"does not fit run.json's model"):
        mixerflow.train(flow_of(), images(), **words)


def test_what_an_error_quotes_is_cut():
    assert len(str(CheckpointError("x" * 10**6, "here", "delete it"))) < 1100


def test_a_card_without_its_entries_is_refused(tmp_path):
    (tmp_path / "card.json").write_bytes(seal({"format": 3, "steps": 1}))
    with pytest.raises(CheckpointError, match="its entry files is missing"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(name):
    with pytest.raises(CheckpointError, match=r"File name too long|damaged"):
        mixerflow.load(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(8))
def test_forgeries_of_the_campaign(run, tmp_path, number):
    rng = random.Random(number)
    hostile.MUTATIONS["run"][number % len(hostile.MUTATIONS["run"])](run, rng)
    try:
        mixerflow.load(run)
    except MixerFlowError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", GOOD)
def test_damaged_images_of_the_campaign(tmp_path, name):
    if not hasattr(signal, "alarm"):
        pytest.skip("no alarm")
    path = tmp_path / name
    path.write_bytes(GOOD[name])
    assert not check(mixerflow.data.load, path)
    for seed in range(3):
        path.write_bytes(damaged(GOOD[name], random.Random(seed)))
        check(mixerflow.data.load, path)


def test_a_program_for_features_runs_only_if_it_is_trusted(tmp_path, monkeypatch):
    """A slow test of test_frechet.py loads a real one."""
    path, loaded = tmp_path / "net.pt2", []
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a", "b")
    monkeypatch.setattr(torch.export, "load", lambda file: loaded.append(file) or 1 / 0)
    with pytest.raises(ConfigError, match=r"a \.pt2 file is a program.*if you trust who wrote it"):
        load_features(path)
    assert not loaded
    with pytest.raises(CheckpointError, match="no features net"):
        load_features(path, trust=True)
    assert loaded


def test_weights_of_features_that_are_not_dense_are_refused(tmp_path):
    torch.save({"fc.bias": torch.eye(3).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="weights that are not dense"):
        load_features(tmp_path / "a.pth")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="it is no file"):
        load_features(tmp_path / "pipe")


def test_a_kernel_that_others_could_have_written_is_built_anew(tmp_path, monkeypatch):
    calls, whole = [], b"x" + hashlib.sha256(b"x").digest()
    monkeypatch.setattr(
        compiled, "_build", lambda to, source: calls.append(to) or to.write_bytes(whole)
    )
    monkeypatch.setattr(compiled.ctypes, "CDLL", lambda name: name)
    built, source = tmp_path / "kernels" / "rows.so", library.source(torch.float32)
    compiled._load(built, source)
    compiled._load(built, source)
    assert len(calls) == 1  # the second time it is loaded
    built.chmod(0o666)
    compiled._load(built, source)
    assert len(calls) == 2
    built.chmod(0o600)
    built.parent.chmod(0o777)
    compiled._load(built, source)
    assert len(calls) == 2 and stat.S_IMODE(built.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "chmod", lambda *_: pytest.fail("not ours"))
    assert not compiled._is_private(built) or os.stat(built).st_uid == 0


def test_what_users_give_is_refused_by_name():
    flow = mixerflow.build("mixerflow-tiny", (1, 8, 8)).eval()
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"seed 1\.5"):
        bits(flow, images, seed=1.5)
    with pytest.raises(TypeError, match="a dense tensor"):
        flow.log_prob(images.to_sparse())
    for mask in (images.bool(), np.zeros((2, 1, 8, 8), bool)):
        with pytest.raises(ValueError, match="got bool"):
            bits(flow, mask)


def test_a_file_is_read_within_its_bound(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", largest=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(tmp_path / "a", largest=4)


def test_a_forged_draws_file_is_left_out(tmp_path, capsys):
    from safetensors.numpy import save

    from mixerflow.runs import KeptDraws

    kept = KeptDraws(tmp_path, {"a": 1}, images=3, importance_samples=2)
    kept.save()
    (path,) = tmp_path.glob("draws-*")
    for arrays in ({"count": np.zeros(9, np.int64)}, {"sums": np.zeros(3)}):
        data = save(arrays)
        digest = hashlib.sha256(f"{json.dumps({'a': 1})} 2 ".encode() + data).digest()
        path.write_bytes(digest + data)
        KeptDraws(tmp_path, {"a": 1}, images=3, importance_samples=2)
        assert "no draws of these images" in capsys.readouterr().err


def test_archives_that_would_fill_the_memory_are_refused(tmp_path):
    sides = struct.pack(">3I", 1100, 1000, 1000)
    (tmp_path / "x-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + sides))
    with pytest.raises(DataError, match="1,100,000,000 bytes of arrays in a file of"):
        mixerflow.data.load(tmp_path / "x-images-idx3-ubyte.gz")
    data = GOOD["a.npz"]
    at = data.index(b"PK\1\2") + 24  # the size that the directory promises
    forged = data[:at] + struct.pack("<I", 3 << 30) + data[at + 4 :]
    (tmp_path / "a.npz").write_bytes(forged)
    with pytest.raises(DataError, match="bytes of arrays in a file of"):
        mixerflow.data.load(tmp_path / "a.npz")


def test_a_pickle_takes_no_memory_for_a_number_in_it(tmp_path):
    path = tmp_path / "data_batch_1"
    path.write_bytes(
        b"\x80\x02}r\xff\xff\xff\x7f."
    )  # stores at place 2^31 of a list of all objects
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="no 'data' in it"):
        mixerflow.data.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # kB


def test_a_module_in_the_place_of_a_setting_is_never_built():
    spec = mixerflow.build("mixerflow-tiny").spec
    huge = {"type": "Embedding", "num_embeddings": 10**12, "embedding_dim": 10**3}
    with pytest.raises(CheckpointError, match="Embedding in the place of a setting"):
        from_spec(spec | {"pixels": huge})


@pytest.mark.parametrize("name", ["data", "model", "train", "origin"])
def test_a_run_without_what_every_run_has_is_damaged(tmp_path, name):
    folder = RunFolder(tmp_path)
    data = {"dataset_id": "made", "classes": []}
    content = {"format": 3, "data": data, "model": None, "train": {}}
    folder.write_metadata(content)
    assert set(folder.read_started()) >= set(content) - {"format"}
    folder.write_metadata(
        {key: each for key, each in content.items() if key != name}
        | ({"origin": {"steps": 1}} if name == "origin" else {})
    )
    with pytest.raises(CheckpointError, match=f"it has no entry {name}"):
        folder.read_started()
