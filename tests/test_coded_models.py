"""Images of every kind of model through the native codec: exact, and of the size that it says."""

import copy
import math
import pickle
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lowered import MODELS, MORE, flow_of, own_flow
from mixerflow.compression.engine import Engine
from mixerflow.compression.lowering import program_of
from mixerflow.compression.program import FORMAT, Base, Map, Operation, Program
from mixerflow.core import Along, Chain, Flow
from mixerflow.errors import ConfigError, DataError
from mixerflow.nets import ResidualMLP
from mixerflow.transforms import LU, Affine, Coupling, Dequantize, DiagonalAffine

_IMAGES = 200


def images_of(flow, count=_IMAGES):
    """Images with what is around them in common, all levels, and labels if it takes some."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(count, 1, *(1 for _ in flow.shape[1:])))
    reals = 0.5 + 0.15 * (level + rng.normal(size=(count, *flow.shape)))
    pixels = np.clip(reals * flow.levels, 0, flow.levels - 1).astype(np.uint16)
    labels = None if flow.context_net is None else rng.integers(0, 2, count)
    return pixels, labels


def require_coded(flow):
    """The codec gives the images back, by the flow, at the size of the flow's own bits.

    Latents that are very unlikely cost less than that: the table has a least frequency.
    """
    pixels, labels = images_of(flow)
    given = None if labels is None else torch.from_numpy(labels)
    integers = torch.from_numpy(pixels.astype(np.int64))
    if not flow.initialized:
        flow.initialize(integers, given)  # latents are near the base's
    engine = Engine(program_of(flow))
    block = engine.encode(pixels, labels)
    again = engine.decode(block.payload, len(pixels), block.initial, labels)
    np.testing.assert_array_equal(again, pixels)
    assert block.report["plain"] == 0 and block.initial < 50
    left = len(pixels) - block.initial
    integers, given = integers[:left], None if given is None else given[:left]
    with torch.no_grad():
        nats = [flow.log_prob(integers, given).double().sum().item() for _ in range(8)]
    own = -np.array(nats) / math.log(2)
    report = block.report
    saved = report["ideal_latents"] - report["latent_bits"]
    ratio = (report["flow_bits"] + saved) / own.mean()
    assert abs(ratio - 1) < 3e-4 + 5 * own.std() / own.mean()  # its noise is one more draw
    assert saved > -1e-3 * report["flow_bits"]


@pytest.mark.parametrize("name", ["batch", "fast classes", "learned activation", "scales"])
def test_a_model_codes_images_exactly_at_its_own_bits(name):
    require_coded(flow_of(*(MODELS | MORE)[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS | MORE)
def test_models_of_all_settings_code_images_exactly_at_their_own_bits(name):
    require_coded(flow_of(*(MODELS | MORE)[name]))


@pytest.mark.parametrize("context", [0, 3])
def test_a_flow_of_ones_own_codes_images_exactly_at_its_own_bits(context):
    require_coded(own_flow(context))


def pixels_of(program, low):
    generator = np.random.default_rng(0)
    return generator.integers(low, program.levels, (20, *program.shape)).astype(np.uint16)


def triangles():
    """The identity of two maps; within the first one numbers leave the bounds, and come back."""
    maps, scale = [LU(3), LU(3)], DiagonalAffine((3, 1, 1))
    with torch.no_grad():
        maps[0].packed[0, 2], maps[0].packed[1, 2], maps[0].packed[1, 0] = 2**17, -(2**32), 2**15
        maps[1].packed[0, 2], maps[1].packed[1, 0] = -(2**17), -(2**15)
        scale.log_scale.fill_(-math.log(4))
        scale.shift.fill_(-62)
    steps = (Along(0, each) for each in maps)
    return Flow(Chain(Dequantize(256), *steps, scale), (3, 2, 2), levels=256)


def coupling():
    """A coupling that scales numbers beyond the bounds, and shifts them back."""
    net = ResidualMLP(1, 2, width=2)
    with torch.no_grad():
        net.leave.bias.copy_(torch.tensor([13.9 * math.log(2), -(2.0**29.9)]))
    steps = Along(0, Coupling(-1, net, Affine()))
    return Flow(Chain(Dequantize(65536), steps), (2, 1, 2), levels=65536)


@pytest.mark.parametrize("flow", [triangles, coupling])
def test_images_that_leave_the_bounds_on_the_way_are_exact(flow):
    program = program_of(flow().eval())
    engine, pixels = Engine(program), pixels_of(program, program.levels * 15 // 16)
    block = engine.encode(pixels)
    assert block.report["plain"] == len(pixels) - block.initial > 0
    np.testing.assert_array_equal(engine.decode(block.payload, 20, block.initial), pixels)


def damaged(program, generator):
    """The program with some words or numbers changed, and perhaps cut."""
    words, numbers = program.words.copy(), program.numbers.copy()
    for _ in range(generator.integers(1, 6)):
        if generator.random() < 0.2:
            at = generator.integers(len(words))
            words[at] = generator.choice([0, 1, -1, 2**31 - 1, words[at] // 2, 2**16])
        elif len(numbers):
            at = generator.integers(len(numbers))
            factors = [0, -1, 1e3, 1e6, 1e300, np.nan, np.inf]
            numbers[at] = (1e-3 + numbers[at]) * generator.choice(factors)
    if generator.random() < 0.1:
        words = words[: generator.integers(len(words))]
    return replace(program, words=words, numbers=numbers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["scales classes", "rms mixture batch", "splines of scores", "plu"]
)
def test_a_damaged_program_is_refused_or_still_exact(name):
    flow, generator = flow_of(*(MODELS | MORE)[name]), np.random.default_rng(0)
    program, (pixels, labels) = program_of(flow), images_of(flow, 12)
    opened = 0
    for _ in range(300):
        try:
            with np.errstate(all="ignore"):
                engine = Engine(damaged(program, generator), 12)
        except (ConfigError, ValueError):
            continue
        opened += 1
        block = engine.encode(pixels, labels)
        again = engine.decode(block.payload, 12, block.initial, labels)
        np.testing.assert_array_equal(again, pixels)
    assert 20 < opened < 280


@pytest.mark.parametrize(("levels", "k"), [(256, 1), (16, 4), (2, 8)])
def test_splines_on_a_coarse_lattice_are_exact(levels, k):
    """Steep splines of two numbers, given one of them, whose bins are narrower than a cell."""
    generator, bins = np.random.default_rng(levels), 8
    shape, by_flow = (2, 1, 1), 0
    for _ in range(12):
        scaled = [2 / levels, 2 / levels, 0, 0, -1, -1]
        net = [1.0, 1e-5, *np.ravel([[generator.normal(), 0.0] for _ in range(3)])]
        leave = generator.normal(size=(2, 3 * bins - 1)) * [[1.2], [4.0]]
        head = [FORMAT, levels, 2, *shape, 0, Base.NORMAL, 0, 1, 2, 0, 1, 2]
        coupling = [Operation.COUPLING, 0, 1, 1, Map.SPLINE, bins, 1, 0, 0, 0, 0, 0]
        words = np.array([*head, Operation.AFFINE, 0, 1, *coupling], np.int32)
        numbers = np.float32([*scaled, *net, *leave.ravel()]).astype(np.float64)
        engine = Engine(Program(words, numbers, shape, levels, 0), k)
        pixels = generator.integers(0, levels, (400, *shape)).astype(np.uint16)
        block = engine.encode(pixels)
        by_flow += 400 - block.initial - block.report["plain"]
        np.testing.assert_array_equal(engine.decode(block.payload, 400, block.initial), pixels)
    assert by_flow > 200


def test_copies_of_a_codec_are_codecs_of_their_own():
    engine = Engine(program_of(flow_of(*MODELS["batch"])), 9)
    for other in (copy.copy(engine), copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        assert (other.k, other.fingerprint) == (9, engine.fingerprint)
        del other
    assert engine.encode(images_of(flow_of(*MODELS["batch"]), 3)[0]).payload


def test_a_block_that_has_run_dry_ends():
    """Images of a block that holds none are not guessed one after the other to the end."""
    engine = Engine(program_of(flow_of(*MODELS["batch"])))
    start = time.process_time()
    with pytest.raises(DataError):
        engine.decode(b"\1" * 8, 200_000, 200_000)
    assert time.process_time() - start < 2
