"""A transform has two directions; a flow is a transform and a base distribution.

A `Transform` maps data to latents (`forward`) and back (`inverse`), each with its own log-det.
`Chain`, `Inverse`, `Along` and `Window` combine transforms; `Flow` adds a base distribution and
becomes a density over images. Everything a model needs beyond this is another `Transform`.

Shapes: a batch is ``(B, *event)``. Events of images are ``(C, H, W)``, more generally
``(C, *spatial)``; log-dets and log-probabilities are ``(B,)`` in nats, float32 or wider.
"""

from mixerflow.core.bases import (
    BASES,
    Base,
    Cauchy,
    GaussianMixture,
    SpikeAndSlab,
    StandardNormal,
    StudentT,
)
from mixerflow.core.combine import Along, Chain, Inverse, Window
from mixerflow.core.flow import Encoded, Flow, Samples, as_tensor
from mixerflow.core.memory import Memory, refuse_sharded, uncounted
from mixerflow.core.noise import Centre, Noise
from mixerflow.core.scales import Flatten, Tail
from mixerflow.core.solve import ConvergenceWarning, fixed_point, monotone_root, report
from mixerflow.core.transform import (
    Density,
    Dequantization,
    Shape,
    Transform,
    constant,
    expect,
    floating,
    inside,
    total,
)

__all__ = [
    "BASES",
    "Along",
    "Base",
    "Cauchy",
    "Centre",
    "Chain",
    "ConvergenceWarning",
    "Density",
    "Dequantization",
    "Encoded",
    "Flatten",
    "Flow",
    "GaussianMixture",
    "Inverse",
    "Memory",
    "Noise",
    "Samples",
    "Shape",
    "SpikeAndSlab",
    "StandardNormal",
    "StudentT",
    "Tail",
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
