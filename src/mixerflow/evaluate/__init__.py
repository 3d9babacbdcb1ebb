"""Evaluation of a flow on images: functions that return dataclasses of numbers."""

from mixerflow.evaluate.bits import PROBES, bits, passes_for
from mixerflow.evaluate.classify import Classification, Reliability, classify
from mixerflow.evaluate.comparison import (
    FID,
    FrechetFigure,
    Reference,
    compare,
    require_comparable,
)
from mixerflow.evaluate.draws import Draws, Estimates, Passes
from mixerflow.evaluate.embeddings import Whitening, embed, passes_of
from mixerflow.evaluate.exact import ExactCost, exact_cost, require_small
from mixerflow.evaluate.features import Features, FileFeatures, load_features
from mixerflow.evaluate.figure import Bits, Bound, density_of, estimator_of, kind_of, probes_of
from mixerflow.evaluate.frechet import Statistics, frechet_distance, precision_recall
from mixerflow.evaluate.judge import Judge, Judged, JudgeSettings, judge_of
from mixerflow.evaluate.likeness import (
    Likeness,
    LikenessTable,
    border_ratio,
    compare_likeness,
    likeness,
    require_likeness,
)
from mixerflow.evaluate.posterior import class_count, class_log_probs, class_names
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
    "PROBES",
    "Bits",
    "Bound",
    "Classification",
    "DrawnPixels",
    "Draws",
    "Estimates",
    "ExactCost",
    "Features",
    "FileFeatures",
    "FrechetFigure",
    "GridArtefacts",
    "Judge",
    "JudgeSettings",
    "Judged",
    "Labelled",
    "Likeness",
    "LikenessTable",
    "Passes",
    "ProbeFigure",
    "ProbeSettings",
    "ProbeSummary",
    "Reference",
    "Reliability",
    "Statistics",
    "Whitening",
    "bits",
    "border_ratio",
    "class_count",
    "class_log_probs",
    "class_names",
    "classify",
    "compare",
    "compare_likeness",
    "density_of",
    "draw_pixels",
    "draw_values",
    "embed",
    "estimator_of",
    "exact_cost",
    "frechet_distance",
    "gaussian_bits",
    "grid_artefacts",
    "has_pictures",
    "high_frequency_power",
    "judge_of",
    "kind_of",
    "likeness",
    "load_features",
    "passes_for",
    "passes_of",
    "precision_recall",
    "probe",
    "probes_of",
    "require_comparable",
    "require_likeness",
    "require_small",
    "to_pixels",
    "yardsticks",
]
