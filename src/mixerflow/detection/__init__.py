"""Outliers: scores with their corrections, thresholds, and where in an image they lie."""

from mixerflow.detection.fitted import (
    GROUPS,
    Fitted,
    Outliers,
    compare_sets,
    fit_outliers,
    fit_scores,
    halves,
    outliers,
)
from mixerflow.detection.groups import group_scores
from mixerflow.detection.measured import Measured, complexity, compressor_of, measure
from mixerflow.detection.metrics import Detection, detection
from mixerflow.detection.scores import SCORES, Score, bits_of, scores_for, scores_named
from mixerflow.detection.threshold import Threshold, least_images, rarity, threshold_of

__all__ = [
    "GROUPS",
    "SCORES",
    "Detection",
    "Fitted",
    "Measured",
    "Outliers",
    "Score",
    "Threshold",
    "bits_of",
    "compare_sets",
    "complexity",
    "compressor_of",
    "detection",
    "fit_outliers",
    "fit_scores",
    "group_scores",
    "halves",
    "least_images",
    "measure",
    "outliers",
    "rarity",
    "scores_for",
    "scores_named",
    "threshold_of",
]
