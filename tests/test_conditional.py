"""Conditional flows: densities given vectors or classes, training, the posterior over classes."""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mixerflow
from helpers import MODEL, SHAPE, everything, flow_of, images, settings, stop_after, together
from mixerflow import MAF, Glow, RealNVP
from mixerflow.cli import main
from mixerflow.core import Chain, Flow, Noise, VectorNet
from mixerflow.data import load as load_data
from mixerflow.data import make_images
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import bits, class_log_probs, draw_pixels
from mixerflow.export import density
from mixerflow.models import from_spec
from mixerflow.nets import ResidualMLP
from mixerflow.parts import Classes, GlowConv, ResidualConv, ScaledPixels, Vectors
from mixerflow.report import make_report
from mixerflow.runs import Evaluator, load
from mixerflow.training import train
from mixerflow.transforms import Affine, Coupling, Rescale
from mixerflow.transforms.checks import perturb

K = 3
VECTORS = Vectors(K, width=4, hidden=8)
MODELS = {
    "mixer": dataclasses.replace(MODEL, vectors=VECTORS),
    "glow": Glow(scales=1, steps=2, net=GlowConv(4), vectors=VECTORS),
    "maf": MAF(layers=2, width=8, vectors=VECTORS),
    "realnvp": RealNVP(net=ResidualConv(4, depth=1), vectors=VECTORS),
}
PIXELS = images(24).pixels
RNG = np.random.default_rng(0)
GIVEN = (RNG.normal(size=(24, K)) * (1, 1e4, 1e-3) + (0, 5, 1)).astype(np.float32)


def moved(model, shape=SHAPE, **changes):
    """A flow in eval mode whose weights have moved, so that it reads its context."""
    flow = flow_of(model) if shape == SHAPE else model.build(shape)
    flow.initialize(torch.from_numpy(PIXELS), **changes) if changes else None
    perturb(flow)
    return flow.eval()


@pytest.fixture(params=MODELS)
def flow(request):
    return moved(MODELS[request.param], context=torch.from_numpy(GIVEN))


# --- densities


@pytest.mark.parametrize(
    ("condition", "given"),
    [
        ({"vectors": Vectors(2, width=3)}, [[0.0, 0.0], [2.0, -1.0]]),
        ({"classes": Classes(2, 3)}, [0, 1]),
    ],
    ids=["vectors", "classes"],
)
def test_the_density_integrates_to_one_given_each_condition(condition, given):
    """Two pixels of floats, by quadrature over the plane; the densities differ."""
    model = MAF(layers=2, width=8, batch_norm=False, pixels=ScaledPixels(levels=None), **condition)
    torch.manual_seed(0)
    made = model.build((1, 1, 2))
    perturb(made, size=0.2)
    made = made.double().eval()
    line = torch.linspace(-14, 14, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line).reshape(-1, 1, 1, 2)
    found = []
    for each in given:
        context = torch.tensor([each]).expand(len(grid), *torch.tensor(each).shape)
        with torch.no_grad():
            found.append(made.log_prob(grid, context))
        mass = found[-1].exp().sum().item() * (line[1] - line[0]).item() ** 2
        assert mass == pytest.approx(1, abs=1e-6)
    assert (found[0] - found[1]).abs().max() > 0.1


def test_vectors_reach_the_density(flow):
    given = torch.from_numpy(GIVEN).requires_grad_()
    x = torch.from_numpy(PIXELS)
    flow.log_prob(x, given, Noise.of(0, x)).sum().backward()
    assert (given.grad * given.detach().std(0)).abs().amin(0).gt(0).all()
    assert all(p.grad.abs().sum() > 0 for p in flow.context_net.parameters())


def test_no_image_sees_another_s_vector(flow):
    x = torch.from_numpy(PIXELS)
    whole = flow.bits_per_dim(x, GIVEN)
    other = np.concatenate([GIVEN[:1], np.roll(GIVEN[1:], 1, 0)])
    again = flow.bits_per_dim(x, other)
    torch.testing.assert_close(whole[:1], again[:1])
    assert (whole[1:] - again[1:]).abs().max() > 1e-3
    alone = torch.cat([flow.bits_per_dim(x[i : i + 1], GIVEN[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole[:4], alone, rtol=1e-5, atol=1e-5)


def test_images_come_back_given_their_vectors(flow):
    assert torch.equal(flow.decode(flow.encode(PIXELS, GIVEN), GIVEN), torch.from_numpy(PIXELS))


def test_every_way_of_scoring_is_the_same(flow):
    wanted = flow.bits_per_dim(PIXELS, GIVEN).numpy()
    labelled = make_images(PIXELS, GIVEN, dataset_id="ramps")
    assert np.allclose(bits(flow, PIXELS, labels=GIVEN).per_image, wanted, atol=1e-5)
    assert np.allclose(bits(flow, labelled).per_image, wanted, atol=1e-5)
    scored = Evaluator(labelled, "all").score(flow, {"data": {"classes": []}})
    assert np.allclose(scored.per_image, wanted, atol=1e-5)


def test_one_vector_is_that_of_every_sample(flow):
    draws = [
        flow.sample(5, context, generator=torch.Generator().manual_seed(0))
        for context in (GIVEN[0], np.repeat(GIVEN[:1], 5, 0), np.repeat(GIVEN[1:2], 5, 0))
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    drawn = draw_pixels(flow, 5, seed=0, examples=GIVEN[:2])
    assert torch.equal(
        torch.from_numpy(drawn.pixels),
        torch.from_numpy(draw_pixels(flow, 5, seed=0, label=GIVEN[[0, 1, 0, 1, 0]]).pixels),
    )


def test_the_inference_copy_and_the_export_take_vectors():
    made = moved(MODELS["glow"], context=torch.from_numpy(GIVEN))
    exported = density(made)
    example = exported.example()
    assert example["context"].shape == (2, K)
    program = torch.export.export(exported, (), kwargs=example).module()
    x, noise = torch.from_numpy(PIXELS[:2]), torch.rand(2, *SHAPE)
    given = {"images": x, "noise": noise, "context": torch.from_numpy(GIVEN[:2])}
    torch.testing.assert_close(program(**given), exported(**given))
    wanted = made.bits_per_dim(PIXELS, GIVEN)
    torch.testing.assert_close(made.fused().bits_per_dim(PIXELS, GIVEN), wanted)


# --- the net of vectors


def test_vectors_are_standardised_by_the_images_of_the_start():
    net = flow_of(MODELS["mixer"]).context_net
    constant = GIVEN.copy()
    constant[:, 1] = 7
    for given in (GIVEN, constant):
        net.initialize(torch.from_numpy(given))
        std = given.std(0)
        assert np.allclose(net.mean, given.mean(0), rtol=1e-4, atol=1e-6)
        assert np.allclose(net.std, np.where(std == 0, 1, std), rtol=1e-4)
    assert {"mean", "std"} <= net.state_dict().keys()


def test_units_of_the_vectors_do_not_matter():
    """The same start, scores and gradients whatever the unit and the origin of each number."""
    scores = []
    for given in (GIVEN, GIVEN * (2, 2**-10, 2**8) + np.float32((1, 0, 0))):
        context = torch.from_numpy(given.astype(np.float32))
        made = moved(MODELS["glow"], context=context)
        scores.append(made.bits_per_dim(PIXELS, context))
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("given", "fragment"),
    [
        (GIVEN[:, :2], r"vectors \(B, 3\); got \(24, 2\)"),
        (np.zeros(24, np.int64), r"vectors \(B, 3\); got \(24,\)"),
        (np.where(np.arange(24)[:, None] == 3, np.nan, GIVEN), "NaN or infinity"),
        (GIVEN * np.float32(np.inf), "NaN or infinity"),
        (GIVEN[:5], "24 images|batch of 24"),
        (None, "conditional"),
    ],
    ids=["length", "classes", "nan", "inf", "few", "none"],
)
def test_wrong_vectors_are_refused_wherever_they_are_given(given, fragment):
    made = moved(MODELS["mixer"])
    with pytest.raises(ValueError, match=fragment):
        made.bits_per_dim(PIXELS, given)
    with pytest.raises(ValueError, match=fragment):
        made.log_prob(torch.from_numpy(PIXELS), given)
    with pytest.raises((ValueError, RuntimeError)):
        made.initialize(torch.from_numpy(PIXELS), given)
    assert not made.context_net.mean.any() and not made.initialized, "nothing changed"
    with pytest.raises((ConfigError, DataError)):
        train(flow_of(MODELS["mixer"]), PIXELS, labels=given, config=settings(), quiet=True)


@pytest.mark.parametrize(
    ("labels", "fragment"),
    [
        (np.zeros(24), "number the classes 0, 1, ... as integers, or give vectors"),
        (np.zeros((24, 2, 2)), "or give vectors"),
        (np.zeros((24, 0)), "one row of numbers for each image"),
        (np.zeros((9, 2)), r"vectors are \(9, 2\) for 24 images"),
        (np.array([[0.0, 1.0]] * 23 + [[np.nan, 0.0]]), "the vector of image 23 is not finite"),
        (np.full((24, 1), 1e300), "the vector of image 0 is not finite"),
    ],
)
def test_labels_that_are_no_vectors_are_one_line(labels, fragment):
    with pytest.raises(DataError, match=fragment) as caught:
        make_images(PIXELS, labels, dataset_id="mine")
    assert "\n" not in str(caught.value) and "mine" in str(caught.value)


def test_images_of_the_other_kind_are_one_line():
    classes = flow_of(dataclasses.replace(MODEL, classes=Classes(3, 4)))
    with pytest.raises(DataError, match="takes class labels, these are vectors"):
        train(classes, PIXELS, labels=GIVEN, config=settings(), quiet=True)
    with pytest.raises(DataError, match="vectors of length 3, these are class labels"):
        train(flow_of(MODELS["mixer"]), images(24, classes=3), config=settings(), quiet=True)
    both = dataclasses.replace(MODEL, classes=Classes(3), vectors=VECTORS)
    with pytest.raises(ConfigError, match="exclude each other"):
        flow_of(both)
    for unknown in (Classes(), Vectors()):
        name = type(unknown).__name__.lower()
        with pytest.raises(ConfigError, match=f"model.{name}: "):
            flow_of(dataclasses.replace(MODEL, **{name: unknown}))


# --- training


@pytest.mark.parametrize("name", ["mixer", "glow"])
def test_a_run_with_vectors_resumes_bit_for_bit(tmp_path, monkeypatch, name):
    def run(out):
        return train(
            flow_of(MODELS[name]), PIXELS, labels=GIVEN, out=out, config=settings(), quiet=True
        )

    run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        assert run(tmp_path / "stopped").step == 7
    torch.manual_seed(3)
    assert run(tmp_path / "stopped").status == "finished"
    whole, resumed = everything(tmp_path / "whole"), everything(tmp_path / "stopped")
    assert whole.keys() == resumed.keys() and "model.context_net.std" in whole
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
    loaded = load(tmp_path / "stopped")
    assert torch.equal(loaded.context_net.std, whole["model.context_net.std"])
    assert loaded.bits_per_dim(PIXELS, GIVEN).isfinite().all()
    make_report(tmp_path / "whole", make_images(PIXELS, GIVEN, dataset_id="array"))


def test_a_flow_learns_what_its_vectors_say():
    """Of an image's brightness the vector tells all; scores with wrong vectors are worse."""
    rng = np.random.default_rng(0)
    level = rng.uniform(0, 1, (300, 1)).astype(np.float32)
    noise = rng.integers(0, 20, (300, *SHAPE))
    pixels = np.uint8(200 * level[:, :, None, None] + noise)
    flow = flow_of(dataclasses.replace(MODEL, vectors=Vectors(1, width=4)))
    config = settings(steps=120, batch=32, ema=0.9, evaluate_every=60)
    validation = {"validation": pixels[:40], "validation_labels": level[:40]}
    done = train(flow, pixels, labels=level, config=config, quiet=True, **validation)
    right = flow.bits_per_dim(pixels, level)
    assert abs(done.validation.bits_per_dim - right[:40].mean().item()) < 0.05
    assert (right < flow.bits_per_dim(pixels, np.roll(level, 7, 0))).float().mean() > 0.9
    dark, bright = (flow.sample(64, torch.tensor([v])).float().mean() for v in (0.1, 0.9))
    assert abs(dark - 30) < 25 and abs(bright - 190) < 25
    with pytest.raises(ConfigError, match="validation_labels"):
        train(flow, pixels, labels=level, validation_labels=level, config=config, quiet=True)


class Angles(nn.Module):
    """A net of one's own, which takes a pair of tensors in one: angles ``(B, 2, 2)``."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(8, 4)

    def forward(self, angles):
        return self.map(torch.cat([angles.sin(), angles.cos()], 1).flatten(1))


def test_a_net_of_ones_own_takes_what_it_takes(tmp_path):
    net = ResidualMLP(8, 16, width=8, context=4)
    made = Flow(
        Chain(Rescale(1 / 128, -1), Coupling(-1, net, Affine())), (16,), context_net=Angles()
    )
    perturb(made)
    x, angles = torch.rand(5, 16) * 255, torch.rand(5, 2, 2)
    assert made.log_prob(x, angles).shape == (5,)
    assert made.sample(5, angles).shape == (5, 16)


def work(processes, out):
    torch.manual_seed(0)
    made = flow_of(MODELS["glow"]).double()
    config = settings(batch=6)
    train(made, PIXELS, labels=GIVEN, out=out, config=config, quiet=True)
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def test_two_processes_train_alike(tmp_path):
    first, second = together(2, work, tmp_path / "run")
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
    assert first["context_net.std"].ne(1).all()


# --- the posterior over classes


def test_the_posterior_is_bayes_rule():
    made = moved(dataclasses.replace(MODEL, classes=Classes(4, 4)))
    x, prior = torch.from_numpy(PIXELS), np.array([0.1, 0.2, 0.3, 0.4])
    found = class_log_probs(made.train(), PIXELS, prior, seed=5, batch=7)
    exact, noise = made.eval().double(), Noise.of(5, x)
    with torch.no_grad():
        each = [exact.log_prob(x, torch.full((24,), k), noise) for k in range(4)]
    log_probs = torch.stack(each, 1).numpy()
    joint = prior * np.exp(log_probs - log_probs.max(1, keepdims=True))
    assert np.allclose(found.exp(), joint / joint.sum(1, keepdims=True), rtol=1e-3, atol=1e-6)
    assert found.dtype == torch.float64
    assert torch.allclose(found.exp().sum(1), torch.ones(24, dtype=torch.float64))
    certain = class_log_probs(made, PIXELS, torch.tensor([0, 0, 1.0, 0]))
    assert torch.equal(certain.exp(), torch.eye(4, dtype=torch.float64)[[2] * 24])


def test_equal_conditionals_leave_the_prior():
    made = flow_of(dataclasses.replace(MODEL, classes=Classes(3, 4)))
    with torch.no_grad():
        made.context_net.weight[:] = made.context_net.weight[0]
    perturb(made.transform)
    prior = np.array([0.2, 0.5, 0.3])
    assert np.allclose(class_log_probs(made, PIXELS, prior).exp(), prior)
    assert np.allclose(class_log_probs(made, PIXELS).exp(), 1 / 3)
    assert class_log_probs(made, PIXELS[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("prior", "fragment"),
    [
        ([0.5, 0.5], r"\(2,\) over 3 classes"),
        ([0.5, 0.5, 0.5], "sums to 1.5"),
        ([1.5, -0.5, 0.0], "smallest entry -0.5"),
        ([math.nan, 0.5, 0.5], "sums to nan"),
    ],
)
def test_a_prior_that_is_none_is_one_line(prior, fragment):
    made = flow_of(dataclasses.replace(MODEL, classes=Classes(3, 4)))
    with pytest.raises(ConfigError, match=fragment):
        class_log_probs(made, PIXELS, prior)
    for other in (MODEL, MODELS["mixer"]):
        with pytest.raises(ConfigError, match="no classes"):
            class_log_probs(flow_of(other), PIXELS)


# --- the command line

QUICK = ["--model.layers", 1, "--model.flow.net.width", 4, "--model.flow-layers", 2, "--threads", 1]
QUICK += ["--steps", 2, "--train.batch", 4, "--train.initial", 4]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def save(path, **arrays):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
    made = {"train_images": pixels, "test_images": pixels[:4]}
    np.savez(path, **made, **arrays)
    return path


def model_of(out):
    return from_spec(json.loads((out / "run.json").read_text())["model"])[0]


def test_the_number_of_classes_comes_from_the_data(tmp_path, capsys):
    data = save(
        tmp_path / "a.npz", train_labels=np.arange(12) % 3, test_labels=np.array([0, 1, 4, 2])
    )
    words = ["train", "mixerflow-tiny", "--data", data, "--out", tmp_path / "run", *QUICK]
    assert run(*words, "--model.classes", "auto") == 0
    assert model_of(tmp_path / "run").classes == Classes(5), "the highest label is a test image's"
    assert load(tmp_path / "run").context_net.num_embeddings == 5
    capsys.readouterr()
    assert run(*words, "--model.classes", "auto") == 0, "the same command resumes"
    assert run("train", tmp_path / "run") == 0
    assert run(*words, "--model.classes.count", 6) == 2
    assert "classes.count is 5, not 6" in capsys.readouterr().err


def test_named_classes_are_as_many_as_the_names(tmp_path):
    from PIL import Image

    for number, name in enumerate(("cat", "dog", "eel")):
        for index in range(4):
            path = tmp_path / "data" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 60 * number + index, np.uint8)).save(path)
    out = tmp_path / "run"
    words = ["--data", tmp_path / "data", "--out", out, "--model.classes", "auto", *QUICK]
    assert run("train", "mixerflow-tiny", *words) == 0
    assert model_of(out).classes.count == 3
    assert run("sample", out, "-n", 2, "--label", "eel") == 0


@pytest.mark.parametrize(
    ("words", "arrays", "fragment"),
    [
        (["--model.classes", "auto"], {}, "training images without labels: --model.classes: "),
        (["--model.vectors", "auto"], {}, "images without vectors: --model.vectors: "),
        (
            ["--model.vectors.length", 3],
            {"train_vectors": GIVEN[:12, :2], "test_vectors": GIVEN[:4, :2]},
            "vectors of 2 numbers in training images, and not 3: --model.vectors: set its",
        ),
        (
            ["--model.vectors", "auto"],
            {"train_vectors": GIVEN[:12, :2]},
            "test images without vectors",
        ),
        (
            ["--model.classes", "auto"],
            {"train_vectors": GIVEN[:12, :2]},
            "training images with vectors for labels",
        ),
        (
            ["--model.vectors", "auto", "--model.classes", "auto"],
            {"train_labels": np.arange(12), "test_labels": np.arange(4)},
            "images without vectors",
        ),
    ],
)
def test_data_without_what_the_model_needs_are_one_line(tmp_path, capsys, words, arrays, fragment):
    data, out = save(tmp_path / "a.npz", **arrays), tmp_path / "run"
    assert run("train", "mixerflow-tiny", "--data", data, "--out", out, *QUICK, *words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and fragment in lines[0] and not out.exists()


def test_vectors_of_an_npz_file_train_score_and_sample(tmp_path, capsys):
    given = {"train_vectors": GIVEN[:12, :2].astype(np.float64), "test_vectors": GIVEN[:4, :2]}
    data, out = save(tmp_path / "a.npz", **given), tmp_path / "run"
    splits = load_data(str(data))
    assert splits.train.vector_length == 2 and splits.test.labels.dtype == np.float32
    words = ["--data", data, "--out", out, *QUICK, "--model.vectors", "auto"]
    assert run("train", "mixerflow-tiny", *words) == 0
    assert "vectors of length 2" in capsys.readouterr().err
    assert model_of(out).vectors == Vectors(2)
    assert run("evaluate", out, "--no-codecs", "--json") == 0
    figure = json.loads(capsys.readouterr().out)["bits_per_dim"]
    wanted = load(out).bits_per_dim(splits.test.pixels, splits.test.labels).mean()
    assert figure == pytest.approx(wanted.item(), rel=1e-5)
    assert run("sample", out, "-n", 2, "--label=-1.5,2") == 0
    assert (out / "samples" / "n2-t1-seed0-label-1.5,2.png").exists()
    capsys.readouterr()
    for word in ([], ["--label", "1"], ["--label", "1,nan"], ["--label", "a,b"]):
        assert run("sample", out, "-n", 2, *word) == 2
        assert "give 2 numbers with commas between them" in capsys.readouterr().err
    other = save(tmp_path / "b.npz", test_labels=np.arange(4), train_labels=np.arange(12))
    assert run("evaluate", out, "--data", other, "--no-codecs") == 3
    assert "takes vectors of length 2, these are class labels" in capsys.readouterr().err


def test_info_says_where_the_number_comes_from(capsys):
    assert run("info", "mixerflow-tiny", "--model.classes", "auto", "--shape", 1, 8, 8) == 2
    assert "not known without images" in capsys.readouterr().err
    assert run("info", "mixerflow-tiny", "--model.vectors.length", 2, "--shape", 1, 8, 8) == 0
    assert "net of vectors" in capsys.readouterr().out


def test_vector_nets_are_described_and_made_again():
    from mixerflow.registry import construct, describe

    net = construct(describe(VectorNet(3, 4, hidden=5, depth=0)))
    assert [tuple(p.shape) for p in net.parameters()] == [(4, 3), (4,)]
    assert mixerflow.parts.Vectors(np.int64(3)) == Vectors(3)
    with pytest.raises(ValueError, match="length must be at least 1"):
        Vectors(0)


# --- the documentation

PAGE = Path(__file__).parent.parent / "docs" / "conditional.md"


def block(word):
    """The first Python block of the page that has this text."""
    return next(b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if word in b)


def test_the_page_s_colours_are_learned(tmp_path, monkeypatch, capsys):
    """Word for word, but for a third of the steps."""
    monkeypatch.chdir(tmp_path)
    exec(block("colours[2800:]").replace("steps=300", "steps=100"), {})
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert 5.37 < float(first.split()[0]) < 6.5 < float(second.split()[0])


def test_the_page_s_files_and_commands_are_taken(tmp_path, monkeypatch, capsys):
    """Word for word, but for two steps and small models."""
    monkeypatch.chdir(tmp_path)
    for word in ("Image.fromarray", "np.savez"):
        exec(block(word), {})
    commands = re.findall(r"^mixerflow ((?!reproduce)\w+ \S+ --.*)$", PAGE.read_text(), re.M)
    assert len(commands) == 6
    few = ["--steps", 2, "--train.batch", 4, "--train.initial", 8]
    for words in map(shlex.split, commands):
        tiny = QUICK[:6] if "mixerflow-tiny" in words else []
        assert run(*words, *(few + tiny if words[0] == "train" else [])) == 0, words
    exec(block("class_log_probs"), {})
    assert "of 48 images" in capsys.readouterr().out
