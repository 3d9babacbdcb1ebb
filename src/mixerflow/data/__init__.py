"""Images: `load` a set, `hold_out` a part of it for validation."""

from mixerflow.data.dataset import Images, Splits, hold_out, make_images
from mixerflow.data.folder import OnBadImage
from mixerflow.data.sources import load, names

__all__ = ["Images", "OnBadImage", "Splits", "hold_out", "load", "make_images", "names"]
