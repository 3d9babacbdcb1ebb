"""Checkpoints: what is saved comes back, and no damage, kill or full disk gives a wrong model."""

import errno
import json
import os
import random
import shutil
import signal
import stat
import time
import warnings
from itertools import count

import pytest
import safetensors.torch
import torch

from mixerflow.errors import CheckpointError, ResourceError
from mixerflow.runs import checkpoint as module
from mixerflow.runs.checkpoint import Checkpoints

FILES = ("model.safetensors", "ema.safetensors", "state.pt", "manifest.json")

# Children only fork, save tiny tensors and die, which threads of the parent cannot block.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def save(checkpoints, step, *, best=False):
    """Save tensors that all tell the step."""
    model = {"weight": torch.full((8, 4), float(step)), "count": torch.tensor(step)}
    ema = {"weight": torch.full((8, 4), step + 0.5)}
    state = {"step": step, "moments": [torch.full((5,), float(step))], "lr": 1e-3}
    return checkpoints.save(step, model, ema, state, best=best)


def assert_whole(loaded):
    """All parts of a loaded checkpoint are of its step."""
    step = loaded.step
    assert loaded.model["count"] == step == loaded.state["step"]
    assert (loaded.model["weight"] == step).all() and loaded.model["weight"].shape == (8, 4)
    assert (loaded.ema["weight"] == step + 0.5).all()
    assert (loaded.state["moments"][0] == step).all()


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def test_odd_tensors_come_back_equal(checkpoints):
    base = torch.arange(24.0).reshape(4, 6)
    odd = {
        "base": base,
        "shares memory": base[1:3],
        "transposed": base.T,
        "strided": base[:, ::2],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.empty(0, 7),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([2**62, -1]),
        "bf16": torch.randn(3).bfloat16(),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "nan": torch.tensor([float("inf"), -0.0]),
    }
    state = {"generator": torch.get_rng_state(), "python": random.getstate(), "nested": [odd, ()]}
    checkpoints.save(0, odd, None, state)
    loaded = checkpoints.load()
    assert loaded.ema is None and loaded.step == 0
    assert loaded.path == checkpoints.root / "step-0"
    assert loaded.state["python"] == random.getstate()
    assert torch.equal(loaded.state["generator"], state["generator"])
    for found in (loaded.model, loaded.state["nested"][0]):
        assert found.keys() == odd.keys()
        for name, tensor in odd.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_files_are_readable_without_this_library(checkpoints):
    folder = save(checkpoints, 7)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 7
    assert safetensors.torch.load_file(folder / "ema.safetensors")["weight"][0, 0] == 7.5
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 7 and set(manifest["files"]) == set(FILES) - {"manifest.json"}
    assert (checkpoints.root / "last").read_text() == "7\n7\n"


def test_weights_only_leaves_the_state_alone(checkpoints):
    (save(checkpoints, 1) / "state.pt").unlink()
    assert checkpoints.load(weights_only=True).state == {}


def test_state_that_could_not_be_loaded_is_refused(checkpoints):
    with pytest.raises(TypeError, match="Checkpoints"):
        checkpoints.save(1, {}, None, {"object": checkpoints})
    assert list(checkpoints.root.iterdir()) == []


def test_the_last_and_the_best_stay(checkpoints):
    for step in range(100, 700, 100):
        save(checkpoints, step, best=step in (100, 300))
    assert checkpoints.steps() == [300, 500, 600]
    assert checkpoints.load("best").step == 300 and checkpoints.load("last").step == 600
    assert checkpoints.load(500).step == 500


def test_a_run_taken_back_keeps_what_it_saves(checkpoints):
    for step in (100, 200, 300, 400):
        save(checkpoints, step)
    save(checkpoints, 250)
    assert checkpoints.load().step == 250 and checkpoints.steps() == [250, 300, 400]


def test_a_valid_step_is_kept_and_a_damaged_one_moved_aside(checkpoints):
    folder = save(checkpoints, 5)
    before = (folder / "manifest.json").stat().st_ino
    save(checkpoints, 5)
    assert (folder / "manifest.json").stat().st_ino == before
    for number in (1, 2):
        (folder / "state.pt").write_bytes(b"torn")
        save(checkpoints, 5)
        aside = checkpoints.root / f"step-5.damaged-{number}"
        assert (aside / "state.pt").read_bytes() == b"torn"
        assert_whole(checkpoints.load())


def test_another_future_sets_the_old_one_aside(checkpoints):
    checkpoints.keep = 4
    for number in (1, 2):
        for step in (1, 2, 3, 4):
            save(checkpoints, step, best=step != 2)
        checkpoints.set_aside(2)
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.load("last").step == 2 and checkpoints.load("best").step == 1
        for step in (3, 4):
            aside = checkpoints.root / f"step-{step}.aside-{number}"
            assert sorted(path.name for path in aside.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("finished", [False, True])
def test_a_step_that_no_save_finished_is_removed_and_no_other(checkpoints, finished):
    for step in (1, 2):
        save(checkpoints, step)
    pointer = checkpoints.root / "last"
    pointer.write_bytes(b"1\n1\n")
    age = 60 if finished else -60  # a kill came before the new pointer, or while steps went aside
    written = (checkpoints.root / "step-2" / "manifest.json").stat().st_mtime
    os.utime(pointer, (written + age, written + age))
    checkpoints.set_aside(1)
    assert checkpoints.steps() == [1]
    assert (checkpoints.root / "step-2.aside-1").exists() == finished


def test_a_best_that_was_set_aside_is_not_its_successor(checkpoints):
    save(checkpoints, 0)
    save(checkpoints, 1, best=True)
    checkpoints.set_aside(0)
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match="is marked as the best"):
        checkpoints.load("best")


@pytest.mark.parametrize("kind", ["truncation", "flip"])
def test_random_damage_is_detected_and_named(checkpoints, kind):
    rng = random.Random(kind)
    save(checkpoints, 300)
    folder = save(checkpoints, 400)
    whole = {name: (folder / name).read_bytes() for name in FILES}
    for _ in range(200):
        name = rng.choice(FILES)
        data = bytearray(whole[name])
        if kind == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.load()
        assert caught.value.where == str(folder / name)
        assert caught.value.what.startswith("checkpoint damaged (")
        sizes_tell = kind == "truncation" and name != "manifest.json"
        assert caught.value.what.endswith(" bytes)" if sizes_tell else "(SHA-256 differs)")
        assert "--from-step 300" in caught.value.remedy
        (folder / name).write_bytes(whole[name])
    assert_whole(checkpoints.load())


@pytest.mark.slow
def test_every_single_damage_is_detected(checkpoints):
    folder = save(checkpoints, 400)
    for name in FILES:
        whole = (folder / name).read_bytes()
        flips = ((at, 1 << bit) for at in range(len(whole)) for bit in range(8))
        damages = [whole[:end] for end in range(len(whole))]
        damages += [whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :] for at, bit in flips]
        for data in damages:
            (folder / name).write_bytes(data)
            with pytest.raises(CheckpointError) as caught:
                checkpoints.verify(folder)
            assert caught.value.where == str(folder / name)
        (folder / name).write_bytes(whole)
    checkpoints.verify(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(checkpoints, name):
    folder = save(checkpoints, 1)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"file missing.*train again") as caught:
        checkpoints.verify(folder)
    assert caught.value.where == str(folder / name)


def test_a_renamed_folder_is_not_another_step(checkpoints):
    save(checkpoints, 1).rename(checkpoints.root / "step-2")
    with pytest.raises(CheckpointError, match="is step 1's"):
        checkpoints.load(2)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt"])
def test_files_that_hash_well_and_do_not_parse(checkpoints, name, monkeypatch):
    packer = "pack_state" if name == "state.pt" else "pack_tensors"
    monkeypatch.setattr(module, packer, lambda _: b"not a tensor in sight")
    folder = checkpoints.save(1, {}, None, {})
    with pytest.raises(CheckpointError, match="cannot be parsed") as caught:
        checkpoints.load()
    assert caught.value.where == str(folder / name) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"4", b"40", b"400", b"999\n", b"\xff\n", b"400\n\n", None])
def test_a_damaged_pointer_falls_back_with_a_warning(checkpoints, text):
    for step in (100, 200, 300, 400):
        save(checkpoints, step, best=step == 200)
    for name in ("last", "best"):
        (checkpoints.root / name).unlink()
        if text is not None:
            (checkpoints.root / name).write_bytes(text)
    fault = "missing" if text is None else "damaged"
    with pytest.warns(UserWarning, match=f"last is {fault}: taking step 400"):
        assert checkpoints.load("last").step == 400
    with pytest.warns(UserWarning, match=f"best is {fault}: taking step 200"):
        assert checkpoints.load("best").step == 200
    (checkpoints.root / "step-400" / "state.pt").unlink()
    with pytest.warns(UserWarning, match="taking step 300"):
        assert_whole(checkpoints.load("last"))
    save(checkpoints, 500)  # pruning spares the best by its manifest
    assert checkpoints.steps() == [200, 400, 500]


def test_nothing_to_load_is_said(checkpoints):
    with pytest.raises(CheckpointError, match=r"no checkpoint: .*train first"):
        checkpoints.load()
    checkpoints.root.mkdir()
    with pytest.raises(CheckpointError, match=r"no checkpoint: .*train first"):
        checkpoints.load("best")
    save(checkpoints, 3)
    with pytest.raises(CheckpointError, match="is marked as the best"):
        checkpoints.load("best")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4: .*choose one of 3"):
        checkpoints.load(4)


@pytest.mark.parametrize("fails", range(1, 8))
def test_a_full_disk_leaves_the_earlier_untouched(checkpoints, fails, monkeypatch):
    save(checkpoints, 1, best=True)
    before = {p: p.read_bytes() for p in checkpoints.root.rglob("*") if p.is_file()}
    calls, fsync = count(1), os.fsync

    def full(descriptor):
        if next(calls) == fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"disk full, [0-9,]{4,} bytes needed") as caught:
            save(checkpoints, 2)
    assert caught.value.where == str(checkpoints.root)
    assert {p: p.read_bytes() for p in before} == before
    assert not list(checkpoints.root.glob(".tmp-*"))
    save(checkpoints, 2)
    assert_whole(checkpoints.load(2))


def test_a_file_system_that_cannot_sync_folders(checkpoints, monkeypatch):
    fsync = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    save(checkpoints, 1)
    assert_whole(checkpoints.load())


def test_leavings_of_dead_writers_are_swept(checkpoints):
    save(checkpoints, 1)
    dead, own, alive = (checkpoints.root / f".tmp-9-{n}" for n in (2**22 + 1, os.getpid(), 1))
    for folder in (dead, own, alive):
        shutil.copytree(checkpoints.root / "step-1", folder)
    save(checkpoints, 2)
    assert not dead.exists() and not own.exists() and alive.exists()


def test_a_step_pruned_while_it_is_read(checkpoints, monkeypatch):
    save(checkpoints, 1)
    verified = module.verified

    def overtaken(folder, skip):
        monkeypatch.undo()
        for step in (2, 3, 4):
            save(checkpoints, step)
        return verified(folder, skip)

    monkeypatch.setattr(module, "verified", overtaken)
    assert_whole(checkpoints.load("last"))
    assert checkpoints.steps() == [3, 4]


def test_a_best_that_moves_while_it_is_read(checkpoints, monkeypatch):
    save(checkpoints, 1, best=True)
    pointer = checkpoints._pointer

    def overtaken(name):
        monkeypatch.undo()
        text = pointer(name)
        for step in (2, 3, 4):
            save(checkpoints, step, best=True)
        return text

    monkeypatch.setattr(checkpoints, "_pointer", overtaken)
    assert checkpoints.load("best").step == 4


def test_what_is_no_folder_is_a_damaged_step(checkpoints):
    save(checkpoints, 1)
    (checkpoints.root / "step-2").symlink_to("nowhere")
    (checkpoints.root / "step-3").touch()
    for step in (2, 3):
        (checkpoints.root / "last").write_text(f"{step}\n")
        with pytest.raises(CheckpointError, match=f"--from-step {step - 1}"):
            checkpoints.load("last")
        save(checkpoints, step)
        assert_whole(checkpoints.load("last"))


def fork_writer(root, first):
    """A child that saves step after step; returns its pid and a pipe with the steps saved."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        os.read(source, 1)
        return pid, os.fdopen(source)
    try:
        torch.set_num_threads(1)
        os.write(sink, b"\n")
        checkpoints = Checkpoints(root)
        for step in count(first):
            save(checkpoints, step, best=step % 3 == 0)
            os.write(sink, f"{step}\n".encode())
    finally:
        os._exit(1)


@forks
@pytest.mark.parametrize("renames", range(6))
def test_a_kill_while_steps_are_set_aside_leaves_the_rest_loadable(checkpoints, renames):
    checkpoints.keep = 5
    for step in range(1, 6):
        save(checkpoints, step, best=step % 2 == 0)
    pid = os.fork()
    if pid == 0:
        done, rename, replace = count(), os.rename, os.replace

        def mortal(move):
            def move_or_die(source, target):
                if next(done) == renames:
                    os.kill(os.getpid(), signal.SIGKILL)
                move(source, target)

            return move_or_die

        os.rename, os.replace = mortal(rename), mortal(replace)
        checkpoints.set_aside(2)
        os._exit(0)
    killed = os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert killed == (renames < 5)  # two pointers and three steps
    for which in ("last", "best", *checkpoints.steps()):
        assert_whole(checkpoints.load(which))  # and no warning of a missing pointer
    assert checkpoints.load("last").step == (5 if renames == 0 else 2)
    checkpoints.set_aside(2)
    assert checkpoints.steps() == [1, 2] and len(list(checkpoints.root.glob("*.aside-1"))) == 3
    assert checkpoints.load("last").step == checkpoints.load("best").step == 2


@forks
@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_nothing(checkpoints, kills):
    rng = random.Random(kills)
    begin = time.monotonic()
    for step in range(1, 6):
        save(Checkpoints(checkpoints.root.with_name("timed")), step)
    length = (time.monotonic() - begin) / 5
    saved = interrupted = 0
    for _ in range(kills):
        pid, pipe = fork_writer(checkpoints.root, saved + 1)
        time.sleep(rng.uniform(0, 4 * length))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        with pipe:
            acknowledged = max((int(line) for line in pipe.read().split()), default=saved)
        interrupted += any(checkpoints.root.glob(".tmp-*"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first save may die before its pointer
            if acknowledged or checkpoints.steps():
                loaded = checkpoints.load("last")
                assert_whole(loaded)
                assert loaded.step >= acknowledged
                saved = loaded.step
            if acknowledged >= 3:
                best = checkpoints.load("best")
                assert_whole(best)
                assert best.step % 3 == 0 and best.step >= acknowledged // 3 * 3
    print(f"{kills} kills, {interrupted} in mid-save, {saved} steps saved")
    assert interrupted >= kills // 10  # the kills did land inside saves


@forks
def test_readers_need_no_lock(checkpoints):
    save(checkpoints, 0, best=True)
    pid, pipe = fork_writer(checkpoints.root, 1)
    try:
        seen = set()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            for which in ("last", "best"):
                loaded = checkpoints.load(which)
                assert_whole(loaded)
                seen.add(loaded.step)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pipe.close()
    assert len(seen) > 5
