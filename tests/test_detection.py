"""Outlier scores, their thresholds, and figures of how well they tell, against second ways."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_roc,
)

import mixerflow
from gaussian_images import D, drawn, gaussian_flow
from mixerflow.core import Noise
from mixerflow.detection import (
    GROUPS,
    SCORES,
    Detection,
    Measured,
    compare_sets,
    complexity,
    compressor_of,
    detection,
    fit_outliers,
    fit_scores,
    group_scores,
    halves,
    least_images,
    measure,
    outliers,
    rarity,
    scores_for,
    threshold_of,
)
from mixerflow.detection.corruptions import BLUR, CONTRAST, CORRUPTIONS, NOISE
from mixerflow.detection.mixture import fit_mixture
from mixerflow.errors import ConfigError
from mixerflow.parts import Classes
from mixerflow.pictures import codec_bits
from mixerflow.recipes import recipe
from mixerflow.registry import construct, describe, evolve

RANDOM = np.random.default_rng(0)


def sets(n=200, m=90, shift=0.8, digits=None):
    inside, outside = RANDOM.normal(size=n), RANDOM.normal(shift, size=m)
    return (inside, outside) if digits is None else (inside.round(digits), outside.round(digits))


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_figures_agree_with_plain_counts_and_with_torchmetrics(digits):
    inside, outside = sets(digits=digits)
    found = detection(inside, outside)
    above = (outside[:, None] > inside).mean() + (outside[:, None] == inside).mean() / 2
    assert found.auroc == pytest.approx(above, abs=1e-12)
    # torchmetrics squeezes scores that are not in 0..1 by a sigmoid, which may make ties
    ranks = scipy.stats.rankdata(np.concatenate([inside, outside]))
    scores = torch.tensor(ranks / len(ranks) / 2)
    truth = torch.tensor([0] * len(inside) + [1] * len(outside))
    assert found.auroc == pytest.approx(binary_auroc(scores, truth).item(), abs=1e-6)
    assert found.aupr == pytest.approx(binary_average_precision(scores, truth).item(), abs=1e-6)
    false, true, _ = binary_roc(scores, truth)
    assert found.fpr95 == pytest.approx(false[true >= 0.95 - 1e-6][0].item(), abs=1e-6)
    assert (found.inside, found.outside) == (len(inside), len(outside))


def delong(inside, outside):
    """The standard error of AUROC by the variance of the placements of both sets."""
    placed = (outside[:, None] > inside) + (outside[:, None] == inside) / 2
    first, second = placed.mean(1).var(ddof=1), placed.mean(0).var(ddof=1)
    return math.sqrt(first / len(outside) + second / len(inside))


def test_the_bootstraps_errors_are_those_of_the_theory_and_of_further_draws():
    inside, outside = sets(400, 300)
    found = detection(inside, outside, resamples=1000)
    assert found.auroc_error == pytest.approx(delong(inside, outside), rel=0.1)
    again = [detection(*sets(400, 300), resamples=2) for _ in range(300)]
    for name in ("auroc", "aupr", "fpr95"):
        spread = np.std([getattr(each, name) for each in again])
        assert getattr(found, f"{name}_error") == pytest.approx(spread, rel=0.35)


def test_the_sign_and_the_ends():
    good = detection(np.arange(5.0), 10 + np.arange(4.0))
    assert (good.auroc, good.aupr, good.fpr95) == (1, 1, 0)
    bad = detection(10 + np.arange(5.0), np.arange(4.0))
    assert (bad.auroc, bad.fpr95) == (0, 1)
    equal = detection(np.zeros(5), np.zeros(4))
    assert (equal.auroc, equal.fpr95) == (0.5, 1)
    odd = detection(np.array([1.0, 2.0]), np.array([math.nan, math.inf]))
    assert odd.auroc == 1
    assert isinstance(good, Detection)
    one = detection(np.arange(5.0), np.array([2.0]))
    assert math.isnan(one.auroc_error) and one.as_dict()["auroc_error"] is None
    for inside, outside in ((np.zeros(0), np.zeros(3)), (np.zeros(3), np.zeros((3, 1)))):
        with pytest.raises(ValueError, match="detection: takes"):
            detection(inside, outside)


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (200, 0.05), (1000, 0.01), (50, 0.5)])
def test_intervals_are_the_distributions_of_scipy(count, rate):
    threshold = threshold_of(RANDOM.normal(size=count), rate)
    above = count + 1 - threshold.rank
    assert 0 <= rate - threshold.expected < 1 / (count + 1)
    true = scipy.stats.beta(above, threshold.rank)
    assert threshold.interval() == pytest.approx(true.ppf([0.025, 0.975]), abs=1e-9)
    assert threshold.interval(0.5) == pytest.approx(true.ppf([0.25, 0.75]), abs=1e-9)
    observed = scipy.stats.betabinom(300, above, threshold.rank)
    low, high = (300 * each for each in threshold.observed_interval(300))
    assert observed.cdf(low - 1) <= 0.025 < observed.cdf(low)
    assert observed.cdf(high - 1) < 0.975 <= observed.cdf(high)


def test_of_many_thresholds_the_true_rate_lies_in_the_interval_as_often_as_stated():
    hits, seen, trials = 0, 0, 400
    first = threshold_of(np.arange(99.0), 0.1)  # intervals depend on the numbers of images alone
    true, further = first.interval(0.9), first.observed_interval(150, 0.9)
    for _ in range(trials):
        threshold = threshold_of(RANDOM.exponential(size=99), 0.1)
        hits += true[0] <= math.exp(-threshold.value) <= true[1]
        flags = threshold.flags(RANDOM.exponential(size=150)).mean()
        seen += further[0] <= flags <= further[1]
    assert abs(hits / trials - 0.9) < 4 * math.sqrt(0.09 / trials)
    assert 0.9 - 4 * math.sqrt(0.09 / trials) < seen / trials < 0.98


def test_the_threshold_itself_is_inside_and_nan_is_not():
    threshold = threshold_of(np.arange(1.0, 20.0), 0.05)
    assert (threshold.value, threshold.rank, least_images(0.05)) == (19.0, 19, 19)
    assert threshold.flags(np.array([19.0, 19.1, math.nan, -math.inf])).tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="give at least 19"):
        threshold_of(np.zeros(18), 0.05)
    with pytest.raises(ValueError, match="at least 1e-09, less than 1"):
        threshold_of(np.zeros(18), 1.0)
    with pytest.raises(ValueError, match="1 of them NaN"):
        threshold_of(np.array([0.0, math.nan]), 0.5)
    with pytest.raises(ValueError, match="0 images"):
        threshold.observed_interval(0)


def test_rarity_is_the_share_of_the_inside_and_agrees_with_the_threshold():
    inside, scores = RANDOM.normal(size=59).round(1), RANDOM.normal(1, 1, 200).round(1)
    found = rarity(inside, scores)
    assert found == pytest.approx([(1 + (inside >= each).sum()) / 60 for each in scores])
    threshold = threshold_of(inside, 0.1)
    assert (threshold.flags(scores) == (found <= threshold.expected + 1e-12)).all()
    assert rarity(inside, np.array([math.nan, math.inf, -math.inf])) == pytest.approx(
        [1 / 60, 1 / 60, 1]
    )


def images(n=64, seed=0):
    """Images from the Gaussian that the flow is, and flat ones, which it finds likelier."""
    random = np.random.default_rng(seed)
    flat = np.full((n, 2, 4, 4), 125) + random.integers(-1, 2, (n, 1, 1, 1))
    return drawn(n).round().clamp(0, 255).to(torch.uint8).numpy(), flat.astype(np.uint8)


def test_what_is_measured_is_the_flows_own_and_independent_of_the_batch():
    flow, (inside, _) = gaussian_flow(), images(9)
    found = measure(flow, inside, batch=4)
    x = torch.from_numpy(inside)
    noise = Noise.of(0, x)
    encoded = flow(x, None, noise)
    assert found.log_prob == pytest.approx(encoded.log_prob.numpy(), rel=1e-12)
    assert found.log_base == pytest.approx(flow.base.log_prob(encoded.z).numpy(), rel=1e-9)
    assert found.log_det == pytest.approx(encoded.log_det.numpy(), rel=1e-9)
    alone = measure(flow, inside[5:6])
    assert alone.log_prob[0] == pytest.approx(found.log_prob[5], rel=1e-12)
    assert len(found.take(np.array([2, 3]))) == 2


def test_a_class_conditional_flow_is_the_mixture_of_its_classes():
    model = evolve(recipe("mixerflow-tiny").model, {"layers": 1, "flow.net.width": 8})
    flow = replace(model, classes=Classes(3)).build((1, 8, 8)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x = RANDOM.integers(0, 256, (4, 1, 8, 8)).astype(np.uint8)
    each = [measure(flow, x, labels=np.full(4, k), lengths=False) for k in range(3)]
    logs = np.stack([one.log_prob for one in each])
    found = measure(flow, x, lengths=False)
    assert np.ptp(logs, 0).min() > 0.1
    assert found.log_prob == pytest.approx(
        scipy.special.logsumexp(logs, 0) - math.log(3), rel=1e-12
    )
    bases = np.stack([one.log_base for one in each])[logs.argmax(0), range(4)]
    assert found.log_base == pytest.approx(bases, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "dtype", "name"),
    [
        ((1, 9, 7), np.uint8, "webp"),
        ((3, 9, 7), np.uint8, "webp"),
        ((1, 9, 7), np.uint16, "png"),
        ((3, 9, 7), np.uint16, "zlib"),
        ((2, 9, 7), np.uint8, "zlib"),
        ((1, 5, 4, 3), np.uint8, "zlib"),
    ],
)
def test_lengths_are_of_files_that_textures_make_longer(shape, dtype, name):
    top = np.iinfo(dtype).max
    flat = np.full((1, *shape), top // 2, dtype)
    rough = RANDOM.integers(0, top, (1, *shape), dtype)
    assert compressor_of(flat) == name
    assert 8 * 5 < complexity(flat)[0] < complexity(rough)[0]
    if name == "png":
        assert complexity(rough)[0] / rough.size == pytest.approx(
            codec_bits(rough, "png", sheet=False), rel=0.05
        )


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int64, list])
def test_the_type_of_the_array_changes_no_score(kind):
    flow, (inside, flat) = gaussian_flow(), images(40)
    fitted = fit_outliers(flow, inside)
    wanted = outliers(flow, flat, fitted)
    given = flat.tolist() if kind is list else flat.astype(kind)
    found = outliers(flow, np.asarray(given), fitted)
    for name, scores in wanted.scores.items():
        assert found.scores[name] == pytest.approx(scores, rel=1e-12)


def test_intervals_of_many_images_are_quick_and_right():
    threshold = threshold_of(np.arange(200_000.0), 0.05)
    true = scipy.stats.beta(200_001 - threshold.rank, threshold.rank)
    assert threshold.interval() == pytest.approx(true.ppf([0.025, 0.975]), rel=1e-9)


def test_floats_have_no_length():
    with pytest.raises(ConfigError, match="has no compressed length"):
        complexity(np.zeros((1, 1, 4, 4), np.float32))


def measured(n=400, seed=0):
    random = np.random.default_rng(seed)
    log_prob, log_base = random.normal(-900, 40, (2, n))
    lengths, background = random.normal(1200, 90, n), random.normal(-950, 30, n)
    places = random.normal(size=(n, 100))
    return Measured(300, log_prob, log_base, lengths, background, places)


def test_scores_are_their_equations():
    inside, other = measured(), measured(seed=1)
    bits = -other.log_prob / (300 * math.log(2))
    found = {name: score.fitted(inside)(other) for name, score in SCORES.items()}
    assert list(found) == ["bits", "typicality", "complexity", "ratio", "mixture", "maximum", "top"]
    assert found["maximum"] == pytest.approx(other.places.max(1))
    assert found["top"] == pytest.approx(np.sort(other.places, 1)[:, -2:].mean(1))
    assert found["bits"] == pytest.approx(bits)
    mean = (-inside.log_prob / (300 * math.log(2))).mean()
    assert found["typicality"] == pytest.approx(abs(bits - mean))
    assert found["complexity"] == pytest.approx(bits - other.complexity / 300)
    assert found["ratio"] == pytest.approx(
        (other.background - other.log_prob) / (300 * math.log(2))
    )
    points = np.stack([other.log_base / math.log(2), other.complexity], 1) / 300
    mixture = SCORES["mixture"].fitted(inside).mixture
    density = sum(
        w * scipy.stats.multivariate_normal(m, s).pdf(points)
        for w, m, s in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    )
    assert found["mixture"] == pytest.approx(-np.log(density))
    for name in ("typicality", "mixture"):
        with pytest.raises(ValueError, match=f"{name} is not fitted"):
            SCORES[name](other)


def test_a_mixture_finds_two_groups_and_never_loses_likelihood():
    random = np.random.default_rng(2)
    first = random.multivariate_normal([0, 5], [[1, 0.5], [0.5, 2]], 900)
    second = random.multivariate_normal([40, -3], [[4, -1], [-1, 1]], 300)
    points = np.concatenate([first, second])
    mixture = fit_mixture(points, 2)
    order = np.argsort(mixture.weights)
    assert np.array(mixture.weights)[order] == pytest.approx([0.25, 0.75], abs=1e-6)
    assert np.array(mixture.means)[order] == pytest.approx(
        np.array([second.mean(0), first.mean(0)]), abs=1e-3
    )
    floor = 1e-3 * np.diag(points.var(0))
    assert np.array(mixture.covariances)[order] == pytest.approx(
        np.array([np.cov(each.T, ddof=0) + floor for each in (second, first)]), rel=0.01, abs=0.01
    )
    gains = [fit_mixture(points, k).log_density(points).mean() for k in (1, 2)]
    assert gains[1] > gains[0]
    assert mixture.log_density(np.array([[math.nan, 0.0]])) == -math.inf


def test_a_mixture_of_equal_points_has_a_density():
    same = np.tile([2.0, 3.0], (50, 1))
    mixture = fit_mixture(same, 4)
    assert np.isfinite(mixture.log_density(same)).all()
    assert mixture.log_density(np.array([[2.0, 3.5]])) < mixture.log_density(same[:1])
    assert np.isfinite(fit_mixture(same[:1], 4).log_density(same)).all()
    with pytest.raises(ValueError, match="fit_mixture"):
        fit_mixture(np.array([[math.inf, 0.0]]), 1)


def test_half_of_the_inside_teaches_and_the_other_half_gives_the_thresholds():
    inside = measured(80)
    first, second = halves(80)
    assert sorted([*first, *second]) == list(range(80))
    fitted = fit_scores(inside, [SCORES["typicality"]], false_alarms=0.1, group=4)
    bits = -inside.log_prob / (300 * math.log(2))
    assert fitted.entropy == pytest.approx(bits[first].mean())
    mine = np.sort(abs(bits[second] - bits[first].mean()))
    assert fitted.threshold("typicality").value == pytest.approx(mine[36])  # ceil(41 * 0.9) = 37
    assert fitted.group_threshold.images == 10
    assert fit_scores(inside, [], false_alarms=0.1, group=5).group_threshold is None  # 8 < 9


def test_groups_see_what_single_images_do_not():
    inside = measured(2000)
    shifted = Measured(300, measured(400, 3).log_prob + 20, np.zeros(400))
    entropy = float((-inside.log_prob / (300 * math.log(2))).mean())
    alone = detection(*(group_scores(each, 1, entropy) for each in (inside, shifted)))
    together = detection(*(group_scores(each, 40, entropy) for each in (inside, shifted)))
    assert alone.auroc < 0.65 < 0.9 < together.auroc
    bits = -shifted.log_prob[:40] / (300 * math.log(2))
    assert group_scores(shifted, 40, entropy)[0] == pytest.approx(abs(bits.mean() - entropy))
    assert len(group_scores(shifted, 401, entropy)) == 0


def test_a_fit_goes_through_json_and_scores_again():
    flow, (inside, flat) = gaussian_flow(), images(96)
    background = gaussian_flow()
    fitted = fit_outliers(flow, inside, background=background, false_alarms=0.2, group=4)
    again = construct(json.loads(json.dumps(describe(fitted))), values=True)
    assert again == fitted
    found = outliers(flow, flat, again, background=background, batch=5)
    assert [*found.scores, "maximum", "top"] == [*SCORES]  # which need scores of places
    assert found.scores["ratio"] == pytest.approx(np.zeros(len(flat)), abs=1e-12)
    # flat images are likelier than the flow's own, so bits/dim calls them inliers: the failure
    assert found.summary()["bits"] == 0.0
    compared = compare_sets(measure(flow, inside, background=background), found.measured, fitted)
    assert compared["bits"].auroc < 0.1 < 0.9 < compared["typicality"].auroc
    assert compared["complexity"].auroc > 0.9
    assert GROUPS in compared
    assert found.order("bits")[0] == found.scores["bits"].argmax()
    assert mixerflow.outliers is outliers


def test_scores_are_chosen_by_what_there_is():
    assert [each.name for each in scores_for(lengths=False, background=False)] == [
        "bits",
        "typicality",
    ]
    flow, (inside, _) = gaussian_flow(None), images(20)
    fitted = fit_outliers(flow, torch.from_numpy(inside).double(), false_alarms=0.2)
    assert [each.name for each in fitted.scores] == ["bits", "typicality"]


def test_bad_input_is_one_line():
    flow, (inside, flat) = gaussian_flow(), images(40)
    with pytest.raises(ConfigError, match="give at least 38, or a higher rate"):
        fit_outliers(flow, inside[:37])
    for rate in (0, 1e-320, 1):
        with pytest.raises(ConfigError, match="give a rate between 1e-09 and 1"):
            fit_outliers(flow, inside, false_alarms=rate)
    with pytest.raises(ConfigError, match="the score ratio needs background"):
        fit_outliers(flow, inside, scores=["ratio"])
    with pytest.raises(ValueError, match="no score 'ratio' was fitted: bits"):
        fit_outliers(flow, inside, scores=["bits"]).threshold("ratio")
    with pytest.raises(ConfigError, match="float64 has no compressed length"):
        measure(flow, inside.astype(float))
    with pytest.raises(ConfigError, match="groups of 0 images"):
        fit_outliers(flow, inside, group=0)
    with pytest.raises(ConfigError, match="its images have levels None"):
        measure(flow, inside, background=gaussian_flow(None))
    with pytest.raises(ConfigError, match="0 images at a time"):
        measure(flow, inside, batch=0)
    with pytest.raises(ValueError, match="no images"):
        measure(flow, inside[:0])
    broken = Measured(D, np.array([math.nan] * 40), np.zeros(40))
    with pytest.raises(ConfigError, match="not finite"):
        fit_scores(broken, [SCORES["bits"]])
    ratio = fit_outliers(flow, inside, background=flow)
    with pytest.raises(ConfigError, match="a likelihood ratio needs a second flow"):
        outliers(flow, flat, ratio)


def test_a_nan_score_is_an_outlier():
    flow, (inside, _) = gaussian_flow(), images(40)
    fitted = fit_outliers(flow, inside)
    log_prob = np.array([math.nan, -100.0])
    odd = Measured(D, log_prob, log_prob, np.array([100.0, 100.0]))
    found = mixerflow.detection.Outliers.of(odd, fitted)
    assert all(found.flags(name)[0] for name in found.scores)
    assert all(found.order(name)[0] == 0 for name in found.scores)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_corruptions_are_what_they_say(dtype):
    top = np.iinfo(dtype).max
    random = np.random.default_rng(1)
    x = (top * random.beta(4, 4, (6, 3, 40, 40))).astype(dtype)
    for strength in range(5):
        noise = CORRUPTIONS["noise"](x, strength, 0).astype(float) - x
        assert noise.std() / top == pytest.approx(NOISE[strength], rel=0.03)
        flat = CORRUPTIONS["contrast"](x, strength, 0)
        assert flat.std((2, 3)) == pytest.approx(CONTRAST[strength] * x.std((2, 3)), rel=0.02)
        assert flat.mean((2, 3)) == pytest.approx(x.mean((2, 3)), abs=0.5)
        blur = CORRUPTIONS["blur"](x, strength, 0)
        weights = np.exp(-0.5 * (np.arange(-6, 7) / BLUR[strength]) ** 2)
        plane = np.pad(x[0, 0].astype(float), 6, mode="edge")
        rows = np.apply_along_axis(np.convolve, 0, plane, weights / weights.sum(), "valid")
        both = np.apply_along_axis(np.convolve, 1, rows, weights / weights.sum(), "valid")
        assert blur[0, 0] == pytest.approx(both, abs=0.51 + 0.001 * top / 255)
        assert blur.dtype == noise.astype(dtype).dtype


def test_the_pages_snippet():
    """The first snippet of docs/outliers.md, word for word."""
    page = (Path(__file__).parents[1] / "docs" / "outliers.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    scope = {}
    exec(code, scope)
    assert scope["found"].scores["complexity"].shape == (50,)
    assert scope["found"].flags("complexity").all()
