"""Recipes: each can be built, is as large as it says, and has a twin for small machines."""

import functools

import pytest
import torch

from mixerflow.recipes import RECIPES, build

FAST = [name for name in RECIPES if name.startswith("fast-")]
FULL = [name for name in RECIPES if not name.endswith("-tiny") and name not in FAST]


@functools.cache
def count_of(model, shape):
    with torch.device("meta"):
        flow = build(model, shape)
    return sum(p.numel() for p in flow.parameters())


# half a second and more each, beside a sibling of the same parts, or counted in a test of their own
LARGE = {
    "mixerflow-cifar10-gpu",
    "mixerflow-maf-cifar10",
    "mixerflow-kan-mnist",
    "denseflow-mnist",
    "glow-large-cifar10",
    "nsf-large-cifar10",
    "flowpp-imagenet32",
    "flowpp-mnist",
    "anf-mnist",
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in RECIPES]
)
def test_it_builds_at_the_size_that_the_paper_gives(name):
    count = count_of(RECIPES[name].model, RECIPES[name].shape) / 1e6
    published = RECIPES[name].published
    if published is not None and published.parameters is not None and "kan" not in name:
        assert count == pytest.approx(published.parameters, rel=0.025)


@pytest.mark.parametrize("name", FULL)
def test_a_full_recipe_has_a_twin_of_the_same_data(name):
    twin = RECIPES[f"{name}-tiny"]
    assert type(twin.model) is type(RECIPES[name].model)
    assert (twin.data, twin.shape) == (RECIPES[name].data, RECIPES[name].shape)
    assert twin.train.minutes is not None
    assert twin.train.minutes <= 20


@pytest.mark.parametrize("name", FAST)
def test_a_fast_recipe_is_small_and_quick(name):
    recipe = RECIPES[name]
    assert count_of(recipe.model, recipe.shape) < 2e6
    assert recipe.train.minutes <= 10 and recipe.published is None


def test_the_earlier_variant_has_about_seven_and_a_half_million_parameters():
    with torch.device("meta"):
        flow = build("mixerflow-profile")
    assert sum(p.numel() for p in flow.parameters()) == pytest.approx(7.5e6, rel=0.025)


def test_denseflow_has_the_published_count_at_64_pixels_too():
    recipe = RECIPES["denseflow-imagenet64"]
    assert count_of(recipe.model, recipe.shape) == 130_647_294
