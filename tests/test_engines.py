"""Examples of engines that score on many machines: killed, the same words go on."""

import io
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import flow_of, images, settings
from mixerflow import Scorer
from mixerflow.cli import commands
from mixerflow.training import train

ROOT = Path(__file__).parents[1]
ROWS = 4000


def shards_of(folder):
    """Four parquet files as the hub has them, of 4000 images in all; return all rows."""
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    pixels = images(ROWS, seed=3).pixels
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = {"id": [], "image": []}
    for number, part in enumerate(np.split(np.arange(ROWS), 4)):
        names, files = [f"image-{i:06d}" for i in part], []
        for i in part:
            file = io.BytesIO()
            Image.fromarray(pixels[i, 0]).save(file, "PNG")
            files.append({"bytes": file.getvalue(), "path": f"{i}.png"})
        table = pa.table({"id": names, "image": pa.array(files, kind)})
        parquet.write_table(table, folder / f"train-{number:05d}-of-00004.parquet")
        rows["id"] += names
        rows["image"] += files
    return rows


def kin(pid):
    """The process ids of a process and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def kill(process):
    """Kill a process that runs, and all that it started, and wait until they are gone."""
    if process.poll() is not None:
        return
    every = kin(process.pid)
    for pid in every:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in every) and time.monotonic() < until:
        time.sleep(0.1)


def done(out):
    """The names of the rows that are finished."""
    from pyarrow import parquet

    found = []
    for path in (out / "done").glob("*.parquet"):
        if not path.name.endswith(".pending.parquet"):
            found += parquet.read_table(path)["id"].to_pylist()
    return found


@pytest.fixture
def ray_folder():
    """A folder of a short name: Ray's sockets lie in it."""
    folder = tempfile.mkdtemp(prefix="mf-ray-")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(1700)
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_ray_killed_goes_on_and_has_each_row_once(tmp_path, ray_folder):
    pytest.importorskip("ray", reason="needs Ray: pip install 'mixerflow[ray]'")
    from pyarrow import parquet

    train(flow_of(), images(200), out=tmp_path / "run", config=settings(), quiet=True)
    rows, out = shards_of(tmp_path / "shards"), tmp_path / "out"
    wanted = Scorer(tmp_path / "run", threads=1)(rows)
    script = str(ROOT / "examples" / "score_with_ray.py")
    words = [sys.executable, script, "run", "shards", "out", "--rows", "50", "--actors", "1"]
    token = Path(ray_folder) / "token"
    token.write_text(secrets.token_hex())
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "RAY_TMPDIR": ray_folder,
        "RAY_AUTH_TOKEN_PATH": str(token),  # or Ray keeps one in the home folder
        "RAY_worker_niceness": "0",  # or its processes starve beside others
    }

    def start():
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(
                words, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def said():
        return (tmp_path / "log").read_text(errors="replace")[-3000:]

    process = start()
    try:
        until = time.monotonic() + 500
        while not done(out):
            assert process.poll() is None, said()
            assert time.monotonic() < until, said()
            time.sleep(0.02)
    finally:
        kill(process)
    kept = set(done(out))
    assert 0 < len(kept) < ROWS
    files = {path: path.read_bytes() for path in (out / "scores").glob("*.parquet")}

    for finished in (False, True):  # the third time there is nothing to do
        before = set((out / "scores").glob("*.parquet"))
        process = start()
        try:
            assert process.wait(timeout=500) == 0, said()
        finally:
            kill(process)
        found = parquet.read_table(out / "scores").sort_by("id").to_pydict()
        assert found["id"] == sorted(rows["id"])  # each once
        for name in ("bits_per_dim", "log_base", "log_det", "complexity"):
            assert np.allclose(found[name], wanted[name], rtol=1e-6, atol=0)
        if finished:
            assert set((out / "scores").glob("*.parquet")) == before
    again = set()
    for path, content in files.items():
        if path.exists():  # of a file that was not finished nothing is kept
            assert path.read_bytes() == content
            again |= set(parquet.read_table(path)["id"].to_pylist())
    assert again == kept


def test_the_file_for_skypilot_names_flags_that_there_are(capsys):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    task = yaml.safe_load((ROOT / "examples" / "score.sky.yaml").read_text())
    assert set(task) == {"name", "resources", "file_mounts", "setup", "run"}
    assert task["resources"] == {"cpus": 8, "use_spot": True}
    assert task["file_mounts"]["/bucket"]["mode"] == "MOUNT_CACHED"
    words = task["run"].split()
    assert words[:3] == ["python", "-m", "mixerflow.launch"]
    command = words.index("score")
    if "score" not in commands._COMMANDS:
        pytest.skip("no command `score`")
    with pytest.raises(SystemExit, match=r"^0$"):
        commands.run(["score", "--help"])
    told = re.findall(r"--[a-z-]+", capsys.readouterr().out)
    assert {word for word in words[command:] if word.startswith("--")} <= set(told)


def test_the_page_has_the_file_for_skypilot_word_for_word():
    page = (ROOT / "docs" / "scoring.md").read_text()
    shown = re.search(r"```yaml\n(.*?)```", page, re.S)[1]
    assert shown == (ROOT / "examples" / "score.sky.yaml").read_text().partition("\n")[2]
