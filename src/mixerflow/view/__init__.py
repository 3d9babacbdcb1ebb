"""A local page to look at a model: images that are dropped on it, samples, paths, neighbours."""

from mixerflow.view.answers import ROUTES, Route
from mixerflow.view.latents import spherical, straight
from mixerflow.view.model import Viewed, view_of
from mixerflow.view.server import Server

__all__ = ["ROUTES", "Route", "Server", "Viewed", "spherical", "straight", "view_of"]
