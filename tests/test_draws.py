"""Importance-weighted bounds: their values, and draws that go on after a stop."""

import itertools
import math

import numpy as np
import pytest
import torch

from helpers import together
from mixerflow.core import Chain, Flow, Noise, Transform, constant, total
from mixerflow.evaluate import Draws, bits
from mixerflow.recipes import build
from mixerflow.runs import evaluations
from mixerflow.runs.evaluations import KeptDraws
from mixerflow.transforms import Matrix
from mixerflow.transforms.checks import perturb
from mixers import mixer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SHAPE = (2, 4, 4)
D, EXTRA = 3, 2


class Padded(Transform):
    """``z = [x, mu(x) + sigma e]``, e standard normal: a lower bound of the density of x."""

    density = "bound"
    draws = True

    def __init__(self, mean, log_scale):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("log_scale", log_scale)

    def forward(self, x, context=None, noise=None):
        like = x.new_zeros(len(x), EXTRA)
        e = torch.randn_like(like) if noise is None else noise.normal(like, self.stream)
        log_density = -0.5 * total(e.square()) - 0.5 * EXTRA * math.log(2 * math.pi)
        log_det = constant(self.log_scale.sum(), x) - log_density
        return torch.cat([x, x @ self.mean.T + self.log_scale.exp() * e], 1), log_det

    def inverse(self, z, context=None, noise=None):
        raise NotImplementedError

    def out_shape(self, shape):
        return (D + EXTRA,)


def gaussian():
    """A flow of Padded and a matrix, images x, their log p(x), and KL(q(v | x) || p(v | x))."""
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    mixing = Matrix(D + EXTRA).double()
    with torch.no_grad():
        mixing.weight.copy_(torch.eye(D + EXTRA) + 0.25 * normal(D + EXTRA, D + EXTRA))
    x, a = normal(4000, D), mixing.weight.detach()
    precision = a.T @ a  # of [x, v], since z = A [x, v] is standard normal
    inner = precision[D:, D:]
    marginal = precision[:D, :D] - precision[:D, D:] @ inner.inverse() @ precision[D:, :D]
    exact = torch.distributions.MultivariateNormal(torch.zeros(D).double(), None, marginal)
    slope = -inner.inverse() @ precision[D:, :D]
    conditional = torch.distributions.MultivariateNormal(x @ slope.T, None, inner)
    # off in the mean, and wider than the conditional: its weights are bounded
    widths = inner.inverse().diagonal().sqrt()
    padded = Padded(slope + 0.2 * normal(EXTRA, D), widths.log() + 0.4)
    flow = Flow(Chain(padded, mixing), (D,)).double()
    scale = padded.log_scale.exp().square().diag_embed()
    proposal = torch.distributions.MultivariateNormal(x @ padded.mean.T, scale)
    divergence = torch.distributions.kl_divergence(proposal, conditional)
    return flow, x, exact.log_prob(x), divergence


def test_the_bounds_of_a_gaussian_rise_from_its_divergence_to_the_exact_density():
    flow, x, exact, divergence = gaussian()
    figure = bits(flow, x, importance_samples=100, batch=4000)
    unit = D * math.log(2)
    gaps = [torch.from_numpy(bound.per_image) * unit + exact for bound in figure.curve]
    assert [bound.importance_samples for bound in figure.curve] == [1, 10, 100]
    assert figure.kind == (
        "lower bound of the density, no dequantisation, importance-weighted (K = 100)"
    )
    # the expected gap of a single sample is the divergence
    error = (gaps[0] - divergence).std() / 4000**0.5
    assert divergence.mean() > 0.4
    assert abs((gaps[0] - divergence).mean()) < 4 * error < 0.2 * divergence.mean()
    for before, after in itertools.pairwise(gaps):
        rise = before - after
        assert rise.mean() > 4 * rise.std() / 4000**0.5
    assert 0 < gaps[-1].mean() < 0.02 * divergence.mean()
    assert abs(gaps[-1]).quantile(0.99) < 0.3


def model():
    flow = build(mixer(layers=1, patch=2, hidden=8, norm="none", shift=0), SHAPE)
    perturb(flow, size=0.2)
    return flow.eval().double()


def pixels(n):
    return np.random.default_rng(n).integers(0, 256, (n, *SHAPE), np.uint8)


def test_the_curve_is_that_of_separate_evaluations_and_of_all_draws_at_once():
    flow, x = model(), pixels(5)
    curve = bits(flow, x, importance_samples=23, batch=2, seed=4).curve
    images = torch.from_numpy(x)
    with torch.no_grad():
        each = [flow.log_prob(images, noise=Noise.of(4, images, draw=k)) for k in range(23)]
    nats = torch.stack(each)
    assert [bound.importance_samples for bound in curve] == [1, 10, 23]
    for bound in curve:
        k = bound.importance_samples
        alone = bits(flow, x, importance_samples=k, seed=4)
        np.testing.assert_allclose(bound.per_image, alone.per_image, rtol=1e-12)
        wanted = (math.log(k) - nats[:k].logsumexp(0)) / (flow.dims * math.log(2))
        np.testing.assert_allclose(bound.per_image, wanted.numpy(), rtol=1e-12)
        gain = curve[0].per_image - bound.per_image
        assert bound.gain == pytest.approx(gain.mean(), abs=1e-12)
        assert bound.gain_error == pytest.approx(gain.std(ddof=1) / 5**0.5, abs=1e-12)
    assert 0 < curve[1].gain_error < 0.5 * curve[1].standard_error


class Counted:
    """Images that are read a few at a time, each once."""

    def __init__(self, pixels):
        self.pixels, self.read = pixels, []

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, rows):
        self.read.append(len(rows))
        return self.pixels[rows]


def shared(processes, flow, x):
    return bits(flow, x, importance_samples=11, batch=3, processes=processes).per_image


def test_neither_batch_nor_order_nor_processes_change_an_image():
    flow, x = model(), Counted(pixels(13))
    wanted = bits(flow, x, importance_samples=11, batch=3).per_image
    assert x.read == [3, 3, 3, 3, 1]  # whatever the number of draws
    for batch in (1, 13):
        other = bits(flow, x.pixels, importance_samples=11, batch=batch).per_image
        np.testing.assert_allclose(other, wanted, rtol=1e-12)
    order = np.random.default_rng(0).permutation(13)
    other = bits(flow, x.pixels[order], importance_samples=11).per_image
    np.testing.assert_allclose(other, wanted[order], rtol=1e-12)
    for each in together(2, shared, flow, x.pixels):
        np.testing.assert_allclose(each, wanted, rtol=1e-12)


class Killed(Exception):
    pass


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """A function that scores 9 images, may be killed after so many draws, and keeps its draws."""
    monkeypatch.setattr(evaluations, "_SECONDS_BETWEEN_SAVES", 0.0)
    flow, x = model(), pixels(9)

    def run(draws, batch, kill_after=None, key="weights"):
        kept, done = KeptDraws(tmp_path, {"key": key}, 9, draws), []

        def on_batch(count):
            done.append(count)
            kept.save_sometimes()
            if kill_after is not None and sum(done) >= kill_after:
                raise Killed

        how = {"importance_samples": draws, "batch": batch, "on_batch": on_batch}
        try:
            return bits(flow, x, draws=kept.draws, **how), sum(done), kept
        except Killed:
            return None, sum(done), kept

    return run


def test_a_killed_evaluation_goes_on_with_another_batch(evaluate):
    whole, done, _ = evaluate(20, 9, key="another")
    assert done == 180
    _, before, _ = evaluate(20, 4, kill_after=4 * 27)
    _, middle, _ = evaluate(20, 2, kill_after=7)
    figure, after, kept = evaluate(20, 5)
    assert before + middle + after == 180
    np.testing.assert_allclose(figure.per_image, whole.per_image, rtol=1e-12)
    for bound, other in zip(figure.curve, whole.curve, strict=True):
        np.testing.assert_allclose(bound.per_image, other.per_image, rtol=1e-12)
    kept.finish()
    assert evaluate(20, 9)[1] == 0  # what is known is not drawn again


def test_more_draws_go_on_with_fewer_but_not_the_reverse(evaluate, tmp_path):
    few, _, _ = evaluate(4, 9)
    more, done, kept = evaluate(16, 3)
    assert done == 9 * 12
    again, done, _ = evaluate(4, 9)  # its own file has all its draws
    assert done == 0
    assert np.array_equal(again.per_image, few.per_image)
    kept.finish()
    (left,) = tmp_path.iterdir()
    assert "-16-" in left.name
    again, done, _ = evaluate(4, 9)  # now there is only one of more draws
    assert done == 36
    np.testing.assert_allclose(again.per_image, few.per_image, rtol=1e-12)
    separate, done, _ = evaluate(16, 9, key="another")
    assert done == 9 * 16
    np.testing.assert_allclose(more.per_image, separate.per_image, rtol=1e-12)


def test_one_object_extends_an_evaluation_in_python():
    flow, x, draws = model(), pixels(3), Draws.none(3)
    bits(flow, x, importance_samples=4, draws=draws)
    more = bits(flow, x, importance_samples=16, draws=draws)
    wanted = bits(flow, x, importance_samples=16)
    np.testing.assert_allclose(more.per_image, wanted.per_image, rtol=1e-12)
    with pytest.raises(ValueError, match="up to 16 draws of 3 images do not lead to 4 of 3"):
        bits(flow, x, importance_samples=4, draws=draws)
    with pytest.raises(ValueError, match="do not lead to 16 of 2"):
        bits(flow, x[:2], importance_samples=16, draws=draws)


@pytest.mark.parametrize("damage", ["a flipped bit", "a short file", "another K", "another key"])
def test_a_damaged_or_foreign_file_is_left_out(evaluate, tmp_path, capsys, damage):
    evaluate(16, 9, kill_after=50)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    if damage == "a flipped bit":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "a short file":
        path.write_bytes(data[:40])
    elif damage == "another K":
        path = path.rename(tmp_path / path.name.replace("-16-", "-5-"))
    else:
        path.unlink()
        evaluate(16, 9, kill_after=50, key="others")
        (other,) = tmp_path.iterdir()
        other.rename(path)
    capsys.readouterr()
    _, done, _ = evaluate(16, 9)
    assert done == 9 * 16
    said = capsys.readouterr().err
    assert said == f"{path}: SHA-256 differs: its draws are drawn again\n"


def test_draws_are_saved_now_and_then_only(tmp_path):
    kept = KeptDraws(tmp_path, {}, 3, 2)
    kept.save_sometimes()
    assert not list(tmp_path.iterdir())
    kept.save()
    assert len(list(tmp_path.iterdir())) == 1
