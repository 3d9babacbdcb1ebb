"""Images: `load` a set, `hold_out` a part of it for validation."""

from mixerflow.data.dataset import Images, Splits, held_out, hold_out, make_images
from mixerflow.data.reading import OnBadImage, Reading
from mixerflow.data.sources import load, names

__all__ = [
    "Images",
    "OnBadImage",
    "Reading",
    "Splits",
    "held_out",
    "hold_out",
    "load",
    "make_images",
    "names",
]
