"""Frechet distance, precision and recall of samples, against closed forms and other libraries."""

import hashlib
import json
import math
from zipfile import ZipFile

import numpy as np
import pytest
import scipy.linalg
import torch

from helpers import flow_of, images, small_run
from mixerflow.cli import frechet as command
from mixerflow.cli import main
from mixerflow.data import make_images
from mixerflow.errors import CheckpointError, ConfigError, DataError
from mixerflow.evaluate import (
    Reference,
    Statistics,
    compare,
    draw_pixels,
    frechet_distance,
    load_features,
    precision_recall,
    require_comparable,
)
from mixerflow.evaluate.features import FileFeatures, digest_of, features_of
from mixerflow.evaluate.frechet import _squared_distances
from mixerflow.evaluate.inception import InceptionV3, resized


class Small(torch.nn.Module):
    """Features of a small net."""

    name = "small"

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv2d(3, 6, 3, 1, 1)
        self.eval()

    def forward(self, x):
        return self.conv(x.float() / 255).relu().mean((2, 3))


def gaussian(size=5, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(size, rank or size, dtype=torch.float64, generator=generator)
    return torch.randn(size, dtype=torch.float64, generator=generator), factor @ factor.mT


def rows(n, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, size, dtype=torch.float64, generator=generator).cumsum(1) + 1


def by_roots(mean_a, cov_a, mean_b, cov_b):
    root = scipy.linalg.sqrtm((cov_a @ cov_b).numpy()).real
    return (mean_a - mean_b).square().sum() + (cov_a + cov_b).trace() - 2 * np.trace(root)


def test_the_distance_of_gaussians_with_a_closed_form():
    mean, cov = gaussian()
    other, _ = gaussian(seed=1)
    square = (mean - other).square().sum().item()
    assert frechet_distance(mean, cov, other, cov) == pytest.approx(square, rel=1e-12)
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([16.0, 0.0, 1.0])
    zero = torch.zeros(3)
    wanted = (a.sqrt() - b.sqrt()).square().sum().item()
    assert frechet_distance(zero, a.diag(), zero, b.diag()) == pytest.approx(wanted, rel=1e-12)
    turn = torch.linalg.qr(rows(3, 3)).Q  # the same eigenvectors
    turned = [turn @ each.double().diag() @ turn.mT for each in (a, b)]
    got = frechet_distance(zero, turned[0], zero, turned[1])
    assert got == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_of_any_gaussians_equals_the_root_of_the_product(seed):
    pair = (*gaussian(8, seed=seed), *gaussian(8, seed=seed + 10))
    assert frechet_distance(*pair) == pytest.approx(by_roots(*pair).item(), rel=1e-10)
    swapped = frechet_distance(*pair[2:], *pair[:2])
    assert frechet_distance(*pair) == pytest.approx(swapped, rel=1e-12)


def test_fewer_images_than_features_lose_no_digits():
    """Orthogonal sets have a distance of traces alone; equal sets have none."""
    mean, cov = gaussian(200, rank=5)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-10 * cov.trace()
    basis = torch.linalg.qr(rows(40, 40)).Q * 1e3
    few = [basis[:, :5] @ basis[:, :5].mT, basis[:, 5:9] @ basis[:, 5:9].mT]
    wanted = (few[0] + few[1]).trace().item()
    got = frechet_distance(torch.zeros(40), few[0], torch.zeros(40), few[1])
    assert got == pytest.approx(wanted, rel=1e-12)
    x, y = Statistics.of(rows(4, 30)), Statistics.of(rows(3, 30, seed=1))
    assert math.isfinite(x.distance(y)) and x.distance(y) > 0 == round(x.distance(x), 9)


def test_what_is_no_gaussian_is_refused():
    mean, cov = gaussian()
    with pytest.raises(ValueError, match="do not fit"):
        frechet_distance(mean, cov, mean[:4], cov)
    with pytest.raises(ValueError, match="not all finite"):
        frechet_distance(mean, cov * math.nan, mean, cov)
    with pytest.raises(ValueError, match="no features"):
        Statistics.of_batches([])


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_statistics_depend_neither_on_batches_nor_on_order(batch):
    x = rows(50) + 1e6  # sums of squares would lose twelve digits
    batches = x[torch.randperm(50)].split(batch)
    found = Statistics.of_batches(batches)
    assert found.count == 50
    torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.covariance, (x - 1e6).mT.cov(), rtol=1e-8, atol=1e-8)
    assert Statistics.of(x[:1]).covariance.abs().max() == 0


def test_precision_and_recall_where_they_are_known():
    x, y = rows(40), rows(40, seed=1)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, y + 1e4) == (0, 0)
    precision, recall = precision_recall(x, torch.cat([x[:20], y[:20] + 1e4]))
    assert precision == 0.5 <= recall
    x = rows(40, 300) + 1e3
    same = x[:1].expand(40, -1)  # one image again and again: its balls have no radius
    assert precision_recall(x, same.clone()) == (1, 1 / 40)
    assert precision_recall(same.clone(), x) == (1 / 40, 1)
    assert _squared_distances(x, x.clone()).diagonal().abs().max() == 0  # not rounding's size
    with pytest.raises(ValueError, match="3 neighbours of 40 and 3"):
        precision_recall(x, x[:3])
    with pytest.raises(ValueError, match="takes features"):
        precision_recall(x, x[:, :2])


@pytest.mark.parametrize("neighbors", [1, 3])
def test_precision_and_recall_equal_their_definition(neighbors, monkeypatch):
    monkeypatch.setattr("mixerflow.evaluate.frechet._ROWS", 9)
    real, drawn = rows(40), rows(30, seed=1) + torch.tensor([2.0, 0, -2, 0, 2])

    def share(x, manifold):
        radii = torch.cdist(manifold, manifold).sort().values[:, neighbors]
        return (torch.cdist(x, manifold) <= radii).any(1).double().mean().item()

    wanted = share(drawn, real), share(real, drawn)
    assert 0.1 < min(wanted) and max(wanted) < 0.95
    assert precision_recall(real, drawn, neighbors) == pytest.approx(wanted)


def test_the_figure_equals_that_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    flow, given, net = flow_of(), images(40), Small()
    figure = compare(flow, given, net, samples=30, seed=3, batch=7)
    theirs = FrechetInceptionDistance(feature=net)
    theirs.update(torch.from_numpy(given.pixels).expand(-1, 3, -1, -1), real=True)
    seed = int(np.random.SeedSequence([3, 0]).generate_state(1, np.uint64)[0] >> 1)
    drawn = torch.from_numpy(draw_pixels(flow, 30, seed=seed).pixels)
    theirs.update(drawn.expand(-1, 3, -1, -1), real=False)
    assert figure.distance == pytest.approx(theirs.compute().item(), rel=1e-4)
    assert figure.name == "Frechet distance (small)" and figure.split == ""
    assert (figure.images, figure.samples, figure.compared) == (40, 30, 30)
    assert (figure.seed, figure.nonfinite, figure.dataset_id) == (3, 0, "ramps")
    assert json.dumps(figure.as_dict()) and figure.features_sha256 == digest_of(net)


def test_the_batch_is_no_matter_and_the_seed_is():
    flow, given = flow_of(), images(30)
    first = compare(flow, given, Small(), samples=600)
    again = compare(flow, given, Small(), samples=600, batch=11)
    assert again.distance == pytest.approx(first.distance, rel=1e-5)
    assert (again.precision, again.recall) == (first.precision, first.recall)
    assert first.compared == 30
    assert compare(flow, given, Small(), samples=600, seed=1).distance != first.distance
    assert compare(flow, given, Small()).samples == 30


def test_samples_that_are_not_finite_are_counted():
    flow = flow_of()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.fill_(math.nan)
    figure = compare(flow, images(8), Small())
    assert figure.nonfinite == figure.samples == 8
    assert math.isfinite(figure.distance) and figure.precision == 0


def test_features_of_images_are_kept_and_never_those_of_others(tmp_path, recwarn):
    flow, given, done = flow_of(), images(20), []
    first = compare(flow, given, Small(), samples=9, cache=tmp_path, on_batch=done.append)
    (file,) = tmp_path.iterdir()
    assert sum(done) == 29
    net = Small()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    assert compare(flow, given, net, samples=9, cache=tmp_path, batch=9) == first
    assert len(calls) == 2  # a trial, then samples alone
    more = compare(flow, given, net, samples=12)  # more rows than are kept
    assert compare(flow, given, net, samples=12, cache=tmp_path) == more
    assert compare(flow, given, net, samples=9, cache=tmp_path) == first
    compare(flow, images(20, seed=1), net, samples=9, cache=tmp_path)
    compare(flow, given, Small(1), samples=9, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3 and not recwarn
    file.write_bytes(file.read_bytes()[:-1] + b"\x99")
    with pytest.warns(UserWarning, match="SHA-256 differs"):
        assert compare(flow, given, net, samples=9, cache=tmp_path) == first

    def without_digest(x):
        return net(x)

    without_digest.name = "mine"
    assert compare(flow, given, without_digest, samples=9, cache=tmp_path).features_sha256 is None
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.warns(UserWarning, match="not kept"):
        compare(flow, given, net, samples=9, cache=file)


def test_statistics_of_other_images_are_refused(tmp_path):
    key = {"features": "small", "images_sha256": "ab"}
    reference = Reference(Statistics.of(rows(9)), rows(4).float())
    reference.save(tmp_path / "kept", key)
    loaded = Reference.load(tmp_path / "kept", key)
    assert loaded.statistics.count == 9 and torch.equal(loaded.rows, reference.rows)
    assert torch.equal(loaded.statistics.mean, reference.statistics.mean)
    assert torch.equal(loaded.statistics.covariance, reference.statistics.covariance)
    for name in key:
        with pytest.raises(DataError, match=f"of other {name}, {key[name]} and not others"):
            Reference.load(tmp_path / "kept", key | {name: "others"})


def test_images_become_eight_bits_and_three_channels():
    seen = []

    def features(x):
        seen.append(x)
        return x.float().flatten(1)

    features.name = "pixels"
    grey = np.arange(8, dtype=np.uint16).reshape(2, 1, 2, 2) * 300
    features_of(features, grey, torch.device("cpu"))
    assert seen[0].dtype == torch.uint8 and seen[0].shape == (2, 3, 2, 2)
    assert (seen[0].numpy() == grey >> 8).all()
    for wrong in (np.zeros((2, 4, 2, 2), np.uint8), np.zeros((2, 1, 2), np.uint8)):
        with pytest.raises(DataError, match="features"):
            features_of(features, wrong, torch.device("cpu"))


def test_what_cannot_be_compared_is_refused():
    flow, given = flow_of(), images(8)
    floats = make_images(given.pixels.astype(np.float32), None, dataset_id="floats")
    wide = make_images(np.zeros((8, 1, 4, 6), np.uint8), None, dataset_id="wide")
    for wrong, error in ((floats, ConfigError), (wide, DataError), (given.first(3), DataError)):
        with pytest.raises(error):
            compare(flow, wrong, Small())
    with pytest.raises(ConfigError, match="3 samples"):
        compare(flow, given, Small(), samples=3)
    with pytest.raises(ConfigError, match="training mode"):
        compare(flow, given, Small().train())
    for bad in (lambda x: x.float(), lambda x: x[:1, :, 0, 0], lambda x: x[:, :, 0, 0] / 0):
        with pytest.raises(ConfigError, match="features are"):
            compare(flow, given, FileFeatures("bad", "0", bad))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (4, 7), (299, 310)])
def test_the_scaling_is_that_of_tensorflow_1(height, width):
    x = torch.rand(1, 2, height, width, dtype=torch.float64)
    got = resized(x, 299)
    for i, j in ((0, 0), (298, 298), (150, 17), (3, 297)):
        y, z = i * height / 299, j * width / 299
        a, b = int(y), int(z)
        c, d = min(a + 1, height - 1), min(b + 1, width - 1)
        low = x[..., a, b] * (1 - z + b) + x[..., a, d] * (z - b)
        high = x[..., c, b] * (1 - z + b) + x[..., c, d] * (z - b)
        torch.testing.assert_close(got[..., i, j], low * (1 - y + a) + high * (y - a))
    torch.testing.assert_close(resized(x[..., :4, :4], 4), x[..., :4, :4])


def test_the_inception_net_has_the_published_layout():
    with torch.device("meta"):
        net = InceptionV3().eval()
    assert sum(p.numel() for p in net.parameters()) == 23_850_960
    lines = sorted(f"{name} {tuple(t.shape)}" for name, t in net.state_dict().items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"


@pytest.fixture(scope="module")
def inception():
    with torch.device("meta"):
        net = InceptionV3().eval()
    net, generator = net.to_empty(device="cpu"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in sorted(net.state_dict().items()):
            tensor.fill_(float(name.endswith(("bn.weight", "running_var"))))
            if tensor.dim() == 4:
                tensor.uniform_(-1, 1, generator=generator)
                tensor.mul_((6 / tensor[0].numel()) ** 0.5)
            elif name.endswith("bn.bias"):
                tensor.uniform_(-0.5, 0.5, generator=generator)
    return net


PIXELS = torch.arange(3 * 20 * 24).mul(37).remainder(256).to(torch.uint8).reshape(1, 3, 20, 24)


def test_the_inception_net_computes_what_that_of_torch_fidelity_does(inception):
    """The numbers are those of torch-fidelity 0.4.0 with the same weights and image."""
    wanted = [0.4914720, 2.7939272, 0.4727945, 2.7328126, 0.0470966, 1.7866417]
    with torch.no_grad():
        found = inception(PIXELS)
    assert found.shape == (1, 2048)
    torch.testing.assert_close(found[0, 80::384], torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_distance_of_the_published_weights_alone_is_fid(inception, tmp_path, monkeypatch):
    file = tmp_path / "weights.pth"
    state = inception.state_dict()
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, file)
    loaded = load_features(file)
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS), inception(PIXELS))
    assert loaded.name == "Inception v3, other weights, weights"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.sha256 == digest
    monkeypatch.setattr("mixerflow.evaluate.features._INCEPTION_SHA256", digest)
    assert compare(flow_of(), images(4), load_features(file)).name == "FID"


def test_a_file_of_no_net_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no weights.*features: get https://.*6726825d\.pth"):
        load_features(None)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    (tmp_path / "text.pt2").write_text("no net")
    for name in ("missing", "other.pth", "list.pth", "text.pt2", "."):
        with pytest.raises(CheckpointError, match="https://") as caught:
            load_features(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_damaged_program_is_one_line(tmp_path, caplog):
    with ZipFile(tmp_path / "damaged.pt2", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(CheckpointError, match="no features net"):
        load_features(tmp_path / "damaged.pt2", trust=True)
    assert not caplog.records


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mixerflow" / "features"


def run(*words):
    return main([str(word) for word in words])


def test_from_samples_to_the_figure(tmp_path, cache, capsys, monkeypatch):
    out = small_run(tmp_path)
    net = FileFeatures("small", "ab" * 32, Small())
    monkeypatch.setattr(command, "load_features", lambda path, device, trust: net)
    words = ["evaluate", out, "--no-codecs", "--fid", "--fid-samples", 10, "-j", 1]
    assert run(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)["frechet"]
    assert (found["images"], found["samples"], found["split"]) == (12, 10, "all")
    assert found["features_sha256"] == "ab" * 32 and found["distance"] > 0
    assert len(list(cache.iterdir())) == 1
    (file,) = (out / "evaluations").glob("*Frechet*10-samples.json")
    assert json.loads(file.read_text())["frechet"] == found
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert "10 samples (seed 0, temperature 1) beside 12 images: " in shown
    assert "Frechet distance (small)" in shown and f"{found['distance']:.2f}" in shown
    assert "this split" in shown and "magenta" not in shown


def test_flags_that_miss_something_are_refused(tmp_path, capsys):
    out = small_run(tmp_path)
    for words, said in (
        (["--fid"], "no weights of the Inception net: --features: get https://"),
        (["--fid-samples", "9"], "give --fid too"),
        (["--features", out / "run.json"], "give --fid too"),
    ):
        assert run("evaluate", out, "--no-codecs", *words) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_net_through_the_command(tmp_path, cache, capsys):
    example = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    sizes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(Small(), (example,), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "mine.pt2")
    x = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(load_features(tmp_path / "mine.pt2", trust=True)(x), Small()(x))
    out = small_run(tmp_path)
    words = ["--no-codecs", "--fid", "--features", tmp_path / "mine.pt2", "--json", "--trust"]
    assert run("evaluate", out, *words) == 0
    found = json.loads(capsys.readouterr().out)["frechet"]
    assert found["name"] == "Frechet distance (mine)" and found["samples"] == 12


def test_what_cannot_be_compared_is_refused_before_the_long_work(tmp_path):
    flow, few = flow_of(), images(3)
    for given, samples in ((images(8), 3), (images(8), -1), (few, None)):
        with pytest.raises((ConfigError, DataError), match=r"only 3 images|samples"):
            require_comparable(flow, given, Small(), samples)
    fixed = FileFeatures("fixed", "0" * 64, lambda x: x.reshape(2, 5))
    with pytest.raises(ConfigError, match=r"fails on 3 images.*any number of images"):
        require_comparable(flow, images(9), fixed)
    named = FileFeatures("Inception v3, 2015-12-05", "0" * 64, Small())
    assert compare(flow, images(8), named).name == "Frechet distance (Inception v3, 2015-12-05)"
    with pytest.raises(ConfigError, match="0 images at a time"):
        compare(flow, images(8), Small(), batch=0)
