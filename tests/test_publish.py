"""Published weights and what begins from them: small, verified, outdone only by better ones."""

import dataclasses
import hashlib
import json
import shutil
import signal

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from helpers import (
    MODEL,
    SHAPE,
    everything,
    flow_of,
    images,
    settings,
    stop_after,
)
from mixerflow.cli import main
from mixerflow.data import make_images
from mixerflow.errors import CheckpointError, ConfigError, DataError
from mixerflow.models import from_spec
from mixerflow.recipes import build, recipe
from mixerflow.registry import describe
from mixerflow.runs import Checkpoints, Evaluator, RunFolder, begin_from, load, publish
from mixerflow.runs.folder import FORMAT
from mixerflow.runs.publish import is_large, rounded
from mixerflow.runs.weights import read_weights
from mixerflow.training import TrainConfig, Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.transforms import LU
from mixers import maf, mixer, vary

ROUNDING = 2e-3
"""Bits/dim that 16 bits may cost a small flow, whose figures are near 6."""


LARGE = mixer(layers=2, flow_layers=2, hidden=40, patch=2, shift=1)
"""A flow with matrices that are large enough to be rounded."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 40 steps, made once."""
    out = tmp_path_factory.mktemp("run") / "run"
    config = settings(steps=40, ema=0.5, evaluate_every=40)
    train(flow_of(LARGE), images(200), out=out, config=config, quiet=True)
    return out


def judge(n=64, seed=5):
    return Evaluator(images(n, seed), "test")


@pytest.fixture(scope="module")
def published(run, tmp_path_factory):
    """What was published of that run, made once."""
    to = tmp_path_factory.mktemp("published") / "w"
    publish(run, to, judge())
    return to


def test_published_weights_come_back_in_float32_to_rounding(run, tmp_path):
    to = tmp_path / "weights" / "ramps"
    card = publish(run, to, judge())
    assert sorted(path.name for path in to.iterdir()) == [
        "card.json",
        "card.md",
        "model.safetensors",
        "samples.png",
    ]
    with Image.open(to / "samples.png") as grid:
        assert grid.size[0] == grid.size[1] > 8 * 64  # 8 x 8 images
    assert "![64 samples at temperature 0.8](samples.png)" in (to / "card.md").read_text()
    flow, pixels = load(to), judge().images.pixels
    assert {p.dtype for p in flow.parameters()} == {torch.float32}
    assert not flow.training
    figure = flow.bits_per_dim(pixels).double().mean().item()
    assert figure == pytest.approx(card["figure"]["bits_per_dim"], rel=1e-6)
    exact = load(run).bits_per_dim(pixels).double().mean().item()
    assert exact == pytest.approx(card["float32"]["bits_per_dim"], rel=1e-6)
    assert 0 < abs(figure - exact) < ROUNDING


def test_matrices_are_in_16_bits_and_all_else_is_as_it_was(run, published):
    kept = safetensors.torch.load_file(published / "model.safetensors")
    flow = load(run)
    exact, parameters = flow.state_dict(), dict(flow.named_parameters())
    assert kept.keys() == exact.keys()
    kinds = {name: value.dtype for name, value in kept.items() if value.dtype != exact[name].dtype}
    assert set(kinds.values()) == {torch.bfloat16}
    assert all(parameters[name].dim() == 2 for name in kinds)
    assert sum(kept[name].numel() for name in kinds) > 0.5 * sum(
        p.numel() for p in flow.parameters()
    )
    for name, value in kept.items():
        assert torch.equal(value, exact[name].to(value.dtype)), name


def test_raw_weights_travel_too(run, tmp_path):
    card = publish(run, tmp_path / "w", judge(), average=False)
    assert not card["averaged"]
    assert "raw, not averaged" in (tmp_path / "w" / "card.md").read_text()
    kept, raw = load(tmp_path / "w").state_dict(), load(run, average=False).state_dict()
    exact = [name for name, value in raw.items() if value.dim() < 2]
    assert exact and all(torch.equal(kept[name], raw[name]) for name in exact)


def test_the_flows_own_matrices_are_float16_where_that_can_hold_them():
    flow = build(mixer(layers=1, flow_layers=2, hidden=8, patch=4), (3, 32, 32))
    maps = {name: m for name, m in flow.named_modules() if isinstance(m, LU) and m.n > 3}
    with torch.no_grad():
        for module in maps.values():
            module.packed.normal_()
        first = next(iter(maps))
        maps[first].packed[0, 1] = 1e5
    kinds = {f"{name}.packed": torch.float16 for name in maps} | {f"{first}.packed": torch.float32}
    weights = rounded(flow)
    assert {name: weights[name].dtype for name in kinds} == kinds


@pytest.mark.parametrize(
    ("shape", "large"),
    [
        ((32, 32), True),
        ((16, 8, 3, 3), True),  # 16 rows with a fan-in of 72
        ((128, 1, 3, 3), True),  # one for each channel of its own
        ((8, 8, 3, 3), False),  # 576 numbers
        ((4096, 1, 1), False),  # a scale of each channel
        ((4096,), False),
        ((), False),
    ],
)
def test_kernels_are_matrices_as_wide_as_their_fan_in(shape, large):
    assert is_large(torch.zeros(shape)) == large


def test_a_convolutional_flow_loses_little_by_16_bits(tmp_path):
    """Of 4.2 bits/dim 0.00001; were its kernels rounded to 8 bits, 0.0006."""
    model = mixer(
        layers=1, flow_layers=1, hidden=16, patch=4, shift=0, extra="convolution", norm="rms"
    )
    rng = np.random.default_rng(0)
    ramp = rng.integers(0, 120, (200, 1, 1, 1)) + 2 * np.arange(64).reshape(1, 1, 8, 8)
    pixels = (ramp + rng.integers(0, 9, (200, 1, 8, 8))).astype(np.uint8)
    data, few = (make_images(part, None, dataset_id="r") for part in (pixels[:150], pixels[150:]))
    torch.manual_seed(0)
    flow, out = build(model, (1, 8, 8)), tmp_path / "run"
    config = settings(steps=60, ema=0.5, evaluate_every=60)
    train(flow, data, out=out, config=config, quiet=True)
    card = publish(out, tmp_path / "w", Evaluator(few, "test"))
    kept = safetensors.torch.load_file(tmp_path / "w" / "model.safetensors")
    kernels = {n: p for n, p in load(out).named_parameters() if p.dim() == 4}
    kinds = {n: torch.bfloat16 if p.numel() >= 1024 else torch.float32 for n, p in kernels.items()}
    assert {name: kept[name].dtype for name in kernels} == kinds
    assert len(set(kinds.values())) == 2
    exact = card["float32"]["bits_per_dim"]
    cost = card["figure"]["bits_per_dim"] - exact
    assert 0 < abs(cost) < 2e-4, f"16 bits cost {cost:.5f} bits/dim"
    coarse = load(out)
    with torch.no_grad():
        for name, kernel in coarse.named_parameters():
            if name in kernels:
                kernel.copy_(kernel.to(torch.float8_e4m3fn).to(kernel))
    eight = coarse.bits_per_dim(few.pixels).double().mean().item() - exact
    assert abs(eight) > 3e-4  # what would be too much shows


def test_the_card_tells_what_was_trained_and_judged(run, tmp_path):
    card = publish(run, tmp_path / "w", judge())
    assert from_spec(card["model"]) == (LARGE, SHAPE)
    assert (card["steps"], card["restarts"]) == (40, 0)
    assert card["parameters"] == sum(p.numel() for p in load(run).parameters())
    figure = card["figure"]
    assert (figure["dataset_id"], figure["split"], figure["images"]) == ("ramps", "test", 64)
    assert (figure["density"], figure["dequantization"]) == ("exact", "uniform")
    assert card["machine"]["device"]
    assert card["objective"] == "likelihood"
    assert card["versions"]["torch"] == torch.__version__
    told = json.loads((tmp_path / "w" / "card.json").read_text())
    del told["sha256"]
    assert told == json.loads(json.dumps(card))
    page = (tmp_path / "w" / "card.md").read_text()
    assert f"**{figure['bits_per_dim']:.3f} ± " in page
    assert "exact density, uniform dequantisation, single-sample, noise of seed 0" in page
    assert card["files"]["model.safetensors"]["sha256"] in page


def test_only_better_weights_replace_what_is_published(run, tmp_path):
    better = tmp_path / "better"
    config = settings(steps=80, evaluate_every=80)
    train(flow_of(LARGE), images(200), out=better, config=config, quiet=True)
    to = tmp_path / "w"
    first = publish(run, to, judge())
    with pytest.raises(ConfigError, match=r"what is published has .* bits/dim") as caught:
        publish(run, to, judge())  # equal is not better
    assert "\n" not in str(caught.value)
    second = publish(better, to, judge())
    assert second["figure"]["bits_per_dim"] < first["figure"]["bits_per_dim"]
    before = (to / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="train further"):
        publish(run, to, judge())
    with pytest.raises(ConfigError, match="judged by 64 images of ramps"):
        publish(better, to, judge(seed=6))
    with pytest.raises(ConfigError, match=r"judged by exact density, uniform .*, single-sample"):
        publish(better, to, dataclasses.replace(judge(), importance_samples=2))
    assert (to / "model.safetensors").read_bytes() == before
    assert publish(run, to, judge(), force=True)["figure"] == first["figure"]


def test_what_cannot_be_published_is_refused(run, tmp_path):
    to = tmp_path / "w"
    with pytest.raises(ConfigError, match=r"MB of weights are more than 0\.01: .*limit_mb"):
        publish(run, to, judge(), limit_mb=0.01)
    with pytest.raises(ConfigError, match="a run is there"):
        publish(run, run, judge())
    with pytest.raises(DataError, match="give images of that shape"):
        publish(run, to, Evaluator(images_of_shape((1, 8, 8)), "test"))
    assert not to.exists()
    publish(run, to, judge())
    with pytest.raises(ConfigError, match="published already"):
        publish(to, tmp_path / "again", judge())


def images_of_shape(shape):
    return make_images(np.zeros((4, *shape), np.uint8), None, dataset_id="black")


def test_weights_that_are_not_finite_are_not_published(run, tmp_path):
    checkpoints = Checkpoints(shutil.copytree(run, tmp_path / "run") / "checkpoints")
    found = checkpoints.load("best")
    broken = {k: v * float("nan") if v.is_floating_point() else v for k, v in found.model.items()}
    checkpoints.save(found.step + 1, broken, broken, found.state, best=True)
    with pytest.raises(CheckpointError, match="nan bits/dim"):
        publish(tmp_path / "run", tmp_path / "w", judge())
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "card.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damaged_files_are_detected_and_named(published, tmp_path, name, damage):
    path = shutil.copytree(published, tmp_path / "w") / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-9])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "w")
    missing_card = (name, damage) == ("card.json", "gone")  # then nothing says that it is published
    assert caught.value.where == str(tmp_path / "w" if missing_card else path)
    assert "\n" not in str(caught.value)


def test_published_weights_are_of_one_step_and_kind(published):
    load(published, which="last")
    for options in ({"which": 3}, {"average": False}):
        with pytest.raises(ConfigError, match="of one kind and step"):
            load(published, **options)


@pytest.mark.parametrize("source", ["published", "run"])
def test_a_run_begins_as_good_as_what_it_begins_from(run, published, tmp_path, source):
    path = published if source == "published" else run
    known = flow_of(LARGE, seed=7)
    origin = begin_from(known, path)
    assert known.initialized
    before = known.state_dict()
    out, config = tmp_path / "next", settings(keep=9)
    train(flow_of(LARGE), images(200), out=out, config=config, begin=path, quiet=True)
    checkpoint = Checkpoints(out / "checkpoints").load(0)
    for weights in (checkpoint.model, checkpoint.ema):
        assert all(torch.equal(weights[k], before[k]) for k in before if "running" not in k)
    assert all(not s for s in checkpoint.state["trainer"]["optimizer"]["state"].values())
    pixels = judge().images.pixels
    theirs = load(run).bits_per_dim(pixels).mean()
    for average in (True, False):
        mine = load(out, which=0, average=average).bits_per_dim(pixels).mean()
        assert abs(mine - theirs) < 0.02  # batch norm's statistics are taken anew
    assert RunFolder(out).read_metadata()["origin"] == json.loads(json.dumps(origin))
    file = path / "model.safetensors"
    if source == "run":
        file = read_weights(run).path / "ema.safetensors"
    assert origin["sha256"] == sha256_of(file)
    assert (origin["path"], origin["steps"]) == (str(path), 40)


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_without_batch_norm_step_0_is_the_source_itself(tmp_path):
    train(flow_of(), images(), out=tmp_path / "run", config=settings(), quiet=True)
    flow = load(tmp_path / "run")
    config = settings(keep=9)
    train(flow, images(), out=tmp_path / "next", config=config, quiet=True)  # as Python has it
    pixels = judge().images.pixels
    mine = load(tmp_path / "next", which=0).bits_per_dim(pixels)
    assert torch.equal(mine, load(tmp_path / "run").bits_per_dim(pixels))


def test_restarts_are_told_one_after_the_other(run, tmp_path):
    path, hashes = run, [None]
    for number in (1, 2):
        card = publish(path, tmp_path / f"w{number}", judge(), force=True)
        hashes.append(card["files"]["model.safetensors"]["sha256"])
        path, start = tmp_path / f"run{number}", 40 + 12 * (number - 1)
        train(
            flow_of(LARGE),
            images(200),
            out=path,
            config=settings(schedule_start=start, schedule_steps=99),
            begin=tmp_path / f"w{number}",
            metadata={"recipe": f"number {number}"},
            quiet=True,
        )
    card = publish(path, tmp_path / "w3", judge(), which="last")
    assert card["steps"] == 40 + 12 + 12
    assert card["restarts"] == 2
    told = [(p["steps"], p["schedule_start"], p["from_sha256"]) for p in card["pieces"]]
    assert told == [(40, 0, hashes[0]), (12, 40, hashes[1]), (12, 52, hashes[2])]
    assert "| 12 | 52, 64, 99 |" in (tmp_path / "w3" / "card.md").read_text()


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (
            vary(LARGE, hidden=8),
            SHAPE,
            r"its model\.flow\.net\.width is 40, not 8: .*: set model\.flow\.net\.width to 40",
        ),
        (MODEL, (1, 4, 8), r"its model.shape is \(1, 4, 4\), not \(1, 4, 8\)"),
        (maf(layers=1, hidden=8), SHAPE, "its model is mixerflow, not maf"),
    ],
)
def test_another_model_is_refused_by_its_first_difference(published, model, shape, words):
    with pytest.raises(ConfigError, match=words) as caught:
        begin_from(build(model, shape), published)
    assert "\n" not in str(caught.value)


def trainer_of(config, steps):
    flow = flow_of()
    flow.initialize(torch.from_numpy(images().pixels))
    batches = Batches(images(), config.batch, seed=0, device=flow.device, conditional=False)
    return Trainer(flow, batches, config, steps=steps)


def test_pieces_have_the_rates_the_averaging_and_the_images_of_the_whole(monkeypatch):
    def taken(trainer):
        seen = []
        monkeypatch.setattr(trainer.average, "share", lambda n: seen.append(n) or 0.5)
        at = trainer.batches.at
        monkeypatch.setattr(trainer.batches, "at", lambda n: seen.append(at(n)[0].sum()) or at(n))
        rates = [trainer.advance().lr for _ in range(trainer.steps)]
        return list(zip(rates, seen[::2], seen[1::2], strict=True))

    def at(start, steps, **changes):
        return taken(trainer_of(settings(warmup=5, schedule_start=start, **changes), steps))

    whole = at(0, 60)
    end = {"schedule_steps": 60}
    pieces = [at(0, 20, **end), at(20, 3, **end), at(23, 37, **end)]
    assert at(23, 37) == pieces[2]  # a schedule that ends with the run
    rises = (0, 0, 3)  # Adam begins anew; a tenth of the run at most
    for (start, end), piece, rise in zip(((0, 20), (20, 23), (23, 60)), pieces, rises, strict=True):
        same = whole[start:end]
        assert piece[rise:] == same[rise:]
        assert [seen[1:] for seen in piece] == [seen[1:] for seen in same]
        for number in range(rise):
            assert piece[number][0] == pytest.approx(same[number][0] * (number + 1) / rise)


def test_schedules_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match=r"train\.schedule_start"):
        settings(schedule_start=-1)
    with pytest.raises(ConfigError, match=r"schedule_steps: it must be more than train\."):
        settings(schedule_start=10, schedule_steps=10)
    flow = flow_of()
    flow.initialize(torch.from_numpy(images().pixels))
    with pytest.raises(ConfigError, match=r"steps 10 to 22 of 20: train\.schedule_steps: .* 22"):
        train(flow, images(), config=settings(schedule_start=10, schedule_steps=20), quiet=True)
    with pytest.raises(ConfigError, match="step 10 of a schedule, and new weights"):
        train(flow_of(), images(), config=settings(schedule_start=10), quiet=True)


def test_runs_older_than_the_schedule_go_on(tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(flow_of(), images(), out=whole, config=settings(), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        train(flow_of(), images(), out=out, config=settings(), quiet=True)
    header = RunFolder(out).read_metadata()
    del header["train"]["schedule_start"], header["train"]["schedule_steps"]
    RunFolder(out).write_metadata(header)
    train(flow_of(), images(), out=out, config=settings(), quiet=True)
    unbroken = everything(whole)
    assert all(torch.equal(tensor, unbroken[name]) for name, tensor in everything(out).items())


@pytest.mark.slow
def test_the_papers_model_fits_the_limit(tmp_path):
    named = recipe("mixerflow-cifar10")
    flow = build(named.model, named.shape)
    flow.initialized.fill_(True)
    folder = RunFolder(tmp_path / "run")
    data = {"classes": [], "training_images": 0, "dataset_id": "none"}
    count = sum(p.numel() for p in flow.parameters())
    header = {
        "format": FORMAT,
        "model": flow.spec,
        "train": describe(TrainConfig()),
        "data": data,
        "parameters": count,
    }
    folder.write_metadata(header | {"machine": {}, "versions": {}})
    weights = flow.state_dict()
    Checkpoints(folder.path / "checkpoints").save(0, weights, weights, {}, best=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *named.shape)).astype(np.uint8)
    few = Evaluator(make_images(pixels, None, dataset_id="noise"), "test")
    card = publish(folder.path, tmp_path / "w", few)
    size = (tmp_path / "w" / "model.safetensors").stat().st_size
    assert card["files"]["model.safetensors"]["bytes"] == size < 25e6


TINY = ["--model.layers", "1", "--model.flow.net.width", "32", "--model.flow-layers", "2"]
QUICK = [
    *TINY,
    *("--threads", "1", "--steps", "6", "--train.batch", "8", "--train.evaluate-images", "20"),
]
FEW = ["--images", "30"]


def command(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of the command line, made once."""
    out = tmp_path_factory.mktemp("first") / "run"
    assert command("train", "mixerflow-tiny", *QUICK, "--out", out) == 0
    return out


def test_from_the_command_line_end_to_end(first, tmp_path, capsys, monkeypatch):
    second, weights = tmp_path / "second", tmp_path / "weights" / "clothes"
    anew = ["train", "mixerflow-tiny", *QUICK]
    assert command("publish", first, "--to", weights, "--checkpoint", "last", *FEW) == 0
    assert "after 6 steps" in capsys.readouterr().out
    assert command("publish", first, "--to", weights, *FEW) == 2
    read, said = capsys.readouterr().err.splitlines()
    assert read.startswith("fashion-mini: ") and said.startswith("error: what is published has ")
    assert command("evaluate", weights, "--json", *FEW) == 0
    assert json.loads(capsys.readouterr().out)["run"]["steps"] == 6
    assert command("sample", weights, "-n", 2) == 0
    assert command("info", weights) == 0
    assert "published, 6 steps on fashion-mini" in capsys.readouterr().out
    again = [*anew, "--from", weights, "--out", second]
    piece = ["--train.schedule-start", 6, "--train.schedule-steps", 12]
    assert command(*anew, *piece, "--out", second) == 2
    assert "name the weights that were trained so far with --from" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        stop_after(patch, 3, signal.SIGTERM)
        assert command(*again, *piece) == 143
    shutil.move(weights, tmp_path / "elsewhere")  # what has begun needs it no more
    assert command(*again, *piece) == 0
    header = RunFolder(second).read_metadata()
    assert (header["origin"]["path"], header["origin"]["steps"]) == (str(weights), 6)
    assert header["status"] == "finished"
    capsys.readouterr()
    assert command(*anew, *piece, "--from", first, "--out", second) == 2
    assert "it began from" in capsys.readouterr().err
    assert command(*again[:-1], tmp_path / "third") == 4
    assert "no run here" in capsys.readouterr().err
    assert command("publish", second, "--to", weights, *FEW) == 0
    assert "after 12 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publish", "RUN", "--to", "w", "--batch", "0"], "--batch"),
        (["publish", "RUN", "--to", "w", "--limit-mb", "0"], "--limit-mb"),
        (["publish", "RUN", "--to", "w", "--limit-mb", "0.001", *FEW], "--limit-mb"),
        (["publish", "RUN"], "--to"),
        (["publish", "/no/such/run", "--to", "w"], "/no/such/run"),
        (["train", "mixerflow-tiny", "--frm", "w"], "did you mean --from?"),
        (["train", "WEIGHTS"], "mixerflow train RECIPE --from "),
        (
            ["train", "mixerflow-tiny", "--from", "RUN", "--model.flow.net.width", "8"],
            "--model.flow-layers to 2",
        ),
    ],
)
def test_errors_are_one_line(first, tmp_path, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "card.json").touch()
    named = {"RUN": first, "WEIGHTS": tmp_path / "weights"}
    arguments = [named.get(argument, argument) for argument in arguments]
    assert command(*arguments) == (4 if "/no/such/run" in arguments else 2)
    *read, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and words in said
    assert not read or (len(read) == 1 and read[0].startswith("fashion-mini: "))
