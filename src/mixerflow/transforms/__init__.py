"""Transforms, one idea a file; `mixerflow.transforms.checks` holds the laws they obey."""

from mixerflow.transforms.actnorm import ActNorm
from mixerflow.transforms.butterfly import Butterfly
from mixerflow.transforms.continuous import Continuous
from mixerflow.transforms.coupling import Coupling, halves
from mixerflow.transforms.dequantize import Dequantize, Logit, Rescale
from mixerflow.transforms.laws import Affine, Law
from mixerflow.transforms.layout import Bands, Dilated, Patches, Stripes
from mixerflow.transforms.linear import LU, PLU, RLU, Linear
from mixerflow.transforms.rows import Rows
from mixerflow.transforms.woodbury import Woodbury

__all__ = [
    "LU",
    "PLU",
    "RLU",
    "ActNorm",
    "Affine",
    "Bands",
    "Butterfly",
    "Continuous",
    "Coupling",
    "Dequantize",
    "Dilated",
    "Law",
    "Linear",
    "Logit",
    "Patches",
    "Rescale",
    "Rows",
    "Stripes",
    "Woodbury",
    "halves",
]
