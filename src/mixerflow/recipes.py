"""Named runs, each a model with settings and data: what ``mixerflow train NAME`` runs.

The recipes are in the files ``models/*_recipes.py``. Full recipes need a GPU; each has a ``-tiny``
twin that gives a meaningful result on two CPU cores in minutes. Those named ``fast-`` are for two
cores: no paper has them.
"""

from __future__ import annotations

from collections.abc import Sized

from mixerflow.core import Flow, Shape
from mixerflow.errors import ConfigError, nearest
from mixerflow.models import (
    anf_recipes,
    baseline_recipes,
    denseflow_recipes,
    fast_recipes,
    featureflow_recipes,
    ffjord_recipes,
    flowpp_recipes,
    glow_recipes,
    mixerflow_dense_recipes,
    mixerflow_recipes,
    related_recipes,
    residual_recipes,
    survae_recipes,
)
from mixerflow.models.recipe import PublishedResult, Recipe
from mixerflow.parts.model import Model

__all__ = ["RECIPES", "PublishedResult", "Recipe", "build", "recipe"]

RECIPES: dict[str, Recipe] = {
    **mixerflow_recipes.RECIPES,
    **denseflow_recipes.RECIPES,
    **mixerflow_dense_recipes.RECIPES,
    **glow_recipes.RECIPES,
    **baseline_recipes.RECIPES,
    **fast_recipes.RECIPES,
    **featureflow_recipes.RECIPES,
    **residual_recipes.RECIPES,
    **related_recipes.RECIPES,
    **ffjord_recipes.RECIPES,
    **flowpp_recipes.RECIPES,
    **survae_recipes.RECIPES,
    **anf_recipes.RECIPES,
}


def recipe(name: str) -> Recipe:
    """Return the recipe of that name.

    Raises:
        ConfigError: there is no such recipe; names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise ConfigError("no such recipe", name, nearest(name, RECIPES, cutoff=0.4))


def build(model: str | Model, shape: Shape | None = None) -> Flow:
    """Return an untrained flow over images of `shape`.

    Args:
        model: a recipe's name, or a model.
        shape: ``(C, *spatial)``; by default the shape of the recipe's own data.

    Raises:
        ConfigError: no such recipe, or settings that do not fit the images.
    """
    if isinstance(model, str):
        named = recipe(model)
        axes = len(named.shape)
        if isinstance(shape, Sized) and len(shape) == axes - 1:  # or channels would be guessed
            what = f"{shape} has {axes - 1} numbers, and images of {model} {axes}"
            raise ConfigError(what, "shape", "give the channels too: (C, H, W)")
        return named.model.build(named.shape if shape is None else shape)
    if not isinstance(model, Model):
        what = f"{type(model).__name__} is no model"
        raise ConfigError(what, "build", "give a recipe's name, or a model such as MixerFlow()")
    if shape is None:
        raise ConfigError("no shape", "build", "pass the images' shape (C, H, W)")
    return model.build(shape)
