"""Small images, flows and runs that several test files share, and processes that work together."""

import json
import os
import pickle
import shutil
import signal
import socket
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mixerflow.data import make_images
from mixerflow.errors import ConfigError, DataError, ResourceError
from mixerflow.processes import joined
from mixerflow.recipes import build
from mixerflow.runs import Checkpoints, RunFolder
from mixerflow.training import TrainConfig, Trainer, train
from mixers import mixer

SHAPE = (1, 4, 4)
MODEL = mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=1, shift_every=2, norm="none")
WITH_BATCH_NORM = mixer(layers=1, flow_layers=2, hidden=8, patch=2, shift=0, norm="batch")

OF_RUNS = [
    "evaluate",
    "classify",
    "score",
    "compress",
    "outliers",
    "probe",
    "sample",
    "restore",
    "report",
    "view",
    "publish",
]
"""Commands whose first word is a run."""
TO = {"publish": ["--to", "w"], "compress": ["--out", "w"], "decompress": ["--out", "w"]}
"""Flags that a command needs."""


def images(n=23, seed=0, classes=0):
    rng = np.random.default_rng(seed)
    ramp = rng.integers(0, 180, (n, 1, 1, 1)) + 8 * np.arange(16).reshape(1, 1, 4, 4)
    pixels = np.clip(ramp + rng.integers(0, 9, (n, *SHAPE)), 0, 255).astype(np.uint8)
    labels = rng.integers(0, classes, n) if classes else None
    return make_images(pixels, labels, dataset_id="ramps")


def flow_of(model=MODEL, seed=0):
    torch.manual_seed(seed)
    return build(model, SHAPE)


def settings(**changes):
    base = {"steps": 12, "batch": 5, "lr": 1e-2, "warmup": 2, "initial": 16, "evaluate_every": 4}
    return TrainConfig(**base | changes)


def everything(folder, which="last"):
    """All the numbers of a checkpoint, by name."""
    loaded = Checkpoints(folder / "checkpoints").load(which)
    tensors = {f"model.{k}": v for k, v in loaded.model.items()}
    tensors |= {f"ema.{k}": v for k, v in (loaded.ema or {}).items()}
    for i, state in loaded.state["trainer"]["optimizer"]["state"].items():
        tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["generator"] = loaded.state["trainer"]["generators"]["cpu"]
    return tensors


def timeless(folder):
    """The metrics without what a clock decides."""
    clocks = ("seconds", "images_per_second")
    return [
        {k: v for k, v in record.items() if k not in clocks}
        for record in RunFolder(folder).read_metrics()
    ]


def whole_and_resumed(folder, monkeypatch, config, stop):
    """All the numbers of a run, and of the same that a signal stopped after a step, resumed."""
    train(flow_of(), images(), out=folder / "whole", config=config, quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        train(flow_of(), images(), out=folder / "run", config=config, quiet=True)
    train(flow_of(), images(), out=folder / "run", config=config, quiet=True)
    return everything(folder / "whole"), everything(folder / "run")


def stop_after(monkeypatch, step, number=signal.SIGTERM):
    """Send this process a signal while it takes the given step."""
    advance = Trainer.advance

    def advance_and_signal(self):
        if self.step == step - 1:
            signal.raise_signal(number)
        return advance(self)

    monkeypatch.setattr(Trainer, "advance", advance_and_signal)


def start(world, work, *given):
    """Fork `world` processes that join, call ``work(processes, *given)`` and send the result."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(world):
        source, sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(source)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            try:
                with joined() as processes:
                    result = work(processes, *given)
            except BaseException as error:
                result = error if isinstance(error, Exception) else repr(error)
                if not isinstance(error, (ConfigError, DataError, ResourceError)):
                    traceback.print_exc()
            finally:
                with os.fdopen(sink, "wb") as file:
                    file.write(pickle.dumps(result))
                os._exit(0)
        os.close(sink)
        started.append((pid, source))
    return started


def collect(started, killed=()):
    """Each process's result; None from one of the `killed`."""
    results, codes = [], []
    for pid, source in started:
        with os.fdopen(source, "rb") as file:
            data = file.read()
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        results.append(pickle.loads(data) if data else None)
    wanted = [-signal.SIGKILL if rank in killed else 0 for rank in range(len(started))]
    assert codes == wanted, f"exit codes, or signals: {codes}; {results}"
    return results


def together(world, work, *given):
    results = collect(start(world, work, *given))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def small_run(where):
    """A run of two classes, "0" and "cat", without any training; its images are beside it."""
    rng = np.random.default_rng(0)
    for name in ("0", "cat"):
        (where / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 256, (4, 4)).astype(np.uint8)
            Image.fromarray(pixels).save(where / "images" / name / f"{i}.png")
    out = shutil.copytree(Path(__file__).parent / "fixtures" / "run-format-3", where / "run")
    header = json.loads((out / "run.json").read_text())
    header["data"]["classes"] = ["0", "cat"]
    header["source"] = {"data": str(where / "images")}
    header["source"] |= {"transparency": "refuse", "on_bad_image": "stop"}
    (out / "run.json").write_text(json.dumps(header))
    return out
