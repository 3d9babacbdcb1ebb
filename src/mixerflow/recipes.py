"""Named runs, each a model with settings and data: what ``mixerflow train NAME`` runs.

The recipes themselves stand beside their models, in ``models/NAME_recipes.py``; the full ones want
a GPU, and each has a ``-tiny`` twin that says something true on two CPU cores in minutes.
"""

from __future__ import annotations

from mixerflow.core import Flow, Shape
from mixerflow.errors import ConfigError, nearest
from mixerflow.models import (
    glow_recipes,
    maf_recipes,
    mixerflow_recipes,
    nsf_recipes,
    realnvp_recipes,
)
from mixerflow.models.recipe import PublishedResult, Recipe
from mixerflow.parts.model import Model

__all__ = ["RECIPES", "PublishedResult", "Recipe", "build", "recipe"]

RECIPES: dict[str, Recipe] = {
    **mixerflow_recipes.RECIPES,
    **maf_recipes.RECIPES,
    **realnvp_recipes.RECIPES,
    **glow_recipes.RECIPES,
    **nsf_recipes.RECIPES,
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise ConfigError("no such recipe", name, nearest(name, RECIPES, cutoff=0.4))


def build(model: str | Model, shape: Shape | None = None) -> Flow:
    """A flow, untrained, over images of `shape`.

    Args:
        model: a recipe's name, or a model.
        shape: ``(C, *spatial)``; by default that of the recipe's own data.

    Raises:
        ConfigError: no such recipe, or settings that do not fit the images.
    """
    if isinstance(model, str):
        named = recipe(model)
        return named.model.build(named.shape if shape is None else shape)
    if shape is None:
        raise ConfigError("no shape", "build", "pass the images' shape (C, H, W)")
    return model.build(shape)
