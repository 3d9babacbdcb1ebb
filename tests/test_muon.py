"""Muon and AdamW: their steps are those of the equations, their matrices those of the nets."""

import json
import math

import pytest
import torch
from torch import nn

from helpers import MODEL, flow_of, images, settings, timeless, whole_and_resumed
from mixerflow.cli.parse import parse
from mixerflow.errors import ConfigError
from mixerflow.nets import ResidualMLP
from mixerflow.optimizers import AdamW, Muon
from mixerflow.registry import construct, describe
from mixerflow.runs import Checkpoints
from mixerflow.training import TrainConfig, Trainer, train
from mixerflow.training.batches import Batches
from mixerflow.training.graphed import GraphedTrainer
from mixerflow.training.optimizer import conditioner_matrices, make_optimizer, parameter_groups
from mixerflow.training.orthogonal import orthogonalized
from mixers import vary


def trainer_of(flow, kind=Trainer, **changes):
    config = settings(**changes)
    batches = Batches(images(), config.batch, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(16))
    return kind(flow, batches, config, steps=100)


def orthogonal(matrix, iterations=5):
    """The iteration, of singular values: it leaves the singular vectors as they are."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(iterations):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (4, 9)])
def test_the_iteration_keeps_singular_vectors(shape):
    matrices = torch.randn(3, *shape, dtype=torch.float64) * 1e-4
    found = orthogonalized(matrices, 5)
    wanted = torch.stack([orthogonal(each) for each in matrices])
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert not orthogonalized(torch.zeros(2, 3, 4), 5).any()
    values = torch.linalg.svdvals(orthogonalized(torch.randn(5, 32, 24, dtype=torch.float64), 5))
    assert values.min() > 0.6 and values.max() < 1.2


def test_muons_steps_are_those_of_its_equations():
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(*s, dtype=torch.float64)) for s in [(6, 4)] * 3 + [(3, 5)]]
    filters = nn.Parameter(torch.randn(6, 2, 1, 2, dtype=torch.float64))
    other, without = (nn.Parameter(torch.randn(4, 6, dtype=torch.float64)) for _ in range(2))
    every = [*matrices, filters, without]
    config = TrainConfig(optimizer=Muon(momentum=0.8, decay=0.5), lr=1e-2, betas=(0.7, 0.9))
    groups = [{"params": every, "matrices": True, "lr": 0.1}, {"params": [other]}]
    optimizer = make_optimizer(groups, config)
    plain = torch.optim.Adam([copied := nn.Parameter(other.detach().clone())], 1e-2, (0.7, 0.9))
    wanted = {p: p.detach().clone() for p in every}
    momenta = {p: torch.zeros_like(p).flatten(1) for p in every}
    for _ in range(4):
        for p in [*matrices, filters, other]:
            p.grad = torch.randn_like(p)
        copied.grad = other.grad.clone()
        optimizer.step()
        plain.step()
        for p in [*matrices, filters]:
            grad = p.grad.flatten(1)
            momenta[p] = 0.8 * momenta[p] + 0.2 * grad
            step = orthogonal(0.2 * grad + 0.8 * momenta[p])
            scale = math.sqrt(max(1, grad.shape[0] / grad.shape[1]))
            wanted[p] = (1 - 0.1 * 0.5) * wanted[p] - 0.1 * scale * step.view_as(p)
    for p in every:  # `without` had no gradient, and stays
        torch.testing.assert_close(p.detach(), wanted[p], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(other, copied, rtol=1e-9, atol=1e-9)
    assert without not in optimizer.state
    assert all(optimizer.state[p].keys() == {"momentum_buffer"} for p in [*matrices, filters])


def test_muon_agrees_with_torchs():
    torch.manual_seed(0)
    mine = [nn.Parameter(torch.randn(8, 6)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    groups = [{"params": mine, "matrices": True}]
    one = make_optimizer(groups, TrainConfig(optimizer="muon", lr=0.02))
    two = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0)
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step(), two.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)  # theirs is in bfloat16


def test_matrices_are_those_of_conditioners():
    flow = flow_of()
    nets = [m for m in flow.modules() if isinstance(m, ResidualMLP)]
    hidden = [id(w) for n in nets for w in (n.linear1.weight, n.linear2.weight)]
    assert [id(p) for p in conditioner_matrices(flow, "hidden")] == hidden
    every = {id(w) for n in nets for w in (n.enter.weight, n.leave.weight)} | set(hidden)
    assert {id(p) for p in conditioner_matrices(flow, "all")} == every


@pytest.mark.parametrize("layer_lr", [1.0, 0.25])
def test_groups_hold_every_parameter_once_at_its_rate(layer_lr):
    flow = flow_of()
    hidden = {id(p) for p in conditioner_matrices(flow, "hidden")}
    config = TrainConfig(optimizer=Muon(lr=0.05), lr=0.01, layer_lr=layer_lr)
    groups, rates = parameter_groups(flow, config)
    usual, factors = parameter_groups(flow, TrainConfig(layer_lr=layer_lr))
    factor = {id(p): f for g, f in zip(usual, factors, strict=True) for p in g["params"]}
    rate = {id(p): r for g, r in zip(groups, rates, strict=True) for p in g["params"]}
    assert len(rate) == sum(len(g["params"]) for g in groups)
    assert rate == pytest.approx({i: f * (5 if i in hidden else 1) for i, f in factor.items()})


def test_only_matrices_decay_in_adamw():
    trainer = trainer_of(flow_of(), optimizer=AdamW(decay=0.3), clip=1e9)
    matrices = {id(p) for p in conditioner_matrices(trainer.flow, "all")}
    decays = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert decays == {i: 0.3 if i in matrices else 0.0 for i in decays}
    before = [p.detach().clone() for p in trainer.flow.parameters()]
    usual = trainer_of(flow_of(), clip=1e9)
    for each in (trainer, usual):
        torch.manual_seed(0)
        lr = each.advance().lr
    for p, q, old in zip(*(t.flow.parameters() for t in (trainer, usual)), before, strict=True):
        decayed = q - (0.3 * lr * old if id(p) in matrices else 0)
        torch.testing.assert_close(p, decayed, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", [Muon(lr=0.01, decay=0.1), AdamW()])
@pytest.mark.parametrize("stop", [4, 7])
def test_they_resume_bit_for_bit(tmp_path, monkeypatch, optimizer, stop):
    config = settings(optimizer=optimizer, layer_lr=0.5)
    whole, resumed = whole_and_resumed(tmp_path, monkeypatch, config, stop)
    kept = {name.rpartition(".")[2] for name in whole if name.startswith("adam.")}
    assert kept >= {"exp_avg", "exp_avg_sq", "step"}
    assert ("momentum_buffer" in kept) == isinstance(optimizer, Muon)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert resumed.keys() == whole.keys()
    assert timeless(tmp_path / "run") == timeless(tmp_path / "whole")
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert construct(header["train"]) == config


def test_a_deeper_flow_continues_with_muons_moments(tmp_path):
    config = settings(optimizer=Muon(), schedule_steps=24)
    train(flow_of(), images(), out=tmp_path / "a", config=config, quiet=True)
    deep, begin = vary(MODEL, layers=3), {"begin": tmp_path / "a", "quiet": True}
    for other in ("adam", Muon(matrices="all")):
        with pytest.raises(ConfigError, match=r"those of muon of hidden matrices, not "):
            train(flow_of(deep), images(), config=settings(optimizer=other), **begin)
    again = settings(optimizer=Muon(lr=0.01), keep=9)
    train(flow_of(deep), images(), out=tmp_path / "b", config=again, **begin)

    def momenta(folder, which, model):
        config = settings(optimizer=Muon())
        flow = flow_of(model)
        names = {id(p): name for name, p in flow.named_parameters()}
        order = [names[id(p)] for g in parameter_groups(flow, config)[0] for p in g["params"]]
        state = Checkpoints(folder / "checkpoints").load(which).state["trainer"]["optimizer"]
        held = {order[i]: values for i, values in state["state"].items()}
        return {n: v["momentum_buffer"] for n, v in held.items() if "momentum_buffer" in v}

    old, new = momenta(tmp_path / "a", "last", MODEL), momenta(tmp_path / "b", 0, deep)
    assert old and new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in old)


class Penalised(nn.Module):
    """An objective with a matrix of its own, which is no conditioner's."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(2, 2))

    def forward(self, flow, images, labels):
        return -flow(images).log_prob + self.matrix.square().sum(), {}


def test_an_objectives_own_parameters_train_with_adam_beside_muon():
    flow, objective = flow_of(), Penalised()
    config = settings(optimizer="muon")
    batches = Batches(images(), config.batch, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(16))
    trainer = Trainer(flow, batches, config, steps=9, objective=objective)
    taken = trainer.advance()
    torch.testing.assert_close(objective.matrix.detach(), torch.full((2, 2), 1 - taken.lr))
    trainer.load_state(trainer.state())
    assert "exp_avg" in trainer.optimizer.state[objective.matrix]


def test_adamw_has_the_step_of_a_graph_and_muon_none():
    graphed, usual = (
        trainer_of(flow_of(), kind, optimizer="adamw") for kind in (GraphedTrainer, Trainer)
    )
    for each in (graphed, usual):
        torch.manual_seed(0)
        each.advance(), each.advance()
    for a, b in zip(graphed.flow.parameters(), usual.flow.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match=r"no graph with train\.optimizer muon"):
        trainer_of(flow_of(), GraphedTrainer, optimizer="muon")


def test_muon_without_matrices_is_refused():
    flow = flow_of()
    for p in conditioner_matrices(flow, "hidden"):
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"no matrices .*train\.optimizer\.matrices all"):
        parameter_groups(flow, settings(optimizer="muon"))
    trainer_of(flow, optimizer=Muon(matrices="all")).advance()


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("momentum", 1.0), ("decay", -0.1), ("iterations", 0), ("matrices", "some")],
)
def test_impossible_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"Muon: {name} must"):
        Muon(**{name: value})
    with pytest.raises(ValueError, match="AdamW: decay must"):
        AdamW(decay=0.0)


def test_a_flag_chooses_an_optimiser_and_its_settings():
    flags = ["--optimizer", "muon", "--optimizer.lr", "0.01", "--optimizer.matrices", "all"]
    chosen = parse(TrainConfig, flags, prog="train", default=TrainConfig())
    assert chosen == TrainConfig(optimizer=Muon(lr=0.01, matrices="all"))
    with pytest.raises(ConfigError, match=r"no such part .sgd.*adamw, muon"):
        parse(TrainConfig, ["--optimizer", "sgd"], prog="train", default=TrainConfig())


def test_a_word_stands_for_the_defaults():
    for word in ("adam", "adamax", "adamw", "muon"):
        config = TrainConfig(optimizer=word)
        old = describe(config) | {"optimizer": word}
        assert construct(old) == config == construct(describe(config))
