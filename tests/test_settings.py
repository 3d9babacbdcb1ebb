"""Settings may be numpy's numbers, or arrays without axes; what is no number is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from mixerflow.core import Chain
from mixerflow.errors import ConfigError
from mixerflow.models import DenseFlow, Glow, MixerFlow, RealNVP
from mixerflow.models.maf import MAF
from mixerflow.parts import Classes, LearnedEncoding, LogitPixels, ScaledPixels, StudentTBase
from mixerflow.recipes import build
from mixerflow.registry import choices, construct, describe
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import LU, Affine, Dequantize, Householder, Rescale

KINDS = [np.int64, np.uint8, np.array, torch.tensor]
FLOATS = [np.float32, np.float64, np.array, torch.tensor]


def values():
    """Every registered value that can be made without arguments."""
    made = []
    for kind in choices(object).values():
        try:
            made.append(kind())
        except TypeError:
            continue
    return made


def is_number(field, kind):
    return str(getattr(field.type, "__name__", field.type)).split(" | ")[0] == kind


@pytest.mark.parametrize("value", values(), ids=lambda value: type(value).__name__)
def test_every_number_of_a_value_may_be_numpy_s(value):
    for field in dataclasses.fields(value):
        now = getattr(value, field.name)
        kinds = KINDS if type(now) is int else FLOATS if type(now) is float else ()
        for kind in kinds:
            if kind is np.uint8 and not 0 <= now < 256:
                continue
            made = dataclasses.replace(value, **{field.name: kind(now)})
            kept = getattr(made, field.name)
            assert type(kept) is type(now) and kept == pytest.approx(now)
            assert hash(made) and construct(json.loads(json.dumps(describe(made)))) == made
        for name, wrong in (("int", 2.5), ("float", "1"), ("int", "3"), ("bool", 1), ("int", True)):
            if is_number(field, name):
                with pytest.raises(ConfigError, match=field.name):
                    dataclasses.replace(value, **{field.name: wrong})


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_remember_python_s_numbers(kind):
    chain = Chain(Dequantize(kind(7)), Rescale(np.float32(0.5), np.array(1.0)), LU(kind(4)))
    text = json.dumps(describe(chain))
    assert construct(json.loads(text)).steps[0].levels == 7
    assert Householder(kind(4), kind(2)).vectors.shape == (2, 4)
    assert Affine(np.float32(2.0)) == Affine(2.0)
    config = TrainConfig(steps=kind(3), betas=(np.float64(0.5), np.array(0.75)), lr=np.float32(0.5))
    assert config == TrainConfig(steps=3, betas=(0.5, 0.75), lr=0.5)
    json.dumps(describe(config))


MODELS = {
    "mixerflow": MixerFlow(layers=np.int64(1), flow_layers=np.array(1), positions=None),
    "classes": MixerFlow(layers=1, flow_layers=1, classes=Classes(np.int32(3), np.int16(4))),
    "base": MixerFlow(layers=1, base=StudentTBase(np.float32(3))),
    "positions": MixerFlow(layers=1, flow_layers=1, positions=LearnedEncoding(np.int64(3))),
    "maf": MAF(layers=np.int64(1), width=np.int64(8), pixels=LogitPixels(np.float64(0.05))),
    "glow": Glow(steps=np.int64(1), scales=np.int64(1)),
    "levels": MixerFlow(layers=1, flow_layers=1, pixels=ScaledPixels(levels=np.uint16(300))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [np.array([3, 8, 8]), (3, np.int64(8), np.array(8)), [3, 8, 8]])
def test_models_and_shapes_of_numpy_s_numbers(name, shape):
    flow = build(MODELS[name], shape)
    assert flow.shape == (3, 8, 8) and all(type(side) is int for side in flow.shape)
    json.dumps(flow.spec)


NO_SHAPES = [
    8, (8,), (), "3x8x8", None, (0, 8, 8), (3, -8, 8), (3, 8.0, 8), ("3", 8, 8), (True, 8, 8),
    (1, 3, 8, 8, 8), np.zeros((2, 2)), np.array(3), np.array([3.0, 8.0, 8.0]), {3, 8},
    (3, float("nan"), 8), torch.tensor([3.0, 8.0, 8.0]),
]  # fmt: skip


@pytest.mark.parametrize("model", [MixerFlow(layers=1), MAF(), RealNVP(), Glow(), DenseFlow()])
@pytest.mark.parametrize("shape", NO_SHAPES, ids=str)
def test_what_is_no_shape_is_refused_in_a_line(model, shape):
    with pytest.raises(ConfigError, match="shape") as caught:
        build(model, shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(8, 8), [32, 32], np.array([8, 8]), torch.Size((8, 8))])
def test_a_recipe_s_images_need_their_channels(shape):
    with pytest.raises(ConfigError, match="give the channels too"):
        build("mixerflow-cifar10-tiny", shape)


@pytest.mark.parametrize("model", [5, MixerFlow, TrainConfig(), Chain(), None])
def test_what_is_no_model_is_refused_in_a_line(model):
    with pytest.raises(ConfigError, match="is no model"):
        build(model, (3, 8, 8))
