"""The update by kernel: that of the equations, and that of torch's operators, to rounding."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers import flow_of, images, settings
from mixerflow import kernels
from mixerflow.optimizers import AdamW, Muon
from mixerflow.training import Trainer
from mixerflow.training.batches import Batches
from mixerflow.training.update import KernelUpdate, Update

OPTIMISERS = ["adam", "adamax", AdamW(decay=0.3), Muon(lr=0.01, decay=0.1)]


def trainer_of(flow, **changes):
    config = settings(**changes)
    batches = Batches(images(), config.batch, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(16))
    return Trainer(flow, batches, config, steps=100)


def by_operators(trainer):
    update = trainer.update
    trainer.update = Update(trainer.parameters, trainer.optimizer, trainer.average, update.clip)
    return trainer


def advance(trainer, steps):
    for step in range(steps):
        torch.manual_seed(step)
        taken = trainer.advance()
    return taken


def same(one, other, rtol=1e-4, atol=1e-6):
    """Compare nested states; Adam turns a difference of rounding into a part of a step."""
    mine, theirs = (torch.utils._pytree.tree_flatten(each) for each in (one, other))
    assert mine[1] == theirs[1]
    for a, b in zip(mine[0], theirs[0], strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        else:
            assert a == b


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_kernels_step_is_that_of_adams_equations(share, threads, monkeypatch):
    torch.manual_seed(0)
    shapes = [(3, 5), (), (17,), (4, 33), (6,), (2, 1), (5,)]
    values = [torch.randn(s) for s in shapes]
    averages = [torch.randn(s) for s in shapes[:-1]] + [None]  # an objective's own
    moments = [
        kernels.Moments(torch.randn(s), torch.rand(s), torch.tensor(float(i)))
        for i, s in enumerate(shapes)
    ]
    moments[4] = None  # it is frozen
    grads = [torch.randn(s) for s in shapes]
    grads[2] = grads[4] = None  # a step in which it has no gradient
    lr, decay = np.linspace(0.01, 0.1, 7), np.linspace(0.0, 0.5, 7)
    wanted = []
    for p, e, m, g, rate, kept in zip(values, averages, moments, grads, lr, decay, strict=True):
        p, first = p.double(), None
        if m is not None and g is not None:
            t, g = float(m.step) + 1, g.double() * 0.5
            first, second = 0.8 * m.first.double() + 0.2 * g, 0.9 * m.second + 0.1 * g**2
            root = (second / (1 - 0.9**t)).sqrt() + 1e-8
            p = p * (1 - rate * kept) - rate * first / (1 - 0.8**t) / root
        wanted.append((p, None if e is None else (1 - share) * e + share * p, first))
    steps = [None if m is None else float(m.step) for m in moments]
    monkeypatch.setattr("mixerflow.kernels.update._LEAST", 1)
    before, _ = torch.get_num_threads(), torch.set_num_threads(threads)
    try:
        update = kernels.Update(values, averages, moments)
        norm = update.norm(grads)
        update.step(lr=lr, decay=decay, betas=(0.8, 0.9), eps=1e-8, scale=0.5, share=share)
    finally:
        torch.set_num_threads(before)
    together = torch.cat([g.flatten() for g in grads if g is not None]).double()
    assert norm == pytest.approx(float(together.norm()), rel=1e-12)
    for p, e, m, g, t, (value, average, first) in zip(
        values, averages, moments, grads, steps, wanted, strict=True
    ):
        torch.testing.assert_close(p.double(), value, rtol=1e-5, atol=1e-6)
        if e is not None:
            torch.testing.assert_close(e.double(), average.double(), rtol=1e-5, atol=1e-6)
            assert share != 1 or torch.equal(e, p)
        if m is not None:
            assert float(m.step) == t + (g is not None)
        if first is not None:
            torch.testing.assert_close(m.first.double(), first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(value):
    values = [torch.zeros(5), torch.zeros(2)]
    update = kernels.Update(values, [None, None], [None, None])
    bad = torch.zeros(5)
    bad[3] = value
    assert not math.isfinite(update.norm([bad, None]))
    assert update.norm([None, torch.tensor([3.0, 4.0])]) == 5


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("clip", [0.1, 1e9])
def test_training_is_that_of_the_operators_to_rounding(optimizer, clip):
    changes = {"optimizer": optimizer, "clip": clip, "layer_lr": 0.5}
    mine, theirs = (trainer_of(flow_of(), **changes) for _ in range(2))
    by_operators(theirs)
    assert type(mine.update) is KernelUpdate
    taken, other = advance(mine, 4), advance(theirs, 4)
    assert mine.update._runs
    assert taken.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
    same(mine.weights(), theirs.weights())
    same(mine.state()["optimizer"], theirs.state()["optimizer"])


@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_either_continues_the_others_checkpoint(optimizer):
    whole = trainer_of(flow_of(), optimizer=optimizer)
    advance(whole, 4)
    for first, second in [(by_operators, None), (None, by_operators)]:
        begun, again = (trainer_of(flow_of(), optimizer=optimizer) for _ in range(2))
        for trainer, change in ((begun, first), (again, second)):
            if change is not None:
                change(trainer)
        advance(begun, 2)
        again.advance()  # so that it has moments and addresses to replace
        again.load_weights(*begun.weights())
        again.load_state(begun.state())
        for step in (2, 3):
            torch.manual_seed(step)
            again.advance()
        same(again.weights(), whole.weights())
        same(again.state()["optimizer"], whole.state()["optimizer"])


def test_without_kernels_the_operators_run():
    mine, theirs = trainer_of(flow_of()), by_operators(trainer_of(flow_of()))
    with kernels.disabled():
        advance(mine, 2), advance(theirs, 2)
    assert not mine.update._runs
    same(mine.weights(), theirs.weights(), rtol=0, atol=0)


def test_frozen_parameters_and_gradients_left_there_change_nothing():
    trainers = []
    for left in (1e6, None):
        frozen = list((flow := flow_of()).parameters())[3]
        frozen.requires_grad_(False)
        frozen.grad = None if left is None else torch.full_like(frozen, left)
        trainers.append(trainer_of(flow))
    before = frozen.clone()
    norms = {advance(trainer, 2).gradient_norm for trainer in trainers}
    assert len(norms) == 1 and torch.equal(frozen, before)
    same(*(trainer.weights() for trainer in trainers), rtol=0, atol=0)


def test_tensors_that_move_are_found_again():
    trainer, usual = trainer_of(flow_of()), trainer_of(flow_of())
    advance(trainer, 2), advance(usual, 2)
    for part in (trainer.flow, trainer.average.flow):
        for p in part.parameters():
            p.data = p.data.clone()
    for each in (trainer, usual):
        torch.manual_seed(9)
        each.advance()
    same(trainer.weights(), usual.weights(), rtol=0, atol=0)


def test_a_gradient_that_lies_otherwise_in_memory_goes_through_the_operators():
    trainer, usual = trainer_of(flow_of()), by_operators(trainer_of(flow_of()))
    for each in (trainer, usual):
        weight = next(p for p in each.parameters if p.dim() == 2 and min(p.shape) > 1)
        x = torch.arange(float(weight.numel())).view(weight.shape[::-1])
        weight.grad = x.T
        assert not weight.grad.is_contiguous()
    assert float(trainer.update.norm()) == pytest.approx(float(usual.update.norm()))
    assert not trainer.update._runs
    for each in (trainer, usual):
        each.update.apply(torch.tensor(1.0), 0)
    same(trainer.weights(), usual.weights(), rtol=0, atol=0)


def test_an_empty_parameter_counts_its_steps_as_torch_does():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(0))

        def forward(self, flow, images, labels):
            return -flow(images).log_prob + self.weight.sum(), {}

    flow, objective = flow_of(), Empty()
    batches = Batches(images(), 5, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(16))
    trainer = Trainer(flow, batches, settings(), steps=9, objective=objective)
    trainer.advance()
    assert float(trainer.optimizer.state[objective.weight]["step"]) == 1


def test_parameters_of_an_objective_train_without_an_average():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.unused = nn.Parameter(torch.ones(2))

        def forward(self, flow, images, labels):
            return -flow(images).log_prob + self.weight.square().sum(), {}

    flow, objective = flow_of(), Own()
    batches = Batches(images(), 5, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(16))
    trainer = Trainer(flow, batches, settings(), steps=9, objective=objective)
    lr = trainer.advance().lr
    assert trainer.update._runs
    torch.testing.assert_close(objective.weight.detach(), torch.full((3,), 1 - lr))
    assert torch.equal(objective.unused.detach(), torch.ones(2))
    assert objective.unused not in trainer.optimizer.state
