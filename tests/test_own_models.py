"""Models and parts of a user's own: registered, trained, loaded; and what is said where not."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mixerflow
from mixerflow.core import Along, Chain, Flow, Layer, MultiScale, Noise, StudentT, Transform
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.models import flow_from, spec_of_flow
from mixerflow.nets import ResidualMLP
from mixerflow.parts import MLP, Classes, ImageNet, MaskedNet, image_coupling
from mixerflow.registry import Unregistered, construct, describe, evolve, register, swap
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import LU, ActNorm, Affine, Coupling, Dequantize, Rescale, Squeeze

SETTINGS = TrainConfig(steps=3, batch=4, initial=8, warmup=0, memory="invert")


@register
@dataclass(frozen=True)
class Blur(ImageNet):
    """A conditioner of a user's own."""

    size: int = 3
    """Of its convolution."""

    def build(self, given, out, *, sides, context=0):
        return BlurNet(given, out, self.size)


class BlurNet(nn.Module):
    def __init__(self, given, out, size):
        super().__init__()
        self.look = nn.Conv2d(given, out, size, padding=size // 2)

    def forward(self, x, context=None):
        return 0.1 * self.look(x)


@register("two-scale")
@dataclass(frozen=True)
class TwoScale(mixerflow.Model):
    """A flow of two scales."""

    depth: int = 2
    """Steps of each."""
    net: ImageNet = field(default=Blur())
    """What couplings read with."""

    def compose(self, shape):
        at, scales = shape, []
        for _ in range(2):
            squeeze = Squeeze(at)
            at = squeeze.latent_shape
            steps = [self.step(at, flip=i % 2 == 1) for i in range(self.depth)]
            scales.append(Chain(squeeze, *steps))
            at = (at[0] // 2, *at[1:])
        return MultiScale(shape, scales)

    def step(self, shape, *, flip):
        coupling = image_coupling(self.net, Affine(2.0), shape, flip=flip)
        return Layer(ActNorm((shape[0], 1, 1)), Along(0, LU(shape[0])), coupling)


def images(count=24, shape=(1, 8, 8)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)


def same_scores(flow, loaded):
    x = torch.from_numpy(images(5))
    torch.testing.assert_close(loaded.bits_per_dim(x), flow.bits_per_dim(x), rtol=0, atol=0)


def test_a_model_of_ones_own_trains_and_loads(tmp_path):
    flow = TwoScale(depth=3).build((1, 8, 8))
    mixerflow.train(flow, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert header["model"]["type"] == "TwoScale" and header["model"]["depth"] == 3
    loaded = mixerflow.load(tmp_path / "run")
    same_scores(flow, loaded)
    assert loaded.sample(2).shape == (2, 1, 8, 8)
    assert mixerflow.train(flow, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)


def by_hand():
    coupling = Coupling(-1, ResidualMLP(2, 4, width=5), Affine(2.0))
    rows = Chain(ActNorm(4), LU(4), coupling)
    return Flow(
        Chain(Dequantize(256), Rescale(1 / 128, -1.0), Squeeze((1, 8, 8)), Along(0, rows)),
        (1, 8, 8),
        StudentT(7.0),
        levels=256,
    )


def test_a_flow_made_by_hand_trains_and_loads(tmp_path):
    flow = by_hand()
    mixerflow.train(flow, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)
    same_scores(flow, mixerflow.load(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"its model\.transform"):
        other = by_hand()
        other.transform.steps[1] = Rescale(1 / 64, -1.0)
        again = Flow(Chain(*other.transform), (1, 8, 8), StudentT(7.0), levels=256)
        mixerflow.train(again, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)


def test_a_flow_changed_after_it_was_made_is_not_said_to_be_the_old_one(tmp_path):
    flow = by_hand()
    flow.transform.steps.append(ActNorm((4, 1, 1)))
    with pytest.warns(UserWarning, match="changed after it was made"):
        mixerflow.train(flow, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="classes not registered"):
        mixerflow.load(tmp_path / "run")


class Twice(Transform):
    """Registered nowhere."""

    def forward(self, x, context=None, noise=None):
        return 2 * x, x.new_full((len(x),), 64 * float(np.log(2)))

    def inverse(self, z, context=None, noise=None):
        return z / 2, z.new_full((len(z),), -64 * float(np.log(2)))


def test_what_is_not_registered_is_said_at_the_start(tmp_path):
    flow = Flow(Chain(Dequantize(256), Twice(), ActNorm((1, 1, 1))), (1, 8, 8), levels=256)
    with pytest.warns(UserWarning, match=r"Twice is not registered: call mixerflow.register\("):
        mixerflow.train(flow, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="classes not registered"):
        mixerflow.load(tmp_path / "run")


def test_a_file_of_another_format_is_one_line(tmp_path):
    flow = TwoScale().build((1, 8, 8))
    mixerflow.train(flow, images(), config=SETTINGS, out=tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "run.json"
    header = json.loads(path.read_text())
    for written, remedy in ((99, "update mixerflow"), (1, "use the mixerflow that wrote it")):
        path.write_text(json.dumps(header | {"format": written}))
        with pytest.raises(CheckpointError, match=f"format {written}.*{remedy}"):
            mixerflow.load(tmp_path / "run")


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="has that name"):
        register(type("MLP", (), {}))


def test_modules_remember_what_they_were_made_with():
    chain = Chain(LU(3, bias=False), ActNorm((3,), floor=0.5))
    spec = json.loads(json.dumps(describe(chain)))
    again = construct(spec)
    assert describe(again) == describe(chain)
    assert again.steps[0].bias is None and again.steps[1].floor == 0.5
    with pytest.raises(Unregistered, match="Twice is not registered"):
        describe(Chain(Twice()))


def test_parts_change_by_path_and_keep_what_they_share():
    model = mixerflow.MixerFlow(classes=Classes(3))
    changed = evolve(model, {"flow.net.width": 7, "classes.count": 5})
    assert changed.flow.net == MLP(7) and changed.classes.count == 5
    kan = mixerflow.registry.choices(mixerflow.parts.RowNet)["kan"]
    flows = mixerflow.registry.choices(mixerflow.parts.RowFlow)
    direct = swap(flows["iaf"](net=MaskedNet(9)), flows["maf"])  # a subclass is another choice
    assert type(direct) is flows["maf"] and direct.net == MaskedNet(9)
    assert swap(MLP(9, "none"), kan).width == 9 and swap(MLP(9, "none"), kan).norm == "none"
    with pytest.raises(ConfigError, match="no setting: widht: is it width"):
        evolve(MLP(), {"widht": 3})


def test_noise_of_a_loaded_flow_is_the_same(tmp_path):
    flow = TwoScale().build((1, 8, 8))
    x = torch.from_numpy(images(3))
    assert torch.equal(flow.bits_per_dim(x), flow.bits_per_dim(x, noise=Noise.of(0, x)))


def test_runs_of_this_format_still_load():
    """Written once, and never again: a change of the format adds a folder beside it."""
    folder = Path(__file__).parent / "fixtures" / "run-format-3"
    flow = mixerflow.load(folder)
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4)).astype(np.uint8))
    bits = flow.bits_per_dim(x, torch.tensor([0, 1])).tolist()
    assert bits == pytest.approx([8.765163, 8.373503], rel=1e-5)


def test_what_a_folder_says_of_a_flow_costs_no_draws():
    """Building it again, to compare, draws random orders: those of training must not move."""
    flow = mixerflow.MAF(layers=2, width=20, order="random").build((1, 4, 4))
    state = torch.get_rng_state()
    flow_from(spec_of_flow(flow))
    assert torch.equal(torch.get_rng_state(), state)
