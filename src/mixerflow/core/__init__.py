"""A transform has two directions; a flow is a transform and a base distribution.

A `Transform` maps data to latents (`forward`) and back (`inverse`), each with its own log-det.
`Chain`, `Inverse`, `Along`, `Window` and `MultiScale` combine transforms; a `Flow` is a transform
with a base distribution, which together are a density over images. `Flow.layers` lists the layers
of a flow.

Shapes: a batch is ``(B, *event)``. Events of images are ``(C, H, W)``, more generally
``(C, *spatial)``; log-dets and log-probabilities are ``(B,)`` in nats, float32 or wider.
"""

# isort: off
# fmt: off
from mixerflow.core.bases import (
    Base, Cauchy, GaussianMixture, SpikeAndSlab, StandardNormal, StudentT,
)
from mixerflow.core.class_bases import ClassGaussians
from mixerflow.core.combine import Along, Chain, Inverse, Layer, Window
from mixerflow.core.context import VectorNet, checked_context, example_context
from mixerflow.core.flow import Flow
from mixerflow.core.memory import Memory, refuse_sharded
from mixerflow.core.inputs import as_tensor, class_numbers
from mixerflow.core.noise import Centre, Noise
from mixerflow.core.outputs import Encoded, Inverted, NonFiniteWarning, Samples
from mixerflow.core.scales import MultiScale
from mixerflow.core.solve import (
    ConvergenceWarning, Solve, counting, fixed_point, log_det_wanted, monotone_root, noted, report,
    values_alone,
)
from mixerflow.core.transform import (
    Composite, Context, Density, Dequantization, FixedShape, Mapped, MixesPlaces, PlacedLayer,
    Runner, Shape, Transform, constant, expect, floating, is_estimated, number_streams, total,
)
from mixerflow.core.views import evaluating, submodules, uncounted

__all__ = [
    "Along", "Base", "Cauchy", "Centre", "Chain", "ClassGaussians", "Composite", "Context",
    "ConvergenceWarning", "Density", "Dequantization", "Encoded", "FixedShape", "Flow",
    "GaussianMixture", "Inverse", "Inverted",
    "Layer", "Mapped", "Memory", "MixesPlaces", "MultiScale", "Noise", "NonFiniteWarning",
    "PlacedLayer", "Runner", "Samples",
    "Shape", "Solve", "SpikeAndSlab", "StandardNormal", "StudentT", "Transform", "VectorNet",
    "Window", "as_tensor", "checked_context", "class_numbers", "constant", "counting", "evaluating",
    "example_context", "expect", "fixed_point", "floating", "is_estimated", "log_det_wanted",
    "monotone_root", "noted", "number_streams",
    "refuse_sharded", "report", "submodules", "total", "uncounted", "values_alone",
]
