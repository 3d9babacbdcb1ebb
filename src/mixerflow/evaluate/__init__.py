"""Evaluation of a flow on images: functions that return dataclasses of numbers."""

from mixerflow.evaluate.artefacts import GridArtefacts, grid_artefacts
from mixerflow.evaluate.bits import Bits, bits, kind_of
from mixerflow.evaluate.draw import draw_pixels, to_pixels

__all__ = ["Bits", "GridArtefacts", "bits", "draw_pixels", "grid_artefacts", "kind_of", "to_pixels"]
