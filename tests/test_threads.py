"""Scoring, sampling and encoding change no module: many threads may use one flow at once."""

import functools
import operator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn

from helpers import WITH_BATCH_NORM
from mixerflow import kernels
from mixerflow.core import Along, Chain, Flow, Noise, evaluating, uncounted
from mixerflow.evaluate import bits, draw_pixels
from mixerflow.nets import MADE
from mixerflow.recipes import build
from mixerflow.transforms import (
    Affine,
    Autoregressive,
    BatchNorm,
    Coupling,
    Dequantize,
    Rescale,
    Squeeze,
)
from mixers import vary

SHAPE = (1, 4, 4)
THREADS = 4


class Net(nn.Module):
    """A net of a user's own: batch norm and dropout, some held outside of the children."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.body = nn.Sequential(nn.Linear(8, 16), self.norm, nn.Dropout(0.5), nn.Linear(16, 16))
        self.body[1] = nn.BatchNorm1d(16)
        self.parts = [self.norm, self.body]
        self.first = self.norm.forward
        self.seen = set()

    def forward(self, x, context=None):
        self.seen |= {self.training, self.body[2].training}
        return 0.1 * self.parts[1](self.first(x))


def rows(*transforms):
    """A flow of transforms of the 16 pixels as a vector."""
    steps = (Dequantize(), Rescale(2 / 256, -1.0), Squeeze(SHAPE, 4))
    inner = [Along(0, transform) for transform in transforms]
    return Flow(Chain(*steps, *inner), SHAPE, levels=256)


FLOWS = {
    "batch norm": lambda: build(WITH_BATCH_NORM, SHAPE),
    "with classes": lambda: build(vary(WITH_BATCH_NORM, classes=3, flow_layers=1), SHAPE),
    "batch-norm layers": lambda: build(vary(WITH_BATCH_NORM, actnorm="batch"), SHAPE),
    "made": lambda: rows(Autoregressive(MADE(16, 2, width=8, norm="batch"), Affine(1.0))),
    "a net of another's": lambda: rows(Coupling(0, Net(), Affine(1.0)), BatchNorm(16)),
}


def flow_of(name):
    """A flow in training mode whose weights and statistics have moved."""
    torch.manual_seed(0)
    flow = FLOWS[name]()
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    context = None if flow.context_net is None else torch.arange(32) % 3
    flow.train()(torch.randint(0, 256, (32, *SHAPE)), context, Noise(0, torch.arange(32)))
    return flow


def calls(flow):
    """The calls that read a flow, each with images of its own."""
    x = torch.randint(0, 256, (5, *SHAPE), dtype=torch.uint8)
    labels = None if flow.context_net is None else torch.tensor([0, 1, 2, 1, 0])
    z = torch.randn(5, 16)
    return [
        lambda: flow.bits_per_dim(x, labels),
        lambda: torch.from_numpy(bits(flow, x, labels=labels, batch=2).per_image),
        lambda: flow.encode(x, labels),
        lambda: flow.decode(z, labels),
        lambda: torch.from_numpy(draw_pixels(flow, 5, seed=3).pixels),
        lambda: flow.sample(2, labels if labels is None else 1, generator=seeded()),
    ]


def seeded():
    return torch.Generator().manual_seed(1)


def state(flow):
    """Copies of all tensors, and the modes."""
    tensors = {name: each.clone() for name, each in flow.state_dict().items()}
    return tensors, [part.training for part in flow.modules()]


def assert_untouched(flow, before):
    tensors, modes = state(flow)
    assert modes == before[1]
    assert all(torch.equal(each, before[0][name]) for name, each in tensors.items())


@pytest.mark.parametrize("name", FLOWS)
def test_threads_give_the_figures_of_one_thread_and_change_nothing(name):
    flow = flow_of(name)
    before, jobs = state(flow), calls(flow)
    alone = [job() for job in jobs]
    flow.eval()
    for figure, job in zip(alone, jobs, strict=True):
        assert torch.equal(job(), figure), "the figures are those of eval mode"
    flow.train()
    start = Barrier(THREADS)

    def work(number):
        start.wait()
        order = [(number + k) % len(jobs) for k in range(len(jobs))]
        return [(k, jobs[k]()) for k in order]

    with ThreadPoolExecutor(THREADS) as pool:
        found = [each for some in pool.map(work, range(THREADS)) for each in some]
    assert all(torch.equal(figure, alone[k]) for k, figure in found)
    assert_untouched(flow, before)


@pytest.mark.parametrize("number", range(6))
def test_a_call_never_switches_the_flow_s_own_modules(number):
    flow = flow_of("a net of another's")
    net = next(part for part in flow.modules() if isinstance(part, Net))
    modes = []
    net.body[3].register_forward_hook(lambda *_: modes.append((net.training, net.norm.training)))
    net.seen.clear()
    calls(flow)[number]()
    assert set(modes) == {(True, True)}, "the net that trains stays in training mode"
    assert net.seen == {False}, "and what scores is a view in eval mode"


def test_kernels_are_switched_off_in_one_thread_only():
    flow = build(vary(WITH_BATCH_NORM, norm="none"), SHAPE)
    chain = next(part for part in flow.modules() if hasattr(part, "path") and hasattr(part, "plan"))
    x = torch.zeros(3, chain.plan(torch.zeros(1)).n)
    here, there = Barrier(2), []

    def elsewhere():
        here.wait()
        there.append(chain.path(x))
        with kernels.disabled():
            here.wait()
            here.wait()
        there.append(chain.path(x))

    with ThreadPoolExecutor(1) as pool:
        with kernels.disabled():
            job = pool.submit(elsewhere)
            here.wait()
            here.wait()
            assert chain.path(x) == "kernels are switched off"
        assert chain.path(x) == "kernel", "the other thread's switch is its own"
        here.wait()
        job.result()
    assert there == ["kernel", "kernel"]


@pytest.mark.parametrize("name", ["batch norm", "a net of another's"])
def test_threads_with_and_without_kernels_keep_their_own_figures(name):
    flow = flow_of(name)
    before, jobs = state(flow), calls(flow)

    def without(job):
        with kernels.disabled():
            return job()

    jobs = [*jobs, *(functools.partial(without, job) for job in jobs)]
    alone = [job() for job in jobs]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda job: job(), jobs * 2))
    for figure, wanted in zip(found, alone * 2, strict=True):
        assert torch.equal(figure, wanted)
    assert_untouched(flow, before)


def test_noise_of_an_objective_is_its_thread_s_own():
    flow, x = build(WITH_BATCH_NORM, SHAPE).eval(), torch.zeros(3, *SHAPE, dtype=torch.uint8)
    noise = [Noise(seed, torch.arange(3)) for seed in range(THREADS)]
    alone = [flow(x, None, each).log_prob for each in noise]
    start = Barrier(THREADS)

    def score(each):
        with torch.no_grad(), flow.drawing(each):
            start.wait()
            return flow(x).log_prob

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(score, noise))
    assert all(map(torch.equal, found, alone))


def test_inverses_in_training_mode_switch_no_batch_norm():
    flow = flow_of("made")
    transform = flow.transform.steps[-1].transform
    transform.net.norms[0].register_forward_hook(lambda norm, *_: seen.append(norm.update))
    transform.net.sequence = None  # pass by pass
    before, seen, z = state(flow), [], torch.randn(6, 16)
    transform.inverse(z)
    assert set(seen) == {False} and transform.net.norms[0].update
    assert_untouched(flow, before)


def test_views_have_the_module_s_tensors_and_their_own_attributes():
    net = Net()
    with evaluating(net) as scored, uncounted(net) as quiet:
        assert scored is not net and not scored.training and net.training
        assert scored.parts[1] is scored.body and scored.first.__self__ is scored.norm
        assert all(map(operator.is_, scored.parameters(), net.parameters()))
        assert quiet.training and not quiet.norm.track_running_stats
        scored.extra = scored.norm.running_mean = None
    assert net.norm.running_mean is not None and not hasattr(net, "extra")
    net.eval()
    with evaluating(net) as scored, uncounted(net) as quiet:
        assert scored is quiet is net, "nothing is copied where nothing has to be"


def test_a_forward_of_another_s_is_switched_to_eval_mode_and_back():
    net, modes = Net(), []
    inner = net.body.forward
    net.body.forward = lambda x: (modes.append(net.norm.training), inner(x))[1]
    with evaluating(net) as scored:
        assert scored is net
        scored(torch.randn(3, 8))
    assert modes == [False] and all(part.training for part in net.modules())
