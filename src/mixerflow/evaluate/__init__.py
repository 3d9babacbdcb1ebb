"""Evaluation of a flow on images: functions that return dataclasses of numbers."""

from mixerflow.evaluate.bits import Bits, Bound, bits, density_of, estimator_of, kind_of
from mixerflow.evaluate.classify import Classification, Reliability, classify
from mixerflow.evaluate.comparison import (
    FID,
    FrechetFigure,
    Reference,
    compare,
    require_comparable,
)
from mixerflow.evaluate.draws import Draws
from mixerflow.evaluate.embeddings import Whitening, embed, passes_of
from mixerflow.evaluate.features import Features, FileFeatures, load_features
from mixerflow.evaluate.frechet import Statistics, frechet_distance, precision_recall
from mixerflow.evaluate.posterior import class_count, class_log_probs
from mixerflow.evaluate.probe import (
    Labelled,
    ProbeFigure,
    ProbeSettings,
    ProbeSummary,
    probe,
)
from mixerflow.evaluate.samples import (
    DrawnPixels,
    GridArtefacts,
    draw_pixels,
    draw_values,
    grid_artefacts,
    has_pictures,
    high_frequency_power,
    to_pixels,
)
from mixerflow.evaluate.yardsticks import gaussian_bits, yardsticks

__all__ = [
    "FID",
    "Bits",
    "Bound",
    "Classification",
    "DrawnPixels",
    "Draws",
    "Features",
    "FileFeatures",
    "FrechetFigure",
    "GridArtefacts",
    "Labelled",
    "ProbeFigure",
    "ProbeSettings",
    "ProbeSummary",
    "Reference",
    "Reliability",
    "Statistics",
    "Whitening",
    "bits",
    "class_count",
    "class_log_probs",
    "classify",
    "compare",
    "density_of",
    "draw_pixels",
    "draw_values",
    "embed",
    "estimator_of",
    "frechet_distance",
    "gaussian_bits",
    "grid_artefacts",
    "has_pictures",
    "high_frequency_power",
    "kind_of",
    "load_features",
    "passes_of",
    "precision_recall",
    "probe",
    "require_comparable",
    "to_pixels",
    "yardsticks",
]
