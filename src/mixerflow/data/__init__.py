"""Images from wherever they are: `load` a set, `hold_out` a part of it."""

from mixerflow.data.dataset import Images, Splits, hold_out, hold_out_indices, make_images
from mixerflow.data.folder import OnBadImage, image_files
from mixerflow.data.sources import load, names

__all__ = [
    "Images",
    "OnBadImage",
    "Splits",
    "hold_out",
    "hold_out_indices",
    "image_files",
    "load",
    "make_images",
    "names",
]
