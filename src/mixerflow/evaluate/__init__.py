"""Evaluation of a flow on images: functions that return dataclasses of numbers."""

from mixerflow.evaluate.bits import Bits, Bound, bits, density_of, estimator_of, kind_of
from mixerflow.evaluate.draws import Draws
from mixerflow.evaluate.samples import (
    DrawnPixels,
    GridArtefacts,
    draw_pixels,
    grid_artefacts,
    high_frequency_power,
    to_pixels,
)
from mixerflow.evaluate.yardsticks import gaussian_bits, yardsticks

__all__ = [
    "Bits",
    "Bound",
    "DrawnPixels",
    "Draws",
    "GridArtefacts",
    "bits",
    "density_of",
    "draw_pixels",
    "estimator_of",
    "gaussian_bits",
    "grid_artefacts",
    "high_frequency_power",
    "kind_of",
    "to_pixels",
    "yardsticks",
]
