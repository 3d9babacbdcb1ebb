"""How a mixer's layers start and reach: whitening, cyclic shifts, patch flows of another depth."""

import pytest
import torch

from mixerflow import MixerFlow
from mixerflow.core import Window
from mixerflow.parts import MLP, LUMap, Patching, RLUMap, RowCoupling
from mixerflow.transforms import LU, PLU, RLU, ActNorm, Coupling, MixerLayer, Roll


def correlated(count=4000, n=5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return x @ torch.randn(n, n, generator=generator, dtype=torch.float64) + 3


@pytest.mark.parametrize("kind", [LU, RLU])
def test_whitening_makes_the_first_batch_white_by_the_nearest_such_map(kind):
    x = correlated()
    transform = kind(5, start="whitening").double()
    z = transform.initialize(x)
    assert z.mean(0).abs().max() < 1e-8
    covariance = z.T @ z / len(z)
    values = torch.linalg.eigvalsh(covariance)  # l / (l + 1e-3 mean): below 1, the least most
    assert 0.99 < values.max() < 1
    matrix = transform._matrix() if kind is LU else transform._matrix().flip(-1)
    assert (matrix - matrix.T).abs().max() < 1e-8  # symmetric: it changes vectors least
    assert torch.linalg.eigvalsh(matrix).min() > 0
    expected = torch.linalg.slogdet(transform._matrix()).logabsdet.item()
    assert transform(x)[1][0].item() == pytest.approx(expected, abs=1e-8)


def test_whitening_of_what_does_not_vary_is_the_identity_about_the_mean():
    transform = LU(3, start="whitening")
    z = transform.initialize(torch.full((10, 3), 2.0))
    assert torch.equal(transform._matrix(), torch.eye(3)) and z.abs().max() < 1e-6


def test_of_few_vectors_the_covariance_is_shrunk():
    transform = LU(20, start="whitening")
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    transform.initialize(x)
    values = torch.linalg.eigvalsh(transform._matrix().double())
    spread = x.var(0, correction=0).mean()
    assert values.max() < 1.01 / (2 * spread).sqrt()  # the ridge is n over the vectors, 2


def test_along_columns_the_vectors_are_the_columns():
    x = correlated(600, 4).view(200, 3, 4).mT.contiguous()
    transform = LU(4, start="whitening").double()
    z = transform.initialize(x).movedim(1, -1).flatten(0, 1)
    assert torch.linalg.eigvalsh(z.T @ z / len(z)).min() > 0.9


def test_other_starts_are_refused_and_glows_map_keeps_its_rotation():
    with pytest.raises(ValueError, match="identity or whitening"):
        LU(3, start="rotation")
    plu = PLU(4, generator=torch.Generator().manual_seed(0))
    before = plu.packed.clone()
    plu.initialize(torch.randn(10, 4))
    assert torch.equal(plu.packed, before)


def small(**settings):
    patching = Patching(4, shift=(0, 2), cyclic=settings.pop("cyclic", False))
    flow = RowCoupling(net=MLP(8))
    defaults = {"layers": 2, "flow_layers": 2, "flow": flow, "patching": patching}
    return MixerFlow(**(defaults | settings)).build((1, 12, 8))


@pytest.mark.parametrize("cyclic", [False, True])
def test_a_cyclic_shift_transforms_the_frame_too(cyclic):
    flow = small(cyclic=cyclic)
    shifted = [*flow.transform][-1]
    assert isinstance(shifted, MixerLayer if cyclic else Window)
    for parameter in shifted.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 1, 12, 8)
    moved = (shifted(x)[0] - x)[0, 0].abs() > 1e-6
    assert moved[2:-2, 2:-2].all()
    assert moved.all() == cyclic and moved[0].any() == cyclic


def test_a_cyclic_shift_needs_no_second_patch():
    flow = MixerFlow(layers=2, patching=Patching(4, shift=(0, 2), cyclic=True)).build((1, 4, 4))
    x = torch.randint(0, 256, (2, 1, 4, 4))
    assert flow.bits_per_dim(x).isfinite().all()


def test_its_patches_go_on_at_the_other_side():
    layer = [*small(cyclic=True).transform][-1]
    roll = next(iter(layer))
    assert isinstance(roll, Roll)
    x = torch.arange(96.0).view(1, 1, 12, 8)
    assert torch.equal(roll(x)[0], x.roll((-2, -2), (-2, -1)))
    assert torch.equal(roll.inverse(roll(x)[0])[0], x)


def test_whitening_starts_a_model_below_its_identity():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.rand(300, 1, 14, 10, generator=generator), 3, 1)
    images = (smooth * 255).byte()
    figures = {}
    for start in ("identity", "whitening"):
        flow = small(linear=LUMap(start), cyclic=True)
        flow.initialize(images[:200])
        figures[start] = flow.bits_per_dim(images[200:]).mean().item()
    assert figures["whitening"] < figures["identity"] - 0.3


def test_patch_flows_may_have_another_depth():
    layer = [*small(flow_layers=3, patch_flow_layers=1).transform][-2]
    rows, columns = [step for step in layer if hasattr(step, "dim")]
    assert [type(part) for part in rows.transform].count(Coupling) == 3
    assert [type(part) for part in columns.transform].count(Coupling) == 1
    assert [type(part) for part in columns.transform].count(ActNorm) == 2
    with pytest.raises(Exception, match="patch_flow_layers must be at least 1"):
        small(patch_flow_layers=0)
    with pytest.raises(Exception, match="odd number of order reversals"):
        small(linear=RLUMap(), flow_layers=2, patch_flow_layers=1)
