"""Flows as programs: the values of the flow itself, or one line that says why there are none."""

import numpy as np
import pytest
import torch
from torch import nn

from compression_reference import evaluate
from lowered import MODELS, MORE, flow_of, own_flow, plain
from mixerflow.compression.constants import contracted, factorise
from mixerflow.compression.lowering import program_of
from mixerflow.core import Along, Chain, Flow
from mixerflow.errors import ConfigError
from mixerflow.models import MAF, Glow
from mixerflow.parts import (
    KAN,
    Attention,
    DenseNet,
    GaussiansHead,
    GlowSteps,
    LogitPixels,
    NormalChannels,
    PatchAttention,
    RowAutoregression,
    RowContinuous,
    RowCoupling,
    RowResidual,
    ScaledPixels,
    VariationalDequantizer,
    Vectors,
    WoodburyMap,
)
from mixerflow.transforms import (
    ActNorm,
    Affine,
    Dequantize,
    LogisticMixture,
    Logit,
    Matrix,
    NormalScores,
    RationalQuadratic,
    Rescale,
)


def require_same(flow):
    """The program's latents, and density, are those of the flow, on real numbers in float64."""
    program, images = program_of(flow), 3
    size = int(np.prod(flow.shape))
    generator = torch.Generator().manual_seed(1)
    reals = torch.rand(images, *flow.shape, dtype=torch.float64, generator=generator) * flow.levels
    labels = torch.arange(images) % program.classes if program.classes else None
    with torch.no_grad():
        wide = flow.double().continuous()(reals, labels)
    classes = None if labels is None else labels.numpy()
    z, log_prob = evaluate(program, reals.reshape(images, size).numpy(), classes)
    # nets' numbers are rounded to float32, and what a log-scale without bound does to that
    theirs = wide.z.sort(1)[0].numpy()
    np.testing.assert_allclose(np.sort(z, 1), theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(log_prob, wide.log_prob.numpy(), rtol=1e-5)
    return program


@pytest.mark.parametrize("name", MODELS | MORE)
def test_a_program_computes_its_flow(name):
    require_same(flow_of(*(MODELS | MORE)[name]))


@pytest.mark.parametrize("context", [0, 3])
def test_a_program_computes_a_flow_of_ones_own(context):
    program = require_same(own_flow(context))
    assert program.classes == (3 if context else 0)


@pytest.mark.parametrize("name", ["batch", "learned activation"])
def test_a_program_computes_the_copy_for_inference(name):
    require_same(flow_of(*MODELS[name]).fused())


def coupled(elementwise, **settings):
    return plain(flow=RowCoupling(elementwise, **settings))


REFUSED = {
    "splines of 65 bins": coupled(RationalQuadratic(65)),
    "LogisticMixture": coupled(LogisticMixture(2)),
    "SplineNet": plain(flow=RowCoupling(Affine(), KAN(4))),
    "Autoregressive": plain(flow=RowAutoregression(Affine())),
    "Residual": plain(flow=RowResidual()),
    "Continuous": plain(flow=RowContinuous()),
    "AttentionNet": plain(beside=PatchAttention(net=Attention(4, heads=2))),
    "DenseConvNet": plain(glow=GlowSteps(1, net=DenseNet(4, 2))),
    "GlowNet": Glow(1, 1, elementwise=Affine()),
    "SigmoidAffine": Glow(1, 1),
    "log-scales up to 90": coupled(Affine(90.0)),
    "Logit": plain(pixels=LogitPixels()),
    "VariationalDequantize": plain(
        pixels=ScaledPixels(dequantizer=VariationalDequantizer(1, 4, growth=4, depth=1))
    ),
    "Augment": plain(added=NormalChannels(1)),
    "VectorNet": plain(vectors=Vectors(3)),
    "ClassGaussians": plain(head=GaussiansHead(3)),
    "Woodbury": plain(linear=WoodburyMap(2)),
    "integer images": plain(pixels=ScaledPixels(levels=None)),
    "LogitMAF": MAF(layers=1, width=8),
}


@pytest.mark.parametrize("named", REFUSED)
def test_a_model_that_the_codec_does_not_take_is_refused_in_one_line_that_names_why(named):
    flow = REFUSED[named].build((2, 4, 4)).eval()
    require_refused(flow, named.removesuffix("MAF"))


def require_refused(flow, named):
    with pytest.raises(ConfigError) as refusal:
        program_of(flow)
    line = str(refusal.value)
    assert "\n" not in line and line.startswith("the codec does not take a model that has ")
    assert named in line.split(": ")[0] and "couplings (affine" in line


def of(*steps, shape=(2, 2, 2), levels=4, **settings):
    return Flow(Chain(Dequantize(4), *steps), shape, levels=levels, **settings).eval()


def test_flows_of_ones_own_are_refused_in_one_line_too():
    class Doubled(ActNorm):
        def forward(self, x, context=None, noise=None):
            return super().forward(2 * x)

    singular = Matrix(2)
    with torch.no_grad():
        singular.weight.copy_(torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    replaced = of(ActNorm(2))
    replaced.transform.forward = lambda *inputs: None
    infinite = of(ActNorm(2))
    with torch.no_grad():
        infinite.transform.steps[1].shift[0] = torch.inf
    for flow, named in [
        (of(Doubled(2)), "Doubled"),
        (of(Along(0, singular)), "without an inverse"),
        (of(levels=5), "5 levels"),
        (of(Rescale(1 / 4), Logit(0.1)), "Logit"),
        (of(ActNorm(2), NormalScores((2, 2, 2), 4)), "normal scores of what"),
        (of(Dequantize(4)), "more than one dequantiser"),
        (Flow(ActNorm(2), (2, 2, 2), levels=4), "before the noise"),
        (Flow(Chain(), (2, 2, 2), levels=4), "no uniform noise"),
        (of(context_net=nn.Linear(3, 2)), "Linear"),
        (of(ActNorm(2)).double(), "torch.float64"),
        (replaced, "hooks"),
        (infinite, "not finite"),
    ]:
        require_refused(flow, named)


def test_a_program_is_the_same_in_training_mode_and_its_digest_knows_each_number():
    flow = flow_of(*MODELS["batch"])
    before = program_of(flow).sha256
    assert program_of(flow.train()).sha256 == before
    with torch.no_grad():
        next(flow.eval().parameters()).flatten()[0] += 1e-6
    assert program_of(flow).sha256 != before


def test_a_matrix_is_the_product_of_its_factors():
    matrix = np.random.default_rng(0).normal(size=(7, 7))
    matrix[0, 0] = 0
    order, triangles, pivots = factorise(matrix)
    lower, upper = np.tril(triangles, -1) + np.eye(7), np.triu(triangles, 1) + np.eye(7)
    np.testing.assert_allclose((lower @ upper) * pivots, matrix[order], atol=1e-12)
    assert np.abs(np.tril(triangles, -1)).max() <= 1
    assert factorise(np.ones((2, 2))) is None


def test_contexts_are_contracted():
    vectors, matrix = np.random.default_rng(0).normal(size=(2, 5, 4))
    np.testing.assert_allclose(contracted(vectors, matrix), vectors @ matrix.T, atol=1e-12)
