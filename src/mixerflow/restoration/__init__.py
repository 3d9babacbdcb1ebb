"""Inverse problems: images from measurements, with a flow as the prior."""

from mixerflow.restoration.fillings import best_filter, blurred, harmonic, means
from mixerflow.restoration.masks import CentreMask, Mask, PictureMask, RandomMask, mask_of
from mixerflow.restoration.measurements import (
    ROUNDING,
    Blurred,
    Downsampled,
    Masked,
    Measurement,
    Noisy,
)
from mixerflow.restoration.scores import Row, compare, psnr, real_bits
from mixerflow.restoration.search import (
    ImageSearch,
    LatentSearch,
    Restored,
    Search,
    require_density,
    restore,
)

__all__ = [
    "ROUNDING",
    "Blurred",
    "CentreMask",
    "Downsampled",
    "ImageSearch",
    "LatentSearch",
    "Mask",
    "Masked",
    "Measurement",
    "Noisy",
    "PictureMask",
    "RandomMask",
    "Restored",
    "Row",
    "Search",
    "best_filter",
    "blurred",
    "compare",
    "harmonic",
    "mask_of",
    "means",
    "psnr",
    "real_bits",
    "require_density",
    "restore",
]
