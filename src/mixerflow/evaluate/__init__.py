"""Evaluation of a flow on images: functions that return dataclasses of numbers."""

from mixerflow.evaluate.bits import Bits, bits, kind_of
from mixerflow.evaluate.samples import GridArtefacts, draw_pixels, grid_artefacts, to_pixels

__all__ = ["Bits", "GridArtefacts", "bits", "draw_pixels", "grid_artefacts", "kind_of", "to_pixels"]
