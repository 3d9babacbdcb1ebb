"""A transform has two directions; a flow is a transform and a base distribution.

A `Transform` maps data to latents (`forward`) and back (`inverse`), each with its own log-det.
`Chain`, `Inverse`, `Along`, `Window` and `MultiScale` combine transforms; `Flow` adds a base
distribution and becomes a density over images. Everything a model needs beyond this is another
`Transform`. What counts as one layer of it, `Flow.layers` says.

Shapes: a batch is ``(B, *event)``. Events of images are ``(C, H, W)``, more generally
``(C, *spatial)``; log-dets and log-probabilities are ``(B,)`` in nats, float32 or wider.
"""

from mixerflow.core.bases import (
    Base,
    Cauchy,
    GaussianMixture,
    SpikeAndSlab,
    StandardNormal,
    StudentT,
)
from mixerflow.core.combine import Along, Chain, Inverse, Layer, Window
from mixerflow.core.composite import Composite
from mixerflow.core.flow import Encoded, Flow, Samples, as_tensor
from mixerflow.core.memory import Memory, refuse_sharded, uncounted
from mixerflow.core.noise import Centre, Noise
from mixerflow.core.scales import MultiScale
from mixerflow.core.solve import ConvergenceWarning, fixed_point, monotone_root, report
from mixerflow.core.transform import (
    Context,
    Density,
    Dequantization,
    FixedShape,
    Mapped,
    PlacedLayer,
    Run,
    Shape,
    Transform,
    constant,
    expect,
    floating,
    inside,
    total,
)

__all__ = [
    "Along",
    "Base",
    "Cauchy",
    "Centre",
    "Chain",
    "Composite",
    "Context",
    "ConvergenceWarning",
    "Density",
    "Dequantization",
    "Encoded",
    "FixedShape",
    "Flow",
    "GaussianMixture",
    "Inverse",
    "Layer",
    "Mapped",
    "Memory",
    "MultiScale",
    "Noise",
    "PlacedLayer",
    "Run",
    "Samples",
    "Shape",
    "SpikeAndSlab",
    "StandardNormal",
    "StudentT",
    "Transform",
    "Window",
    "as_tensor",
    "constant",
    "expect",
    "fixed_point",
    "floating",
    "inside",
    "monotone_root",
    "refuse_sharded",
    "report",
    "total",
    "uncounted",
]
