"""The run folder: whole files after a crash, one writer, and errors that say what to do."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixerflow.errors import CheckpointError, ConfigError, ResourceError
from mixerflow.runs import folder as module
from mixerflow.runs.folder import FORMAT, RunFolder

HOST = socket.gethostname()
DEAD = 2**22 + 1  # above the kernel's greatest pid

forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    return run


def test_needs_no_torch():
    names = ("files", "folder")
    parts = [Path(module.__file__).with_name(f"{name}.py") for name in names]
    assert not any("import torch" in part.read_text() for part in parts)


def test_config_round_trip_and_update(tmp_path):
    run = RunFolder(tmp_path / "new" / "run")
    run.write_metadata({"format": FORMAT, "seed": 1, "status": "running"})
    run.update({"status": "done", "minutes": 2.5})
    assert run.read_metadata() == {"format": FORMAT, "seed": 1, "status": "done", "minutes": 2.5}
    assert run.metadata_path.read_text().startswith('{\n  "format": 3,\n')
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_folder_without_config_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"no run.json.*name a folder"):
        RunFolder(tmp_path).read_metadata()


@pytest.mark.parametrize("text", [b"", b'{"seed": 1', b"[1]", b"\xff{}"])
def test_a_damaged_config_is_named(run, text):
    run.metadata_path.write_bytes(text)
    with pytest.raises(CheckpointError, match=r"damaged.*put a copy back") as caught:
        run.update({"status": "done"})
    assert caught.value.where == str(run.metadata_path)
    assert run.metadata_path.read_bytes() == text


def test_a_full_disk_leaves_the_config(run, monkeypatch):
    run.write_metadata({"format": FORMAT, "seed": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="disk full, 54 bytes needed"):
        run.write_metadata({"format": FORMAT, "seed": 2})
    assert run.read_metadata() == {"format": FORMAT, "seed": 1}
    assert [path.name for path in run.path.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    run = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(ResourceError, match=r"cannot write \(Not a directory\)"):
        run.write_metadata({})
    with pytest.raises(ResourceError, match="cannot write"), run.lock():
        pass


def test_metrics_without_a_torn_line(run):
    assert run.read_metrics() == []
    records = [{"step": step, "bpd": 4.0 - step} for step in range(3)]
    for record in records:
        run.append(record)
    whole = run.metrics_path.read_bytes()
    for end in range(len(whole)):
        run.metrics_path.write_bytes(whole[:end])
        assert run.read_metrics() == records[: whole[:end].count(b"\n")]


def test_cut_back_drops_later_records_and_a_torn_line(run):
    run.cut_back(0)
    assert not run.metrics_path.exists()
    run.append({"event": "start"})
    for step in (1, 2, 3, 4):
        run.append({"step": step})
    with open(run.metrics_path, "a") as file:
        file.write('{"step": 2, "torn"')
    run.cut_back(2)
    run.append({"step": 3, "again": True})
    expected = [{"event": "start"}, {"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    assert run.read_metrics() == expected


def test_a_damaged_line_in_the_middle_is_named(run):
    run.metrics_path.write_bytes(b'{"step": 1}\n{"st\x00p": 2\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match="line 2: delete that line"):
        run.read_metrics()


def test_files_that_cannot_be_read(run):
    run.metadata_path.mkdir()
    run.metrics_path.mkdir()
    for read in (run.read_metadata, run.read_metrics):
        with pytest.raises(CheckpointError, match=r"cannot read \(.*make it readable"):
            read()


@contextmanager
def holder(run):
    """Another process that holds the lock."""
    code = (
        "import sys; from mixerflow.runs.folder import FORMAT, RunFolder\n"
        f"with RunFolder({str(run.path)!r}).lock(): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process
        process.kill()


def test_a_second_writer_is_told_who_is_first_and_a_kill_frees(run):
    with holder(run) as process:
        with pytest.raises(ResourceError, match=f"process {process.pid} on {HOST}"), run.lock():
            pass
        process.kill()
        process.wait()
        with run.lock():
            pass


def test_the_lock_ends_with_its_block(run):
    for _ in range(2):
        with run.lock():
            with pytest.raises(ResourceError, match=f"process {os.getpid()} "), run.lock():
                pass
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock():
        pass


def test_a_folder_made_for_nothing_is_taken_away(tmp_path):
    path = tmp_path / "new"
    with pytest.raises(KeyError), RunFolder(path).lock():
        raise KeyError
    assert not path.exists()
    with RunFolder(path).lock():
        (path / "kept").touch()
    assert {each.name for each in path.iterdir()} == {".lock", "kept"}
    (tmp_path / "empty").mkdir()
    with RunFolder(tmp_path / "empty").lock():
        pass
    assert (tmp_path / "empty").exists()  # somebody else's


def test_a_lock_that_its_holder_took_away_is_no_lock(tmp_path, monkeypatch):
    """Opened before the holder left, locked after: nobody else would see it."""
    path = tmp_path / "new"
    flock = fcntl.flock

    def late(descriptor, operation):
        if operation & fcntl.LOCK_EX and not left:
            left.append((path / ".lock").unlink())
            path.rmdir()
        flock(descriptor, operation)

    left: list[None] = []
    monkeypatch.setattr(fcntl, "flock", late)
    with RunFolder(path).lock():
        assert (path / ".lock").exists()
        with pytest.raises(ResourceError, match="is writing here"), RunFolder(path).lock():
            pass
    assert left


@forks
def test_a_forked_worker_does_not_keep_its_dead_parents_lock(run):
    source, sink = os.pipe()
    parent = os.fork()
    if parent == 0:
        with run.lock():
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(sink, f"{worker}\n".encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(source, 100))
    try:
        time.sleep(0.05)
        with pytest.raises(ResourceError, match=f"process {parent} "), run.lock():
            pass
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        os.kill(worker, 0)  # alive, and yet
        with run.lock():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(source)
        os.close(sink)


@forks
def test_a_forked_child_that_leaves_the_block_frees_nothing(run):
    with run.lock():
        pid = os.fork()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            with pytest.raises(ResourceError), RunFolder(run.path).lock():
                pass
    if pid == 0:
        os._exit(0)


def test_lock_sweeps_what_dead_writers_left(run):
    (run.path / f".tmp-run.json-{DEAD}").touch()
    with run.lock():
        assert [path.name for path in run.path.iterdir()] == [".lock"]


@pytest.fixture(params=["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def no_flock(request, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(getattr(errno, request.param), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_flock")
def test_without_flock_a_file_marks_the_writer(run):
    path = run.path / ".lock-exclusive"
    with pytest.warns(UserWarning, match="no flock on this file system") as caught, run.lock():
        assert path.read_text().startswith(f"{os.getpid()}\n{HOST}\n")
    assert not path.exists() and len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.usefixtures("no_flock")
@pytest.mark.filterwarnings("ignore:no flock")
@pytest.mark.parametrize(
    ("content", "who"),
    [
        (f"1\n{HOST}\n", f"process 1 on {HOST}"),
        (f"{DEAD}\nelsewhere\n", f"process {DEAD} on elsewhere"),
        ("", "an unknown process"),
    ],
)
def test_without_flock_a_live_or_foreign_writer_is_respected(run, content, who):
    path = run.path / ".lock-exclusive"
    path.write_text(content)
    with pytest.raises(ResourceError, match=f"{who} is writing.*delete this file"), run.lock():
        pass
    assert path.read_text() == content


@pytest.mark.usefixtures("no_flock")
@pytest.mark.filterwarnings("ignore:no flock")
def test_without_flock_a_dead_writer_is_taken_over(run):
    path = run.path / ".lock-exclusive"
    path.write_text(f"{DEAD}\n{HOST}\n")
    with run.lock():
        assert path.read_text().startswith(f"{os.getpid()}\n{HOST}\n")
    assert [each.name for each in run.path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("no_flock")
@pytest.mark.filterwarnings("ignore:no flock")
def test_without_flock_a_deleted_file_is_no_crash(run):
    with run.lock():
        (run.path / ".lock-exclusive").unlink()


def test_what_other_systems_lack_is_not_needed_to_train(tmp_path):
    """As on Windows: no POSIX modules, signals or calls, folders that do not open, no compiler.

    Nor the hub's package. Every module is imported, but for those of the GPU's kernels.
    """
    code = f"""
import os, pkgutil, shutil, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios", "triton", "huggingface_hub"):
    sys.modules[name] = None
import torch, PIL, matplotlib.figure, numpy as np, filelock, safetensors.torch, tyro, rich
for name in "fork geteuid getuid getgid sched_getaffinity getloadavg statvfs killpg mkfifo".split():
    delattr(os, name)
for name in "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGPIPE alarm".split():
    delattr(signal, name)
signal.CTRL_C_EVENT, opened = 0, os.open
def refuse(pid, number):
    sys.exit(f"kill {{pid}} {{number}}, which would end a process")
def open_no_folder(path, *settings, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return opened(path, *settings, **more)
os.kill, os.open, shutil._use_fd_functions = refuse, open_no_folder, False
import mixerflow, mixerflow.__main__
for module in pkgutil.walk_packages(mixerflow.__path__, "mixerflow."):
    if not module.name.startswith(("mixerflow.kernels.gpu", "mixerflow.__main__")):
        __import__(module.name)
flow = mixerflow.build("mixerflow-tiny", (1, 8, 8))
images = np.random.default_rng(0).integers(0, 256, (20, 1, 8, 8)).astype(np.uint8)
run = {str(tmp_path / "run")!r}
os.makedirs(run)
open(os.path.join(run, ".tmp-run.json-1"), "w").close()
mixerflow.train(flow, images, out=run, steps=2, quiet=True)
mixerflow.load(run)
"""
    setting = {**os.environ, "CC": "no-such-compiler"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=setting)
    assert done.returncode == 0, done.stderr
    assert "no-such-compiler" in done.stderr
    assert "marks the writer" in done.stderr
