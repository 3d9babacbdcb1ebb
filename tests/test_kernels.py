"""The kernels give what the operators give: values, log-dets, every gradient, every statistic."""

import contextlib
import copy
import os
import threading
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mixerflow import kernels
from mixerflow.core import ConvergenceWarning, Noise
from mixerflow.kernels import library, switch
from mixerflow.nets import ResidualMLP, SyncedBatchNorm
from mixerflow.parts import LearnedEncoding
from mixerflow.recipes import build
from mixerflow.registry import evolve
from mixerflow.transforms import (
    LU,
    RLU,
    ActNorm,
    Affine,
    Coupling,
    FlooredAffine,
    KernelChain,
    LogisticMixture,
    RationalQuadratic,
    SigmoidAffine,
    halves,
)
from mixerflow.transforms.plans import plan_of
from mixers import mixer

PLAIN = Affine()


def rows(n, *, width=12, steps=3, norm="batch", law=PLAIN, linear=LU, ends=True, **read):
    """A chain of `steps`, perturbed; batch-norm statistics too."""
    parts = []
    for i in range(steps):
        given, changed = halves(n, flip=i % 2 == 1)
        out = law.params * changed
        net = ResidualMLP(given, out, width=width, norm=norm, **read)
        parts += [ActNorm(n)] if ends or i else []
        parts += [linear(n)] if linear else []
        parts += [Coupling(-1, net, law, flip=i % 2 == 1)]
    chain = KernelChain(*parts, *([ActNorm(n)] if ends else []))
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)
        for buffer in chain.buffers():
            if buffer.is_floating_point():
                buffer.add_(torch.rand_like(buffer))
    return chain


def both(chain, x, context=None, *, training):
    """Outputs and gradients by the kernel and by operators, each on a copy."""
    results = []
    for kernel in (True, False):
        mine = copy.deepcopy(chain).train(training)
        given = x.clone().requires_grad_()
        seen = None if context is None else context.clone().requires_grad_()
        if kernel:
            z, log_det = kernels.rows_forward(plan_of(mine), given, seen)
        else:
            with kernels.disabled():
                z, log_det = mine(given, seen)
        weights = torch.linspace(-1, 1, z.numel(), dtype=z.dtype).reshape(z.shape).cos()
        ((z * weights).sum() + (log_det * weights[:, 0]).sum()).backward()
        gradients = {"x": given.grad} | ({} if seen is None else {"context": seen.grad})
        gradients |= {k: p.grad for k, p in mine.named_parameters()}
        buffers = {k: b for k, b in mine.named_buffers() if "tracked" not in k}
        results.append({"z": z, "log_det": log_det} | gradients | buffers)
    return results


SETTINGS = {
    "batch norm": {},
    "no norm": {"norm": "none"},
    "layer norm": {"norm": "layer"},
    "rms norm": {"norm": "rms"},
    "bound": {"law": Affine(1.5)},
    "floored": {"law": FlooredAffine(0.2)},
    "spline": {"law": RationalQuadratic(4, tail=2.0)},
    "two bins": {"law": RationalQuadratic(2)},
    "mixture": {"law": LogisticMixture(3)},
    "one logistic": {"law": LogisticMixture(1, floor=-0.5)},
    "reversed": {"linear": RLU},
    "no linear map": {"linear": None},
    "plain input": {"squash": False},
    "squares": {"squares": True},
    "squares, no norm": {"squares": True, "norm": "none"},
    "no actnorm at the ends": {"ends": False},
    "one step": {"steps": 1},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("n", "width", "count"), [(2, 3, 2), (7, 12, 133), (24, 17, 64), (33, 40, 65), (70, 16, 40)]
)
@pytest.mark.parametrize("name", SETTINGS)
def test_kernel_equals_operators_in_float64(name, n, width, count, training):
    chain = rows(n, width=width, **SETTINGS[name]).double()
    kernel, operators = both(chain, torch.randn(count, n).double(), training=training)
    assert kernel.keys() == operators.keys()
    for key, value in operators.items():
        assert kernel[key] is not None, key
        # batch norm cancels the bias before it: its gradient is rounding, in both
        torch.testing.assert_close(kernel[key], value, rtol=1e-9, atol=1e-10, msg=key)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize(("count", "parts"), [(6, 2), (150, 3), (195, 13), (140, 140), (130, 1)])
def test_contexts_in_float64(count, parts, norm, threads, training):
    """Of one row each, of few or many, across tiles and threads."""
    chain = rows(9, norm=norm, context=5).double()
    x, context = torch.randn(count, 9).double(), torch.randn(parts, 5).double()
    torch.set_num_threads(threads)
    try:
        kernel, operators = both(chain, x, context, training=training)
    finally:
        torch.set_num_threads(1)
    for key, value in operators.items():
        torch.testing.assert_close(kernel[key], value, rtol=1e-9, atol=1e-10, msg=key)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("parts", [1, 10, 130])
def test_contexts_are_undone(parts, threads):
    chain, x = rows(9, context=4).double().eval(), torch.randn(130, 9).double()
    context = torch.randn(parts, 4).double()
    fused = chain.fused()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            expected, expected_log_det = chain(x, context)
            for each in (chain, fused):
                z, log_det = kernels.rows_forward(plan_of(each), x, context)
                back, inverse_log_det = kernels.rows_inverse(plan_of(each), z, context)
                torch.testing.assert_close(z, expected, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(log_det, expected_log_det, rtol=1e-10, atol=1e-10)
                torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-9, atol=1e-9)
    finally:
        torch.set_num_threads(1)


def test_contexts_that_only_differentiate_the_context():
    chain, x = rows(9, context=4, norm="none").requires_grad_(False), torch.randn(20, 9)
    context = torch.randn(5, 4, requires_grad=True)
    mine = torch.autograd.grad(chain(x, context)[0].square().sum(), context)[0]
    with kernels.disabled():
        theirs = torch.autograd.grad(chain(x, context)[0].square().sum(), context)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert mine.abs().max() > 0.01


def test_which_contexts_it_takes():
    x, context = torch.randn(20, 8), torch.randn(4, 5)
    chain = rows(8, context=5, norm="none")
    assert chain.path(x, context) == chain.path(x, context.repeat(5, 1)) == "kernel"
    assert "read a context" in chain.path(x)
    assert "of 5 numbers" in chain.path(x, torch.randn(4, 6))
    assert "rows' dtype" in chain.path(x, context.double())
    assert "equal length" in chain.path(x, torch.randn(3, 5))
    assert "take no context" in plan_of(chain).refused("gpu", differentiated=False)
    squares = plan_of(rows(8, squares=True, norm="none"))
    assert "read no squares" in squares.refused("gpu", differentiated=False)
    assert rows(8).path(x, context) == "kernel"  # no net reads it
    with pytest.raises(ValueError, match="built for a context"):
        chain(x)
    with kernels.disabled():
        expected = chain(x, context.repeat_interleave(5, 0))[0]
        torch.testing.assert_close(chain(x, context)[0], expected)
    chain.steps[2].net.context = nn.Linear(5, 12)
    assert "plain linear maps of contexts" in chain.path(x, context)


@pytest.mark.parametrize("positions", [None, LearnedEncoding()])
def test_a_mixer_of_classes_goes_through(positions):
    """Contexts of an image, which all of its rows share, and positions of rows."""
    model = mixer(layers=2, hidden=16, classes=3)
    flow = evolve(model, {"positions": positions}).build((3, 8, 8)).train()
    for parameter in flow.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    x, labels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 3
    results, calls = [], []
    forward = kernels.cpu._forward

    def counted(*given, **settings):
        calls.append(given)
        return forward(*given, **settings)

    for kernel in (True, False):
        mine = copy.deepcopy(flow)
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(kernels.cpu, "_forward", counted)
            if not kernel:
                stack.enter_context(kernels.disabled())
            log_prob = mine.log_prob(x, labels, noise=Noise.of(0, x))
            (-log_prob.sum() / 1e3).backward()
        assert len(calls) == 4  # two mixer layers of two row flows, and none without kernels
        results.append({k: p.grad for k, p in mine.named_parameters()} | {"log_prob": log_prob})
    for key, value in results[1].items():
        torch.testing.assert_close(results[0][key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
@pytest.mark.parametrize("threads", [1, 2])
def test_float32_is_as_good_as_the_operators(norm, threads):
    chain, x = rows(48, width=64, norm=norm), torch.randn(700, 48)
    exact = both(chain.double(), x.double(), training=True)[1]
    torch.set_num_threads(threads)
    try:
        kernel, operators = both(chain.float(), x, training=True)
    finally:
        torch.set_num_threads(1)
    for key, value in exact.items():
        size = value.norm() + 1e-3
        error = (kernel[key].double() - value).norm() / size
        theirs = (operators[key].double() - value).norm() / size
        assert error < max(3 * theirs, 2e-6), (key, error, theirs)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("threads", [1, 2])
def test_an_inference_copy_goes_through_too(name, threads):
    chain, x = rows(9, **SETTINGS[name]).double().eval(), torch.randn(130, 9).double()
    fused = chain.fused()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            z, log_det = kernels.rows_forward(plan_of(fused), x)
            back, inverse_log_det = kernels.rows_inverse(plan_of(fused), z)
            expected, expected_log_det = chain(x)
    finally:
        torch.set_num_threads(1)
    tight = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(z, expected, **tight)
    torch.testing.assert_close(log_det, expected_log_det, **tight)
    torch.testing.assert_close(back, x, **tight)
    torch.testing.assert_close(inverse_log_det, -log_det, **tight)


def test_an_inference_copy_has_gradients_of_its_input():
    chain, x = rows(9).eval(), torch.randn(20, 9, requires_grad=True)
    fused = chain.fused()
    assert fused.path(x) == "kernel"  # where nothing is differentiated
    for direction in ("forward", "inverse"):
        mine, theirs = (
            torch.autograd.grad(getattr(each, direction)(x)[0].square().sum(), x)[0]
            for each in (fused, chain)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_undoes_it(name, dtype):
    chain = rows(9, **SETTINGS[name]).to(dtype).eval()
    x = torch.randn(70, 9, dtype=dtype)
    with torch.no_grad():
        z, log_det = kernels.rows_forward(plan_of(chain), x)
        back, inverse_log_det = kernels.rows_inverse(plan_of(chain), z)
        expected, expected_log_det = KernelChain.inverse(chain.double(), z.double())
    tight = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(back, x, **tight)
    torch.testing.assert_close(inverse_log_det, -log_det, **tight)
    torch.testing.assert_close(back.double(), expected, **tight)
    torch.testing.assert_close(inverse_log_det.double(), expected_log_det, **tight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_in_training_sees_the_same_statistics(dtype):
    chain = rows(9).to(dtype).train()
    x = torch.randn(150, 9, dtype=dtype)
    with torch.no_grad():
        z, log_det = kernels.rows_forward(plan_of(chain), x)
        after = copy.deepcopy(chain.state_dict())
        for norm in (m for m in chain.modules() if isinstance(m, SyncedBatchNorm)):
            norm.update = False
        back, inverse_log_det = kernels.rows_inverse(plan_of(chain), z)
    assert all(torch.equal(value, after[key]) for key, value in chain.state_dict().items())
    tight = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(back, x, **tight)
    torch.testing.assert_close(inverse_log_det, -log_det, **tight)


def test_log_det_against_autograd():
    chain = rows(6, steps=2).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    z, log_det = kernels.rows_forward(plan_of(chain), x.requires_grad_())
    for i in range(len(x)):
        jacobian = torch.stack(
            [torch.autograd.grad(z[i, j], x, retain_graph=True)[0][i] for j in range(6)]
        )
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize(
    ("norm", "training"), [("batch", False), ("layer", True), ("rms", True), ("none", True)]
)
def test_rows_do_not_see_each_other(norm, training):
    chain, x = rows(11, norm=norm).train(training), torch.randn(200, 11)
    with torch.no_grad():
        z, log_det = chain(x)
        for i in (0, 63, 64, 199):
            alone, alone_log_det = chain(x[i : i + 1])
            assert torch.equal(alone[0], z[i])
            assert torch.equal(alone_log_det[0], log_det[i])


def test_it_is_chosen_and_says_why_not():
    chain, x = rows(8), torch.randn(10, 8)
    assert chain.path(x) == "kernel"
    assert "float64" in rows(8).double().path(x.double())
    with kernels.disabled():
        assert "switched off" in chain.path(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "lower precision" in chain.path(x)
    assert "no coupling" in KernelChain(LU(8)).path(x) or "not a chain" in KernelChain(LU(8)).path(
        x
    )
    handle = chain.steps[2].net.linear1.register_forward_hook(lambda *_: None)
    assert "hooks" in chain.path(x)
    handle.remove()
    assert chain.path(x) == "kernel"
    chain.steps[2].net.norm1.momentum = chain.steps[2].net.norm2.momentum = 0.2
    assert "alike" in chain.path(x)


def test_maps_that_it_does_not_know_go_by_operators():
    class Shifted(FlooredAffine):
        pass

    x = torch.randn(10, 8)
    assert rows(8, law=FlooredAffine()).path(x) == "kernel"
    for law, name in (
        (LogisticMixture, "LogisticMixture"),
        (RationalQuadratic, "RationalQuadratic"),
    ):
        assert rows(8, law=law(64)).path(x) == "kernel"
        assert f"does not know the map {name}" in rows(8, law=law(65)).path(x)
    assert "does not know the map SigmoidAffine" in rows(8, law=SigmoidAffine()).path(x)
    assert "does not know the map Shifted" in rows(8, law=Shifted()).path(x)
    chain = rows(8, law=FlooredAffine(), norm="none")
    assert "affine couplings only" in plan_of(chain).refused("gpu", differentiated=False)
    chain.steps[2].elementwise = FlooredAffine(0.3)
    assert "alike" in chain.path(x)


def test_every_mixing_of_the_paper_s_model_takes_it():
    flow = build(mixer(layers=4, hidden=16), (3, 32, 32))
    mixings = [m for m in flow.modules() if isinstance(m, KernelChain)]
    assert len(mixings) == 8
    for mixing in mixings:
        n = plan_of(mixing).n
        assert mixing.path(torch.zeros(2, n)) == "kernel"


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_move_as_batch_norm_moves_them(update, momentum):
    mine = rows(8).train()
    for norm in (m for m in mine.modules() if isinstance(m, SyncedBatchNorm)):
        norm.momentum, norm.update = momentum, update
    theirs = copy.deepcopy(mine)
    for _ in range(3):
        x = torch.randn(50, 8)
        with torch.no_grad():
            mine(x)
            with kernels.disabled():
                theirs(x)
    for (key, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)
    assert int(mine.steps[2].net.norm1.num_batches_tracked) == (3 if update else 0)


def test_gradients_twice_and_memory_that_comes_back():
    chain = rows(8).train()
    x = torch.randn(100, 8, requires_grad=True)
    z, _ = chain(x)
    first = torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0]
    for _ in range(3):  # others take and give back buffers meanwhile
        other, _ = chain(torch.randn(100, 8))
        other.sum().backward()
    again = torch.autograd.grad(z.square().sum(), x)[0]
    assert torch.equal(first, again)


def test_a_parameter_changed_before_backward_is_noticed():
    chain = rows(8).train()
    z, _ = chain(torch.randn(100, 8))
    with torch.no_grad():
        chain.steps[2].net.linear1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        z.sum().backward()


def test_second_derivatives_are_refused():
    x = torch.randn(10, 8, requires_grad=True)
    z, _ = rows(8, norm="none")(x)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(z.sum(), x, create_graph=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    chain, x = rows(8).eval(), torch.randn(70, 8)
    x[3, 1] = bad
    with torch.no_grad():
        z, log_det = chain(x)
    assert not z[3].isfinite().all()
    assert not log_det[3].isfinite()
    assert z[torch.arange(70) != 3].isfinite().all()


@pytest.mark.parametrize("law", [Affine(2.0), FlooredAffine()])
def test_far_values_are_those_of_the_operators(law):
    chain = rows(8, law=law).eval()
    x = torch.randn(64, 8) * 10 ** torch.linspace(-6, 6, 64)[:, None]
    with torch.no_grad():
        z, log_det = chain(x)
        expected, expected_log_det = chain.double()(x.double())
    error = (z - expected).abs().amax(1) / expected.abs().amax(1)
    assert error.max() < 1e-5
    torch.testing.assert_close(log_det.double(), expected_log_det, rtol=1e-5, atol=1e-5)


def test_far_tails_of_mixtures_are_those_of_the_operators():
    """Components far apart and far from the numbers, where float32's sigmoids underflow."""
    chain = rows(8, law=LogisticMixture(4), steps=1, norm="none")
    with torch.no_grad():
        chain.steps[2].net.leave.weight.mul_(30)
        chain.steps[2].net.leave.bias.mul_(30)
    x = torch.randn(64, 8) * 10 ** torch.linspace(0, 4, 64)[:, None]
    with torch.no_grad():
        z, log_det = chain(x)
        with kernels.disabled():
            theirs, their_log_det = chain(x)
        expected, expected_log_det = chain.double()(x.double())
    for mine, other, exact in (
        (z, theirs, expected),
        (log_det[:, None], their_log_det[:, None], expected_log_det[:, None]),
    ):
        size = exact.abs().amax(1) + 1
        error, allowed = ((each - exact).abs().amax(1) / size for each in (mine, other))
        assert (error < 3 * allowed + 1e-5).all()


def test_a_search_that_fails_is_left_to_the_operators_warning():
    chain, z = rows(8, law=LogisticMixture(3)).eval(), torch.randn(5, 8)
    z[2] = float("nan")
    with torch.no_grad():
        assert chain.path(z) == "kernel"
        with pytest.raises(kernels.Unsolved, match="have no inverse to rounding"):
            kernels.rows_inverse(plan_of(chain), z)
        with pytest.warns(ConvergenceWarning, match="did not converge"):
            x, _ = chain.inverse(z)
    assert x[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("law", [FlooredAffine(), LogisticMixture(3), RationalQuadratic()])
def test_maps_repeat_to_the_last_bit_with_two_threads(law):
    chain, x = rows(33, law=law, width=20), torch.randn(300, 33)
    torch.set_num_threads(2)
    try:
        first, again = (both(chain, x, training=True)[0] for _ in range(2))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("law", [LogisticMixture(3), RationalQuadratic()])
def test_maps_in_float32_are_as_good_as_the_operators(law):
    chain, x = rows(24, law=law, width=20, norm="none"), torch.randn(200, 24)
    exact = both(chain.double(), x.double(), training=True)[1]
    kernel, operators = both(chain.float(), x, training=True)
    for key, value in exact.items():
        size = value.norm() + 1e-3
        error = (kernel[key].double() - value).norm() / size
        theirs = (operators[key].double() - value).norm() / size
        assert error < max(3 * theirs, 5e-6), (key, error, theirs)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_hidden_rows_of_one_value_keep_finite_gradients(norm):
    """Nothing to divide by but eps."""
    chain, x = rows(8, norm=norm, steps=1), torch.randn(70, 8)
    with torch.no_grad():
        net = chain.steps[2].net
        for linear in (net.enter, net.linear1):
            linear.weight.zero_()
            linear.bias.zero_()
    kernel, operators = both(chain.double(), x.double(), training=True)
    for key, value in operators.items():
        assert kernel[key].isfinite().all(), key
        torch.testing.assert_close(kernel[key], value, rtol=1e-9, atol=1e-10, msg=key)


def test_batches_of_none_and_one():
    chain = rows(8)
    assert chain.eval()(torch.zeros(0, 8))[0].shape == (0, 8)
    assert chain(torch.zeros(1, 8))[0].shape == (1, 8)
    with pytest.raises(ValueError, match="more than 1 value"):
        chain.train()(torch.zeros(1, 8))
    with pytest.raises(ValueError, match=r"takes events|reads events|fit events"):
        chain(torch.zeros(4, 7))


def test_threads_of_python_do_not_share_scratch():
    chain, inputs = rows(24, width=32).eval(), [torch.randn(300 + i, 24) for i in range(4)]
    with torch.no_grad():
        expected = [chain(x)[0] for x in inputs]
    wrong = []

    def run(x, z):
        with torch.no_grad():
            wrong.extend(0 for _ in range(50) if not torch.equal(chain(x)[0], z))

    threads = [
        threading.Thread(target=run, args=each) for each in zip(inputs, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_threads_take_their_scratch_with_them():
    chain, x = rows(128, width=128, steps=6).eval(), torch.randn(64, 128)
    chain(x)

    def run():
        with torch.no_grad():
            chain(x)

    def pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    sizes = []
    for _ in range(60):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        sizes.append(pages() * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert sizes[-1] - sizes[19] < 40  # MiB; 4 a thread were left behind


def test_without_a_compiler_it_runs_and_says_so_once(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.library.cache_clear()
    switch._build_error.cache_clear()
    chain, x = rows(8).eval(), torch.randn(5, 8)
    try:
        with pytest.warns(RuntimeWarning, match="no C compiler"):
            z, _ = chain(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again, _ = chain(x)
        assert torch.equal(z, again)
        assert "no C compiler" in chain.path(x)
    finally:
        monkeypatch.undo()
        library.library.cache_clear()
        switch._build_error.cache_clear()
    assert chain.path(x) == "kernel"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mixerflow" / "kernels"


@pytest.mark.slow
def test_a_library_cut_short_is_built_again(cache, monkeypatch, tmp_path):
    library.library.__wrapped__(torch.float64)
    (built,) = cache.iterdir()  # is loaded now: what is cut short lies elsewhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    short = tmp_path / "other" / built.relative_to(tmp_path / "cache")
    short.parent.mkdir(parents=True)
    short.write_bytes(built.read_bytes()[:100])
    assert library.library.__wrapped__(torch.float64).lanes() > 0
    assert short.stat().st_size == built.stat().st_size


@pytest.mark.slow
def test_where_nothing_can_be_kept_it_is_built_all_the_same(cache):
    cache.parent.parent.write_text("a file is in the way")
    with pytest.warns(RuntimeWarning, match=r"cannot be kept .*: set XDG_CACHE_HOME"):
        assert library.library.__wrapped__(torch.float64).lanes() > 0


@pytest.mark.slow
def test_the_compiler_may_be_told_more(cache, monkeypatch):
    monkeypatch.setenv("CC", "cc -DTOLD=1")
    assert library.library.__wrapped__(torch.float64).lanes() > 0


def test_a_broken_build_is_one_line(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    told = "In file included from rows.c:3:", "x.h:1: error: something is wrong", "more"
    lines = "\n".join(f"echo '{line}' >&2" for line in told)
    compiler.write_text(f"#!/bin/sh\n{lines}\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(kernels.BuildError, match=r"failed: x\.h:1: error: something is wrong$"):
        library.library.__wrapped__(torch.float32)


def test_parametrized_weights_have_their_gradients_too():
    chain = rows(8, norm="none")
    nn.utils.parametrizations.weight_norm(chain.steps[2].net.linear1)
    assert "plain linear maps" in chain.path(torch.zeros(3, 8))
    chain(torch.randn(3, 8))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in chain.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LayerNorm(12, bias=False),
        lambda: nn.LayerNorm(12, elementwise_affine=False),
        lambda: nn.RMSNorm(12, eps=1e-5),
        lambda: nn.RMSNorm(12, elementwise_affine=False),
        lambda: nn.RMSNorm((5, 12), eps=1e-5, elementwise_affine=False),
    ],
)
def test_row_norms_of_other_kinds_go_by_operators(make):
    chain = rows(8, norm="none").eval()
    for net in (m for m in chain.modules() if isinstance(m, ResidualMLP)):
        net.norm1, net.norm2 = make(), make()
    x = torch.randn(5, 8)
    assert "row norms" in chain.path(x)
    with kernels.disabled():
        expected = chain(x)[0]
    assert torch.equal(chain(x)[0], expected)


class Halved(ResidualMLP):
    def forward(self, x, context=None):
        return super().forward(x, context) * 0.5


def test_nets_that_compute_something_else_go_by_operators():
    chain, x = rows(8, norm="none").eval(), torch.randn(5, 8)
    plain = chain(x)[0]
    coupling = chain.steps[2]
    coupling.net.__class__ = Halved
    assert "another kind" in chain.path(x)
    assert not torch.allclose(chain(x)[0], plain)
    coupling.net.__class__ = ResidualMLP
    coupling.net.forward = lambda given, context=None: torch.zeros(len(given), 8)
    assert "hooks" in chain.path(x)
    assert not torch.allclose(chain(x)[0], plain)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "none"])
def test_norms_that_compute_something_else_go_by_operators(norm):
    chain, x = rows(8, norm=norm).eval(), torch.randn(5, 8)
    plain = chain(x)[0]
    mine = chain.steps[2].net.norm2
    kind = type(mine)
    mine.__class__ = type("Shifted", (kind,), {"forward": lambda s, h: kind.forward(s, h) + 1})
    assert "other norms" in chain.path(x)
    assert not torch.allclose(chain(x)[0], plain)


def test_tensors_of_another_kind_are_left_to_the_operators_errors():
    x = torch.randn(5, 8)
    chain = rows(8).eval()
    chain.steps[2].net.double()
    assert "several dtypes" in chain.path(x)
    with pytest.raises(RuntimeError, match="dtype"):
        chain(x)
    chain = rows(8).eval()
    chain.steps[2].net.enter.weight = nn.Parameter(torch.zeros(2))
    assert "shape" in chain.path(x)
    with pytest.raises(RuntimeError):
        chain(x)
    assert "another device" in rows(8).to("meta").path(x)


def test_parameters_converted_before_backward_are_noticed():
    chain = rows(8).train()
    z, log_det = chain(torch.randn(20, 8))
    chain.double()
    with pytest.raises(RuntimeError, match="converted between forward and backward"):
        (z.sum() + log_det.sum()).backward()


def test_forward_mode_and_counters_see_operators():
    from torch.autograd import forward_ad
    from torch.utils.flop_counter import FlopCounterMode

    chain, x = rows(8, norm="none").eval(), torch.randn(5, 8)
    with torch.no_grad(), forward_ad.dual_level():
        z, _ = chain(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(z).tangent is not None
    with FlopCounterMode(display=False) as counter:
        chain(x)
    assert counter.get_total_flops() > 5 * 3 * 12 * 12 * 4
