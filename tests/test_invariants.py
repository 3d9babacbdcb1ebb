"""Figures of models as they were when a model was one flat list of settings: they have not moved.

`fixtures/flat_settings.json` was written by the commit before models became values: parameters'
names and starts, log-probabilities with random weights, and what 50 steps of training came to. On
the processor that wrote them they are equal to the last bit; on another, whose matrix products
round otherwise, nearly. The training was written anew when maps of an image's channels came to copy
nothing, which rounds otherwise (it moved by 7e-4 bits/dim at most), and when parameters whose
gradient is rounding stopped training (3e-3 at most, after 50 steps).
"""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mixerflow
import mixers
from mixerflow import data
from mixerflow.core import Noise
from mixerflow.recipes import RECIPES

BEFORE = json.loads((Path(__file__).parent / "fixtures" / "flat_settings.json").read_text())


def processor():
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


SAME = processor() == BEFORE["cpu"] and torch.__version__.startswith(BEFORE["torch"])


class Drawn(Noise):
    """The same draws for every stream, however streams are numbered."""

    def __init__(self):
        super().__init__(0, torch.zeros(0, dtype=torch.int64))

    def __getitem__(self, part):
        return self

    def rows(self, n):
        return self

    def uniform(self, like, stream):
        generator = torch.Generator().manual_seed(7)
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return drawn.mul(2**24).floor().div(2**24).to(like.dtype)


def digest(state):
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(f"{key}{tuple(state[key].shape)}".encode())
        found.update(state[key].detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def keys(state):
    lines = (f"{key} {tuple(t.shape)} {t.dtype}" for key, t in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@torch.no_grad()
def perturb(flow, names):
    for name, p in flow.named_parameters():
        seed = int.from_bytes(hashlib.sha256(names[name].encode()).digest()[:6], "big")
        drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        p.add_(drawn, alpha=0.1 / math.sqrt(p.shape[-1]) if p.dim() > 1 else 0.02)


def check(model, before):
    shape = tuple(before["shape"])
    torch.manual_seed(0)
    flow = model.build(shape).eval()
    state = flow.state_dict()
    # several scales have other keys now: the same tensors in the same order
    names = dict(zip(state, before.get("names", state), strict=True))
    state = {names[key]: value for key, value in state.items()}
    assert keys(state) == before["keys"]
    if SAME:  # QR and random draws are the same elsewhere too, but nobody promises it
        assert digest(state) == before["initial"]
    perturb(flow, names)
    x = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, *shape)).astype(np.uint8))
    if model.pixels.levels is None:
        x = x.float() / 64 - 2
    labels = torch.tensor([0, 1, 2]) if model.classes else None
    with torch.no_grad():
        log_prob = flow(x, labels, Drawn()).log_prob.tolist()
    expected = [float.fromhex(value) for value in before["log_prob"]]
    if SAME and "names" not in before:  # sums over scales are taken in another order
        assert log_prob == expected
    assert log_prob == pytest.approx(expected, rel=1e-6 if SAME else 1e-3)


LARGE = [name for name in BEFORE["recipes"] if not name.endswith("-tiny")]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name
        for name in BEFORE["recipes"]
    ],
)
def test_recipes_are_what_they_were(name):
    check(RECIPES[name].model, BEFORE["recipes"][name])


@pytest.mark.parametrize("name", BEFORE["variants"])
def test_settings_mean_what_they_meant(name):
    before = BEFORE["variants"][name]
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in before["settings"].items()}
    make = mixers.mixer if before["model"] == "mixerflow" else mixers.maf
    check(make(**settings), before)


def photographs():
    """Three channels of 32 x 32 out of the embedded images."""
    x = data.load("fashion-mini").train.pixels.astype(np.int64)
    x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))[:2000]
    channels = [x, np.roll(x, 3, axis=3) * 3 // 4 + 20, 255 - np.roll(x, 5, axis=2) // 2]
    return np.concatenate(channels, 1).astype(np.uint8)


@pytest.mark.parametrize(
    "name",
    [
        "mixerflow-tiny",
        pytest.param("mixerflow-cifar10-tiny", marks=pytest.mark.slow),
        pytest.param("mixerflow-maf-mnist-tiny", marks=pytest.mark.slow),
    ],
)
def test_training_is_what_it_was(name, tmp_path):
    before, named = BEFORE["runs"][name], RECIPES[name]
    gray = data.load("fashion-mini").train.pixels[:2000]
    torch.manual_seed(0)
    flow = named.model.build(named.shape)
    config = replace(
        named.train, steps=50, minutes=None, evaluate_every=25, evaluate_images=64, keep=2
    )
    pixels = photographs() if "cifar10" in name else gray
    mixerflow.train(flow, pixels, config=config, out=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    train = [record for record in metrics if record["kind"] == "train"]
    assert len(train) == len(before["metrics"])
    for record, old in zip(train, before["metrics"], strict=True):
        if SAME:
            assert {key: record[key] for key in old} == old
        assert record["objective"] == pytest.approx(old["objective"], rel=1e-2)
    if SAME:
        assert digest(flow.state_dict()) == before["weights"]
