"""Memory modes: what backward recomputes or inverts is what it would have stored."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from benchmarks.memory import peak_of
from torch import nn

from cases import CASES
from mixerflow.core import Along, Chain, Flow, Layer, MultiScale, memory
from mixerflow.core.memory import through
from mixerflow.data import make_images
from mixerflow.errors import ConfigError
from mixerflow.nets import ResidualConvNet, ResidualMLP
from mixerflow.recipes import build
from mixerflow.training import TrainConfig, Trainer
from mixerflow.training.batches import Batches
from mixerflow.transforms import LU, ActNorm, Affine, Coupling, Dequantize, Rescale, Squeeze
from mixerflow.transforms.checks import perturb
from mixers import mixer, vary

SHAPE = (2, 6, 4)
MODEL = mixer(layers=4, shift_every=2, flow_layers=2, patch=2, hidden=8, norm="batch", levels=256)
SMALL = vary(MODEL, **{"layers": 2})
MODES = ("store", "checkpoint", "invert")
AGAIN = ("checkpoint", "invert")


def pixels(n=6, seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, *shape), dtype=np.uint8))


def perturbed(config=MODEL, shape=SHAPE, size=0.15):
    """A flow with weights such as training might leave."""
    torch.manual_seed(0)
    flow = build(config, shape)
    perturb(flow, seed=1, size=size)
    return flow.train()


def outcome(flow, mode, x, context=None, **settings):
    """Gradients by name, batch norm's and torch's state after a step from the same start."""
    flow = copy.deepcopy(flow)
    flow.memory = mode
    torch.manual_seed(7)
    loss = -flow(x, context, **settings).log_prob.mean()
    loss.backward()
    gradients = {n: p.grad for n, p in flow.named_parameters()}
    return loss.detach(), gradients, dict(flow.named_buffers()), torch.get_rng_state()


def compare(mine, theirs):
    """Relative error and cosine of all gradients together."""
    assert mine.keys() == theirs.keys()
    assert all((mine[n] is None) == (theirs[n] is None) for n in mine)
    a, b = (torch.cat([g.double().flatten() for g in gs.values()]) for gs in (mine, theirs))
    return float((a - b).norm() / b.norm()), float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("mode", AGAIN)
def test_gradients_agree_in_double_precision(mode, norm):
    flow = perturbed(vary(MODEL, **{"norm": norm})).double()
    stored, again = (outcome(flow, m, pixels())[1] for m in ("store", mode))
    assert compare(again, stored)[0] < 1e-9


@pytest.mark.parametrize("mode", AGAIN)
def test_gradients_agree_in_single_precision_after_training(mode):
    trainer = trained("store", steps=30)
    stored, again = (outcome(trainer.flow, m, pixels())[1] for m in ("store", mode))
    error, cosine = compare(again, stored)
    assert error < 1e-3 and cosine > 0.9999
    assert mode == "invert" or error == 0


def test_an_inverted_bfloat16_conditioner_stays_as_near_as_bfloat16_is():
    flow = trained("store", steps=30).flow

    def gradients(mode, enabled):
        def hook(module, given):
            dtypes.append(torch.is_autocast_enabled("cpu"))

        dtypes = []
        other = copy.deepcopy(flow)
        other.memory = mode
        next(m for m in other.modules() if isinstance(m, nn.Linear)).register_forward_pre_hook(hook)
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = -other(pixels()).log_prob.mean()
        loss.backward()  # outside autocast, as it should be
        assert set(dtypes) == {enabled}
        return {n: p.grad for n, p in other.named_parameters()}

    single, stored = gradients("store", False), gradients("store", True)
    assert compare(gradients("checkpoint", True), stored)[0] == 0
    assert compare(gradients("invert", True), stored)[0] < compare(stored, single)[0]


@pytest.mark.parametrize("mode", AGAIN)
def test_batch_norm_and_randomness_come_out_the_same(mode):
    flow = perturbed()
    (loss, _, norms, state), (loss2, _, norms2, state2) = (
        outcome(flow, m, pixels()) for m in ("store", mode)
    )
    assert torch.equal(loss, loss2) and torch.equal(state, state2)
    assert all(torch.equal(norms[n], norms2[n]) for n in norms)
    assert not all(torch.equal(norms[n], b) for n, b in flow.named_buffers())  # they do move


@pytest.mark.parametrize("mode", AGAIN)
def test_a_class_conditional_flow_learns_its_embedding_the_same(mode):
    flow = perturbed(vary(MODEL, **{"classes": 3})).double()
    labels = torch.tensor([0, 1, 2, 1, 0, 1])
    stored, again = (outcome(flow, m, pixels(), labels)[1] for m in ("store", mode))
    assert float(stored["context_net.weight"].abs().max()) > 0
    assert compare(again, stored)[0] < 1e-9


@pytest.mark.filterwarnings('ignore:memory="invert"')  # some keep their input, and say so
@pytest.mark.parametrize("mode", AGAIN)
@pytest.mark.parametrize("name", CASES)
def test_every_transform_gives_images_contexts_and_weights_their_gradients(name, mode):
    case = CASES[name]
    step = case.make().double().train()
    perturb(step, size=case.size)
    chain = Chain(step) if not isinstance(step, Chain) else step
    generator = torch.Generator().manual_seed(0)
    values = case.inputs(5, case.shape, generator)
    context = None if case.context is None else torch.randn(5, *case.context).double()

    def gradients(mode):
        if not values.is_floating_point():
            return []  # integers: only that it runs
        x = values.double().requires_grad_()
        given = None if context is None else context.clone().requires_grad_()
        torch.manual_seed(3)
        z, log_det = through(chain, x, given, memory=mode)
        loss = (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum() + log_det.square().sum()
        wanted = [x, *([] if given is None else [given]), *chain.parameters()]
        return torch.autograd.grad(loss, wanted, allow_unused=True)

    for mine, theirs in zip(gradients(mode), gradients("store"), strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or float((mine - theirs).norm()) <= 1e-9 * (1 + float(theirs.norm()))


def test_weights_shared_between_steps_add_up():
    shared = Chain(ActNorm(4), LU(4))
    torch.manual_seed(0)
    chain = Chain(shared, LU(4), shared, shared).double()
    perturb(chain)
    x = torch.randn(5, 4).double()
    result = {}
    for mode in MODES:
        z, log_det = through(chain, x, memory=mode)
        result[mode] = torch.autograd.grad((z**4).sum() + log_det.sum(), list(chain.parameters()))
    for mode in AGAIN:
        for mine, theirs in zip(result[mode], result["store"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_a_graph_can_be_gone_through_twice_but_not_differentiated_twice():
    flow = perturbed().double()
    flow.memory = "invert"
    parameters = list(flow.parameters())
    loss = -flow(pixels()).log_prob.mean()
    once, twice = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
    found = torch.autograd.grad(loss, parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.sum() for g in found).backward()


def images(n=64):
    rng = np.random.default_rng(0)
    ramp = rng.integers(0, 180, (n, 1, 1, 1)) + 3 * np.arange(24).reshape(1, 1, 6, 4)
    values = np.clip(ramp + rng.integers(0, 9, (n, *SHAPE)), 0, 255).astype(np.uint8)
    return make_images(values, None, dataset_id="ramps")


def trained(mode, *, steps, accumulate=1):
    torch.manual_seed(0)
    flow = build(SMALL, SHAPE)
    config = TrainConfig(batch=8, lr=5e-3, warmup=3, ema=0.0, memory=mode, accumulate=accumulate)
    batches = Batches(images(), 8, seed=0, device=flow.device, conditional=False)
    flow.initialize(*batches.first(32))
    trainer = Trainer(flow, batches, config, steps=10 * steps)
    trainer.taken = [trainer.advance() for _ in range(steps)]
    return trainer


@pytest.mark.parametrize(("steps", "accumulate"), [(30, 1), (8, 2)])
def test_a_run_goes_the_same_way_in_every_mode(steps, accumulate):
    runs = {mode: trained(mode, steps=steps, accumulate=accumulate) for mode in MODES}
    losses = {mode: [step.objective for step in run.taken] for mode, run in runs.items()}
    assert losses["store"][-1] < losses["store"][0]
    assert losses["checkpoint"] == losses["store"]
    assert losses["invert"] == pytest.approx(losses["store"], abs=2e-3)
    finals = [run.flow.state_dict() for run in runs.values()]
    assert all(torch.equal(finals[0][n], finals[1][n]) for n in finals[0])


@pytest.mark.parametrize("mode", AGAIN)
def test_a_step_that_is_not_finite_is_skipped_and_named(mode):
    trainer = trained(mode, steps=2)
    broken = next(m for m in trainer.flow.modules() if isinstance(m, ResidualMLP))
    with torch.no_grad():
        broken.leave.bias.fill_(math.nan)
    before = copy.deepcopy(trainer.flow.state_dict())
    step = trainer.advance()
    assert step.bad_part is not None and "leave" in step.bad_part and trainer.skipped == 1
    for name, parameter in trainer.flow.named_parameters():
        torch.testing.assert_close(parameter, before[name], rtol=0, atol=0, equal_nan=True)


class Dropping(nn.Module):
    """A conditioner that draws from torch's generator."""

    def __init__(self, given, out):
        super().__init__()
        self.linear = nn.Linear(given, out)

    def forward(self, x, context=None):
        return self.linear(nn.functional.dropout(x, 0.5, self.training))


class Vague(LU):
    """Says that its inverse is not exact."""

    invertible = False


def test_steps_that_cannot_invert_keep_their_input_and_say_so_once():
    memory._warn_once.cache_clear()
    torch.manual_seed(0)
    dropping = Coupling(-1, Dropping(3, 6), Affine(2.0))
    chain = Chain(Rescale(0.5), LU(6), dropping, Chain(LU(6), Vague(6)), LU(6)).double().train()
    perturb(chain)
    x = torch.randn(5, 6).double().requires_grad_()

    def gradients(mode):
        torch.manual_seed(5)
        z, log_det = through(chain, x, memory=mode)
        loss = (z**4).sum() + log_det.sum()
        return torch.autograd.grad(loss, [x, *chain.parameters()]), torch.get_rng_state()

    (stored, state), (kept, state2) = gradients("store"), gradients("checkpoint")
    with pytest.warns(UserWarning) as said:
        inverted, state3 = gradients("invert")
    assert [str(w.message).partition(": ")[2] for w in said] == [
        "layer 2 (Coupling) draws from torch's generator: its input is stored",
        "layer 4 (Vague) does not rebuild its input exactly: its input is stored",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients("invert")
    assert torch.equal(state, state2) and torch.equal(state, state3)
    for a, b, c in zip(stored, kept, inverted, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(c, a, rtol=1e-9, atol=1e-9)


def test_containers_are_invertible_where_their_parts_are():
    assert Chain(LU(2)).invertible and not Chain(LU(2), Vague(2)).invertible
    assert not Dequantize().invertible and not build(MODEL, SHAPE).transform.invertible
    assert build(vary(MODEL, **{"levels": None}), SHAPE).transform.invertible


def test_rounding_that_grows_too_far_is_said(monkeypatch):
    memory._warn_once.cache_clear()
    monkeypatch.setattr(memory, "ANCHOR_EVERY", 6)
    squeeze = [Layer(Rescale(1e-5, 1.0), Rescale(1e5, -1e5), LU(4)) for _ in range(7)]
    chain = Chain(*squeeze)
    perturb(chain, size=0.5)
    z, log_det = through(chain, torch.randn(4, 4), memory="invert")
    with pytest.warns(UserWarning, match="rebuilt over 6 layers are too far off"):
        (z.sum() + log_det.sum()).backward()


def glow(steps, shape=(2, 8, 8), *, width=8, context=0):
    """Two scales of Glow's steps, a layer each, over integer images."""

    def step(channels):
        net = ResidualConvNet(channels // 2, channels, width=width, norm="none", context=context)
        coupling = Coupling(0, net, Affine(2.0))
        return Layer(ActNorm((channels, 1, 1)), Along(0, LU(channels)), coupling)

    scales, inner = [], shape
    for _ in range(2):
        squeeze = Squeeze(inner)
        channels, *spatial = squeeze.latent_shape
        scales.append(Chain(squeeze, *(step(channels) for _ in range(steps))))
        inner = (channels // 2, *spatial)
    torch.manual_seed(0)
    scales = Chain(Dequantize(), Rescale(2 / 256, -1.0), MultiScale(shape, scales))
    net = nn.Embedding(3, context) if context else None
    flow = Flow(scales, shape, levels=256, context_net=net)
    perturb(flow, size=0.15)
    return flow.train()


@pytest.mark.parametrize("mode", AGAIN)
@pytest.mark.parametrize("context", [0, 2])
def test_through_scales_gradients_agree(mode, context):
    flow = glow(3, context=context).double()
    x, labels = pixels(4, shape=flow.shape), torch.tensor([0, 1, 2, 1]) if context else None
    (loss, stored, _, state), (loss2, again, _, state2) = (
        outcome(flow, m, x, labels) for m in ("store", mode)
    )
    assert torch.equal(loss, loss2) and torch.equal(state, state2)
    error = compare(again, stored)[0]
    assert error < 1e-9 if mode == "invert" else error == 0


def test_each_scale_is_a_row_whose_first_input_and_last_output_are_kept(monkeypatch):
    flow = glow(3)
    flow.memory = "invert"
    called = {"forward": [], "inverse": []}

    def spy(number, calls, inner):
        return lambda *given: calls.append(number) or inner(*given)

    for number, layer in enumerate(flow.layers()):
        for name, calls in called.items():
            monkeypatch.setattr(layer, name, spy(number, calls, getattr(layer, name)))
    loss = flow(pixels(4, shape=flow.shape)).log_prob.sum()
    assert called == {"forward": list(range(10)), "inverse": []}
    loss.backward()
    # 2 is a squeeze without anything before it to train; 3 and, of the other scale, 6 are first
    assert called["inverse"] == [9, 8, 7, 5, 4]
    assert called["forward"][10:] == [9, 8, 7, 6, 5, 4, 3]


def test_memory_does_not_grow_with_the_depth_of_scales():
    peaks = {}
    for mode, steps in itertools.product(("store", "invert"), (4, 16)):
        flow = glow(steps, (2, 16, 16), width=16)
        flow.memory = mode
        for parameter in flow.parameters():
            parameter.grad = torch.zeros_like(parameter)  # what a step before would have left
        with peak_of(flow.device) as peak:
            (-flow(pixels(8, shape=flow.shape)).log_prob.mean()).backward()
        peaks[mode, steps] = peak[0]
    assert peaks["store", 16] > 3 * peaks["store", 4]
    assert peaks["invert", 16] < 1.05 * peaks["invert", 4]
    assert peaks["invert", 4] < peaks["store", 4]


@pytest.mark.parametrize("mode", AGAIN)
def test_chains_inside_chains_are_taken_layer_by_layer_to_the_same_bits(mode):
    torch.manual_seed(0)
    chain = Chain(LU(4), Chain(ActNorm(4), Chain(LU(4), ActNorm(4))), LU(4))
    perturb(chain)
    x = torch.randn(5, 4)
    stored, again = (through(chain, x, memory=m) for m in ("store", mode))
    assert all(map(torch.equal, stored, again))
    z, log_det = again
    loss = z.sum() + log_det.sum()
    with torch.no_grad():
        z.add_(1.0)
    if mode == "invert":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    else:
        loss.backward()


@pytest.mark.parametrize("kind", [None, nn.BatchNorm1d])
def test_an_exception_leaves_batch_norm_as_it_was(kind):
    torch.manual_seed(0)
    net = ResidualMLP(2, 4, width=4, norm="batch")
    if kind is not None:  # a user's own net has torch's
        net.norm1, net.norm2 = kind(4), kind(4)
    coupling = Coupling(-1, net, Affine())
    z, log_det = through(Chain(LU(4), coupling), torch.randn(8, 4), memory="invert")
    moved = net.norm1.running_mean.clone()
    switches = [(getattr(m, "update", None), m.track_running_stats) for m in (net.norm1, net.norm2)]

    def fail(module, given):
        raise KeyError("in the middle of it")

    hook = net.linear1.register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        (z.sum() + log_det.sum()).backward(retain_graph=True)
    hook.remove()
    after = [(getattr(m, "update", None), m.track_running_stats) for m in (net.norm1, net.norm2)]
    assert after == switches
    (z.sum() + log_det.sum()).backward()
    assert torch.equal(net.norm1.running_mean, moved) and int(net.norm1.num_batches_tracked) == 1


def test_scoring_does_not_care():
    flow = perturbed()
    stored = flow.bits_per_dim(pixels())
    flow.memory = "invert"
    assert torch.equal(flow.bits_per_dim(pixels()), stored)
    with torch.no_grad():
        assert flow(pixels()).log_prob.grad_fn is None


@pytest.mark.parametrize("mode", AGAIN)
def test_what_would_come_out_wrong_is_refused(mode):
    flow = perturbed()
    flow.memory = mode
    loss = flow(pixels()).log_prob.mean()
    with torch.no_grad():
        next(flow.transform.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loss = flow(pixels()).log_prob.mean()
    flow.eval()
    with pytest.raises(RuntimeError, match="came between"):
        loss.backward()
    hook = next(flow.transform.parameters()).register_hook(lambda g: 2 * g)
    with pytest.raises(ConfigError, match="would run twice"):
        flow(pixels())
    hook.remove()
    flow(pixels())


def test_an_unknown_mode_is_named():
    with pytest.raises(ConfigError, match="one of store, checkpoint, invert"):
        TrainConfig(memory="revert")
    flow = perturbed()
    flow.memory = "revert"
    with pytest.raises(ValueError, match="store, checkpoint, invert"):
        flow(pixels())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_flow_still_learns():
    flow = perturbed(SMALL).double()
    stored = outcome(flow, "store", pixels())[1]
    flow.memory = "invert"
    torch.manual_seed(7)
    compiled = torch.compile(flow, backend="aot_eager")
    (-compiled(pixels()).log_prob.mean()).backward()
    assert compare({n: p.grad for n, p in flow.named_parameters()}, stored)[0] < 1e-9
