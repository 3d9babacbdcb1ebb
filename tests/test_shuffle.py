"""Shuffled images: one order of the pixels, kept with a run, and undone in its samples."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import mixerflow
from mixerflow.cli import main
from mixerflow.core import Along, Chain, Flow
from mixerflow.errors import ConfigError
from mixerflow.models import MixerFlow
from mixerflow.parts import GlobalShuffle, LocalShuffle, Patching
from mixerflow.transforms import LU, Dequantize, Rescale, ShufflePixels

SHAPE = (3, 8, 12)


def numbered(shape=SHAPE):
    """One image whose pixels are numbered, all channels alike."""
    channels, *spatial = shape
    size = int(np.prod(spatial))
    return torch.arange(size).reshape(1, 1, *spatial).expand(1, channels, *spatial)


def test_all_pixels_change_places_and_channels_stay_together():
    z, log_det = ShufflePixels(SHAPE, seed=3)(numbered())
    assert (z[0, 0] == z[0, 2]).all()
    assert sorted(z[0, 0].flatten().tolist()) == list(range(96))
    assert (z != numbered()).float().mean() > 0.9
    assert log_det.tolist() == [0.0]


@pytest.mark.parametrize(("shape", "patch"), [(SHAPE, 4), (SHAPE, 2), ((1, 12), 3)])
def test_local_shuffling_moves_patches_and_the_pixels_in_each_alike(shape, patch):
    """Pixels of a patch stay together, in one order that all patches share."""
    axes = len(shape) - 1
    order = ShufflePixels(shape, 5, patch).order.reshape(shape[1:])
    places = np.stack(np.unravel_index(order.numpy(), shape[1:]), -1)  # (*spatial, axes)
    cut = [n for side in shape[1:] for n in (side // patch, patch)]
    split = places.reshape(*cut, axes)
    across, inside = [2 * i for i in range(axes)], [2 * i + 1 for i in range(axes)]
    cells = split.transpose(*across, *inside, 2 * axes).reshape(-1, patch**axes, axes)
    assert (cells // patch == cells[:, :1] // patch).all(), "a patch came from one patch"
    assert (cells % patch == cells[:1] % patch).all(), "all patches have the same inner order"
    assert len({tuple(cell[0] // patch) for cell in cells}) == len(cells)
    assert [tuple(cell[0] // patch) for cell in cells] != sorted(
        tuple(cell[0] // patch) for cell in cells
    ) or len(cells) < 3


def test_a_seed_is_an_order():
    orders = [ShufflePixels((1, 6, 6), seed).order.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_density_is_that_of_the_shuffled_image():
    torch.manual_seed(0)
    pixels = [Dequantize(256), Rescale(1 / 256)]
    after = Chain(Along(-1, LU(12)), Along(-2, LU(8)))
    for module in after.modules():
        if isinstance(module, LU):
            torch.nn.init.normal_(module.packed, std=0.1)
    shuffle = ShufflePixels(SHAPE, 2)
    with_it = Flow(Chain(shuffle, *pixels, after), SHAPE).double()
    without = Flow(Chain(*pixels, after), SHAPE).double()
    x = torch.randint(0, 256, (5, *SHAPE))
    z, direct = with_it.encode(x), without.encode(shuffle.shuffle(x))
    assert torch.equal(z, direct)
    assert torch.equal(with_it.decode(z), shuffle.put_back(without.decode(z)))
    assert not torch.equal(z, without.encode(x))


@pytest.mark.parametrize(
    "memory",
    ["invert", *(pytest.param(m, marks=pytest.mark.slow) for m in ("store", "checkpoint"))],
)
def test_every_memory_mode_trains_on_shuffled_images(memory, tmp_path):
    model = MixerFlow(
        layers=2, flow_layers=2, patching=Patching(2), shuffle=LocalShuffle(1, patch=2)
    )
    images = mixerflow.data.load("fashion-mini").train.first(40)
    config = mixerflow.TrainConfig(steps=2, batch=8, initial=8, memory=memory)
    done = mixerflow.train(
        model.build(images.shape), images, out=tmp_path / "run", config=config, quiet=True
    )
    assert done.status == "finished"
    flow = mixerflow.load(tmp_path / "run")
    (shuffle,) = (m for m in flow.modules() if isinstance(m, ShufflePixels))
    assert torch.equal(shuffle.order, ShufflePixels(images.shape, 1, 2).order)


def test_a_patch_that_does_not_fit_names_the_flag():
    with pytest.raises(ConfigError, match="patch 5 does not divide the sides") as raised:
        MixerFlow(shuffle=LocalShuffle(patch=5)).build((3, 32, 32))
    assert "model.shuffle" in str(raised.value)


def test_a_run_keeps_its_order_in_every_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), dtype=np.uint8)
    np.savez("made.npz", train_images=pixels)
    tiny = ["--data", "made.npz", "--train.batch", "8", "--train.initial", "16", "--steps", "1"]
    words = ["train", "mixerflow-tiny", *tiny, "--out", "run", "--threads", "1"]
    assert main([*words, "--shuffle", "local", "--shuffle-seed", "7"]) == 0
    assert main(["train", "run"]) == 0  # resumes, with nothing to do
    flow = mixerflow.load("run")
    (shuffle,) = (m for m in flow.modules() if isinstance(m, ShufflePixels))
    assert torch.equal(shuffle.order, ShufflePixels((1, 28, 28), 7, 4).order)
    for flags in ([], ["--shuffled"]):
        assert main(["sample", "run", "-n", "1", "--scale", "1", *flags]) == 0
    names = ("n1-t1-seed0", "n1-t1-seed0-shuffled")
    drawn = [
        torch.from_numpy(np.asarray(Image.open(f"run/samples/{name}.png"))[2:30, 2:30].copy())
        for name in names
    ]
    assert torch.equal(drawn[1][None, None], shuffle.shuffle(drawn[0][None, None]))
    capsys.readouterr()
    assert main([*words, "--shuffle", "global"]) == 2  # another model
    assert "shuffle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shuffle-seed", "3"], "choose one of global, local with it first"),
        (["--shuffle", "global", "--shuffle-seed", "-1"], "seed must be at least 0; got -1"),
        (["--shuffle=local", "--model.shuffle.patch", "3"], "patch 3 does not divide the sides"),
    ],
)
def test_flags_that_do_not_fit(flags, said, capsys):
    assert main(["train", "mixerflow-tiny", *flags]) == 2
    assert said in capsys.readouterr().err


def test_samples_of_a_run_in_order_are_not_shown_shuffled(tmp_path, capsys):
    images = mixerflow.data.load("fashion-mini").train.first(40)
    config = mixerflow.TrainConfig(steps=1, batch=8, initial=8)
    flow = mixerflow.build("glow-cifar10-tiny", images.shape)
    mixerflow.train(flow, images, out=tmp_path / "run", config=config, quiet=True)
    assert main(["sample", str(tmp_path / "run"), "-n", "1", "--shuffled"]) == 2
    assert "their own order: --shuffled: leave it out" in capsys.readouterr().err


def test_the_order_is_a_setting_of_every_model():
    for name in ("glow-cifar10-tiny", "realnvp-cifar10-tiny", "maf-mnist-tiny"):
        named = mixerflow.recipe(name)
        model = dataclasses.replace(named.model, shuffle=GlobalShuffle(2))
        with torch.device("meta"):
            first = model.build(named.shape).layers()[0]
        assert isinstance(first, ShufflePixels)
