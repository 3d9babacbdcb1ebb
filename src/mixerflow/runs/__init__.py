"""Run folders: checkpoints that survive a kill, ``run.json``, metrics, and published weights."""

from mixerflow.runs.checkpoint import Checkpoint, Checkpoints
from mixerflow.runs.evaluations import Evaluator, KeptDraws
from mixerflow.runs.fitting import (
    labels_of,
    numbered,
    own_parts,
    reading_of,
    require_context,
    require_levels,
    vectors_of,
)
from mixerflow.runs.folder import RunFolder
from mixerflow.runs.metadata import existing_run
from mixerflow.runs.publish import publish, push
from mixerflow.runs.thresholds import InsideFit, keep_fit, kept_fit
from mixerflow.runs.weights import (
    begin_from,
    device_of,
    is_published,
    load,
    read_metadata,
    read_weights,
)

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "Evaluator",
    "InsideFit",
    "KeptDraws",
    "RunFolder",
    "begin_from",
    "device_of",
    "existing_run",
    "is_published",
    "keep_fit",
    "kept_fit",
    "labels_of",
    "load",
    "numbered",
    "own_parts",
    "publish",
    "push",
    "read_metadata",
    "read_weights",
    "reading_of",
    "require_context",
    "require_levels",
    "vectors_of",
]
