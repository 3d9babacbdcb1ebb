"""The benchmarks count what they say they count, and say what they could not run."""

import time

import numpy as np
import pytest
import torch
from benchmarks import growth, large, linear, memory, ode, share, speed, weights
from benchmarks.common import interleaved, pin, ratio, spread
from benchmarks.costs import flop, import_seconds, operators, peak_memory
from benchmarks.floor import Floor, terms
from benchmarks.ours import Ours
from benchmarks.rivals import LIBRARIES, Glow, base
from torch.utils.flop_counter import FlopCounterMode

from mixerflow import kernels
from mixerflow.data import Splits, make_images
from mixerflow.kernels.cpu import empty_reused
from mixerflow.models import FFJORD
from mixerflow.parts import ConvVelocityNet, LUMap, Patching, WoodburyMap
from mixerflow.recipes import build, recipe
from mixerflow.registry import evolve
from mixerflow.training import TrainConfig, train
from mixerflow.transforms.checks import perturb
from mixers import DENSEFLOW, mixer

SMALL = mixer(layers=4, hidden=16)
SHAPE = (3, 16, 16)


def counted(run) -> int:
    with kernels.disabled(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(SMALL, SHAPE, marks=pytest.mark.slow),
        (mixer(layers=2, hidden=24, patch=2, shift=1, shift_every=2), (3, 8, 12)),
        (mixer(layers=2, hidden=16, shift=0, linear="RLU"), (1, 28, 28)),
        pytest.param(
            mixer(layers=2, hidden=16, linear="none", colour=False), SHAPE, marks=pytest.mark.slow
        ),
        (mixer(layers=2, hidden=16, cut="stripes", shift_every=1), SHAPE),
    ],
)
def test_the_floor_has_the_real_models_products(config, shape):
    batch, split = 64, terms(config, shape)
    floor = Floor("floor", config, shape).work(batch)
    plain = Ours("real", config, shape, kernels=False)
    real = plain.work(batch)
    with plain.path():  # operations inside of kernels cannot be counted
        scored, trained = counted(real.log_prob), counted(real.train)
    # the floor leaves out that W is assembled from L and U, once a batch
    assert scored == counted(floor.log_prob) + split["assembly"]
    assert trained == pytest.approx(counted(floor.train) + 3 * split["assembly"], rel=0.02)
    assert counted(floor.log_prob) == (split["conditioners"] + split["linear"]) * batch


def test_the_floor_of_a_step_has_the_steps_own_convolutions_and_products():
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    for run in share.jobs_of(DENSEFLOW.build((1, 8, 8)), x).values():
        floor = share.recorded(run)
        assert counted(floor) == counted(run) > 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flow", "maf"),
        ("net", "kan"),
        ("linear", "Woodbury"),
        ("patch_linear", "Butterfly"),
    ],
)
def test_the_floor_refuses_what_is_no_product_of_its_kind(setting, value):
    with pytest.raises(ValueError, match="floor: "):
        terms(mixer(layers=1, **{setting: value}), SHAPE)


def test_linear_changes_the_blocks_and_the_patches_of_a_recipe():
    model = linear.model_of("mixerflow-imagenet64-tiny", "LU/Woodbury", 4)
    wanted = {"linear": LUMap(), "patch_linear": WoodburyMap(), "patching": Patching(4, (0, 2))}
    assert model == evolve(recipe("mixerflow-imagenet64-tiny").model, wanted)
    for name, pair in (("glow-cifar10-tiny", "LU/LU"), ("mixerflow-tiny", "LU/LUX")):
        with pytest.raises(SystemExit, match=pair):
            linear.model_of(name, pair, None)


def test_the_floor_trains_into_a_buffer_for_each_activation():
    floor = Floor("floor", SMALL, SHAPE)
    steps = floor.steps(4, keep=True)
    assert len({step.y.data_ptr() for step in steps}) == len(steps)
    assert all(step.x.shape[1] == step.w.shape[1] for step in steps)
    assert all(step.y.data_ptr() != step.x.data_ptr() for step in floor.steps(4, keep=False))


def test_jobs_take_turns_and_the_first_round_is_not_counted():
    order = []
    jobs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = interleaved(jobs, rounds=2)
    assert order == list("abc") * 3
    assert {len(each) for each in seconds.values()} == {2}
    slept = interleaved({"a": lambda: time.sleep(0.01)}, rounds=1)["a"]
    assert slept[0] >= 0.01
    with pytest.raises(ValueError, match="rounds"):
        interleaved(jobs, rounds=0)


def test_ratios_are_paired_by_round():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}
    # a machine ten times as slow in the second round changes no ratio
    assert ratio([1.0, 10.0], [2.0, 20.0]) == {"median": 0.5, "least": 0.5, "most": 0.5}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_rival_is_the_glow_that_was_asked_for(library):
    pytest.importorskip(library)
    glow = Glow(library, (3, 8, 8), levels=2, steps=2, hidden=64)
    work = glow.work(3)
    assert counted(work.log_prob) / 3 == pytest.approx(glow.flop(), rel=0.05)
    assert sum(p.numel() for p in work.model.parameters()) == pytest.approx(glow.weights(), rel=0.1)
    assert work.sample().shape == (3, 3, 8, 8)
    first = work.train()
    for _ in range(5):
        last = work.train()
    assert last < first


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_rivals_log_prob_is_that_of_its_samples(library):
    """The library's log-det is that of the Jacobian which torch finds."""
    pytest.importorskip(library)
    glow = Glow(library, (1, 4, 4), levels=2, steps=1, hidden=8)
    model = glow.work(8).model.eval()  # after ActNorm's start
    x = torch.randn(1, 1, 4, 4) * 0.3
    norm = torch.distributions.Normal(0.0, 1.0)

    def encode(flat):
        return model.encode(flat.reshape(1, 1, 4, 4)).flatten()

    jacobian = torch.autograd.functional.jacobian(encode, x.flatten())
    expected = norm.log_prob(encode(x.flatten())).sum() + jacobian.slogdet().logabsdet
    assert model.log_prob(x).item() == pytest.approx(expected.item(), abs=1e-3)


def test_a_rival_matches_in_the_quantity_that_was_asked_for():
    glow = base("nflows", (3, 32, 32))
    assert glow.like(1.2e9, by="flop").flop() == pytest.approx(1.2e9, rel=0.05)
    assert glow.like(11e6, by="weights").weights() == pytest.approx(11e6, rel=0.05)
    assert base("nflows", (1, 28, 28)).levels == 2


def test_a_missing_rival_is_reported(monkeypatch):
    monkeypatch.setattr(speed, "installed", lambda package: package == "mixerflow")
    entrants = [Ours("ours", SMALL, SHAPE), Floor("floor", SMALL, SHAPE), base("nflows", SHAPE)]
    rows = speed.compare(entrants, batch=2, rounds=1)
    assert [row["installed"] for row in rows] == [True, True, False]
    assert rows[0]["of_floor"]["train"]["median"] < 1
    assert rows[1]["of_floor"]["train"]["median"] == 1
    columns = speed.table("small", rows, 2).columns
    assert "not installed" in list(columns[3].cells)


def test_a_kernel_counts_as_one_operator():
    flow = build(SMALL, SHAPE).eval()
    x = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    with_kernels = operators(lambda: flow.log_prob(x))
    with kernels.disabled():
        assert with_kernels < operators(lambda: flow.log_prob(x)) / 3


def test_operators_of_the_backward_pass_count():
    x = torch.randn(4, 4)
    assert operators(lambda: x.exp().neg()) == 2
    w = x.clone().requires_grad_()
    forward = operators(lambda: w.exp().neg().sum())
    assert operators(lambda: w.exp().neg().sum().backward()) >= forward + 3
    assert flop(lambda: x @ x) == 2 * 4**3


@pytest.mark.slow
def test_memory_and_imports_are_measured_in_fresh_processes():
    small = peak_memory(Ours("small", SMALL, SHAPE), 2, steps=1)
    if small is None:
        pytest.skip("no /proc")
    large = peak_memory(Ours("large", SMALL, SHAPE), 130, steps=1)
    # 4 layers keep about 100 numbers wide rows of 16 patches and 48 channels for every image
    assert large > small + 40
    seconds = import_seconds({"sleep": "import time; time.sleep(0.05)", "none": "pass"}, rounds=1)
    assert seconds["sleep"][0] >= 0.05 > seconds["none"][0]


def test_processor_time_is_of_one_thread():
    for threads in (0, 2):
        with pytest.raises(SystemExit, match="use --threads 1"):
            pin(threads, 0, "cpu")
    pin(1, 0, "cpu")


@pytest.mark.parametrize("wrong", ["steps 0", "threads -1", "patch 0", "sides 30", "sides 0"])
def test_what_cannot_be_large_is_refused_in_a_line(wrong, monkeypatch, capsys):
    flag, value = wrong.split()
    monkeypatch.setattr("sys.argv", ["large", f"--{flag}", value])
    with pytest.raises(SystemExit):
        large.main()
    assert f"--{flag}" in capsys.readouterr().err


def test_large_images_train_in_every_mode():
    given = large.Arguments(layers=1, patch=8, batch=2, steps=1)
    rows = [large.measure(given, 16, mode) for mode in given.modes]
    assert len({row["parameters"] for row in rows}) == 1
    lines = large.told(rows).splitlines()
    assert [line.split()[3] for line in lines[2:]] == ["store", "checkpoint", "invert"]
    assert all(row["cpu_seconds_per_image"] > 0 and not row["warnings"] for row in rows)


def test_solvers_of_continuous_flows_take_the_same_equations():
    flow = FFJORD(scales=1, blocks=1, net=ConvVelocityNet(3, depth=1)).build((1, 4, 4)).train()
    perturb(flow.transform, size=1.0)
    x = ode.images(3, (1, 4, 4))
    rows = ode.measure(flow, x, 1e-3, ode.Arguments(batch=3, rounds=1))
    assert rows["rows"]["of_rows"]["median"] == 1
    for row in rows.values():
        assert 0 < row["error"]["median"] <= row["error"]["most"] < 1e-2
        assert row["evaluations_per_row"] <= row["calls"]
    assert rows["rows"]["error"]["alone"] < 1e-5  # a row does not depend on the others
    if "torchdiffeq" in rows:
        assert rows["torchdiffeq"]["calls"] == rows["torchdiffeq"]["evaluations_per_row"]
    assert "| rows |" in ode.told({"cases": [{"size": 1, "tolerance": 1e-3, "solvers": rows}]})


@pytest.mark.slow
def test_linear_blocks_take_over_where_the_counts_cross():
    rows = [growth.count_terms("LU", size, batch=16) for size in (32, 64, 128)]
    products = [row["linear"] / row["conditioners"] for row in rows]
    assert products == sorted(products)
    patches = growth.takeover(rows)["LU"]
    assert patches is not None and 64 < patches < 1024
    quadratic = rows[2]["linear"] / rows[1]["linear"]
    assert 8 < quadratic < 16  # four times the patches: 4 would be linear, 16 purely quadratic
    made_up = [
        {"line": "a", "patches": n, "linear": n**2, "assembly": 0, "conditioners": 100 * n}
        for n in (10, 1000)
    ]
    assert growth.takeover(made_up)["a"] == 100
    assert growth.takeover([row | {"linear": 0} for row in made_up])["a"] is None


def test_growth_changes_one_thing_at_a_time():
    for axis, values in growth.AXES.items():
        points = growth.points(axis, "nflows")
        lines = {point.line for point in points}
        assert {f"MixerFlow {linear}" for linear in growth.LINEAR} <= lines
        assert {point.value for point in points} == set(values)
    batches = {p.batch for p in growth.points("batch", "nflows")}
    assert batches == set(growth.AXES["batch"])


def test_exponents_are_slopes_in_log_log():
    rows = [
        {"line": "a", "value": v, "seconds_per_image": {"median": v**2.0}, "peak_mib": 3.0 * v}
        for v in (1, 2, 8)
    ]
    slopes = [row.get("exponent") for row in growth.with_exponents(rows)]
    assert slopes == [None, {"time": 2.0, "memory": 1.0}, {"time": 2.0, "memory": 1.0}]


def test_the_peak_of_a_step_is_counted_to_the_byte():
    with memory.peak_of(torch.device("cpu")) as peak:
        first, second = torch.empty(1000), torch.empty(500)
        del first
        third = empty_reused(100, torch.float32)  # a kernel's buffer counts too
    assert peak == [6000] and len(second) + len(third) == 600
    with memory.peak_of(torch.device("cpu")) as peak:
        for _ in range(3):
            empty_reused(100, torch.float32)  # the same one
    assert peak == [400]


@pytest.mark.slow
def test_inverting_takes_the_same_memory_at_any_depth():
    given = memory.Arguments(hidden=16, batch=8)
    few, many = (memory.peaks(given, layers) for layers in (2, 8))
    for path in few:
        assert many[path]["invert"] < 1.1 * few[path]["invert"]
        assert many[path]["store"] > 3 * few[path]["store"]
        assert many[path]["invert"] < many[path]["checkpoint"] < many[path]["store"]


@pytest.mark.slow
def test_weights_are_judged_by_each_rounding_and_each_way(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8)).astype(np.uint8)
    made = make_images(pixels, None, dataset_id="made")
    splits = Splits(made.take(np.arange(48)), made.take(np.arange(48, 60)))
    monkeypatch.setattr(weights, "load", lambda spec: splits)
    config = TrainConfig(steps=4, batch=8, evaluate_every=4)
    flow = build(mixer(layers=2, hidden=32), (1, 8, 8))
    train(flow, splits.train, out=tmp_path / "run", config=config, quiet=True)
    (row,) = weights.rounding(weights.Rounding((tmp_path / "run",), "made"))["runs"].values()
    assert list(row["more"]) == list(weights.ROUNDINGS)
    assert 0 < abs(row["more"]["as published"]) < 0.01
    found = weights.pieces(weights.Pieces(seeds=1, steps=30))["bits_per_dim"]
    assert list(found) == list(weights.WAYS)
    assert len({figure for (figure,) in found.values()}) == len(weights.WAYS)
