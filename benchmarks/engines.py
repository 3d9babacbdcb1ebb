"""What engines cost that score a folder of parquet shards: images/s, and processor seconds.

    python -m benchmarks.engines RUN DATA --images 2000 --out results/cpu/engines.json

A loop over `mixerflow.Scorer` in one process, Ray Data (examples/score_with_ray.py) and, with
``--launch``, `mixerflow score` under `mixerflow.launch`, each as a fresh process, in turns. The
seconds are those of the whole command: imports, the engine's start, reading, scoring and writing.
Processor seconds are those of the command and of all processes that it starts, from /proc (Linux).
Prints JSON.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import emit, facts, ratio, spread
from mixerflow.data import load

_ROOT = Path(__file__).resolve().parents[1]
_TICK = os.sysconf("SC_CLK_TCK")
_PAUSE = 0.1
"""Seconds between two looks at the processes: one that ends within is not counted to its end."""

_LOOP = """
import sys
from pathlib import Path
import pyarrow as pa
from pyarrow import parquet
import mixerflow
run, shards, out = sys.argv[1:]
scorer = mixerflow.Scorer(run, threads=1)
Path(out).mkdir()
for path in sorted(Path(shards).glob("*.parquet")):
    rows = scorer(parquet.read_table(path).to_pydict())
    parquet.write_table(pa.table(rows), Path(out) / path.name)
"""


def write_shards(pixels: np.ndarray, folder: Path, count: int) -> None:
    """Write images ``(N, C, H, W)`` as parquet files of PNG images, with a column of names."""
    import pyarrow as pa
    from pyarrow import parquet

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for number, part in enumerate(np.array_split(np.arange(len(pixels)), count)):
        files = []
        for i in part:
            file = io.BytesIO()
            Image.fromarray(channels_last(pixels[i])).save(file, "PNG")
            files.append({"bytes": file.getvalue(), "path": f"{i}.png"})
        table = {"id": [f"image-{i:08d}" for i in part], "image": pa.array(files, kind)}
        parquet.write_table(pa.table(table), folder / f"part-{number:05d}-of-{count:05d}.parquet")


def channels_last(image: np.ndarray) -> np.ndarray:
    """Return an image ``(C, H, W)`` as Pillow takes it: grey ``(H, W)`` or ``(H, W, 3)``."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)


def seconds_of(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the processor seconds of it and what it starts."""
    begun, spent = time.perf_counter(), {}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    while process.poll() is None:
        spent |= _spent(process.pid)
        time.sleep(_PAUSE)
    taken = time.perf_counter() - begun
    if process.returncode:
        raise RuntimeError(f"{words} ended with code {process.returncode}")
    return taken, sum(spent.values())


def _spent(pid: int) -> dict[int, float]:
    """Return the processor seconds so far of a process and of all that it started, by number."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        each = int(stat.parent.name)
        parents[each], seconds[each] = int(fields[1]), sum(map(int, fields[11:13])) / _TICK
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return {each: seconds[each] for each in found if each in seconds}


def main() -> None:
    """Measure each engine in turns and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder or published weights")
    parser.add_argument("data", help="images, as `mixerflow train --data` takes them")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rows", type=int, default=250, help="rows of a block of Ray")
    parser.add_argument("--processes", type=int, default=2, help="Ray's actors, and torchrun's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--launch", action="store_true", help="measure `mixerflow score` too")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pixels = load(given.data).train.pixels[: given.images]
    count, run = len(pixels), str(given.run.resolve())
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    wall: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        shards = Path(name) / "shards"
        shards.mkdir()
        write_shards(pixels, shards, given.shards)
        script = str(_ROOT / "examples" / "score_with_ray.py")
        ray = [sys.executable, script, run, str(shards)]
        several = ["--rows", str(given.rows), "--actors", str(given.processes)]
        launch = [sys.executable, "-m", "mixerflow.launch", f"--nproc-per-node={given.processes}"]
        score = [*launch, "score", run, "--data", str(shards), "--threads", "1", "--out"]
        engines = {
            "loop": lambda out: [sys.executable, "-c", _LOOP, run, str(shards), out],
            "ray": lambda out: [*ray, out, *several],
            **({"torchrun": lambda out: [*score, out]} if given.launch else {}),
        }
        for number in range(given.rounds):
            for engine, words in engines.items():
                taken, used = seconds_of(words(str(Path(name) / f"{engine}-{number}")), environment)
                print(engine, f"{taken:.1f} s, {used:.1f} s of processors", file=sys.stderr)
                wall.setdefault(engine, []).append(taken)
                cpu.setdefault(engine, []).append(used)
    result: dict[str, object] = {
        "facts": facts(0, ["ray", "pyarrow"]),
        "images": count,
        "shape": list(pixels.shape[1:]),
        "processes": given.processes,
        "rows_of_a_block": given.rows,
        "load": os.getloadavg()[1],
    }
    for engine in engines:
        result[engine] = {
            "seconds": spread(wall[engine]),
            "processor_seconds": spread(cpu[engine]),
            "images_per_second": spread([count / each for each in wall[engine]]),
            "images_per_processor_second": spread([count / each for each in cpu[engine]]),
            "processor_seconds_to_loop": ratio(cpu[engine], cpu["loop"]),
        }
    emit(result, given.out)


if __name__ == "__main__":
    main()
