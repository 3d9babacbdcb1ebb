"""Images a second of a flow, of its inference copy, and of its ONNX model; seconds of the exports.

    python -m benchmarks.exported --recipe mixerflow-cifar10 --layers 30 --batch 64 --out onnx.json

All score the same images, in turn. The extra ``onnx`` and onnxruntime are needed. Weights are
random: they change no time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.common import emit, facts, interleaved, pin, spread
from mixerflow import export
from mixerflow.recipes import build, recipe
from mixerflow.registry import evolve


def timed(seconds: dict[str, float], name: str, work: Callable[[], object]) -> None:
    """Do work, and note its seconds, and those of the CPU."""
    begun, busy = time.perf_counter(), time.process_time()
    work()
    seconds[name] = round(time.perf_counter() - begun, 2)
    seconds[f"{name}, CPU"] = round(time.process_time() - busy, 2)


def main() -> None:
    """Time the exports, then all three in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="mixerflow-cifar10")
    parser.add_argument("--layers", type=int, help="layers, in place of the recipe's")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    pin(given.threads, 0)
    named = recipe(given.recipe)
    model = named.model if given.layers is None else evolve(named.model, {"layers": given.layers})
    flow = build(model, named.shape)
    images = torch.randint(256, (given.batch, *named.shape), dtype=torch.uint8)
    flow.initialize(images)
    flow.eval()
    import onnxruntime

    fused, density, seconds = flow.fused(), export.density(flow), {}
    timed(seconds, "program", lambda: export.program(density))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "density.onnx")
        timed(seconds, "onnx, program included", lambda: export.onnx(density, path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        timed(seconds, "session", lambda: onnxruntime.InferenceSession(path, options))
        session = onnxruntime.InferenceSession(path, options)
    inputs = {"images": images.numpy(), "noise": torch.rand(images.shape).numpy()}
    jobs: dict[str, Callable[[], object]] = {
        "flow": lambda: flow.log_prob(images),
        "fused": lambda: fused.log_prob(images),
        "onnx": lambda: session.run(None, inputs),
    }
    with torch.no_grad():
        found = interleaved(jobs, given.rounds)
    rates = {name: spread([given.batch / s for s in each]) for name, each in found.items()}
    result: dict[str, object] = {"layers": len(flow.layers()), "batch": given.batch}
    packages = ("onnx", "onnxscript", "onnxruntime")
    emit(facts(0, packages) | result | {"seconds": seconds, "images_per_second": rates}, given.out)


if __name__ == "__main__":
    main()
