"""A flipped bit of a file that is kept gives an error that names the file, or the right result."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from campaign.rows import ROWS
from campaign.runner import run

from helpers import flow_of, images, settings
from mixerflow import compiled, pictures
from mixerflow.data import pixel_cache
from mixerflow.errors import CheckpointError, DataError, ResourceError
from mixerflow.evaluate.comparison import Reference
from mixerflow.evaluate.frechet import Statistics
from mixerflow.kernels import library
from mixerflow.runs import Checkpoints, RunFolder
from mixerflow.runs.files import read_record, sealed
from mixerflow.temporary import temporary_path
from mixerflow.training import train

RECORD = {"format": 3, "bits": 3.25, "names": ["a", "é\x7f"], "none": None, "nan": float("nan")}


def flipped(data, at, bit):
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_no_flipped_bit_of_a_record_changes_what_is_read(tmp_path):
    path, data = tmp_path / "record.json", sealed(RECORD)
    path.write_bytes(data)
    whole = read_record(path, "delete it")
    assert whole == {**RECORD, "nan": None, "not_finite": {"nan": "nan"}}
    caught = 0
    for bit in range(8 * len(data)):
        path.write_bytes(flipped(data, bit // 8, bit % 8))
        try:
            assert read_record(path, "delete it") == whole  # a space between entries
        except CheckpointError as error:
            caught += error.where == str(path)
    assert caught > 8 * 0.8 * len(data)


def test_a_record_without_crc_is_of_an_older_version(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"a": 1}))
    assert read_record(path, "") == {"a": 1}
    path.write_text(json.dumps({"a": 1, "crc32": None}))
    with pytest.raises(CheckpointError, match="crc32 differs"):
        read_record(path, "")
    assert read_record(tmp_path / "none.json", "") is None


def test_a_changed_digit_of_a_run_is_found(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metadata({"format": 3, "bound": 2.0})
    folder.append({"kind": "train", "step": 1, "bits_per_dim": 8.5})
    for path, old, new, read in (
        (folder.metadata_path, b"2.0", b"3.0", folder.read_metadata),
        (folder.metrics_path, b"8.5", b"8.4", folder.read_metrics),
    ):
        assert "crc32" not in str(read())
        path.write_bytes(path.read_bytes().replace(old, new))
        with pytest.raises(CheckpointError, match=path.name):
            read()


def test_a_pointer_with_a_flipped_bit_names_no_other_step(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (2, 3):  # 2 and 3 differ by a bit
        checkpoints.save(step, {"w": torch.tensor([float(step)])}, None, {})
    pointer = (tmp_path / "last").read_bytes()
    (tmp_path / "last").write_bytes(flipped(pointer, 0, 0))
    with pytest.warns(UserWarning, match="taking step 3"):
        assert checkpoints.load("last").step == 3
    (tmp_path / "last").write_text("2\n")  # as older versions write it
    assert checkpoints.load("last").step == 2


def test_a_pixel_of_the_cache_that_changed_is_found(tmp_path):
    dead = tmp_path / temporary_path(tmp_path / "key").name.replace(str(os.getpid()), "999999999")
    dead.mkdir()
    stack = [np.full((1, 2, 2), value, np.uint8) for value in range(4)]
    stream = pixel_cache.ImageStream(iter(stack), (1, 2, 2), np.dtype("uint8"), [0, 1, 2, 3], ())
    pixel_cache._write(stream, tmp_path / "key")
    assert not dead.exists()
    pixels, *_ = pixel_cache._map(tmp_path / "key")
    assert pixels.sum() == 4 * 6
    path = tmp_path / "key" / "pixels.npy"
    path.write_bytes(flipped(path.read_bytes(), -1 + path.stat().st_size, 0))
    with pytest.raises(DataError, match="damaged cache"):
        pixel_cache._map(tmp_path / "key")


def test_damaged_kernels_are_built_again_and_not_run(tmp_path, monkeypatch):
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\nfor last; do :; done\necho built >> "$0.log"\necho code > $last\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    loaded = []
    monkeypatch.setattr(compiled.ctypes, "CDLL", loaded.append)
    path, source = tmp_path / "kernels" / "rows.so", library.source(torch.float32)
    compiled._load(path, source)
    compiled._load(path, source)
    assert len((tmp_path / "cc.log").read_text().splitlines()) == 1
    path.write_bytes(flipped(path.read_bytes(), 0, 0))
    compiled._load(path, source)
    assert len((tmp_path / "cc.log").read_text().splitlines()) == 2
    assert loaded == [str(path)] * 3 and os.listdir(path.parent) == ["rows.so"]


def test_features_of_killed_writers_are_removed(tmp_path):
    dead = tmp_path / ".tmp-images.features-999999999"
    dead.touch()
    rows = torch.arange(8.0).reshape(4, 2)
    statistics = Statistics.of_batches(iter([rows.double()]))
    Reference(statistics, rows).save(tmp_path / "images.features", {})
    assert os.listdir(tmp_path) == ["images.features"]


def test_a_grid_that_finds_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(image, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pictures, "save", full)
    with pytest.raises(ResourceError, match="disk full"):
        train(flow_of(), images(), config=settings(steps=1), out=tmp_path, quiet=True)


def test_minutes_that_are_over_before_the_first_step_are_said(capsys):
    train(flow_of(), images(), config=settings(steps=None, minutes=1e-5))
    assert "were spent before the first step; the budget is too short" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", ROWS)
def test_each_attack_of_the_campaign(name, tmp_path):
    (outcome,) = run(ROWS[name], tmp_path, trials=1, quiet=True)
    assert outcome.fault is None, outcome.text
