"""The count of a training step agrees with torch's counter, and with sums done by hand."""

import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch
from benchmarks import count
from benchmarks.costs import flop
from benchmarks.count import Arguments, Kernel, Kind, Traffic

from mixerflow import kernels
from mixerflow.recipes import build, recipe
from mixerflow.transforms import KernelChain
from mixers import mixer, vary

TINY = mixer(layers=1, flow_layers=2, hidden=4, patch=2, shift=0)
MACHINE = Arguments(batch=10, sms=3, matrix_tflops=1.0, memory_tbs=2.0, l2_tbs=4.0)


def on_meta(config, shape):
    with torch.device("meta"):
        return build(config, shape)


@pytest.fixture(scope="module")
def cifar10():
    named = recipe("mixerflow-cifar10")
    flow = on_meta(named.model, named.shape)
    return {batch: count.count(flow, Arguments(batch=batch)) for batch in (256, 512)}


@pytest.mark.slow
def test_operations_are_those_that_torch_counts(cifar10):
    named = recipe("mixerflow-cifar10")
    flow = build(named.model, named.shape).eval()
    with torch.no_grad(), kernels.disabled():
        one, two = (
            flop(lambda n=n: flow.log_prob(torch.zeros(n, *named.shape, dtype=torch.uint8)))
            for n in (1, 2)
        )
    image, batch = two - one, 2 * one - two
    counted = cifar10[512].gflop_per_image * 1e9
    assert counted == pytest.approx(1.197e9, rel=0.01)
    assert counted == pytest.approx(image - 2 * 32 * 32 * 3 * 3, rel=1e-12)  # the colour map
    assembly = sum(kind.assembly_flop * kind.steps for kind in cifar10[512].kinds)
    assert assembly == batch - 2 * 3**3


def test_the_kinds_of_the_cifar10_recipe(cifar10):
    found = cifar10[512].kinds
    assert [(k.rows, k.length, k.halves, k.steps) for k in found] == [
        (64, 48, (24, 24), 92),
        (48, 64, (32, 32), 92),
        (49, 48, (24, 24), 28),
        (48, 49, (25, 24), 28),
    ]
    inner = 3 * 28 * 28  # a shift layer's window
    assert [k.rows * k.length for k in found] == [3072, 3072, inner, inner]
    assert {k.padded for k in found} == {64**2 + 128 * (32 + 256 + 64)}
    assert cifar10[512].parameters == 11_358_339


def test_a_tiny_flow_is_what_it_is_by_hand():
    found = count.count(on_meta(TINY, (1, 4, 6)), MACHINE)
    channels, patches = found.kinds
    assert (channels.name, channels.rows, channels.length, channels.steps) == ("channels", 6, 4, 2)
    assert (patches.name, patches.rows, patches.length, patches.steps) == ("patches", 4, 6, 2)
    assert channels.multiply_adds == 4 * 4 + (2 * 4 + 4 * 4 + 4 * 4 + 4 * 4)
    assert patches.multiply_adds == 6 * 6 + (3 * 4 + 4 * 4 + 4 * 4 + 4 * 6)
    assert channels.padded == patches.padded == 32**2 + 16**2 * (1 + 2 + 2)
    assert found.gflop_per_image == 2 * 2 * (72 * 6 + 104 * 4) / 1e9
    # three ActNorms to two steps; LU; in, norms, hidden, out
    assert channels.parameters == 1.5 * 8 + 20 + 12 + 16 + 40 + 20
    assert (channels.gelus, channels.norms, channels.assembly_flop) == (8, 2, 2 * 4**3)
    rows, state, weights = 60, 4 * 60 * 4, 120
    figures = [(k.flop, k.memory_bytes, k.l2_bytes, k.lane_operations) for k in channels.kernels]
    read, parts, lanes = 3 * 2 * weights, 3 * 4 * weights, 16 * 8 * rows
    assert figures == [
        (2 * 72 * rows, 2 * state + 2 * weights, 2 * state + read, lanes),
        (6 * 72 * rows, 4 * state + 2 * weights, 4 * state + read + parts, 2 * lanes),
        (0, 4 * weights, parts + 4 * weights, 3 * weights),
    ]


def test_floors_are_work_over_rate():
    kernel = count.timed(MACHINE, "k", flop=3e6, memory=4e6, l2=4e6, lanes=128 * 3 * 1755)
    matrix, memory, l2, lanes, overlap, serial = kernel.us.values()
    assert (matrix, memory, l2, lanes) == pytest.approx((3.0, 2.0, 1.0, 1.0))
    assert (overlap, serial, kernel.bound) == (matrix, matrix + memory + lanes, "matrix")


def test_totals_add_up(cifar10):
    found = cifar10[512]
    by_name = {total.how: total for total in found.totals}
    fused = by_name["fused, overlap"]
    each = [kind.steps * sum(k.us["overlap"] for k in kind.kernels) for kind in found.kinds]
    adam = sum(kernel.us["overlap"] for kernel in found.optimiser)
    assert [k.memory_bytes / found.parameters for k in found.optimiser] == [28, 12, 4]
    assert fused.step_ms * 1e3 == pytest.approx(sum(each) + adam)
    assert fused.images_per_second == pytest.approx(512e3 / fused.step_ms)
    assert fused.step_ms < by_name["fused, serial"].step_ms < by_name["layer by layer"].step_ms
    assert (found.launches.kernels_fused, found.launches.operators_today) == (240 * 3 + 20, None)
    assert found.launches.barriers_for_batch_norm == 240 * 2 * 2


def test_a_row_flow_moves_what_its_operators_do():
    place = next(count.places(on_meta(TINY, (1, 4, 6)).transform, (1, 4, 6)))
    forward = count.layered(place, batch=10)["forward"]
    assert forward.calls["gelu"] == 4
    assert forward.bytes["gelu"] == 4 * 2 * (60 * 4 * 4)  # reads and writes 60 rows of 4
    assert forward.bytes["addmm"] == sum(
        2 * 4 * (rows_in + rows_out + weight)
        for rows_in, rows_out, weight in (
            (60 * 4, 60 * 4, 16 + 4),
            (60 * 2, 60 * 4, 8 + 4),
            (60 * 4, 60 * 4, 16 + 4),
            (60 * 4, 60 * 4, 16 + 4),
            (60 * 4, 60 * 4, 16 + 4),
        )
    )
    along = place.along.to_empty(device="cpu")
    for name, tape in count._taped(along, place.shape, 10).items():
        assert count.layered(place, batch=10)[name] == Traffic(tape.bytes, tape.calls)


def test_the_batch_scales_the_rows_and_not_the_weights(cifar10):
    small, large = cifar10[256], cifar10[512]
    assert small.optimiser == large.optimiser
    assert small.gflop_per_image == large.gflop_per_image
    assert small.launches == large.launches
    for few, many in zip(small.kinds, large.kinds, strict=True):
        assert replace(few, layered={}, kernels=()) == replace(many, layered={}, kernels=())
        state, weights = 4 * 256 * few.rows * few.length, few.parameters
        for a, b, passes in zip(few.kernels, many.kernels, (2, 4, 0), strict=True):
            assert b.flop == 2 * a.flop
            assert b.memory_bytes - a.memory_bytes == b.l2_bytes - a.l2_bytes == passes * state
        assert few.kernels[0].memory_bytes == 2 * state + 2 * weights
        assert many.kernels[1].lane_operations == 2 * few.kernels[1].lane_operations
        assert few.kernels[2] == many.kernels[2]
        for name, traffic in few.layered.items():
            ratio = sum(many.layered[name].bytes.values()) / sum(traffic.bytes.values())
            assert 1.97 < ratio < 2
            assert many.layered[name].calls == traffic.calls


def test_tiles_are_powers_of_two():
    assert [count.padded(n) for n in (1, 16, 17, 24, 25, 32, 33)] == [16, 16, 32, 32, 32, 32, 64]


def test_every_row_flow_is_found():
    config = mixer(layers=4, hidden=8, cut=("patches", "stripes"), linear="none")
    flow = on_meta(config, (3, 16, 12))
    found = count.count(flow, MACHINE)
    rows = [module for module in flow.modules() if isinstance(module, KernelChain)]
    assert sum(kind.flows for kind in found.kinds) == len(rows) == 8
    assert all(kind.assembly_flop == 0 for kind in found.kinds)
    whole = [k for k in found.kinds if not k.name.startswith("shift")]
    assert {k.rows * k.length for k in whole} == {3 * 16 * 12}


@pytest.mark.parametrize("change", [{"net": "kan"}, {"flow": "maf"}, {"linear": "Butterfly"}])
def test_what_is_not_counted_is_refused(change):
    flow = build(vary(TINY, **change), (1, 4, 6))
    with pytest.raises(ValueError, match="no part it knows"):
        count.count(flow, MACHINE)


def test_the_script_prints_tables_and_writes_what_reads_back(tmp_path, monkeypatch, capsys):
    out = tmp_path / "count.json"
    asked = ["count", "--recipe", "mixerflow-tiny", "--batch", "8", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", asked)
    count.main()
    assert "floors of a training step" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["command"].startswith("python -m benchmarks.count --recipe mixerflow-tiny")
    named = recipe("mixerflow-tiny")
    given = Arguments(**written["given"])
    found = count.count(on_meta(named.model, named.shape), given)
    launches = written["count"].pop("launches")
    assert launches["operators_today"] > 10 * launches["kernels_fused"]
    stored = asdict(found)
    stored.pop("launches")
    assert written["count"] == json.loads(json.dumps(stored))
    kind = Kind(**written["count"]["kinds"][0])
    assert Kernel(**kind.kernels[0]) == found.kinds[0].kernels[0]
    assert all(math.isfinite(total.step_ms) and total.hours is None for total in found.totals)
