"""An inference copy gives what the flow gives, of every kind of flow, moved or trained."""

import copy

import pytest
import torch
from torch import nn

from mixerflow.core import Chain, Flow, Inverse, Noise
from mixerflow.errors import ConfigError
from mixerflow.nets import ResidualMLP, Scale, SyncedBatchNorm
from mixerflow.recipes import build
from mixerflow.registry import describe
from mixerflow.training import TrainConfig, train
from mixerflow.transforms import (
    LU,
    PLU,
    RLU,
    ActNorm,
    Dequantize,
    DiagonalAffine,
    KernelChain,
    Linear,
    Logit,
    Patchify,
    Rescale,
)
from mixerflow.transforms.checks import perturb
from mixers import mixer

SHAPE = (3, 8, 12)
SMALL = {"layers": 4, "flow_layers": 2, "hidden": 8}
SETTINGS = {
    "paper": {},
    "layer norm": {"norm": "layer"},
    "no norm": {"norm": "none"},
    "RLU": {"linear": "RLU"},
    "no linear map": {"linear": "none"},
    "Woodbury": {"patch_linear": "Woodbury", "rank": 2},
    "Butterfly": {"patch_linear": "Butterfly"},
    "bounded": {"scale_bound": 2.0},
    "conditional": {"classes": 3, "class_width": 4},
    "stripes": {"cut": "stripes"},
    "bands": {"cut": "bands"},
    "dilated": {"cut": "dilated"},
    "per activation": {"actnorm": "activation"},
    "no shift": {"shift": 0, "flow_layers": 3},
    "two levels": {"levels": 2},
    "float data": {"levels": None},
    "grey and odd": {"shape": (1, 9, 15), "patch": 3},
    "a signal": {"shape": (2, 15), "patch": 5},
}


def made(name: str) -> tuple[Flow, torch.Tensor, torch.Tensor | None]:
    """A flow moved from its start, images and labels for it."""
    settings = dict(SETTINGS[name])
    shape = settings.pop("shape", SHAPE)
    config = mixer(**{**SMALL, **settings})
    flow = build(config, shape)
    perturb(flow, size=0.15)
    labels = torch.tensor([0, 2, 1, 1, 0]) if config.classes else None
    if config.pixels.levels is None:
        return flow.eval(), torch.randn(5, *shape), labels
    return (
        flow.eval(),
        torch.randint(0, config.pixels.levels, (5, *shape), dtype=torch.uint8),
        labels,
    )


def agree(flow: Flow, x: torch.Tensor, labels: torch.Tensor | None, limit: float) -> None:
    """Density, latents and way back of both to `limit`, relative to the largest."""
    fused, noise = flow.fused(), Noise(3, torch.arange(len(x)))
    assert fused.dtype == flow.dtype
    with torch.no_grad():
        mine, theirs = fused(x, labels, noise), flow(x, labels, noise)
        context = None if labels is None else flow.context_net(labels)
        z = theirs.z.reshape(-1, *flow.latent_shape)
        # dequantisation's inverse is a floor, which rounding can move by one: leave it out
        pair = [
            Chain(*(s for s in each.transform if not isinstance(s, Dequantize)))
            for each in (fused, flow)
        ]
        back = [each.inverse(z, context)[0] for each in pair]
    for what, a, b in (*zip(mine._fields, mine, theirs, strict=True), ("back", *back)):
        error = ((a - b).abs().max() / b.abs().max()).item()
        assert error <= limit, f"{what} is off by {error:.1e}"


@pytest.mark.parametrize("name", SETTINGS)
def test_it_agrees_with_the_flow(name):
    flow, x, labels = made(name)
    agree(flow, x, labels, 1e-5)
    agree(flow.double(), x, labels, 1e-10)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_it_agrees_after_training(norm):
    flow = build(mixer(**SMALL, norm=norm), SHAPE)
    x = (torch.randn(64, *SHAPE) * 40 + 128).clamp(0, 255).to(torch.uint8)
    train(flow, x, config=TrainConfig(batch=16, lr=3e-3), steps=12)
    agree(flow.eval(), x, None, 1e-5)
    fused = flow.fused()
    assert torch.equal(fused.decode(fused.encode(x)), x)
    torch.testing.assert_close(fused.bits_per_dim(x), flow.bits_per_dim(x), rtol=1e-5, atol=1e-5)
    first, second = (
        each.sample(4, generator=torch.Generator().manual_seed(1)) for each in (fused, flow)
    )
    assert (first.int() - second.int()).abs().max() <= 1


def test_what_folds():
    flow = build(mixer(layers=5, hidden=8), SHAPE).fused()
    kept = {type(m) for m in flow.modules()}
    assert not kept & {SyncedBatchNorm, LU}
    steps = list(flow.transform)
    # three plain layers share one cut; the shift layer has its own; the last one cuts again
    assert [type(s).__name__ for s in steps[:3]] == ["Dequantize", "Rescale", "Along"]
    plain = ["Patchify", *["Along"] * 6, "Inverse"]
    assert [type(s).__name__ for s in steps[3:11]] == plain
    mixing = steps[4].transform
    assert isinstance(mixing, KernelChain)
    # ActNorm before a linear map is in it; the last one meets the other mixing
    assert [type(s).__name__ for s in mixing] == [*["Linear", "Coupling"] * 4, "ActNorm"]
    nets = [m for m in flow.modules() if isinstance(m, ResidualMLP)]
    assert {(type(n.norm1), type(n.norm2)) for n in nets} == {(Scale, nn.Identity)}


def test_the_flow_is_left_as_it_is():
    flow, x, _ = made("paper")
    flow.train()
    before = copy.deepcopy(flow.state_dict())
    fused = flow.fused()
    fused.bits_per_dim(x)
    assert flow.training and all(p.requires_grad for p in flow.parameters())
    for key, value in flow.state_dict().items():
        assert torch.equal(value, before[key]), key
    mine = {t.data_ptr() for t in flow.state_dict().values()}
    assert not mine & {t.data_ptr() for t in fused.state_dict().values() if t.numel()}


def test_what_was_folded_away_is_let_go():
    """Modules remember what they were made of, for run folders; a copy for inference need not."""
    flow = build(mixer(**SMALL), SHAPE)
    fused = flow.fused().transform
    gone = {type(m) for m in flow.transform.modules()} - {type(m) for m in fused.modules()}
    assert LU in gone
    assert not [m for m in fused.modules() if any(map(_holds_modules, vars(m).values()))]
    assert describe(flow.transform)  # the flow itself still knows


def _holds_modules(value):
    """Whether an attribute that is no registry of submodules leads to a module."""
    if isinstance(value, tuple):
        return any(map(_holds_modules, value))
    return isinstance(value, torch.nn.Module)


def test_it_is_for_inference_only():
    fused = made("paper")[0].fused()
    assert not fused.training and not any(p.requires_grad for p in fused.parameters())
    with pytest.raises(RuntimeError, match="inference copy"):
        fused.train()
    with pytest.raises(RuntimeError, match="inference copy"):
        fused.initialize(torch.zeros(2, *SHAPE))
    again = fused.fused()  # folding what is folded changes nothing
    assert str(again) == str(fused)
    with pytest.raises(RuntimeError, match="inference copy"):
        copy.deepcopy(again).train()


def moved(*steps):
    chain = Chain(*steps).double()
    perturb(chain)
    return chain


@pytest.mark.parametrize(
    ("chain", "left"),
    [
        (moved(LU(4), RLU(4), PLU(4, bias=True)), [Linear]),
        (moved(ActNorm(4), Chain(LU(4), ActNorm(4)), Rescale(2.0, 1.0)), [Linear]),
        (moved(ActNorm((1,)), LU(4)), [Linear]),
        (moved(ActNorm(4), ActNorm(4)), [DiagonalAffine]),
        (moved(ActNorm(1), DiagonalAffine(4)), [DiagonalAffine]),
        (moved(LU(4), KernelChain(LU(4))), [Linear, KernelChain]),
        (moved(Rescale(0.5, 0.5), Logit(), Inverse(Logit(), (4,))), [Rescale, Logit, Inverse]),
        (moved(Patchify((2, 2), (1,)), Inverse(Patchify((2, 2), (1,)), (2, 2))), []),
        (
            moved(Inverse(Patchify((1, 4), (2,)), (1, 4)), Patchify((1, 4), (1,))),
            [Inverse, Patchify],
        ),
    ],
    ids=str,
)
def test_neighbours(chain, left):
    fused = chain.fused()
    assert [type(step) for step in fused] == left
    shape = {Patchify: (2, 2), Inverse: (2, 2)}.get(type(next(iter(chain))), (4,))
    x = torch.rand(6, *shape, dtype=torch.float64) * 0.2
    (z, log_det), (wanted, wanted_log_det) = fused(x), chain(x)
    torch.testing.assert_close(z, wanted)
    torch.testing.assert_close(log_det, wanted_log_det)
    torch.testing.assert_close(fused.inverse(z)[0], x)


def test_a_weight_shared_by_two_couplings_is_folded_once():
    net = ResidualMLP(2, 4, width=5, norm="batch")
    perturb(net)
    x = torch.randn(7, 2)
    wanted = net.eval()(x)
    with torch.no_grad():
        twice = copy.deepcopy(net).folded().folded()
    torch.testing.assert_close(twice(x), wanted)


def test_batch_norm_without_statistics_stays():
    net = ResidualMLP(2, 4, width=5, norm="batch").eval()
    net.norm1, net.norm2 = (SyncedBatchNorm(5, track_running_stats=False) for _ in range(2))
    assert type(net.folded().norm2) is SyncedBatchNorm


def test_a_fused_flow_is_not_trained():
    flow = build(mixer(layers=1, hidden=8), (1, 8, 8))
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8)
    flow.initialize(images)
    with pytest.raises(ConfigError, match="inference copy"):
        train(flow.fused(), images, steps=1, quiet=True)
