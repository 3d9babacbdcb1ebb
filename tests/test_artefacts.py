"""The grid's ratio: closed forms where one is planted, 1 where there is none."""

import math

import numpy as np
import pytest
import torch

from mixerflow.evaluate import grid_artefacts


def planted(n, shape, patch, height):
    """White noise of variance 1 plus a checkerboard of patches, of the given height.

    Neighbours differ by N(0, 2) inside a patch, and by +-height more across a border.
    """
    rng = np.random.default_rng(0)
    places = np.indices(shape[1:])
    number = sum(place // side for place, side in zip(places, patch, strict=True))
    return rng.normal(size=(n, *shape)) + height * (number % 2)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((1, 12), 3),
        ((3, 8, 8), 4),
        ((2, 9, 10), 4),
        ((1, 8, 12), (2, 5)),
        ((1, 6, 4, 8), (2, 2, 4)),
    ],
)
@pytest.mark.parametrize("height", [0.0, 0.5, 3.0])
def test_a_planted_grid_has_its_closed_form(shape, patch, height):
    sides = (patch,) * (len(shape) - 1) if isinstance(patch, int) else patch
    found = grid_artefacts(planted(4000, shape, sides, height), patch)
    assert found.standard_error < 0.1
    assert abs(found.ratio - (2 + height**2) / 2) < 3 * found.standard_error


def test_exact_values_of_small_images():
    x = torch.tensor([[[0, 1, 5, 6]], [[2, 0, 1, 2]]], dtype=torch.uint8)  # borders: 16 and 1
    found = grid_artefacts(x, 2)
    ratio = (16 + 1) / (1 + 2.5)
    assert found.ratio == pytest.approx(ratio, rel=1e-14)
    rest = (16 - ratio * 1) ** 2 + (1 - ratio * 2.5) ** 2
    assert found.standard_error == pytest.approx(math.sqrt(rest / 2) / 1.75, rel=1e-14)


def test_the_standard_error_is_the_spread_of_the_ratio():
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.5, 2, (300, 200, 1, 1, 1))  # images of unlike contrast
    runs = [grid_artefacts(x, 2) for x in scale * rng.normal(size=(300, 200, 1, 6, 6))]
    spread = np.std([run.ratio for run in runs], ddof=1)
    assert np.mean([run.standard_error for run in runs]) == pytest.approx(spread, rel=0.15)


def test_images_smoother_along_one_axis_have_ratio_one():
    rng = np.random.default_rng(2)
    x = np.cumsum(rng.normal(size=(3000, 1, 12, 12)), 2)  # columns walk, rows are independent
    found = grid_artefacts(x, (2, 4))
    assert abs(found.ratio - 1) < 3 * found.standard_error
    assert found.standard_error < 0.05


def test_many_images_go_through_in_parts_and_one_has_no_error():
    x = planted(2500, (1, 4, 4), (2, 2), 1.0)
    whole, turned = grid_artefacts(x, 2), grid_artefacts(x[::-1].copy(), 2)
    assert whole.ratio == pytest.approx(turned.ratio, rel=1e-12)
    one = grid_artefacts(x[:1], 2)
    assert math.isfinite(one.ratio)
    assert math.isnan(one.standard_error)
    assert "±" in str(whole)
    assert "±" not in str(one)


@pytest.mark.parametrize(
    ("shape", "patch", "remedy"),
    [
        ((5, 1, 8, 8), 1, "use a side from 2"),
        ((5, 1, 8, 8), 8, "use a side from 2"),
        ((5, 1, 8, 8), (1, 8), "use a side from 2"),
        ((5, 1, 8, 8), (2,), "2 sides"),
        ((5, 1, 8, 8), 0, "at least 1"),
        ((0, 1, 8, 8), 2, "N > 0"),
        ((5, 8), 2, r"\(N, C, \*spatial\)"),
    ],
)
def test_what_has_no_ratio_is_refused(shape, patch, remedy):
    with pytest.raises(ValueError, match=remedy):
        grid_artefacts(torch.zeros(shape), patch)


def test_flat_patches_are_refused():
    with pytest.raises(ValueError, match="constant inside every patch"):
        grid_artefacts(np.kron(np.arange(16.0).reshape(1, 1, 4, 4), np.ones((2, 2))), 2)
