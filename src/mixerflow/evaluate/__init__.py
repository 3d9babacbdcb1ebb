"""Evaluation of a flow on images: functions that return dataclasses of numbers."""

from mixerflow.evaluate.bits import Bits, Bound, bits, density_of, estimator_of, kind_of
from mixerflow.evaluate.comparison import (
    FID,
    FrechetFigure,
    Reference,
    compare,
    require_comparable,
)
from mixerflow.evaluate.draws import Draws
from mixerflow.evaluate.features import Features, FileFeatures, load_features
from mixerflow.evaluate.frechet import Statistics, frechet_distance, precision_recall
from mixerflow.evaluate.posterior import class_log_probs
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
    "FID",
    "Bits",
    "Bound",
    "DrawnPixels",
    "Draws",
    "Features",
    "FileFeatures",
    "FrechetFigure",
    "GridArtefacts",
    "Reference",
    "Statistics",
    "bits",
    "class_log_probs",
    "compare",
    "density_of",
    "draw_pixels",
    "estimator_of",
    "frechet_distance",
    "gaussian_bits",
    "grid_artefacts",
    "high_frequency_power",
    "kind_of",
    "load_features",
    "precision_recall",
    "require_comparable",
    "to_pixels",
    "yardsticks",
]
