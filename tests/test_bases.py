"""Base distributions against scipy, torch.distributions and quadrature; draws, tails, life."""

import copy
import math

import pytest
import safetensors.torch
import scipy.stats
import torch
from torch import distributions, nn

from mixerflow import export
from mixerflow.core import (
    Base,
    Cauchy,
    Centre,
    Chain,
    Flow,
    GaussianMixture,
    Noise,
    SpikeAndSlab,
    StandardNormal,
    StudentT,
)
from mixerflow.parts import BaseChoice
from mixerflow.registry import choices
from mixerflow.transforms import ActNorm, Dequantize
from mixerflow.transforms.checks import perturb

MADE = {
    "normal": StandardNormal,
    "student-t": StudentT,
    "student-t, heavy": lambda: StudentT(0.8),
    "student-t, fixed": lambda: StudentT(3.5, learned=False),
    "student-t, light": lambda: StudentT(3e5),
    "cauchy": Cauchy,
    "mixture": GaussianMixture,
    "mixture of one": lambda: GaussianMixture(1),
    "mixture of three": lambda: GaussianMixture(3),
    "spike-and-slab": SpikeAndSlab,
}
LEARNED = [name for name, make in MADE.items() if any(True for _ in make().parameters())]


def made(name: str) -> Base:
    base = MADE[name]().double()
    perturb(base)
    return base


class Elementwise:
    """The same distribution of one number, of scipy or torch.distributions."""

    def __init__(self, base: Base) -> None:
        self.mixture = None
        if isinstance(base, StudentT):
            self.scipy = scipy.stats.t(float(base.dof().detach()))
        elif isinstance(base, StandardNormal):
            self.scipy = scipy.stats.norm()
        else:
            assert isinstance(base, GaussianMixture | SpikeAndSlab)
            means = base.means if isinstance(base, GaussianMixture) else torch.zeros(2).double()
            self.mixture = distributions.MixtureSameFamily(
                distributions.Categorical(logits=base.logits.detach()),
                distributions.Normal(means.detach(), base.log_scales.detach().exp()),
            )

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        if self.mixture is not None:
            return self.mixture.log_prob(z)
        return torch.as_tensor(self.scipy.logpdf(z.numpy()))

    def cdf(self, values):
        if self.mixture is not None:
            return self.mixture.cdf(torch.as_tensor(values)).numpy()
        return self.scipy.cdf(values)


def test_every_name_has_its_base():
    bases = choices(BaseChoice)
    kinds = {type(value().build()) for value in bases.values()}
    assert list(bases) == ["normal", "student-t", "cauchy", "mixture", "spike-and-slab"]
    assert kinds == {StandardNormal, StudentT, Cauchy, GaussianMixture, SpikeAndSlab}
    assert kinds == {type(make()) for make in MADE.values()}


@pytest.mark.parametrize("name", MADE)
def test_density_is_that_of_another_library(name):
    base = made(name)
    z = torch.randn(40, 5, dtype=torch.float64) * torch.logspace(-2, 3, 40).double()[:, None]
    wanted = Elementwise(base).log_prob(z).sum(1)
    # scipy's own normaliser of 3e5 degrees of freedom has ten digits
    tolerance = 1e-8 if name == "student-t, light" else 1e-10
    torch.testing.assert_close(base.log_prob(z).detach(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MADE)
def test_density_integrates_to_one(name):
    base = made(name)
    t = torch.linspace(-40, 40, 40001, dtype=torch.float64)
    z, slope = torch.sinh(t), torch.cosh(t).log()  # to 1e17: all but 1e-9 of the tails in question
    density = (base.log_prob(z[:, None]).detach() + slope).exp()
    assert abs(torch.trapezoid(density, t).item() - 1) < 1e-8


@pytest.mark.parametrize("name", MADE)
def test_draws_have_its_law(name):
    base = made(name)
    law, generator = Elementwise(base), torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.float64):
        drawn = base.sample(torch.empty(100, 200, dtype=dtype), generator)
        assert drawn.dtype == dtype and drawn.shape == (100, 200) and not drawn.requires_grad
        values = drawn.double().flatten().numpy()
        assert scipy.stats.kstest(values, law.cdf).pvalue > 0.01
        low, high = drawn[:, :100].flatten().double(), drawn[:, 100:].flatten().double()
        ranks = scipy.stats.spearmanr(low.abs().numpy(), high.abs().numpy())  # independent
        assert abs(ranks.statistic) < 0.04
    again = base.sample(torch.empty(3, 4), torch.Generator().manual_seed(3))
    assert torch.equal(again, base.sample(again, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", MADE)
def test_the_far_tails_are_finite(name):
    base = made(name).float()
    z = torch.tensor([[1e6], [-1e6], [1e4], [0.0]], requires_grad=True)
    log_prob = base.log_prob(z)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all()
    wanted = Elementwise(copy.deepcopy(base).double()).log_prob(z.detach().double())[:, 0]
    torch.testing.assert_close(log_prob.double(), wanted, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(log_prob.sum(), [z, *base.parameters()], allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in found)
    assert found[0][0] < 0 < found[0][1]  # towards the middle


def test_the_heavier_the_tail_the_more_of_it_there_is():
    far = torch.full((1, 1), 50.0)
    order = [StandardNormal(), StudentT(10.0), StudentT(3.0), Cauchy()]
    found = [base.log_prob(far).item() for base in order]
    assert found == sorted(found) and found[-1] > -10 and found[0] < -1000


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_of_what_it_learns(name):
    base = made(name)
    parameters = list(base.parameters())
    z = base.sample(torch.empty(50, 20, dtype=torch.float64), None)

    def value(*moved: torch.Tensor) -> torch.Tensor:
        names = dict(zip(dict(base.named_parameters()), moved, strict=True))
        return torch.func.functional_call(base, names, (z,)).sum()

    base.forward = base.log_prob  # what functional_call calls
    found = torch.autograd.grad(value(*parameters), parameters)
    if name != "mixture of one":  # whose one weight is 1
        assert all(g.any() for g in found)
    assert torch.autograd.gradcheck(value, parameters, eps=1e-4, atol=1e-3)


def test_degrees_of_freedom_are_learned():
    base, generator = StudentT(30.0), torch.Generator().manual_seed(0)
    z = StudentT(3.0).sample(torch.empty(2000, 10), generator)
    optimizer = torch.optim.Adam(base.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (-base.log_prob(z).mean()).backward()
        optimizer.step()
    assert abs(base.dof().detach().item() - 3) < 0.3


@pytest.mark.parametrize("components", [2, 5, 8])
def test_a_mixture_starts_nearly_normal_and_apart(components):
    base = GaussianMixture(components)
    mixture = Elementwise(base.double()).mixture
    assert abs(mixture.mean.item()) < 1e-6 and abs(mixture.variance.item() - 1) < 1e-6
    assert base.means.diff().min() > 0.1


def test_a_mixture_learns_two_modes():
    base = GaussianMixture(4)
    z = torch.randn(500, 4) * 0.3 + torch.where(torch.rand(500, 4) < 0.3, -2.0, 1.0)
    optimizer = torch.optim.Adam(base.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (-base.log_prob(z).mean()).backward()
        optimizer.step()
    entropy = (
        0.5 * math.log(2 * math.pi * math.e * 0.09) - 0.3 * math.log(0.3) - 0.7 * math.log(0.7)
    )
    assert abs(-base.log_prob(z).mean().item() / 4 - entropy) < 0.03


@pytest.mark.parametrize("name", MADE)
def test_width_rows_and_empty_batches(name):
    base = made(name).float()
    z = base.sample(torch.empty(5, 7), None)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert base.to(dtype if dtype == torch.float64 else torch.float32)
        log_prob = base.log_prob(z.to(dtype))
        assert log_prob.shape == (5,) and log_prob.dtype == wide
    base = base.float()
    whole = base.log_prob(z)
    other = z.clone()
    other[1:] = 3.0
    assert torch.equal(base.log_prob(other)[0], whole[0])
    assert base.log_prob(z[:0]).shape == (0,) and base.sample(z[:0], None).shape == (0, 7)


@pytest.mark.parametrize("name", LEARNED)
def test_through_safetensors(name):
    base, other = made(name), MADE[name]().double()
    z = torch.randn(3, 4, dtype=torch.float64)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(base.state_dict())))
    assert torch.equal(base.log_prob(z), other.log_prob(z))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: StudentT(0.5), r"more than 0\.5; got 0\.5"),
        (lambda: StudentT(math.inf), "finite.*inf"),
        (lambda: GaussianMixture(0), "at least 1; got 0"),
        (lambda: SpikeAndSlab(2.0, 1.0), r"spike < slab; got 2\.0 and 1\.0"),
        (lambda: SpikeAndSlab(weight=1.0), r"between 0 and 1; got 1\.0"),
    ],
)
def test_wrong_numbers_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def flow_with(name: str) -> Flow:
    flow = Flow(Chain(Dequantize(16), ActNorm((2, 3, 4))), (2, 3, 4), MADE[name](), levels=16)
    perturb(flow)
    return flow.eval()


@pytest.mark.parametrize("name", MADE)
def test_a_flow_with_it_fuses_and_draws(name):
    flow = flow_with(name)
    fused = flow.fused()
    x, noise = torch.randint(16, (3, 2, 3, 4)), Noise(0, torch.arange(3))
    torch.testing.assert_close(fused.log_prob(x, noise=noise), flow.log_prob(x, noise=noise))
    assert not any(p.requires_grad for p in fused.parameters())
    assert any(p.requires_grad for p in flow.parameters())
    images = [f.sample(4, generator=torch.Generator().manual_seed(1)) for f in (flow, fused)]
    assert torch.equal(*images)
    cold = flow.draw(4, temperature=0.0, generator=torch.Generator().manual_seed(1)).images
    assert torch.equal(cold, cold[:1].expand_as(cold))


class ByClass(Base):
    """``N(c, s^2 I)``: c is the first half of the context, log s the second."""

    def log_prob(self, z, context=None):
        means, log_scales = context.chunk(2, 1)
        return StandardNormal().log_prob((z - means) / log_scales.exp()) - log_scales.sum(1)

    def sample(self, like, generator, context=None):
        means, log_scales = context.chunk(2, 1)
        return means + log_scales.exp() * StandardNormal().sample(like, generator)


def by_class(classes: int = 3) -> Flow:
    flow = Flow(ActNorm((2,)), (2,), ByClass(), context_net=nn.Embedding(classes, 4)).double()
    flow.context_net.weight.data[:, :2] *= 5
    flow.context_net.weight.data[:, 2:] *= 0.2
    perturb(flow)
    return flow.eval()


def test_a_base_may_be_conditional():
    flow, labels = by_class(), torch.tensor([2, 0, 2, 1])
    x = torch.randn(4, 2, dtype=torch.float64)
    (z, log_det), each = flow.transform(x), flow.context_net(labels)
    law = distributions.Normal(each[:, :2], each[:, 2:].exp())
    wanted = law.log_prob(z).sum(1) + log_det
    torch.testing.assert_close(flow.log_prob(x, labels), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.fused().log_prob(x, labels), wanted, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(flow.log_prob(x, labels).sum(), flow.context_net.weight)[0]
    assert found.any(1).all()


def test_samples_follow_their_own_class():
    flow, n = by_class(), 3000
    labels = torch.arange(n) % 3
    x = flow.sample(n, labels, generator=torch.Generator().manual_seed(1))
    for label in range(3):
        means, log_scales = flow.context_net.weight[label].detach().chunk(2)
        z = flow.encode(x[labels == label], labels[labels == label])
        error = log_scales.exp() * (3 / n) ** 0.5
        assert ((z.mean(0) - means).abs() < 4 * error).all()
        assert ((z.std(0) / log_scales.exp()).log().abs() < 0.1).all()
    alone = flow.sample(5, 2, generator=torch.Generator().manual_seed(1))
    many = flow.draw(5, labels[:0].new_full((5,), 2), generator=torch.Generator().manual_seed(1))
    assert torch.equal(alone, many.images) and flow.sample(0, 1).shape == (0, 2)
    split = flow.draw(5, 2, generator=torch.Generator().manual_seed(1), batch=2).images
    torch.testing.assert_close(split, alone, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="context for 3 images, a batch of 5"):
        flow.sample(5, labels[:3])


@pytest.mark.parametrize("name", MADE)
def test_bases_without_a_context_leave_it_alone(name):
    base, z, context = made(name), torch.randn(3, 4).double(), torch.randn(3, 2)
    assert torch.equal(base.log_prob(z, context), base.log_prob(z))
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(base.sample(z, one, context), base.sample(z, two))


def test_an_unconditional_flow_draws_its_latents_in_one_piece():
    flow = flow_with("normal")
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    z = torch.randn(7, 24, generator=one)
    assert torch.equal(flow.draw(7, generator=two, batch=3).images, flow.decode(z))


@pytest.mark.parametrize("name", ["student-t", "student-t, fixed", "cauchy", "mixture"])
def test_a_flow_with_it_exports(name):
    flow = flow_with(name)
    density = export.density(flow)
    given = density.example(3)
    program = export.program(density).module()
    got = program(**given)
    wanted = flow.log_prob(given["images"], noise=Centre())
    torch.testing.assert_close(got, wanted.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("name", ["student-t", "cauchy", "mixture", "spike-and-slab"])
def test_a_flow_with_it_is_an_onnx_model(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    flow = flow_with(name)
    density = export.density(flow)
    export.onnx(density, tmp_path / "density.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "density.onnx")
    given = density.example(3)
    got = session.run(["log_prob"], {n: t.numpy() for n, t in given.items()})[0]
    wanted = flow.log_prob(given["images"], noise=Centre())
    torch.testing.assert_close(torch.as_tensor(got), wanted.detach(), rtol=1e-5, atol=1e-5)
