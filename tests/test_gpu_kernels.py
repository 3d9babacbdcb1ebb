"""The GPU's kernels give what operators give: on a GPU if there is one, else interpreted."""

import contextlib
import copy
import itertools

import pytest
import torch

pytest.importorskip("triton")

import triton.language as tl
from triton.runtime import interpreter

from mixerflow import kernels
from mixerflow.core import Along, Inverse
from mixerflow.kernels.gpu import flow as gpu
from mixerflow.kernels.gpu import gradient, launch, step
from mixerflow.nets import ResidualMLP
from mixerflow.recipes import build
from mixerflow.training import TrainConfig
from mixerflow.transforms import (
    LU,
    RLU,
    ActNorm,
    Affine,
    Coupling,
    Dilated,
    KernelChain,
    MixerLayer,
    Patchify,
    Stripes,
    halves,
    kernel_check,
)
from mixerflow.transforms.plans import plan_of
from mixers import mixer

DEVICE = "cpu" if launch.INTERPRETED else "cuda"
LOW = (False, True)
_PATCHED = set()


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch):
    """The interpreter patches Triton's language once a launch, and not at each call in a kernel.

    That takes half of its time. Functions that do not name the language as kernels do are patched
    at their first call.
    """

    def call(self, *args, **kwargs):
        if self.fn.__globals__.get("tl") is not tl and self.fn not in _PATCHED:
            _PATCHED.add(self.fn)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture(autouse=True)
def on_the_gpu():
    """What is not interpreted finds the GPU by itself."""
    with kernels.interpreted() if launch.INTERPRETED else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody writes holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def rows(n, *, width=16, steps=3, norm="layer", bound=None, linear=LU, squash=True, ends=True):
    """A chain of `steps`, far from the identity."""
    parts = []
    for i in range(steps):
        flip = i % 2 == 1
        given, changed = halves(n, flip=flip)
        net = ResidualMLP(given, 2 * changed, width=width, norm=norm, squash=squash)
        parts += [ActNorm(n)] if ends or i else []
        parts += [linear(n)] if linear else []
        parts += [Coupling(-1, net, Affine(bound), flip=flip)]
    chain = KernelChain(*parts, *([ActNorm(n)] if ends else []))
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3 / parameter.shape[-1] ** 0.5)
    return chain.to(DEVICE)


def run(chain, x, forward):
    """Outputs and gradients of a copy of `chain`; behind x lies NaN, so that masks are tested."""
    mine, size = copy.deepcopy(chain), x.numel()
    memory = torch.cat([x.flatten(), x.new_full((256 * x.shape[-1],), torch.nan)])
    given = memory[:size].view(x.shape).requires_grad_()
    z, log_det = forward(mine, given)
    slopes = torch.linspace(-1, 1, z.numel(), dtype=z.dtype, device=DEVICE).reshape(z.shape).cos()
    ((z * slopes).sum() + (log_det * slopes.flatten(1)[:, 0]).sum()).backward()
    gradients = {"x": given.grad} | {name: p.grad for name, p in mine.named_parameters()}
    return {"z": z.detach(), "log_det": log_det.detach()} | gradients


def exactly(chain, x):
    """By operators in float64."""
    with kernels.disabled():
        return run(copy.deepcopy(chain).double(), x.double(), lambda chain, x: chain(x))


def errors(found, exact):
    """Relative errors; NaN is infinitely wrong."""
    assert found.keys() == exact.keys()
    sizes = {name: (found[name].double() - value).norm() for name, value in exact.items()}
    relative = {name: size / (exact[name].norm() + 1e-6) for name, size in sizes.items()}
    return {name: float(error.nan_to_num(float("inf"))) for name, error in relative.items()}


def by_kernel(*, low=False, keep="inputs"):
    return lambda chain, x: gpu.rows_forward(plan_of(chain), x, low=low, keep=keep)


SIZES = {"2x16": (2, 16, 1), "7x16": (7, 16, 37), "24x32": (24, 32, 70), "49x64": (49, 64, 20)}
SIZES["64x128"] = (64, 128, 33)
"""Length of the rows and width of the nets -> these, and rows: in bfloat16 twice as many."""
SETTINGS = {
    "size": tuple(SIZES),
    "norm": ("layer", "rms", "none"),
    "linear": (LU, RLU, None),
    "steps": (1, 2),
    "bound": (None, 1.5),
    "squash": LOW,
    "ends": LOW,
    "low": LOW,
    "keep": ("inputs", "output"),
}
# size, norm, linear, steps, bound, squash, ends, low, keep
CASES = [
    ("2x16", "layer", LU, 2, 1.5, True, True, False, "output"),
    ("2x16", "none", RLU, 2, 1.5, True, False, False, "inputs"),
    ("2x16", "rms", None, 1, None, False, True, True, "inputs"),
    ("7x16", "layer", LU, 1, None, False, False, True, "inputs"),
    ("7x16", "none", RLU, 1, None, True, True, True, "output"),
    ("7x16", "rms", None, 2, 1.5, True, True, False, "output"),
    ("24x32", "layer", None, 2, None, True, False, True, "output"),
    ("24x32", "none", LU, 1, 1.5, False, True, False, "output"),
    ("24x32", "rms", RLU, 1, None, False, True, False, "inputs"),
    ("49x64", "layer", RLU, 2, 1.5, False, True, False, "output"),
    ("49x64", "none", None, 1, None, False, False, True, "output"),
    ("49x64", "rms", LU, 2, None, True, False, False, "inputs"),
    ("64x128", "layer", None, 1, 1.5, True, True, True, "inputs"),
    ("64x128", "none", LU, 2, None, False, False, True, "output"),
    ("64x128", "rms", RLU, 2, 1.5, False, False, False, "output"),
]


def test_the_cases_cover_every_pair_of_settings():
    for (i, first), (j, second) in itertools.combinations(enumerate(SETTINGS.values()), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(first, second))


def chain_of(case):
    """A case's chain, and rows for it."""
    given = dict(zip(SETTINGS, case, strict=True))
    n, width, count = SIZES[given.pop("size")]
    low, keep = given.pop("low"), given.pop("keep")
    x = torch.randn((1 + low) * count, n, device=DEVICE)
    return rows(n, width=width, **given), x, low, keep


def named(case):
    return "-".join(getattr(value, "__name__", str(value)) for value in case)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_values_gradients_and_inverses_are_right(case):
    chain, x, low, keep = chain_of(case)
    exact = exactly(chain, x)
    wrong = errors(run(chain, x, by_kernel(low=low, keep=keep)), exact)
    if low:  # as good as the operators
        with kernels.disabled(), torch.autocast(DEVICE, torch.bfloat16):
            theirs = errors(run(chain, x, lambda chain, x: chain(x)), exact)
        for key, error in wrong.items():
            assert error < max(3 * theirs[key], 2e-2), (key, error, theirs[key])
        assert wrong["z"] < 1e-2
    else:  # matrix units add up tf32 products: three of them make a float32 product, nearly
        assert max(wrong.values()) < (5e-6 if DEVICE == "cpu" else 1e-4), wrong
    with torch.no_grad():
        z, log_det = gpu.rows_forward(plan_of(chain), x, low=low)
    back, inverse_log_det = gpu.rows_inverse(plan_of(chain), z, low=low)
    # a bfloat16 net that reads a number off by one bit may round it to the next
    tolerance = 5e-3 if low else 2e-5
    torch.testing.assert_close(back, x, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=tolerance, atol=10 * tolerance)


def test_an_inference_copy_goes_through_too():
    for norm in ("batch", "none"):
        chain, x = rows(9, norm=norm).eval(), torch.randn(40, 9, device=DEVICE)
        fused = chain.fused()
        assert fused.path(x) == "kernel"
        with torch.no_grad():
            z, log_det = fused(x)
            with kernels.disabled():
                expected, expected_log_det = chain(x)
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(log_det, expected_log_det, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused.inverse(z)[0], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", [-1, -2])
def test_one_kernel_mixes_channels_and_patches_where_they_lie(dim):
    """Rows of an image's patch matrix, read and written in the image, by tables."""
    cut = Patchify((3, 8, 12), (4, 2))
    chain = rows(cut.matrix[dim], steps=1)
    images = torch.randn(3, 3, 8, 12, device=DEVICE)
    numbers = torch.arange(images[0].numel(), device=DEVICE).reshape(1, 3, 8, 12)
    table = cut(numbers)[0][0].int()  # (patches, channels): where each number lies
    table = table if dim == -1 else table.T
    first, inner = table[:, 0].contiguous(), (table[0] - table[0, 0]).contiguous()
    assert torch.equal(table, first[:, None] + inner)
    place = kernels.Place(len(images) * len(first), len(first), numbers.numel(), first, inner)
    plan = plan_of(chain)
    z, log_det = gpu.rows_forward(plan, images, place=place)
    with kernels.disabled(), torch.no_grad():
        expected, expected_log_det = Along(dim, chain)(cut(images)[0])
    torch.testing.assert_close(cut(z)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-4, atol=1e-4)
    back, _ = gpu.rows_inverse(plan, z.detach(), place=place)
    torch.testing.assert_close(back, images, rtol=1e-4, atol=1e-5)


CUTS = {
    "patches": (Patchify, (3, 4, 6), (2, 3)),
    "dilated": (Dilated, (3, 4, 6), (2, 3)),
    "stripes": (Stripes, (3, 4, 6), 2),
    "a signal's": (Patchify, (2, 8), (2,)),
    "a volume's": (Patchify, (1, 4, 2, 4), (2, 1, 2)),
}


@pytest.mark.parametrize("name", CUTS)
def test_a_mixer_needs_no_patch_matrix(name):
    kind, shape, side = CUTS[name]
    cut = kind(shape, side)
    patches, channels = cut.matrix
    mixings = Along(-1, rows(channels, steps=1)), Along(-2, rows(patches, steps=1))
    steps = (cut, *mixings, Inverse(cut, shape))
    mixer, x = MixerLayer(*steps), torch.randn(3, *shape, device=DEVICE)
    assert mixer.path(x) == "kernel"
    wrong = errors(run(mixer, x, lambda mixer, x: mixer(x)), exactly(mixer, x))
    assert max(wrong.values()) < (5e-6 if DEVICE == "cpu" else 1e-4), wrong
    with torch.no_grad():
        z, log_det = mixer(x)
        back, inverse_log_det = mixer.inverse(z)
    torch.testing.assert_close(back, x, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-4, atol=1e-4)
    apart = x.transpose(0, 1).contiguous().transpose(0, 1)  # not one after another in memory
    torch.testing.assert_close(mixer(apart)[0], mixer(x)[0])
    assert mixer(x[:0])[0].shape == (0, *shape)


def test_a_mixer_sees_that_its_steps_have_changed():
    x, shape = torch.randn(2, 1, 4, 4, device=DEVICE), (1, 4, 4)
    cut, other = Patchify(shape, (2, 2)), Dilated(shape, (2, 2))
    mixer = MixerLayer(
        cut, Along(-1, rows(4, steps=1)), Along(-2, rows(4, steps=1)), Inverse(cut, shape)
    )
    mixer(x)
    assert "_traced" not in copy.deepcopy(mixer).__dict__

    def agrees():
        with kernels.disabled(), torch.no_grad():
            expected = mixer(x)[0]
        torch.testing.assert_close(mixer(x)[0], expected, rtol=1e-4, atol=1e-5)

    mixer.steps[0], mixer.steps[3] = other, Inverse(other, shape)
    agrees()
    mixer.steps[1].dim, mixer.steps[2].dim = -2, -1
    agrees()
    mixer.steps[1] = Along(-1, ActNorm(4).to(DEVICE))
    agrees()
    del mixer.steps[1]
    agrees()


def test_a_mixer_says_why_it_goes_step_by_step():
    x, cut = torch.randn(2, 1, 4, 4, device=DEVICE), Patchify((1, 4, 4), (2, 2))
    mixing, back = Along(-1, rows(4, steps=1)), Inverse(cut, (1, 4, 4))
    assert MixerLayer(cut, mixing, back).path(x) == "kernel"
    assert "another order" in MixerLayer(cut, mixing).path(x)
    assert "neither a patchify step nor a row flow" in MixerLayer(cut, ActNorm(4), back).path(x)
    assert "batch norm" in MixerLayer(cut, Along(-1, rows(4, norm="batch")), back).path(x)
    hooked = MixerLayer(cut, mixing, back)
    handle = hooked.steps[1].register_forward_hook(lambda *_: None)
    assert "hooks" in hooked.path(x)
    handle.remove()
    for each in (MixerLayer(cut, mixing), MixerLayer(cut, ActNorm(4).to(DEVICE), back)):
        with kernels.disabled():
            expected = each(x)[0]
        torch.testing.assert_close(each(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_depend_on_the_others():
    chain, x = rows(24, steps=1), torch.randn(133, 24, device=DEVICE)
    plan = plan_of(chain)
    with torch.no_grad():
        whole = gpu.rows_forward(plan, x, low=True)
        others = torch.randn_like(x) * 100
        others[77] = x[77]
        mixed = gpu.rows_forward(plan, others, low=True)
    assert torch.equal(whole[0][77], mixed[0][77])
    assert torch.equal(whole[1][77], mixed[1][77])


FAULTS = {
    "log-det's sign": (step, "bounded", lambda raw, bound, BOUND: -raw),
    "a slope": (gradient, "gelu_slope", lambda x, LOW, EMULATE: x * 0.0 + 0.5),
    "squash's slope": (gradient, "unsquash", lambda grad, x, SQUASH: grad),
    "bound's slope": (gradient, "unbounded", lambda grad, log_scale, bound, BOUND: grad),
    "norm's slope": (gradient, "unnormed", lambda grad, s, inverse, gamma, WIDE, NORM: grad),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="compiled kernels cannot be replaced in part")
@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name, monkeypatch):
    where, part, fault = FAULTS[name]
    monkeypatch.setattr(where, part, fault)
    chain, x = rows(9, bound=1.5, steps=1), torch.randn(20, 9)
    wrong = errors(run(chain, x, by_kernel()), exactly(chain, x))
    assert max(wrong.values()) > 1e-3


def test_it_is_chosen_and_says_why_not():
    x = torch.randn(5, 8, device=DEVICE)
    assert rows(8).path(x) == "kernel"
    assert "batch norm needs statistics" in rows(8, norm="batch").path(x)
    assert "width" in rows(8, width=24).path(x)
    assert "rows up to 64" in rows(70).path(torch.randn(5, 70, device=DEVICE))
    assert "float32" in rows(8).double().path(x.double())
    with torch.autocast(DEVICE, torch.float16):
        assert "bfloat16" in rows(8).path(x)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert rows(8).path(x) == "kernel"
    with kernels.disabled():
        assert "switched off" in rows(8).path(x)


def test_second_derivatives_and_changed_parameters_are_errors():
    chain, x = rows(8, steps=1), torch.randn(20, 8, device=DEVICE, requires_grad=True)
    z, _ = chain(x)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(z.square().sum(), x, create_graph=True)
    z, _ = chain(x)
    with torch.no_grad():
        chain.steps[0].shift += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    z, _ = chain(x)
    chain.double()
    with pytest.raises(RuntimeError, match="converted between forward and backward"):
        z.sum().backward()


@pytest.mark.parametrize("low", LOW)
def test_a_kernel_is_believed_after_a_proof_only(low, monkeypatch):
    monkeypatch.setattr(kernel_check, "_ROWS", 60)
    chain, device = rows(9, steps=1), torch.device(DEVICE)
    assert kernel_check.worst_error(chain, device, low=low) < 0.7
    forward = kernels.rows_forward

    def wrong(plan, x, **options):
        z, log_det = forward(plan, x, **options)
        return z, log_det * 1.05

    first = torch.tensor([9, 0], dtype=torch.int32, device=DEVICE)
    inner = torch.arange(9, dtype=torch.int32, device=DEVICE)
    place = kernels.Place(2, 2, 18, first, inner)
    assert kernel_check.worst_error(chain, device, low=low, place=place) < 0.7
    monkeypatch.setattr(kernels, "rows_forward", wrong)
    assert kernel_check.worst_error(chain, device, low=low) > 1
    monkeypatch.setattr(kernels, "rows_forward", lambda plan, x, **_: (x * torch.nan, x.sum(1)))
    assert kernel_check.worst_error(chain, device, low=low) == float("inf")


def flow():
    config = mixer(
        layers=2, flow_layers=1, hidden=16, patch=2, shift=1, shift_every=2, norm="layer"
    )
    return build(config, (2, 4, 4)).to(DEVICE)


@pytest.mark.parametrize("memory", ["store", "checkpoint", "invert"])
def test_a_whole_flow_trains_as_by_operators(memory):
    mine = flow()
    layers = [each for each in mine.modules() if isinstance(each, MixerLayer)]
    assert len(layers) == 2
    x = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8, device=DEVICE)
    mine.initialize(x)
    theirs = copy.deepcopy(mine)
    mine.memory = memory
    for each in (mine, theirs):
        optimizer = torch.optim.SGD(each.parameters(), lr=1e-3)
        with kernels.disabled() if each is theirs else contextlib.nullcontext():
            torch.manual_seed(0)
            (-each(x).log_prob.mean() / each.dims).backward()
            optimizer.step()
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)
    torch.testing.assert_close(mine.bits_per_dim(x), theirs.bits_per_dim(x), rtol=1e-5, atol=1e-5)
    z = mine.encode(x)
    assert torch.equal(mine.decode(z), x)


def test_the_paper_s_model_goes_through_whole():
    config = mixer(norm="layer", layers=8)
    with torch.device(DEVICE):
        chains = [m for m in build(config, (3, 32, 32)).modules() if isinstance(m, KernelChain)]
    plans = [plan_of(chain) for chain in chains]
    assert len(plans) == 16
    assert {plan.n for plan in plans} == {48, 64, 49}
    assert not any(plan.refused("gpu", differentiated=True) for plan in plans)
    assert TrainConfig(precision="bfloat16").precision == "bfloat16"
