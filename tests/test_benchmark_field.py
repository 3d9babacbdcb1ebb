"""The cost of residual and continuous flows: passes against numbers known by hand, the tables."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import field, passes
from benchmarks.passes import nets, taken
from torch import nn

from mixerflow.core import Chain, Flow, counting
from mixerflow.models import Glow, ResidualFlow
from mixerflow.models.recipe import Recipe
from mixerflow.nets import ConvVelocity, LipschitzMLP
from mixerflow.parts.contractions import ConvContraction, VectorContraction
from mixerflow.parts.image_nets import GlowConv
from mixerflow.recipes import RECIPES
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import Continuous, Monotone, Residual
from mixerflow.transforms.series import GeometricTail


class Scale(nn.Module):
    """The contraction ``x / 2``."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, x, context=None):
        return self.factor * x


class NoTail(GeometricTail):
    """No term after the first K."""

    def survival(self, j):
        return 0.0


def counts(flow, run):
    return passes.passes(flow, run, 2)


def loss(flow, x):
    return lambda: -flow.train()(x).log_prob.mean()


@torch.no_grad()
def scored(flow, x):
    return flow.eval().log_prob(x)


@pytest.mark.parametrize("net", [Scale(), LipschitzMLP(3, 3, width=4)])
def test_a_residual_block_takes_one_pass_and_one_for_each_term(net):
    settings = {"log_det": "unbiased", "terms": 2, "eval_terms": 3, "tail": NoTail()}
    x = torch.randn(5, 3)
    wanted = {"values": 1.0, "products": 3.0, "backward": 0.0, "total": 4.0}
    flow = Flow(Chain(*(Residual(net, **settings) for _ in range(4))), (3,))
    assert len(nets(flow)) == 4
    assert counts(flow, lambda: scored(flow, x)) == wanted
    assert counts(flow, loss(flow, x)) == wanted | {"products": 2.0, "total": 3.0}


def test_a_tail_adds_its_mean():
    flow = Flow(Residual(LipschitzMLP(3, 3, width=4), log_det="unbiased", eval_terms=3), (3,))
    x, draws = torch.randn(5, 3), 400
    torch.manual_seed(0)
    found = passes.passes(flow, lambda: scored(flow, x), draws)
    # a geometric tail goes on with probability 1/2: 1 further term on average, variance 2
    assert found["products"] == pytest.approx(3 + 1, abs=4 * math.sqrt(2 / draws))


def test_a_fixed_point_takes_as_many_passes_as_its_factor_needs():
    flow = Flow(Residual(Scale(), log_det="unbiased"), (3,)).eval()
    torch.manual_seed(0)
    found = counts(flow, lambda: flow.sample(7))
    # moves halve, from about 1 to 32 roundings of float32
    wanted = math.log(32 * torch.finfo(torch.float32).eps) / math.log(0.5)
    assert found["products"] == found["backward"] == 0
    assert found["values"] == found["total"] == found["solves"]["batch"]
    assert found["solves"]["batch"] == pytest.approx(wanted, abs=2.5)
    assert found["solves"]["most"] >= found["solves"]["batch"] >= found["solves"]["row"]
    assert found["solves"]["factor"] == pytest.approx(0.5, abs=1e-3)


def test_a_monotone_block_iterates_in_both_directions_and_in_the_backward_pass():
    flow = Flow(Monotone(Scale(), log_det="truncated", terms=3), (3,))
    x = torch.randn(5, 3)
    found = counts(flow, loss(flow, x))
    with counting() as solves:
        loss(flow, x)().backward()
    there, back = (each.calls for each in solves)
    # beside the iteration: its last step, that step's linearisation, and the series' own
    assert found["values"] == there + 3 and found["products"] == 3
    assert found["backward"] == back > 5 and found["total"] == there + 3 + 3 + back
    sampled = counts(flow, lambda: flow.eval().sample(5))
    assert sampled["values"] > 15 and sampled["products"] == sampled["backward"] == 0


def test_nets_of_couplings_take_one_pass_each_way():
    flow = Glow(scales=2, steps=2, net=GlowConv(4)).build((1, 8, 8))
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    flow.initialize(x)
    once = {"values": 1.0, "products": 0.0, "backward": 0.0, "total": 1.0}
    assert len(nets(flow)) >= 4
    assert counts(flow, loss(flow, x)) == counts(flow, lambda: flow.eval().sample(3)) == once
    assert not any(net._forward_hooks for net in nets(flow))


def test_a_continuous_block_counts_evaluations_of_its_velocity():
    blocks = [Continuous(ConvVelocity(1, width=2), trace="hutchinson", steps=3) for _ in range(2)]
    flow, x = Flow(Chain(*blocks), (1, 4, 4)), torch.randn(5, 1, 4, 4)
    assert nets(flow) == blocks
    found = counts(flow, lambda: scored(flow, x))
    # the velocity is 0: 3 steps of 4 evaluations, then 6, and their results agree
    assert found["values"] == found["total"] == found["solves"]["row"] == 4 * (3 + 6)
    assert found["solves"]["most"] == 4 * (3 + 6) and found["solves"]["factor"] == 0
    step = counts(flow, loss(flow, x))
    assert step["products"] == step["backward"] == 0
    assert step["values"] % 6 == 1  # Dormand and Prince's steps take 6, after a first evaluation


def test_means_are_of_solves_and_the_most_is_of_one():
    with counting() as solves:
        transform = Residual(Scale()).eval()
        for z in (torch.zeros(2, 3), torch.ones(2, 3)):
            transform.inverse(z)
    told = taken(solves)
    assert solves[0].calls == 1  # 0 is the solution
    assert told["batch"] == (1 + solves[1].calls) / 2 and told["most"] == solves[1].calls


SHAPE = (1, 8, 8)
SMALL = ResidualFlow(
    scales=1,
    blocks=1,
    net=ConvContraction(8),
    dense=VectorContraction(32),
    dense_blocks=1,
    eval_terms=2,
)
TRAINING = TrainConfig(batch=8, warmup=1, initial=16, lr=1e-2, ema=0.0)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Recipes of tiny models, on a file of tiny images."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, *SHAPE[1:])).astype(np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, train_images=pixels)
    glow = Glow(scales=1, steps=1, net=GlowConv(4))
    for name, model in (("residual", SMALL), ("glow", glow)):
        made = Recipe(name, model, TRAINING, str(path), SHAPE)
        monkeypatch.setitem(RECIPES, f"{name}-cifar10-tiny", made)
    names = ("residual-cifar10-tiny", "glow-cifar10-tiny")
    return field.Arguments(
        tmp_path / "runs", names, str(path), seconds=1.0, batch=4, rounds=1, draws=1, deep=names
    )


@pytest.mark.slow
def test_the_command_trains_measures_and_prints(small, monkeypatch, tmp_path):
    monkeypatch.setattr(field, "fresh", lambda function, *args: function(*args))
    small = replace(small, out=tmp_path / "cost.json", note="shared", depths=(1, 3))
    result = field.measure(small)
    assert (tmp_path / "cost.json").exists() and result["note"] == "shared"
    residual, glow = result["models"].values()
    assert residual["training"]["steps"] > 1 and residual["density"] == "estimate"
    assert residual["training"]["clock"] == "cpu" and residual["training"]["seconds"] > 0
    assert residual["passes"]["score"]["total"] >= 3 and glow["passes"]["score"]["total"] == 1
    assert residual["passes"]["sample"]["solves"]["most"] > 1  # no longer the identity
    assert all(each["least"] > 0 for each in residual["images_per_second"].values())
    assert list(result["depth_settings"].values()) == ["blocks", "steps"]
    for found in result["depths"].values():
        deep, deeper = (found[depth]["peak_bytes"] for depth in (1, 3))
        assert deeper["store"] > 1.5 * deep["store"] and deeper["checkpoint"] < deeper["store"]
    lines = field.tables(result).splitlines()
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| glow, 1 steps", "| glow, 3 steps"]
    assert lines[2].split()[1] == "residual" and "(most" in lines[2] and "(most" not in lines[3]
    before = {path: path.stat().st_mtime_ns for path in small.runs.rglob("*.json")}
    assert field.trained(small.models[0], small)[1] == residual["training"]  # is not trained again
    assert before == {path: path.stat().st_mtime_ns for path in small.runs.rglob("*.json")}


def test_a_depth_for_each_block_changes_in_all_of_them():
    assert field.deeper("denseflow-cifar10-tiny", 3).modules == (3, 3)
    assert field.deeper("mixerflow-cifar10-tiny", 3).layers == 3
    once, twice = (field.deeper("flowpp-cifar10-tiny", n).steps for n in (1, 2))
    assert once == RECIPES["flowpp-cifar10-tiny"].model.steps
    assert len(twice) == 2 * len(once) - 1 and twice.count("squeeze") == 1
    assert twice[:2] == (once[0],) * 2


def test_what_cannot_be_rebuilt_is_told(small):
    field.trained(small.models[0], small)
    told = field.memory_of(small.models[0], small, None)["warnings"]
    assert any("Residual" in each and "input is stored" in each for each in told)


@pytest.mark.parametrize(
    "wrong",
    ["--seconds 0", "--rounds 0", "--draws 0", "--models no-such", "--deep realnvp-cifar10"],
)
def test_mistakes_are_told_in_a_line(wrong, monkeypatch, capsys, tmp_path):
    arguments = ["field", "--runs", str(tmp_path), *wrong.split()]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        field.main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
