"""A lossless codec of images out of a flow, whose files decode on every machine."""

from mixerflow.compression.archive import Archive
from mixerflow.compression.codec import Codec
from mixerflow.compression.coded import Decoded, Lost, Totals

__all__ = ["Archive", "Codec", "Decoded", "Lost", "Totals"]
