"""Flows of feature maps: the density of each place, what constant and collinear channels do."""

import dataclasses
import math

import pytest
import torch

import mixerflow
from mixerflow.core import Along, Chain, ClassGaussians, Flow, MixesPlaces, Noise
from mixerflow.models import FeatureFlow
from mixerflow.nets import GridPositionalEncoding, SinusoidalPositionalEncoding
from mixerflow.parts import (
    MLP,
    Classes,
    GridEncoding,
    LUMap,
    NoMap,
    Patching,
    RowAutoregression,
    RowCoupling,
    StudentTBase,
    WoodburyMap,
)
from mixerflow.recipes import RECIPES
from mixerflow.transforms import (
    LU,
    ActNorm,
    BatchNorm,
    Dequantize,
    Logit,
    Rescale,
    Standardize,
    Whiten,
)
from mixerflow.transforms.checks import perturb

SHAPE = (6, 3, 4)
SMALL = FeatureFlow(layers=2, flow=RowCoupling(net=MLP(8, norm="none")), linear=WoodburyMap(2))
MODELS = {
    "default": SMALL,
    "LU": dataclasses.replace(SMALL, linear=LUMap(), positions=GridEncoding(5)),
    "no maps, no places": dataclasses.replace(
        SMALL, first=NoMap(), linear=NoMap(), positions=None, actnorm="channel"
    ),
    "student, autoregressive": dataclasses.replace(
        SMALL, base=StudentTBase(), flow=RowAutoregression()
    ),
    "classes": dataclasses.replace(SMALL, classes=Classes(3, width=4)),
}


def features(n=30, shape=SHAPE, seed=0):
    """Correlated channels of scales 0.01 to 100, one of them constant and one a sum of others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-2, 2, shape[0], dtype=x.dtype)[:, None, None] + 3
    x[:, 1] = x[:, 0] + x[:, 2]
    x[:, -1] = 7.0
    return x


def made(model, x=None):
    torch.manual_seed(0)
    flow = model.build(SHAPE).double()
    labels = torch.arange(30) % 3 if model.classes else None
    flow.initialize(features() if x is None else x, labels)
    perturb(flow.transform, size=0.2)
    return flow.eval()


@pytest.mark.parametrize("name", MODELS)
def test_the_places_add_up_to_the_density_and_to_the_jacobian(name):
    flow, x = made(MODELS[name]), features(4, seed=1)
    context = torch.tensor([0, 1, 2, 0]) if MODELS[name].classes else None
    places = flow.log_prob_by_place(x, context)
    assert places.shape == (4, *SHAPE[1:])
    whole = flow(x, context)
    torch.testing.assert_close(places.sum((1, 2)), whole.log_prob, rtol=1e-12, atol=1e-9)
    given = None if context is None else flow.context_net(context[:1])
    jacobian = torch.autograd.functional.jacobian(
        lambda v: flow.transform(v[None], given)[0].flatten(), x[0]
    ).reshape(72, 72)
    exact = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(whole.log_det[0], exact, rtol=1e-10, atol=1e-8)
    back = flow.decode(flow.encode(x, context), context)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_a_change_of_one_place_changes_its_score_alone(name):
    flow, x = made(MODELS[name]), features(1, seed=2)
    context = torch.tensor([1]) if MODELS[name].classes else None
    other = x.clone()
    other[0, :, 1, 2] += 0.5
    same = flow.log_prob_by_place(x, context) == flow.log_prob_by_place(other, context)
    assert same.sum() == 11
    assert not same[0, 1, 2]


def test_the_fused_copy_has_the_same_scores_of_places():
    for model in (MODELS["default"], MODELS["LU"], MODELS["no maps, no places"]):
        flow, x = made(model), features(5, seed=3)
        fused = flow.fused()
        wanted = flow.log_prob_by_place(x)
        torch.testing.assert_close(fused.log_prob_by_place(x), wanted, rtol=1e-9, atol=1e-8)
        z = flow.encode(x)
        torch.testing.assert_close(fused.decode(z), flow.decode(z), rtol=1e-8, atol=1e-8)
        kinds = [type(part).__name__ for part in fused.modules()]
        assert "Standardize" not in kinds or model.actnorm == "channel"  # merged with the ActNorm


def test_integers_with_noise_have_scores_of_places_too():
    torch.manual_seed(0)
    norm = BatchNorm((3, 1, 1))
    steps = Dequantize(16), Rescale(1 / 16), Logit(0.05), norm, ActNorm((3, 2, 5)), Along(-3, LU(3))
    flow = Flow(Chain(*steps), (3, 2, 5), levels=16)
    x = torch.randint(16, (8, 3, 2, 5))
    flow.initialize(x)
    perturb(flow.transform, size=0.2)
    noise = Noise.of(0, x)
    with pytest.raises(MixesPlaces, match="BatchNorm in training mode"):
        flow.log_prob_by_place(x, None, noise)
    flow.eval()
    places, whole = flow.log_prob_by_place(x, None, noise), flow.log_prob(x, None, noise)
    torch.testing.assert_close(places.sum((1, 2)), whole, rtol=1e-5, atol=1e-4)


def test_what_mixes_places_is_named():
    mixer = mixerflow.MixerFlow(layers=1, patching=Patching(2, shift=0)).build((3, 4, 4))
    with pytest.raises(MixesPlaces, match=r"MixerLayer|Patchify"):
        mixer.eval().log_prob_by_place(torch.zeros(1, 3, 4, 4))
    with pytest.raises(MixesPlaces, match=r"Along, dim=1"):
        Flow(Along(1, LU(3)), (2, 3, 3)).log_prob_by_place(torch.zeros(1, 2, 3, 3))
    flow = Flow(Along(0, LU(2)), (2, 3, 3), ClassGaussians(2, 18))
    with pytest.raises(MixesPlaces, match="ClassGaussians"):
        flow.log_prob_by_place(torch.zeros(1, 2, 3, 3))


def test_standardised_channels_have_mean_0_and_variance_1_whatever_their_unit():
    x, norm = features(), Standardize((6, 1, 1)).double()
    z = norm.initialize(x)
    deviation = x.std((0, 2, 3), correction=0)
    level = 0.1 * deviation.square().mean().sqrt()
    wanted = (deviation / deviation.clamp(min=level)).nan_to_num(0.0)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(6).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), wanted, rtol=1e-9, atol=1e-9)
    other = Standardize((6, 1, 1)).double()
    torch.testing.assert_close(other.initialize(1000 * x - 5), z, rtol=1e-9, atol=1e-8)


def test_a_constant_batch_is_only_shifted():
    for norm in (Standardize((3, 1, 1)), Along(0, Whiten(3))):
        z = norm.initialize(torch.full((4, 3, 2, 2), 5.0))
        assert (z == 0).all()
        assert (norm(torch.full((1, 3, 2, 2), 6.0))[1] == 0).all()


def test_whitened_vectors_are_uncorrelated_and_bounded_where_they_do_not_vary():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator).double()
    x = x @ torch.randn(3, 7, generator=generator).double() + 2  # of rank 3
    whiten = Whiten(7, ridge=0.01).double()
    z = whiten.initialize(x)
    covariance = torch.cov(z.mT, correction=0)
    values = torch.linalg.eigvalsh(torch.cov(x.mT, correction=0)).flip(0)
    wanted = values / (values + 0.01 * values.mean())
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5])
    torch.testing.assert_close(covariance, torch.diag(wanted[order]), rtol=1e-6, atol=1e-9)
    most = torch.linalg.matrix_norm(whiten._matrix(), 2)
    assert float(most) == pytest.approx(float((0.01 * values.mean()) ** -0.5), rel=1e-6)


def test_a_grid_encoding_has_the_encoding_of_each_coordinate():
    table = GridPositionalEncoding((3, 4), 9)().reshape(3, 4, 9)
    down, across = SinusoidalPositionalEncoding(3, 5)(), SinusoidalPositionalEncoding(4, 4)()
    for i in range(3):
        for j in range(4):
            assert torch.equal(table[i, j], torch.cat([down[i], across[j]]))
    assert torch.equal(GridEncoding(6).build(5)(), SinusoidalPositionalEncoding(5, 6)())
    with pytest.raises(ValueError, match="at least 2"):
        GridPositionalEncoding((3, 4), 1)


@pytest.mark.parametrize(
    "channels",
    [384, pytest.param(768, marks=pytest.mark.slow), pytest.param(1024, marks=pytest.mark.slow)],
)
def test_training_on_collinear_channels_stays_finite(channels):
    """Features of rank 8, with constant channels, fewer vectors than channels: 30 steps at 1e-2."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(24, 8, 3, 3, generator=generator)
    mixing = torch.randn(channels, 8, generator=generator)
    x = torch.einsum("cf,nfhw->nchw", mixing, base).clamp(min=0)  # as behind a ReLU
    x[:, ::10] = 0.0
    torch.manual_seed(0)
    flow = FeatureFlow(layers=2).build((channels, 3, 3))
    config = mixerflow.TrainConfig(steps=30, batch=8, lr=1e-2, warmup=3, ema=0.9, evaluate_every=30)
    done = mixerflow.train(flow, x, config=config, quiet=True)
    assert done.status == "finished"
    assert math.isfinite(done.validation.bits_per_dim)
    z = flow.encode(x)
    assert z.isfinite().all()
    torch.testing.assert_close(flow.decode(z), x, rtol=1e-3, atol=1e-3)


def test_the_first_batch_makes_it_a_gaussian_with_a_mean_at_each_place():
    """Before any training: the latents of the first batch have mean 0 at each place."""
    x = features(60)
    torch.manual_seed(0)
    flow = SMALL.build(SHAPE).double()
    flow.initialize(x)
    z = flow.encode(x).reshape(60, *SHAPE)
    torch.testing.assert_close(z.mean(0), torch.zeros(SHAPE).double(), rtol=0, atol=1e-7)
    pooled = torch.cov(z.movedim(1, 0).flatten(1), correction=0)
    assert (pooled - torch.diag(pooled.diagonal())).abs().max() < 1e-6
    assert pooled.diagonal().max() <= 1 + 1e-9


COUNTS = {
    f"feature-flow{twin}": 2 * 384 * 28**2  # ActNorm at each place
    + layers * (784 * 32)  # places
    + layers * (2 * 384 * 16 + 384)  # Woodbury
    + layers * ((192 + 1) * 64 + 32 * 64 + 2 * (64 + 1) * 64 + (64 + 1) * 384)  # coupling
    for twin, layers in (("", 4), ("-tiny", 2))
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_recipes_have_these_counts(name):
    with torch.device("meta"):
        flow = RECIPES[name].model.build(RECIPES[name].shape)
    assert sum(p.numel() for p in flow.parameters()) == COUNTS[name]


def test_a_flow_of_features_comes_back_from_its_run_folder(tmp_path):
    x = features(20).float()
    torch.manual_seed(0)
    flow = SMALL.build(SHAPE)
    config = mixerflow.TrainConfig(steps=3, batch=4, warmup=1, ema=0.5)
    mixerflow.train(flow, x, config=config, out=tmp_path / "run", quiet=True)
    again = mixerflow.load(tmp_path / "run", which="last")
    assert torch.equal(again.log_prob_by_place(x[:2]), flow.log_prob_by_place(x[:2]))
    assert again.transform.steps[0].log_scale.abs().max() > 0
    assert not [name for name, _ in again.transform.steps[0].named_parameters()]
