"""Conditioners against closed forms, other implementations of their parts, and plain loops."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from mixerflow.core import Transform
from mixerflow.nets import (
    AttentionNet,
    DenseConvNet,
    GlowNet,
    KernelNet,
    ResidualConvNet,
    ResidualMLP,
    SplineNet,
    matern,
    squared_exponential,
)
from mixerflow.nets.conv import convolution
from mixerflow.nets.kan import Edges, cubic_basis
from mixerflow.transforms import Affine, Coupling, MapAttention, TokenAttention
from mixerflow.transforms.checks import perturb


def moved(net: nn.Module, size: float = 1.0) -> nn.Module:
    """In eval mode and float64, away from its start."""
    net = net.double().eval()
    perturb(net, size=size)
    return net


NETS = {
    "MLP": (lambda **s: ResidualMLP(3, 4, width=5, **s), (3,), (4,)),
    "KAN": (lambda **s: SplineNet(3, 4, width=5, **s), (3,), (4,)),
    "kernels": (lambda **s: KernelNet(3, 4, width=5, **s), (3,), (4,)),
    "Matern": (lambda **s: KernelNet(3, 4, width=5, kernel=matern, **s), (3,), (4,)),
    "conv, signals": (lambda **s: ResidualConvNet(3, 4, width=5, axes=1, **s), (3, 6), (4, 6)),
    "conv": (lambda **s: ResidualConvNet(3, 4, width=5, **s), (3, 6, 5), (4, 6, 5)),
    "conv, volumes": (
        lambda **s: ResidualConvNet(3, 4, width=5, axes=3, **s),
        (3, 2, 3, 4),
        (4, 2, 3, 4),
    ),
    "dense": (
        lambda **s: DenseConvNet(3, 4, width=5, growth=2, depth=2, **s),
        (3, 6, 5),
        (4, 6, 5),
    ),
    "dense, signals": (
        lambda **s: DenseConvNet(3, 4, width=5, growth=2, depth=1, axes=1, **s),
        (3, 6),
        (4, 6),
    ),
    "attention": (lambda **s: AttentionNet(3, 4, width=8, heads=2, **s), (6, 3), (6, 4)),
    "attention, positions": (
        lambda **s: AttentionNet(3, 4, width=8, heads=2, tokens=6, **s),
        (6, 3),
        (6, 4),
    ),
}


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("name", NETS)
def test_starts_at_zero_and_everything_learns_after_a_step(name, norm):
    make, shape, out = NETS[name]
    net = make(norm=norm, context=2)
    x, context = torch.randn(7, *shape), torch.randn(7, 2)
    wanted = torch.randn(7, *out)
    assert net(x, context).shape == wanted.shape
    assert not net(x, context).any()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x, context) - wanted).square().mean().backward()
        optimizer.step()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        if "norm" not in parameter_name or "weight" in parameter_name:
            assert parameter.grad.any(), f"{parameter_name} gets no gradient after a step"


@pytest.mark.parametrize("name", NETS)
def test_reads_its_context_and_says_what_is_wrong(name):
    make, shape, _ = NETS[name]
    net = moved(make(context=2))
    x = torch.randn(3, *shape, dtype=torch.float64)
    one, two = torch.randn(2, 3, 2, dtype=torch.float64).unbind()
    assert ((net(x, one) - net(x, two)).abs().flatten(1).amax(1) > 1e-4).all()
    with pytest.raises(ValueError, match="context"):
        net(x)
    axis = -1 if name.startswith("attention") else 1
    other = torch.cat([x, x.narrow(axis, 0, 1)], axis)
    with pytest.raises(ValueError, match=rf"3\D.*{other.shape[axis]}"):
        net(other, one)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_squash_is_of_the_input(name, squash):
    make, shape, _ = NETS[name]
    torch.manual_seed(3)
    net = moved(make(squash=squash))
    torch.manual_seed(3)
    plain = moved(make(squash=False))
    x = torch.randn(3, *shape, dtype=torch.float64)
    read = x.sign() * (1 + x.abs()).log() if squash else x
    assert torch.allclose(net(x), plain(read), rtol=0, atol=1e-12)


def test_squares_are_of_the_squashed_input():
    net = moved(ResidualMLP(3, 4, width=5, squares=True))
    x = torch.randn(6, 3, dtype=torch.float64)
    read = x.sign() * (1 + x.abs()).log()
    plain = moved(ResidualMLP(6, 4, width=5, squash=False))
    plain.load_state_dict(net.state_dict())
    assert torch.allclose(net(x), plain(torch.cat([read, read**2], 1)), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="squares are of squashed numbers"):
        ResidualMLP(3, 4, width=5, squash=False, squares=True)


@pytest.mark.parametrize("name", NETS)
def test_batch_norm_folds(name):
    make, shape, _ = NETS[name]
    coupling = Coupling(0, moved(make(norm="batch")), Affine()).double()
    with torch.no_grad():
        for part in coupling.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    fused = coupling.fused()
    assert not [part for part in fused.modules() if isinstance(part, nn.BatchNorm1d)]
    x = torch.randn(3, *shape, dtype=torch.float64)
    assert torch.allclose(fused.net(x), coupling.net(x), rtol=1e-10, atol=1e-12)


# ---- KAN


@pytest.mark.parametrize(("grid", "extent"), [(5, 1.0), (1, 2.0), (3, 0.5), (8, 4.0)])
def test_basis_is_cox_de_boors(grid, extent):
    interpolate = pytest.importorskip("scipy.interpolate")
    h = 2 * extent / grid
    knots = -extent + h * np.arange(-3, grid + 4)
    x = np.linspace(-extent, extent, 401)
    wanted = interpolate.BSpline.design_matrix(x, knots, 3).toarray()
    got = cubic_basis(torch.from_numpy(x)[:, None], grid=grid, extent=extent)[..., 0]
    assert np.abs(got.numpy() - wanted).max() < 1e-13
    assert (got >= 0).all()


def test_basis_is_a_partition_of_unity_everywhere_and_makes_straight_lines():
    x = torch.linspace(-7, 7, 1001, dtype=torch.float64)[:, None]
    basis = cubic_basis(x, grid=5, extent=2.0)[..., 0]
    assert torch.allclose(basis.sum(1), torch.ones_like(x[:, 0]), rtol=0, atol=1e-13)
    centres = -2.0 + 0.8 * (torch.arange(8, dtype=torch.float64) - 1)  # Greville's points
    assert torch.allclose(basis @ centres, x[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("end", [-2.0, 2.0])
def test_splines_go_on_smoothly_outside_the_grid(end):
    def parts(x):
        x = torch.tensor([[x]], dtype=torch.float64)
        value = cubic_basis(x, grid=5, extent=2.0)[0, :, 0]
        slope = torch.autograd.functional.jacobian(
            lambda t: cubic_basis(t, grid=5, extent=2.0)[0, :, 0], x
        ).flatten()
        return value, slope

    inside, at, outside = (parts(end * (1 + e)) for e in (-1e-9, 0.0, 1e-9))
    far = parts(3 * end)
    for k in (0, 1):
        assert torch.allclose(inside[k], at[k], rtol=0, atol=1e-7)
        assert torch.allclose(outside[k], at[k], rtol=0, atol=1e-7)
    assert at[1].abs().max() > 0.1
    assert torch.allclose(far[1], at[1], rtol=0, atol=1e-12)
    assert torch.allclose(far[0], at[0] + 2 * end * at[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("squash", [False, True])
def test_inputs_far_off_the_grid_are_not_lost(squash):
    net = SplineNet(3, 4, width=5, squash=squash)
    perturb(net)
    for size in (100.0, -100.0):
        x = torch.full((2, 3), size, requires_grad=True)
        gradient = torch.autograd.grad(net(x).square().sum(), x)[0]
        assert gradient.isfinite().all() and (gradient != 0).all()
        splines = copy.deepcopy(net)
        with torch.no_grad():
            splines.enter.base.zero_()
            splines.leave.base.zero_()
        gradient = torch.autograd.grad(splines(x).square().sum(), x)[0]
        assert gradient.isfinite().all() and (gradient != 0).all()


def test_edges_are_what_the_paper_says():
    interpolate = pytest.importorskip("scipy.interpolate")
    edges = moved(Edges(3, 2, grid=5, extent=1.0))
    x = torch.rand(7, 3, dtype=torch.float64) * 2 - 1
    knots = -1 + 0.4 * np.arange(-3, 9)
    wanted = np.zeros((7, 2))
    for j in range(2):
        for i in range(3):
            t = x[:, i].numpy()
            base, scale = (p[j, i].item() for p in (edges.base, edges.scale))
            spline = interpolate.BSpline(knots, edges.coefficients[j, :, i].detach().numpy(), 3)
            wanted[:, j] += base * t / (1 + np.exp(-t)) + scale * spline(t)
    assert np.abs(edges(x).detach().numpy() - wanted).max() < 1e-12


def test_an_edge_is_ten_numbers():
    assert sum(p.numel() for p in SplineNet(8, 16, width=64).parameters()) == 10 * 64 * (8 + 16)


def test_a_kan_learns_a_function_that_it_can_make():
    net = SplineNet(1, 1, width=4)
    x = torch.linspace(-3, 3, 256)[:, None]
    wanted = (2 * x).sin()
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (net(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.01 * wanted.square().mean()


# ---- kernels


@pytest.mark.parametrize("kernel", [squared_exponential, matern])
def test_kernel_machine_is_a_sum_of_kernels(kernel):
    net = moved(KernelNet(3, 2, width=5, kernel=kernel, context=1, squash=False))
    x = torch.randn(4, 3, dtype=torch.float64)
    c = torch.randn(4, 1, dtype=torch.float64)
    length = net.log_length.exp()
    rows = torch.cat([x, c], 1)
    for row, got in zip(rows, net(x, c), strict=True):
        wanted = net.leave.bias.clone()
        for point, weight in zip(net.points, net.leave.weight.mT, strict=True):
            r = ((row - point) / length).norm()
            a = 5**0.5 * r
            if kernel is matern:
                k = (1 + a + a**2 / 3) * (-a).exp()
            else:
                k = (-0.5 * r**2).exp()
            wanted = wanted + k * weight
        assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "curvature"), [(squared_exponential, -0.5), (matern, -5 / 6)])
def test_kernels_are_one_at_their_points_and_have_a_slope_there(kernel, curvature):
    for dtype, limit in ((torch.float32, 1e-3), (torch.float64, 1e-6)):
        square = torch.zeros(3, dtype=dtype, requires_grad=True)
        value = kernel(square)
        assert torch.allclose(value, torch.ones_like(value), rtol=0, atol=limit**2)
        slope = torch.autograd.grad(value.sum(), square)[0]
        assert torch.allclose(slope, torch.full_like(slope, curvature), rtol=0, atol=limit)


def test_points_are_placed_on_rows_of_the_data():
    net = KernelNet(2, 3, width=5, context=1)
    x, c = torch.randn(9, 2) * 30, torch.randn(9, 1)
    net.place(x, c, generator=torch.Generator().manual_seed(0))
    near = net.kernel(net.squared_distances(net.norm(net.concatenate(x, c))))
    assert ((near > 1 - 1e-4).sum(0) == 1).all() and ((near > 1 - 1e-4).sum(1) <= 1).all()
    with pytest.raises(ValueError, match=r"5 points.*4"):
        net.place(x[:4], c[:4])


# ---- images


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("net", [ResidualConvNet, DenseConvNet])
def test_images_are_read_locally(net, axes):
    """What one pixel changes is its neighbourhood of as many convolutions as there are."""
    settings = {"depth": 1} if net is ResidualConvNet else {"depth": 2, "growth": 16}
    reach = 3 if net is ResidualConvNet else 2
    made = moved(net(2, 3, width=4, axes=axes, **settings))
    x = torch.randn(1, 2, *[9] * axes, dtype=torch.float64)
    other = x.clone()
    other[(slice(None), slice(None), *[4] * axes)] += 1.0
    changed = (made(x) - made(other)).abs().amax((0, 1)) > 1e-9
    near = torch.zeros([9] * axes, dtype=torch.bool)
    near[tuple([slice(4 - reach, 5 + reach)] * axes)] = True
    assert not (changed & ~near).any()
    assert changed.sum() > near.sum() / 2  # the rest by dead ReLUs


@pytest.mark.parametrize("net", [ResidualConvNet, DenseConvNet])
def test_a_context_vector_is_a_constant_map(net):
    made = moved(net(2, 3, width=4, context=2, depth=1))
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    c = torch.randn(3, 2, dtype=torch.float64)
    same = c[..., None, None].expand(3, 2, 4, 5)
    assert torch.allclose(made(x, c), made(x, same), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"\(5, 5\).*\(4, 5\)"):
        made(x, torch.randn(3, 2, 5, 5, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_are_of_channels(norm):
    made = ResidualConvNet(2, 3, width=4, norm=norm).double()
    given = []
    made.blocks[0].norm1.register_forward_hook(lambda m, a, out: given.append((a[0], out)))
    made(torch.randn(5, 2, 4, 3, dtype=torch.float64))
    x, out = given[0]
    over = (0, 2, 3) if norm == "batch" else 1
    mean, variance = x.mean(over, keepdim=True), x.var(over, keepdim=True, unbiased=False)
    assert torch.allclose(out, (x - mean) / (variance + 1e-5).sqrt(), rtol=0, atol=1e-10)


def test_dense_net_is_the_formula():
    net = moved(DenseConvNet(2, 3, width=4, growth=3, depth=2, squash=False))
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    h = net.enter(x)
    first = torch.relu(net.block.grow[0](torch.relu(net.block.mix[0](h))))
    h = torch.cat([h, first], 1)
    second = torch.relu(net.block.grow[1](torch.relu(net.block.mix[1](h))))
    a, b, g = net.block.gate(torch.cat([h, second], 1)).split(4, 1)
    assert torch.allclose(net(x), net.leave(torch.relu(a + b / (1 + (-g).exp()))))


def test_even_kernels_and_odd_axes_are_refused():
    with pytest.raises(ValueError, match="size 2"):
        ResidualConvNet(2, 3, width=4, kernel=2)
    with pytest.raises(ValueError, match="4 axes"):
        convolution(4, 2, 3)


# ---- tokens


def test_attention_is_torchs_multi_head_attention():
    net = moved(AttentionNet(3, 4, width=8, heads=2)).blocks[0].attend
    other = nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        other.in_proj_weight.copy_(net.read.weight)
        other.in_proj_bias.copy_(net.read.bias)
        other.out_proj.weight.copy_(net.write.weight)
        other.out_proj.bias.copy_(net.write.bias)
    h = torch.randn(3, 5, 8, dtype=torch.float64)
    assert torch.allclose(net(h), other(h, h, h)[0], rtol=0, atol=1e-12)


def test_tokens_are_a_set_unless_they_have_positions():
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    for tokens, same in ((0, True), (5, False)):
        net = moved(AttentionNet(3, 4, width=8, tokens=tokens))
        got = net(x[:, order])
        assert torch.allclose(got, net(x)[:, order], rtol=0, atol=1e-10) == same


def test_every_token_reads_every_other():
    net = moved(AttentionNet(3, 4, width=8))
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(net, x)[0, :, :, 0]
    assert (jacobian.abs().amax((1, 3)) > 1e-8).all()
    with pytest.raises(ValueError, match="divide the width 8; got 3"):
        AttentionNet(3, 4, width=8, heads=3)


# ---- invertible attention


@pytest.mark.parametrize("make", [MapAttention, TokenAttention])
def test_invertible_attention_starts_as_the_identity(make):
    transform = make(6)
    x = torch.randn(3, 5, 6)
    z, log_det = transform(x)
    assert torch.equal(z, x) and not log_det.any()
    z, log_det = transform.inverse(x)
    assert torch.equal(z, x) and not log_det.any()


@pytest.mark.parametrize("flip", [False, True])
def test_map_attention_scales_tokens(flip):
    transform = moved(MapAttention(5, flip=flip))
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    given, changed = (x[..., 3:], x[..., :3]) if flip else (x[..., :3], x[..., 3:])
    weight = (2 / (1 + (-transform.read(given)).exp())).clamp(min=0.1)
    z, log_det = transform(x)
    got = z[..., :3] if flip else z[..., 3:]
    assert torch.allclose(got, weight * changed)
    assert torch.allclose(log_det, weight.log().sum((1, 2)) * changed.shape[-1])


@pytest.mark.parametrize("raw", [-50.0, -0.3, 0.2, 50.0])
def test_token_attention_mixes_by_a_well_conditioned_matrix(raw):
    transform = TokenAttention(6, heads=3, width=4).double()
    perturb(transform, size=20.0)  # tokens that read hardly any other
    with torch.no_grad():
        transform.gate.fill_(raw)
    x = torch.randn(3, 5, 6, dtype=torch.float64) * 3
    given, changed = x.split(3, -1)
    gate = 0.45 * np.tanh(raw / 0.45)
    q, k = transform.read(given).split(12, -1)
    z, log_det = transform(x)
    wanted = torch.zeros(3, dtype=torch.float64)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        p = (q[..., part] @ k[..., part].mT / 2).softmax(-1)
        m = (1 - gate) * torch.eye(5, dtype=torch.float64) + gate * p
        mixed = m @ changed[..., head : head + 1]
        assert torch.allclose(z[..., 3 + head : 4 + head], mixed, rtol=0, atol=1e-12)
        wanted += torch.linalg.det(m).log()
        assert torch.linalg.matrix_norm(torch.linalg.inv(m), torch.inf).max() <= 10 + 1e-9
        assert torch.linalg.matrix_norm(m, torch.inf).max() <= 1.9 + 1e-9
    assert torch.allclose(log_det, wanted, rtol=0, atol=1e-10)


def test_token_attention_survives_two_tokens_that_read_each_other_only():
    """There P is a swap and the paper's P + I singular."""
    transform = TokenAttention(2, width=1)
    with torch.no_grad():
        transform.read.weight.copy_(torch.tensor([[40.0], [-40.0]]))
        transform.read.bias.zero_()
        transform.gate.fill_(50.0)
    x = torch.tensor([[[1.0, 0.3], [-1.0, 2.0]]])
    z, log_det = transform(x)
    assert torch.allclose(log_det, torch.tensor([0.1]).log(), atol=1e-5)
    assert torch.allclose(transform.inverse(z)[0], x, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TokenAttention(5, heads=3), "divide the 2.*got 3"),
        (lambda: TokenAttention(1), "2 features.*got 1"),
        (lambda: MapAttention(1), "2 features.*got 1"),
        (lambda: SplineNet(2, 2, width=2, grid=0), "got 0"),
        (lambda: SplineNet(2, 2, width=2, extent=0.0), r"got 5 and 0\.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("make", [MapAttention, TokenAttention])
def test_invertible_attention_keeps_bfloat16_and_its_log_dets_wide(make):
    transform: Transform = make(4).bfloat16()
    z, log_det = transform(torch.randn(2, 3, 4, dtype=torch.bfloat16))
    assert z.dtype == torch.bfloat16 and log_det.dtype == torch.float32


def test_a_context_starts_no_larger_than_the_images_behind_the_norm():
    """Glow's small first weights would drown in a context of variance 1."""
    torch.manual_seed(0)
    net = GlowNet(3, 6, width=8, context=4).double()
    x, context = torch.randn(64, 3, 6, 6, dtype=torch.float64), torch.randn(64, 4).double()
    before = net.context.weight.detach().clone()
    net.initialize(x, context)
    scale, shift = net.norm1.coefficients()
    behind = (net.enter(x) + shift) * scale
    assert torch.allclose(behind.mean((0, 2, 3)), torch.zeros(8).double(), atol=1e-6)
    assert torch.allclose(behind.var((0, 2, 3), correction=0), torch.ones(8).double())
    assert torch.allclose(net.context.weight * scale.unsqueeze(1), before)
