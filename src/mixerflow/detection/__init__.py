"""Outliers: scores with their corrections, thresholds, and where in an image they lie."""

from mixerflow.detection.classes import is_mixture
from mixerflow.detection.fitted import (
    GROUPS,
    Fitted,
    Outliers,
    compare,
    compare_sets,
    fit_outliers,
    fit_scores,
    halves,
    outliers,
    require_needs,
    require_settings,
    second_half,
)
from mixerflow.detection.groups import group_scores
from mixerflow.detection.known import SCORES, scores_for, scores_named
from mixerflow.detection.maps import GradientMap, OutlierMap, SlopeMap, VarianceMap
from mixerflow.detection.measured import (
    Measured,
    complexity,
    compressor_of,
    measure,
    note_of,
    stored,
    tells_classes,
)
from mixerflow.detection.metrics import Detection, detection
from mixerflow.detection.occlusion import OcclusionMap
from mixerflow.detection.pasted import Pasted, map_auroc, paste
from mixerflow.detection.places import (
    POOLINGS,
    MaximumPlace,
    MeanPlaces,
    Pooling,
    TopPlaces,
    factorises,
    place_scores,
)
from mixerflow.detection.scorer import PlaceScorer, scorer
from mixerflow.detection.scores import Score, bits_of
from mixerflow.detection.threshold import (
    LEAST_RATE,
    Threshold,
    least_images,
    percent,
    rarity,
    threshold_of,
)

__all__ = [
    "GROUPS",
    "LEAST_RATE",
    "POOLINGS",
    "SCORES",
    "Detection",
    "Fitted",
    "GradientMap",
    "MaximumPlace",
    "MeanPlaces",
    "Measured",
    "OcclusionMap",
    "OutlierMap",
    "Outliers",
    "Pasted",
    "PlaceScorer",
    "Pooling",
    "Score",
    "SlopeMap",
    "Threshold",
    "TopPlaces",
    "VarianceMap",
    "bits_of",
    "compare",
    "compare_sets",
    "complexity",
    "compressor_of",
    "detection",
    "factorises",
    "fit_outliers",
    "fit_scores",
    "group_scores",
    "halves",
    "is_mixture",
    "least_images",
    "map_auroc",
    "measure",
    "note_of",
    "outliers",
    "paste",
    "percent",
    "place_scores",
    "rarity",
    "require_needs",
    "require_settings",
    "scorer",
    "scores_for",
    "scores_named",
    "second_half",
    "stored",
    "tells_classes",
    "threshold_of",
]
