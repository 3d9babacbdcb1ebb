"""What the page of a model is answered, beside the package's other ways to the same figures."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import mixerflow
from mixerflow.core import Noise
from mixerflow.data import Splits, make_images
from mixerflow.detection import SlopeMap, rarity, second_half
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import draw_values
from mixerflow.parts import GaussiansHead, NormalChannels
from mixerflow.recipes import build
from mixerflow.runs import kept_fit, load
from mixerflow.training import TrainConfig, train
from mixerflow.view import ROUTES, spherical, straight, view_of
from mixerflow.view.latents import angles, nearest
from mixers import mixer
from viewed import CLASSES, coded, decoded, pictured, png_of, small_view


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """A class-conditional run of grey images, with thresholds."""
    out = tmp_path_factory.mktemp("grey") / "run"
    return out, small_view(out)


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """An unconditional run of colour images, without thresholds."""
    out = tmp_path_factory.mktemp("colour") / "run"
    return out, small_view(out, channels=3, classes=False, thresholds=False)


@pytest.fixture(scope="module")
def viewed(grey):
    return view_of(*grey)


def ask(viewed, route, body=None, **given):
    answer = ROUTES[route].work(viewed, json.dumps(given).encode() if body is None else body)
    return json.loads(json.dumps(answer, allow_nan=False))


def test_an_image_has_the_figures_of_the_package(viewed, grey):
    out, splits = grey
    image, flow = splits.test.pixels[:1], load(out)
    told = ask(viewed, "/score", png_of(image[0]))
    own = mixerflow.Scorer(out)(image)
    each = [flow.bits_per_dim(image, torch.tensor([k])).item() for k in range(3)]
    nats = -np.array(each) * 64 * np.log(2)
    mixture = -(np.logaddexp.reduce(nats) - np.log(3)) / (64 * np.log(2))
    assert told["bits_per_dim"] == pytest.approx(mixture, abs=1e-5)
    assert told["bytes"]["flow"] == pytest.approx(mixture * 64 / 8, abs=1e-4)
    assert told["bytes"]["png"] == 8 * mixerflow.pictures.codec_bits(image, "png", sheet=False)
    assert told["bytes"]["webp"] == 8 * mixerflow.pictures.codec_bits(image, "webp", sheet=False)
    assert [name for name, _ in told["classes"]] == [*CLASSES]
    shares = [share for _, share in told["classes"]]
    assert shares == pytest.approx(np.exp(nats - np.logaddexp.reduce(nats)), abs=1e-5)
    assert np.array_equal(decoded(told["image"]), image[0]) and told["done"] == "taken as it is"
    complexity, bits = told["scores"]
    fit = kept_fit(out)
    inside = second_half(fit.inside)
    assert (complexity["name"], bits["name"]) == ("complexity", "bits")
    for found, name in ((complexity, "complexity"), (bits, "bits")):
        score = next(each for each in fit.fitted.scores if each.name == name)
        value = own["bits_per_dim" if name == "bits" else "score_complexity"]
        assert found["value"] == pytest.approx(value[0])
        assert found["threshold"] == fit.fitted.threshold(name).value
        assert found["rarity"] == rarity(score(inside), value)[0]
        assert found["outlier"] == (value[0] > found["threshold"])
        assert sum(found["counts"]) == found["images"] == 40


def test_noise_is_an_outlier_and_an_inside_image_is_none(viewed, grey):
    noise = np.random.default_rng(0).integers(0, 256, (1, 8, 8), dtype=np.uint8)
    told = ask(viewed, "/score", png_of(noise))
    assert told["scores"][1]["outlier"] and told["scores"][1]["rarity"] == 1 / 41
    inside = [ask(viewed, "/score", png_of(each)) for each in pictured(20, seed=9).pixels]
    assert sum(each["scores"][1]["outlier"] for each in inside) < 6


def test_a_run_without_thresholds_says_how_to_fit_them(colour):
    out, splits = colour
    viewed = view_of(out, splits)
    told = ask(viewed, "/score", png_of(splits.test.pixels[0]))
    flow = load(out)
    assert told["scores"] == [] and told["classes"] == []
    assert told["bits_per_dim"] == pytest.approx(
        mixerflow.bits(flow, splits.test.pixels[:1]).bits_per_dim, abs=1e-5
    )
    assert (
        f"`mixerflow outliers {out} --inside DATA` fits some" in ask(viewed, "/about")["thresholds"]
    )


def test_maps_are_those_of_the_package_on_the_scale_of_inside_images(viewed, grey):
    out, splits = grey
    image, beside = splits.test.pixels[:1], splits.train.pixels[:16]
    told = ask(viewed, "/map", map="slope", image=coded(image[0]))
    every = np.concatenate([image, beside])
    maps = SlopeMap().map(load(out), every).numpy()
    wanted = mixerflow.pictures.heat(every, maps)[0].astype(int)
    assert np.abs(decoded(told["map"]) - wanted).max() <= 1  # rounding of a fused flow
    assert "16 training images of ramps" in told["words"]
    other = ask(viewed, "/map", map="variance", image=coded(image[0]))
    assert other["map"] != told["map"]
    with pytest.raises(ConfigError, match="no map: the request: give one of slope, gradient"):
        ask(viewed, "/map", map="occlusion", image=coded(image[0]))


def test_maps_beside_samples_where_there_are_no_images(grey):
    out, splits = grey
    alone = view_of(out)
    told = ask(alone, "/map", map="slope", image=coded(splits.test.pixels[0]))
    assert "16 samples of the model" in told["words"]
    assert ask(alone, "/about")["set"] is None
    for route in ("/example", "/neighbours"):
        with pytest.raises(ConfigError, match="start it as `mixerflow view RUN --data SET`"):
            ask(alone, route, number=1, image=coded(splits.test.pixels[0]))


def test_examples_are_images_of_the_set(viewed, grey):
    told = ask(viewed, "/example", number=4)
    assert np.array_equal(decoded(told["image"]), grey[1].test.pixels[4])
    assert told["name"] == f"test image 4 of ramps ({CLASSES[grey[1].test.labels[4]]})"


@pytest.mark.parametrize("label", [-1, 2])
def test_samples_are_those_of_the_seed(viewed, grey, label):
    told = ask(viewed, "/samples", number=5, temperature=0.7, seed=3, label=label)
    own = None if label < 0 else label
    drawn = draw_values(load(grey[0]), 5, seed=3, temperature=0.7, label=own)
    shown = np.stack([decoded(each) for each in told["images"]]).astype(int)
    assert np.abs(shown - drawn.images.numpy()).max() <= 1  # rounding of a fused flow
    share = f"{100 * drawn.clamped / drawn.images.numel():.2g} %"
    assert told["words"].startswith(share)


@pytest.mark.parametrize("way", ["spherical", "straight"])
def test_a_path_leads_from_image_to_image_by_the_latents(viewed, grey, way):
    flow, ends = load(grey[0]), grey[1].test.pixels[[0, 5]]
    told = ask(viewed, "/path", first=coded(ends[0]), second=coded(ends[1]), number=7, way=way)
    frames = np.stack([decoded(each) for each in told["images"]])
    assert np.array_equal(frames[[0, -1]], ends) and "pixel for pixel" in told["words"]
    label = torch.tensor(int(np.argmin([flow.bits_per_dim(ends[:1], [k]) for k in range(3)])))
    assert f"scored as {CLASSES[label]}" in told["words"]
    z = flow.encode(torch.as_tensor(ends), label.repeat(2)).double()
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    points = [straight, spherical][way == "spherical"](z[0], z[1], t).float()
    wanted = flow.decode(points, label.repeat(7)).numpy().astype(int)
    assert np.abs(frames - wanted).max() <= 1
    values = flow.bits_per_dim(torch.as_tensor(frames), label.repeat(7))
    assert told["bits_per_dim"] == pytest.approx(values.tolist(), abs=1e-4)


def test_an_arc_keeps_lengths_and_a_line_is_taken_where_there_is_no_arc():
    a, b = torch.randn(2, 500, dtype=torch.float64)
    a, b, t = a / a.norm(), b / b.norm(), torch.linspace(0, 1, 5, dtype=torch.float64)
    arc = spherical(a, b, t)
    assert torch.allclose(arc.norm(dim=1), torch.ones(5, dtype=torch.float64))
    steps = (arc[1:] * arc[:-1]).sum(1)  # equal angles
    assert torch.allclose(steps, steps[:1].expand(4))
    assert torch.equal(arc[[0]], a[None]) or torch.allclose(arc[0], a)
    assert straight(a, b, t).norm(dim=1)[2] < 0.9
    for other in (a, -a, torch.zeros(500, dtype=torch.float64)):
        assert torch.equal(spherical(a, other, t), straight(a, other, t))


def test_what_has_no_distance_comes_last():
    rows = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [np.nan, 1.0]])
    found = nearest(angles, rows, np.array([3.0, 0.0]), 4)
    assert found[:2] == [(2, 0.0), (1, pytest.approx(45.0))]
    assert [i for i, _ in found[2:]] == [0, 3] and all(np.isinf(d) for _, d in found[2:])


def test_neighbours_are_the_nearest_of_all(viewed, grey, monkeypatch):
    monkeypatch.setattr("mixerflow.view.answers._SECONDS", 0.0)
    monkeypatch.setattr("mixerflow.view.latents._BATCH", 16)
    flow, train, image = load(grey[0]), grey[1].train, grey[1].test.pixels[0]
    steps = []
    while "done" in (told := ask(viewed, "/neighbours", image=coded(image), number=4)):
        steps.append(told["done"])
        assert told["total"] == 60
    assert steps == [16, 32, 48]
    label = torch.tensor(int(np.argmin([flow.bits_per_dim(image[None], [k]) for k in range(3)])))
    every = torch.as_tensor(np.concatenate([image[None], train.pixels]))
    z = flow.encode(every, label.repeat(61)).double()
    cosine = torch.nn.functional.cosine_similarity(z[1:], z[:1])
    by_latents = torch.rad2deg(cosine.arccos())
    by_pixels = (every[1:].double() - every[:1]).square().mean((1, 2, 3)).sqrt()
    for name, distances in (("latents", by_latents), ("pixels", by_pixels)):
        values, order = distances.sort(stable=True)
        assert [each["distance"] for each in told[name]] == pytest.approx(values[:4].tolist(), 1e-4)
        first = int(order[0])
        assert told[name][0]["name"] == f"image {first} ({CLASSES[train.labels[first]]})"
        assert np.array_equal(decoded(told[name][0]["image"]), train.pixels[first])
    own = ask(viewed, "/neighbours", image=coded(train.pixels[7]), number=1)
    while "done" in own:  # perhaps of another class
        own = ask(viewed, "/neighbours", image=coded(train.pixels[7]), number=1)
    assert own["pixels"][0]["name"].startswith("image 7 (") and own["pixels"][0]["distance"] == 0


def photo(size, mode="RGB"):
    """A smooth picture of that size."""
    wide, tall = size
    ramp = np.linspace(0, 255, wide)[None] * np.linspace(0.2, 1, tall)[:, None]
    picture = Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    return picture, np.moveaxis(np.atleast_3d(np.asarray(picture)), -1, 0)


def test_an_image_of_another_kind_is_fitted_in_words_or_refused(viewed, grey, colour):
    picture, pixels = photo((40, 24))
    body = png_of(pixels)
    with pytest.raises(DataError, match="an image of 40 x 24, colour, the model's are 8 x 8, grey"):
        ask(viewed, "/score", body)
    told = ask(viewed, "/score-fitted", body)
    assert told["done"] == "cut to 24 x 24, turned to grey, scaled to 8 x 8"
    wanted = picture.crop((8, 0, 32, 24)).convert("L").resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(decoded(told["image"])[0], np.asarray(wanted))
    own = mixerflow.Scorer(grey[0])(np.asarray(wanted)[None, None])
    assert told["bits_per_dim"] == pytest.approx(own["bits_per_dim"][0], abs=1e-5)
    rgb = view_of(*colour)
    told = ask(rgb, "/score-fitted", png_of(photo((8, 8), "L")[1]))
    assert told["done"] == "its grey used as red, green and blue"
    with pytest.raises(DataError, match="7 x 30 pixels are fewer than 8 x 8"):
        ask(viewed, "/score-fitted", png_of(photo((7, 30))[1]))


def test_levels_and_transparency_are_changed_only_where_asked(viewed, tmp_path):
    deep = np.full((8, 8), 0x1234, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    body = (tmp_path / "deep.png").read_bytes()
    with pytest.raises(DataError, match="pixels of 16 bits, the model's have 8"):
        ask(viewed, "/score", body)
    told = ask(viewed, "/score-fitted", body)
    assert told["done"] == "8 bits made of 16" and np.all(decoded(told["image"]) == 0x12)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "clear.png")
    body = (tmp_path / "clear.png").read_bytes()
    with pytest.raises(DataError, match="transparency"):
        ask(viewed, "/score", body)
    told = ask(viewed, "/score-fitted", body)
    assert told["done"] == "put on white" and np.all(decoded(told["image"]) == 255)


SAMPLES = {"number": 4, "temperature": 1, "seed": 0, "label": -1}
WRONG = [
    ("/samples", SAMPLES | {"number": 10**9}, "1000000000 is no number: the request: give a whole"),
    ("/samples", SAMPLES | {"number": 0}, "0 is no number"),
    ("/samples", SAMPLES | {"number": True}, "True is no number"),
    ("/samples", SAMPLES | {"number": 4.0}, "4.0 is no number"),
    ("/samples", SAMPLES | {"temperature": -1}, "-1 is no temperature"),
    ("/samples", SAMPLES | {"temperature": "1"}, "1 is no temperature"),
    ("/samples", SAMPLES | {"temperature": 1e300}, "is no temperature"),
    ("/samples", SAMPLES | {"seed": -1}, "-1 is no seed"),
    ("/samples", SAMPLES | {"seed": None}, "nothing is no seed"),
    ("/samples", SAMPLES | {"seed": 2**63}, "is no seed"),
    ("/samples", SAMPLES | {"label": 3}, "3 is no label"),
    ("/example", {"number": 9}, "9 is no number: the request: give a whole number from 0 to 8"),
    ("/neighbours", {"number": 25, "image": ""}, "25 is no number"),
    ("/neighbours", {"number": 5, "image": ""}, "no image yet"),
    ("/neighbours", {"number": 5, "image": "####"}, "is no image: the request: give a file in"),
    ("/neighbours", {"number": 5, "image": ["a"]}, "is no image"),
    ("/path", {"number": 1, "way": "spherical", "first": "", "second": ""}, "1 is no number"),
    ("/path", {"number": 5, "way": "__class__", "first": "", "second": ""}, "__class__ is no way"),
]


@pytest.mark.parametrize("route, given, line", WRONG)
def test_what_cannot_be_asked_is_one_line(viewed, route, given, line):
    with pytest.raises((ConfigError, DataError)) as caught:
        ask(viewed, route, **given)
    assert line in str(caught.value) and "\n" not in str(caught.value)


BODIES = [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 10**5]
BODIES += [b'{"a": %s}' % (b"9" * 5000), b'{"a":' * 70 + b"1" + b"}" * 70]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_json_of_anybody(viewed, body):
    with pytest.raises(ConfigError, match="JSON"):
        ask(viewed, "/samples", body)


SMALL = mixer(layers=1, flow_layers=2, hidden=8, patch=2, norm="none")


def kept(model, pixels, out, labels=None):
    """A run of hardly any training."""
    torch.manual_seed(0)
    classes = () if labels is None else CLASSES
    images = make_images(pixels, labels, classes=classes, dataset_id="")
    config = TrainConfig(steps=3, batch=8, lr=1e-3, warmup=1, initial=16, evaluate_every=3)
    train(build(model, images.shape), images, out=out, config=config, quiet=True)
    return out, Splits(images, None)


def test_grey_of_16_bits(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (30, 1, 8, 8)).astype(np.uint16)
    model = mixer(layers=1, flow_layers=2, hidden=8, patch=2, norm="none", levels=65536)
    viewed = view_of(*kept(model, pixels, tmp_path / "run"))
    first, second = (ask(viewed, "/example", number=n)["image"] for n in (0, 1))
    told = ask(viewed, "/score", base64.b64decode(first))
    own = mixerflow.bits(load(tmp_path / "run"), pixels[:1]).bits_per_dim
    assert told["bits_per_dim"] == pytest.approx(own, abs=1e-4)
    assert told["bytes"]["webp"] is None and told["bytes"]["png"] > 100
    path = ask(viewed, "/path", first=first, second=second, number=3, way="spherical")
    assert np.array_equal(decoded(path["images"][0]), pixels[0])
    grey = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    with pytest.raises(DataError, match="pixels of 8 bits, the model's have 16"):
        ask(viewed, "/score", png_of(grey))
    told = ask(viewed, "/score-fitted", png_of(grey))
    assert told["done"] == "16 bits made of 8"
    assert np.array_equal(decoded(told["image"]), grey.astype(np.uint16) * 257)


def test_a_base_of_class_gaussians_draws_its_classes_and_tells_them(tmp_path):
    data = pictured(30)
    model = replace(SMALL, head=GaussiansHead(3))
    out, splits = kept(model, data.pixels, tmp_path / "run", data.labels)
    viewed, flow = view_of(out, splits), load(out)
    about = ask(viewed, "/about")
    assert about["classes"] == [*CLASSES] and not about["inTurn"]
    told = ask(viewed, "/score", png_of(data.pixels[0]))
    first = torch.as_tensor(data.pixels[:1])
    with torch.no_grad():
        wanted = flow.logits(flow(first, noise=Noise.of(0, first)).z).softmax(1)[0].tolist()
    assert [share for _, share in told["classes"]] == pytest.approx(wanted, abs=1e-3)
    for label in (-1, 2):
        drawn = ask(viewed, "/samples", number=4, temperature=1.0, seed=2, label=label)
        own = draw_values(flow, 4, seed=2, label=None if label < 0 else label).images.numpy()
        shown = np.stack([decoded(each) for each in drawn["images"]]).astype(int)
        assert np.abs(shown - own).max() <= 1


def test_a_bound_has_no_maps_of_its_density(tmp_path):
    model = replace(SMALL, added=NormalChannels(1))
    viewed = view_of(*kept(model, pictured(30).pixels, tmp_path / "run"))
    about = ask(viewed, "/about")
    assert about["maps"] == ["variance"]
    assert dict(about["facts"])["kind of figures"].startswith("lower bound of the density")


def test_a_model_whose_images_a_page_cannot_show_is_refused(tmp_path):
    flow = mixerflow.build("mixerflow-tiny", (2, 8, 8))
    images = np.random.default_rng(0).integers(0, 256, (20, 2, 8, 8), dtype=np.uint8)
    config = mixerflow.recipe("mixerflow-tiny").train
    mixerflow.train(flow, images, config=config, steps=2, out=tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match="2 x 8 x 8, 256 levels"):
        view_of(tmp_path / "run")


def test_facts_are_those_of_the_run(viewed, grey):
    told = ask(viewed, "/about")
    facts = dict(told["facts"])
    weights = mixerflow.Scorer(grey[0]).weights
    assert facts["SHA-256 of the weights"] == weights.sha256
    assert facts["parameters"] == f"{sum(p.numel() for p in load(grey[0]).parameters()):,}"
    assert "exact density, uniform dequantisation, single-sample" in facts["kind of figures"]
    assert "of the mixture of 3 equally frequent classes" in facts["kind of figures"]
    result = weights.metadata["result"]
    assert facts["bits/dim"].startswith(f"{result['bits_per_dim']:.3f} ± ")
    assert told["shape"] == [1, 8, 8] and told["classes"] == [*CLASSES] and told["inTurn"]
    assert (told["examples"], told["searched"], told["set"]) == (9, 60, "ramps")
