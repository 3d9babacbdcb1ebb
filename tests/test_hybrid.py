"""Heads, hybrid objectives and classification: against closed forms and second computations."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import mixerflow
from mixerflow.core import ClassGaussians, Noise
from mixerflow.errors import ConfigError
from mixerflow.evaluate import Classification, class_log_probs, classify
from mixerflow.objectives import label_nats
from mixerflow.parts import GaussiansHead, LinearHead, MeanHead, ScalesHead
from mixerflow.training import Frozen, Hybrid, TrainConfig
from mixerflow.training.batches import Batches

HEADS = (LinearHead(3), MeanHead(3), ScalesHead(3, width=5), GaussiansHead(3))
QUICK = {"batch": 12, "lr": 1e-2, "initial": 12, "evaluate_every": 100, "ema": 0.5, "warmup": 0}


def images_of(count=36, shape=(1, 8, 8), classes=3):
    """Images whose brightness is their class, nearly."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    pixels = rng.integers(0, 60, (count, *shape)) + 60 * labels[:, None, None, None]
    return pixels.astype(np.uint8), labels.astype(np.int64)


def flow_with(head, name="glow-cifar10-tiny", shape=(1, 8, 8), seed=0):
    torch.manual_seed(seed)
    model = mixerflow.recipe(name).model
    small = {"net.width": 4, "steps": 1} if "glow" in name else {"layers": 2, "flow.net.width": 8}
    flow = mixerflow.models.Model.build(
        replace(mixerflow.registry.evolve(model, small), head=head), shape
    )
    with torch.no_grad():  # away from zeros
        for name_, parameter in flow.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if "head" in name_ else 0)
    return flow


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
@pytest.mark.parametrize("name", ["glow-cifar10-tiny", "mixerflow-cifar10-tiny"])
def test_heads_read_each_image_alone(head, name):
    flow = flow_with(head, name).eval()
    pixels, _ = images_of(6)
    x = torch.from_numpy(pixels)
    together = class_log_probs(flow, x)
    assert together.shape == (6, 3)
    assert torch.allclose(together.exp().sum(1), torch.ones(6, dtype=torch.float64))
    assert together.std(0).min() > 0
    for i in range(6):
        assert torch.allclose(class_log_probs(flow, x[i : i + 1])[0], together[i], atol=1e-5)


def test_linear_head_is_a_scaled_linear_layer():
    flow = flow_with(LinearHead(3)).double()
    z = torch.randn(5, 64, dtype=torch.float64)
    weight, bias = flow.head.scores.weight, flow.head.scores.bias
    assert torch.allclose(flow.logits(z), z @ weight.T / 8 + bias)


def test_mean_head_is_the_mean_of_squares_of_pixels():
    flow = flow_with(MeanHead(3, patch=2), "mixerflow-cifar10-tiny").double()
    z = torch.randn(5, 64, dtype=torch.float64)
    image = z.view(5, 8, 8)
    features = torch.stack([image[:, i::2, j::2].sum((1, 2)) / 4 for i in (0, 1) for j in (0, 1)])
    weight, bias = flow.head.scores.weight, flow.head.scores.bias
    assert torch.allclose(flow.logits(z), features.T @ weight.T / 2 + bias)


def test_mean_head_of_several_scales_reads_the_last():
    flow = flow_with(MeanHead(3)).double()
    *_, last = flow.transform.latent_shapes(flow.shape)
    z = torch.randn(5, 64, dtype=torch.float64)
    before = flow.logits(z)
    z[:, : -math.prod(last)] += 1
    assert torch.equal(flow.logits(z), before)
    z[:, -1] += 1
    assert not torch.equal(flow.logits(z), before)


def test_scales_head_against_convolutions_of_each_scale():
    flow = flow_with(ScalesHead(3, width=5)).double()
    shapes = flow.transform.latent_shapes(flow.shape)
    assert len(shapes) == 2
    z, means, start = torch.randn(4, 64, dtype=torch.float64), [], 0
    for shape, convolve in zip(shapes, flow.head.convolutions, strict=True):
        piece = z[:, start : start + math.prod(shape)].view(4, *shape)
        start += math.prod(shape)
        padded = torch.nn.functional.pad(piece, (1, 1, 1, 1))
        out = torch.stack(
            [
                torch.stack(
                    [
                        (padded[:, None, :, i : i + 3, j : j + 3] * convolve.weight).sum((2, 3, 4))
                        for j in range(shape[2])
                    ]
                )
                for i in range(shape[1])
            ]
        )
        means.append((out + convolve.bias).clamp_min(0).mean((0, 1)))
    scores = torch.cat(means, 1) @ flow.head.scores.weight.T / math.sqrt(10)
    assert torch.allclose(flow.logits(z), scores + flow.head.scores.bias)


def test_latent_shapes_fill_the_latent_in_order():
    for name in ("glow-cifar10-tiny", "mixerflow-cifar10-tiny", "denseflow-cifar10-tiny"):
        flow = mixerflow.build(name, (3, 16, 16))
        shapes = flow.transform.latent_shapes(flow.shape)
        assert sum(map(math.prod, shapes)) == math.prod(flow.latent_shape)


@pytest.mark.parametrize("learned", [True, False])
def test_class_gaussians_are_a_mixture_of_normals(learned):
    base = ClassGaussians(4, 3, distance=2.0, learned=learned).double()
    z = torch.randn(50, 4, dtype=torch.float64) * 2
    normals = [torch.distributions.Normal(mean.detach(), 1.0) for mean in base.means]
    joint = torch.stack([n.log_prob(z).sum(1) for n in normals], 1) - math.log(3)
    assert torch.allclose(base.log_prob(z), joint.logsumexp(1))
    assert torch.allclose(base.scores(z).log_softmax(1), joint.log_softmax(1))
    drawn = base.sample(torch.empty(20_000, 4), torch.Generator().manual_seed(0))
    expected = base.means.mean(0).float()
    assert torch.allclose(drawn.mean(0), expected, atol=0.05)


def test_the_images_of_a_class_come_from_its_gaussian(monkeypatch):
    flow = flow_with(GaussiansHead(3, distance=40.0)).eval()
    drawn, inverse = [], mixerflow.Flow._inverse
    monkeypatch.setattr(
        mixerflow.Flow, "_inverse", lambda *given: drawn.append(given[1]) or inverse(*given)
    )
    for context in (0, 1, 2, torch.tensor([0, 1, 2, 0, 1, 2]), None):
        flow.sample(6, context)
    *each, mixed, free = (flow.base.scores(z).argmax(1).tolist() for z in drawn)
    assert each == [[0] * 6, [1] * 6, [2] * 6]
    assert mixed == [0, 1, 2, 0, 1, 2]
    assert len(set(free)) > 1
    with pytest.raises(ValueError, match=r"0\.\.2"):
        flow.sample(2, 3)


def test_class_gaussians_start_as_far_apart_as_asked():
    means = ClassGaussians(3072, 10, distance=7.0).means.detach()
    gaps = torch.cdist(means, means)[~torch.eye(10, dtype=torch.bool)]
    assert abs(float(gaps.mean()) - 7) < 0.2


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_hybrid_loss_is_the_weighted_mean_of_both_bits(head):
    flow = flow_with(head)
    pixels, labels = images_of(6)
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    with flow.drawing(Noise.of(0, x)):
        loss, figures = Hybrid(2.0)(flow, x, y)
        encoded = flow(x)
    nats = cross_entropy(flow.logits(encoded.z), y, reduction="none")
    by_hand = (nats + 2.0 * -encoded.log_prob / flow.dims) / 3.0
    assert torch.allclose(loss / flow.dims, by_hand, rtol=1e-5)
    assert torch.allclose(figures["label_loss"], nats.mean())


def test_an_image_without_a_label_adds_its_likelihood_alone():
    flow = flow_with(LinearHead(3))
    pixels, labels = images_of(6)
    labels[::2] = -1
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    with flow.drawing(Noise.of(0, x)):
        loss, figures = Hybrid(1.0)(flow, x, y)
        encoded = flow(x)
        logits = flow.logits(encoded.z)
    assert torch.allclose(loss[::2], -encoded.log_prob[::2] / 2)
    hits = (logits.argmax(1) == y)[1::2].float().mean()
    assert torch.allclose(figures["accuracy"], hits)
    assert torch.allclose(figures["label_loss"], cross_entropy(logits[1::2], y[1::2]), rtol=1e-5)


def test_no_label_at_all_gives_zeros_not_nan():
    nats, figures = label_nats(torch.randn(4, 3), None)
    assert not nats.any()
    assert float(figures["accuracy"]) == float(figures["label_loss"]) == 0


def test_gaussians_with_weight_d_are_the_joint_density():
    """log p(y | x) + log p(x) = log p(x, y), FlowGMM's objective."""
    flow = flow_with(GaussiansHead(3, distance=3.0))
    pixels, labels = images_of(6)
    x, y = torch.from_numpy(pixels), torch.from_numpy(labels)
    with flow.drawing(Noise.of(0, x)):
        loss, _ = Hybrid(float(flow.dims))(flow, x, y)
        z, _, log_det = flow(x)
    normal = torch.distributions.Normal(flow.base.means[y], 1.0)
    joint = normal.log_prob(z).sum(1) - math.log(3) + log_det
    assert torch.allclose(loss * (1 + flow.dims) / flow.dims, -joint, rtol=1e-5)


@pytest.mark.parametrize("head", [LinearHead(3), GaussiansHead(3)], ids=["linear", "gaussians"])
def test_hybrid_training_learns_classes_and_the_run_classifies(tmp_path, head):
    flow = flow_with(head)
    pixels, labels = images_of(120)
    config = TrainConfig(objective=Hybrid(0.1), **QUICK)
    run = mixerflow.train(
        flow, pixels, labels=labels, config=config, steps=60, out=tmp_path / "run", quiet=True
    )
    names = {"objective", "label_loss", "accuracy", "image_bits_per_dim", "labelled_images"}
    assert set(run.figures) == names
    mine = classify(flow, pixels)
    assert (mine.argmax(1) == labels).mean() > 0.8
    loaded = mixerflow.load(tmp_path / "run", which="last")
    assert np.allclose(classify(loaded, pixels), mine, atol=1e-6)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["train"]["objective"] == {"type": "Hybrid", "weight": 0.1}
    assert stored["result"]["accuracy"] == run.figures["accuracy"]


def test_hybrid_training_resumes_bit_for_bit(tmp_path):
    pixels, labels = images_of(48)
    config = TrainConfig(
        objective=Hybrid(1.0), labels_per_class=5, **{**QUICK, "evaluate_every": 4, "keep": 9}
    )
    flows = [flow_with(LinearHead(3)) for _ in range(2)]
    settings = {"labels": labels, "config": config, "quiet": True, "steps": 12}
    mixerflow.train(flows[0], pixels, out=tmp_path / "a", **settings)
    mixerflow.train(flows[1], pixels, out=tmp_path / "b", **settings)
    again = flow_with(LinearHead(3))
    path = tmp_path / "b" / "run.json"
    stored = json.loads(path.read_text())
    from mixerflow.runs import RunFolder

    RunFolder(tmp_path / "b").update({"status": "interrupted"})
    assert stored["status"] == "finished"
    mixerflow.train(again, pixels, out=tmp_path / "b", from_step=4, **settings)
    for one, other in zip(flows[0].parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_checkpoint_is_that_of_the_objective(tmp_path):
    pixels, labels = images_of(48)
    config = TrainConfig(objective=Hybrid(0.0), **{**QUICK, "evaluate_every": 5, "keep": 9})
    flow = flow_with(LinearHead(3))
    out = tmp_path / "run"
    mixerflow.train(flow, pixels, labels=labels, config=config, steps=20, out=out, quiet=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["objective"] for r in records if r["kind"] == "validation"}
    assert len(scores) == 4
    best = mixerflow.runs.read_weights(out)
    assert best.steps == min(scores, key=scores.__getitem__)


def test_frozen_trains_the_head_alone(tmp_path):
    pixels, labels = images_of(120)
    first = flow_with(None, "mixerflow-cifar10-tiny")
    run = tmp_path / "flow"
    mixerflow.train(first, pixels, config=TrainConfig(**QUICK), steps=5, out=run, quiet=True)
    flow = flow_with(LinearHead(3), "mixerflow-cifar10-tiny", seed=1)
    config = TrainConfig(objective=Frozen(), **QUICK)
    mixerflow.train(
        flow,
        pixels,
        labels=labels,
        config=config,
        begin=run,
        steps=40,
        quiet=True,
        out=tmp_path / "head",
    )
    theirs = mixerflow.load(run).state_dict()
    mine = flow.state_dict()
    assert set(mine) - set(theirs) == {"head.scores.weight", "head.scores.bias"}
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert all(p.requires_grad for p in flow.parameters())
    assert (classify(flow, pixels).argmax(1) == labels).mean() > 0.6


def test_a_share_of_each_batch_has_labels():
    pixels, labels = images_of(90)
    images = mixerflow.data.make_images(pixels, labels, dataset_id="some")
    batches = Batches(
        images,
        16,
        seed=3,
        device=torch.device("cpu"),
        conditional=False,
        labels_per_class=4,
        labelled=0.25,
    )
    assert int((batches.labels >= 0).sum()) == 12
    assert all(int((batches.labels == k).sum()) == 4 for k in range(3))
    seen = set()
    for step in range(6):
        x, y = batches.at(step)
        assert int((y >= 0).sum()) >= 4
        for image, label in zip(x.numpy(), y.tolist(), strict=True):
            assert label in (-1, labels[(pixels == image).all((1, 2, 3))][0])
        seen |= {bytes(image) for image, label in zip(x.numpy(), y, strict=True) if label >= 0}
    assert len(seen) == 12
    alone = Batches(
        images,
        16,
        seed=3,
        device=torch.device("cpu"),
        conditional=False,
        labels_per_class=4,
        labelled=1.0,
    )
    assert bool((alone.at(0)[1] >= 0).all())
    assert torch.equal(alone.labels, batches.labels)


def test_a_likelihood_sees_all_images_alike_whatever_their_labels():
    pixels, labels = images_of(50)
    bare = mixerflow.data.make_images(pixels, None, dataset_id="bare")
    few = mixerflow.data.make_images(pixels, np.where(labels < 2, -1, 2), dataset_id="few")
    steps = {"steps": 3, "config": TrainConfig(**QUICK), "quiet": True}
    flows = [flow_with(None) for _ in range(2)]
    for flow, images in zip(flows, (bare, few), strict=True):
        mixerflow.train(flow, images, validation=bare, **steps)
    for one, other in zip(*(flow.parameters() for flow in flows), strict=True):
        assert torch.equal(one, other)


def test_batches_of_labelled_images_alone_are_as_they_were():
    """A run of earlier versions resumes with the same images."""
    pixels, labels = images_of(50)
    images = mixerflow.data.make_images(pixels, labels, dataset_id="some")
    batches = Batches(images, 16, seed=3, device=torch.device("cpu"), conditional=False)
    orders = np.concatenate([np.random.default_rng((3, e)).permutation(50) for e in range(3)])
    for step in range(8):
        assert (batches.at(step)[0].numpy() == pixels[orders[16 * step : 16 * step + 16]]).all()


@pytest.mark.parametrize(
    ("change", "flow", "labels", "words"),
    [
        ({"objective": Hybrid()}, None, True, "the model has no head"),
        ({}, LinearHead(3), True, "the likelihood does not train the model's head"),
        ({"objective": Hybrid()}, LinearHead(3), False, "no class labels for the head"),
        ({"objective": Hybrid()}, LinearHead(2), True, "the head has 2 classes, a label is 2"),
        ({"objective": Frozen()}, GaussiansHead(3), True, "a part of the flow"),
        (
            {"objective": Hybrid(), "labels_per_class": 100},
            LinearHead(3),
            True,
            "100 labels of class 0",
        ),
    ],
)
def test_what_cannot_train_is_one_line(change, flow, labels, words):
    pixels, classes = images_of(36)
    config = TrainConfig(**QUICK, **change)
    with pytest.raises(ConfigError, match=words):
        mixerflow.train(
            flow_with(flow),
            pixels,
            labels=classes if labels else None,
            config=config,
            steps=1,
            quiet=True,
        )


def test_impossible_weights_are_refused():
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises((ValueError, ConfigError)):
            Hybrid(weight)
    with pytest.raises(ValueError, match="classes is not known"):
        LinearHead().build([(4,)])
    with pytest.raises(ConfigError, match="base must be normal"):
        model = replace(mixerflow.recipe("mixerflow-tiny").model, head=GaussiansHead(3))
        mixerflow.registry.evolve(model, {"base": mixerflow.parts.StudentTBase}).build((1, 8, 8))


def test_figures_of_a_classification_by_hand():
    shares = np.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05], [0.3, 0.3, 0.4], [0.95, 0.05, 0.0]])
    with np.errstate(divide="ignore"):
        result = Classification(np.log(shares), np.array([0, 1, 0, 1]))
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(-np.log([0.7, 0.9, 0.3, 0.05]).mean())
    assert result.confusion().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    bins = result.reliability(bins=10)
    assert bins.counts.tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 1, 1]
    by_hand = (abs(0 - 0.4) + abs(1 - 0.7) + abs(1 - 0.9) + abs(0 - 0.95)) / 4
    assert bins.error == pytest.approx(by_hand)
    assert result.least_sure(2).tolist() == [2, 0]


def test_a_conditional_flow_classifies_by_bayes_rule():
    torch.manual_seed(0)
    model = replace(mixerflow.recipe("mixerflow-tiny").model, classes=mixerflow.parts.Classes(3, 4))
    flow = mixerflow.registry.evolve(model, {"layers": 2, "flow.net.width": 8}).build((1, 8, 8))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    pixels, _ = images_of(5)
    x = torch.from_numpy(pixels)
    joint = torch.stack(
        [-flow.bits_per_dim(x, torch.full((5,), k)).double() * 64 * math.log(2) for k in range(3)],
        1,
    )
    assert torch.allclose(class_log_probs(flow, x), joint.log_softmax(1), atol=1e-3)


def test_the_page_s_snippet_runs():
    """docs/hybrid.md, word for word but for the steps."""
    page = (Path(__file__).parents[1] / "docs" / "hybrid.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.S)[1].replace("steps=100", "steps=4")
    found = {}
    exec(code, found)
    assert found["log_probs"].shape == (300, 3)
