"""Transforms, one idea a file; `mixerflow.transforms.checks` holds the laws they obey."""

# isort: off
# fmt: off
from mixerflow.transforms.attention import MapAttention, TokenAttention
from mixerflow.transforms.augment import Augment, AugmentByFlow, CrossUnits
from mixerflow.transforms.autoregressive import Autoregressive
from mixerflow.transforms.butterfly import Butterfly
from mixerflow.transforms.continuous import Continuous
from mixerflow.transforms.convolution import AutoregressiveConvolution, PeriodicConvolution
from mixerflow.transforms.coupling import (
    Checkerboard, Columns, Coupling, Halves, Leading, NoSplit, Split, halves,
)
from mixerflow.transforms.dequantize import Dequantize, Logit, Rescale
from mixerflow.transforms.each_part import EachPart
from mixerflow.transforms.elementwise import Affine, Elementwise, FlooredAffine, SigmoidAffine
from mixerflow.transforms.gaussianize import Gaussianize
from mixerflow.transforms.kernel_chain import KernelChain, MixerLayer
from mixerflow.transforms.layout import (
    Bands, CheckerboardSqueeze, Dilated, Patchify, Reshape, Roll, SpaceToDepth, Squeeze, Stripes,
    SwapHalves,
)
from mixerflow.transforms.linear import Linear, Matrix
from mixerflow.transforms.lines import LineAutoregressive
from mixerflow.transforms.logistic import LogisticMixture
from mixerflow.transforms.low_rank import FixedWoodbury, Householder, Woodbury
from mixerflow.transforms.lu import LU, PLU, RLU, UnpackedPLU
from mixerflow.transforms.normal_scores import NormalScores
from mixerflow.transforms.norms import ActNorm, BatchNorm, DiagonalAffine
from mixerflow.transforms.residual import Monotone, Residual
from mixerflow.transforms.shuffle import ShufflePixels
from mixerflow.transforms.spline import RationalQuadratic
from mixerflow.transforms.surjections import AbsoluteValue, MaxPool, Round, Sort
from mixerflow.transforms.variational import VariationalDequantize
from mixerflow.transforms.whiten import Standardize, Whiten

__all__ = [
    "LU", "PLU", "RLU", "AbsoluteValue", "ActNorm", "Affine", "Augment", "AugmentByFlow",
    "Autoregressive", "AutoregressiveConvolution", "Bands", "BatchNorm", "Butterfly",
    "Checkerboard", "CheckerboardSqueeze", "Columns", "Continuous", "Coupling", "CrossUnits",
    "Dequantize", "DiagonalAffine", "Dilated", "EachPart", "Elementwise", "FixedWoodbury",
    "FlooredAffine", "Gaussianize", "Halves", "Householder", "KernelChain", "Leading",
    "LineAutoregressive", "Linear", "LogisticMixture", "Logit", "MapAttention", "Matrix", "MaxPool",
    "MixerLayer", "Monotone", "NoSplit", "NormalScores", "Patchify", "PeriodicConvolution",
    "RationalQuadratic", "Rescale", "Reshape", "Residual", "Roll", "Round", "ShufflePixels",
    "SigmoidAffine", "Sort", "SpaceToDepth", "Split", "Squeeze", "Standardize", "Stripes",
    "SwapHalves", "TokenAttention", "UnpackedPLU", "VariationalDequantize", "Whiten", "Woodbury",
    "halves",
]
