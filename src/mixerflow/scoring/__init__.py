"""Scores of many images: a callable that can be pickled, for pipelines on one machine or many."""

from mixerflow.scoring.images import image_of, pixels_of
from mixerflow.scoring.scorer import Scorer

__all__ = ["Scorer", "image_of", "pixels_of"]
