"""The laws are tested: each planted fault breaks the law that should see it, its parent none."""

import importlib
import math
import re
from dataclasses import dataclass, replace

import pytest
import torch

from mixerflow.core import Along, MultiScale
from mixerflow.nets import (
    DenseAttentionNet,
    DenseEncoder,
    ResidualConvNet,
    ResidualMLP,
    WideningConvNet,
)
from mixerflow.transforms import (
    LU,
    AbsoluteValue,
    ActNorm,
    Affine,
    Augment,
    Checkerboard,
    Columns,
    Coupling,
    Dequantize,
    DiagonalAffine,
    Matrix,
    NoSplit,
    Rescale,
    SigmoidAffine,
    UnpackedPLU,
    VariationalDequantize,
)
from mixerflow.transforms.checks import LAWS, check

GRAPHS = {"compile forward", "compile inverse", "export"}


def broken_laws(transform, shape, **settings) -> set[str]:
    """The names of the laws that `check` finds broken."""
    try:
        check(transform, shape, laws=set(LAWS) - GRAPHS, **settings)
    except AssertionError as error:
        names = "|".join(map(re.escape, LAWS))
        assert type(transform).__name__ in str(error)
        return set(re.findall(rf"^({names}): ", str(error), re.MULTILINE))
    return set()


def net(given, changed):
    return ResidualMLP(given, 2 * changed, width=8)


class WrongSign(LU):
    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return z, -log_det


class MissingRowFactor(Along):
    """Counts one row of each image instead of all."""

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return z, log_det / math.prod(x.shape[1:]) * x.shape[self.dim + 1]

    def inverse(self, z, context=None, noise=None):
        x, log_det = super().inverse(z, context)
        return x, log_det / math.prod(x.shape[1:]) * x.shape[self.dim + 1]


class SwappedHalf(Coupling):
    """Goes back by the other half."""

    def inverse(self, z, context=None, noise=None):
        kept, self.split = self.split, replace(self.split, flip=not self.flip)
        try:
            return super().inverse(z, context)
        finally:
            self.split = kept


class BatchLeak(Coupling):
    """Its conditioner sees the half relative to the batch's mean, in both directions."""

    def _parameters_of(self, given, changed, context):
        mean = given.mean(0, keepdim=True) if len(given) else 0
        return super()._parameters_of(given - mean, changed, context)


class NarrowSum(Coupling):
    """Sums by a matrix product, which autocast turns into bfloat16; the dtype does not tell."""

    def forward(self, x, context=None, noise=None):
        given, changed = self.split.parts(x)
        raw = self._parameters_of(given, changed, context)
        changed, log_det = self.elementwise.forward(changed, raw)
        ones = torch.ones(log_det.shape[1], 1, dtype=log_det.dtype)
        return self.split.join(given, changed), (log_det @ ones).squeeze(1).to(x.dtype)


class BFloat16LogDet(ActNorm):
    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return z, log_det.bfloat16()


class TransposedInverse(LU):
    """Solves L U x = z with the triangles the wrong way round."""

    def inverse(self, z, context=None, noise=None):
        lower, upper = self.triangles()
        log_det = super().inverse(z, context)[1]
        return (z - self.bias) @ torch.linalg.inv(lower @ upper), log_det


class Float32Constant(Rescale):
    """Holds its log-det in float32, whatever the model's dtype."""

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return z, log_det.float().to(x.dtype)


class WrongBothWays(ActNorm):
    """Forgets one feature in both directions, so that the two log-dets still cancel."""

    def _log_det(self, x):
        return super()._log_det(x) - self.log_scale[0]


class WritesInPlace(ActNorm):
    def forward(self, x, context=None, noise=None):
        return x.mul_(self.log_scale.exp()).add_(self.shift), super().forward(x)[1]


class CountsCalls(ActNorm):
    def __init__(self, n):
        super().__init__(n)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, context=None, noise=None):
        self.calls += 1
        return super().forward(x, context, noise)


class DeadParameter(ActNorm):
    def __init__(self, n):
        super().__init__(n)
        self.unused = torch.nn.Parameter(torch.zeros(n))


class LongNoise(Dequantize):
    """Noise on [0, 1.1): some pixels come back as their neighbour."""

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return x + 1.1 * (z - x), log_det


class LopsidedNoise(Dequantize):
    """Noise that comes back as the pixel it went, but is not uniform."""

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return x + (z - x).square(), log_det


class SilentNoise(Dequantize):
    """Draws, and does not say so: a flow would give it the stream of every other such."""

    draws = False


class CountsAllPlaces(Checkerboard):
    """Counts the log-derivatives of the colour that passes too."""

    def counted(self, log_slope):
        return log_slope


@dataclass(frozen=True)
class WrongSigmoid(SigmoidAffine):
    """Forgets the offset in both log-derivatives, so that they still cancel."""

    def forward(self, x, raw):
        return super().forward(x, raw)[0], raw[0].sigmoid().log()

    def inverse(self, z, raw):
        return super().inverse(z, raw)[0], -raw[0].sigmoid().log()


class WithoutAbs(Matrix):
    """The logarithm of a determinant that may be negative."""

    def _log_det(self):
        return torch.linalg.det(self.weight).log()


class CountsTwice(Matrix):
    """The log-det of W W'."""

    def _log_det(self):
        return 2 * super()._log_det()


def reflecting(kind):
    """A matrix whose determinant is negative, after the perturbation too."""
    matrix = kind(4)
    with torch.no_grad():
        matrix.weight.copy_(torch.diag(torch.tensor([-3.0, 3.0, 3.0, 3.0])))
    return matrix


def board(split, elementwise=SigmoidAffine(), kind=Coupling):  # noqa: B008
    return kind(split, ResidualConvNet(2, 4, width=4), elementwise)


class ForgetsItsScale(MultiScale):
    """Leaves the last scale's log-det out, both ways."""

    def compose(self, run, x, context=None, noise=None):
        z, log_det = super().compose(run, x, context, noise)
        return z, log_det - self.scales[-1].packed.diagonal().sum()

    def inverse(self, z, context=None, noise=None):
        x, log_det = super().inverse(z, context, noise)
        return x, log_det + self.scales[-1].packed.diagonal().sum()


class GoesOnWithTheWrongHalf(MultiScale):
    """Puts back as what went on what was done."""

    def inverse(self, z, context=None, noise=None):
        return super().inverse(z.flip(1), context, noise)


class LooksAtOthers(Coupling):
    """A prior given the batch's mean context."""

    def _parameters_of(self, given, changed, context):
        mean = context.mean(0, keepdim=True).expand_as(context)
        return super()._parameters_of(given, changed, mean)


class Unsorted(UnpackedPLU):
    """Undoes another permutation than its own; one that is drawn might be its own inverse."""

    def inverse(self, z, context=None, noise=None):
        return super().inverse(z.roll(1, -1), context, noise)


class FromLabels(torch.nn.Module):
    """A net of the context alone."""

    def __init__(self):
        super().__init__()
        self.read = torch.nn.Linear(2, 8)

    def forward(self, x, context=None):
        return self.read(context) + x.sum(1, keepdim=True)


def two_scales(kind):
    return kind((4,), [LU(4), LU(2)])


def prior(kind):
    return kind(NoSplit((4,)), FromLabels(), Affine(1.0))


FAULTS = {
    "a scale forgotten, both ways": (
        two_scales(ForgetsItsScale),
        two_scales(MultiScale),
        (4,),
        {"forward log-det", "inverse log-det"},
    ),
    "the wrong half goes on": (
        two_scales(GoesOnWithTheWrongHalf),
        two_scales(MultiScale),
        (4,),
        {"left inverse", "right inverse"},
    ),
    "another permutation undone": (
        Unsorted(5),
        UnpackedPLU(5),
        (5,),
        {"left inverse", "right inverse"},
    ),
    # a map whose log-derivative is not 0 at raw 0, or nobody would see that it is counted
    "all places counted": (
        board(CountsAllPlaces()),
        board(Checkerboard()),
        (2, 3, 4),
        {"forward log-det", "inverse log-det"},
    ),
    "columns swapped in inverse": (
        board(Columns(), Affine(), SwappedHalf),
        board(Columns(), Affine()),
        (2, 3, 4),
        {"left inverse", "right inverse"},
    ),
    "sigmoid, wrong both ways": (
        Coupling(-1, net(3, 3), WrongSigmoid()),
        Coupling(-1, net(3, 3), SigmoidAffine()),
        (6,),
        {"forward log-det", "inverse log-det"},
    ),
    "determinant without abs": (
        reflecting(WithoutAbs),
        reflecting(Matrix),
        (4,),
        {"forward log-det", "inverse log-det"},
    ),
    "determinant twice": (CountsTwice(5), Matrix(5), (5,), {"forward log-det", "inverse log-det"}),
    "sign": (WrongSign(5), LU(5), (5,), {"forward log-det"}),
    "missing row factor": (
        MissingRowFactor(0, LU(3)),
        Along(0, LU(3)),
        (3, 4),
        {"forward log-det", "inverse log-det"},
    ),
    "swapped half": (
        SwappedHalf(-1, net(3, 3), Affine()),
        Coupling(-1, net(3, 3), Affine()),
        (6,),
        {"left inverse", "right inverse"},
    ),
    "batch leak": (
        BatchLeak(-1, net(3, 3), Affine()),
        Coupling(-1, net(3, 3), Affine()),
        (6,),
        {"rows", "batch size"},
    ),
    "bf16 sum": (
        NarrowSum(-1, net(3, 3), Affine()),
        Coupling(-1, net(3, 3), Affine()),
        (6,),
        {"autocast"},
    ),
    "bf16 log-det": (BFloat16LogDet(5), ActNorm(5), (5,), {"width"}),
    "transposed inverse": (
        TransposedInverse(5),
        LU(5),
        (5,),
        {"left inverse", "right inverse"},
    ),
    "float32 constant": (Float32Constant(1 / 3), Rescale(1 / 3), (5,), {"forward log-det"}),
    "wrong both ways": (
        WrongBothWays(5),
        ActNorm(5),
        (5,),
        {"forward log-det", "inverse log-det"},
    ),
    "writes in place": (WritesInPlace(5), ActNorm(5), (5,), {"purity"}),
    "changes in eval": (CountsCalls(5), ActNorm(5), (5,), {"purity"}),
    "dead parameter": (DeadParameter(5), ActNorm(5), (5,), {"gradients"}),
}


def test_a_prior_that_looks_at_other_images_breaks_its_law():
    laws = {"rows", "batch size"}
    check(prior(Coupling), (4,), context=(2,), laws=laws)
    with pytest.raises(AssertionError, match="rows"):
        check(prior(LooksAtOthers), (4,), context=(2,), laws=laws)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_breaks_its_law(name):
    fault, parent, shape, laws = FAULTS[name]
    assert laws <= broken_laws(fault, shape)
    assert broken_laws(parent, shape) == set()


def pixels(batch, shape, generator):
    return torch.randint(0, 256, (batch, *shape), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("fault", "laws"),
    [
        (LongNoise(), {"left inverse"}),
        (LopsidedNoise(), {"expectation"}),
        (SilentNoise(), {"draws"}),
    ],
)
def test_a_faulty_dequantiser_breaks_its_law(fault, laws):
    assert broken_laws(fault, (3, 4), kind="stochastic", inputs=pixels) >= laws
    assert broken_laws(Dequantize(), (3, 4), kind="stochastic", inputs=pixels) == set()


class ForgetsTheScale(Augment):
    def forward(self, x, context=None, noise=None, *, given=None):
        z, log_det = super().forward(x, context, noise, given=given)
        s = self.net(x, context)[:, : self.channels]
        return z, log_det - (2 * torch.tanh(s / 2)).flatten(1).sum(1)


class AddsTheNoisesDensity(Augment):
    """``+ log N(e)`` in place of ``- log N(e)``, as a wrong sign in the bound has it."""

    def forward(self, x, context=None, noise=None, *, given=None):
        z, log_det = super().forward(x, context, noise, given=given)
        e = noise.normal(x.new_empty(len(x), self.channels, *self.shape[1:]), self.stream)
        return z, log_det - (e.square() + math.log(2 * math.pi)).flatten(1).sum(1)


class DropsTheData(Augment):
    def inverse(self, z, context=None, noise=None):
        return super().inverse(z.flip(1), context, noise)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        (ForgetsTheScale, "integral"),
        (AddsTheNoisesDensity, "integral"),
        (DropsTheData, "left inverse"),
    ],
)
def test_faulty_noise_beside_the_data_breaks_its_law(fault, law):
    def made(kind):
        return kind((1, 2, 1), 1, WideningConvNet(1, 2))

    assert law in broken_laws(made(fault), (1, 2, 1), kind="augmenting")
    assert broken_laws(made(Augment), (1, 2, 1), kind="augmenting") == set()


class ForgetsTheSigmoid(VariationalDequantize):
    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        u = z - x
        return z, log_det - (u * (1 - u)).log().flatten(1).sum(1)


class LeavesItsCell(VariationalDequantize):
    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x, context, noise)
        return 1.2 * (z - x) + x, log_det + 4 * math.log(1.2)


@pytest.mark.parametrize(
    ("fault", "law"), [(ForgetsTheSigmoid, "cube"), (LeavesItsCell, "left inverse")]
)
def test_faulty_learned_noise_breaks_its_law(fault, law):
    def made(kind):
        encoder = DenseEncoder(2, width=3, growth=6, depth=2, factor=1)
        return kind((2, 2, 1), encoder, DiagonalAffine((2, 1, 1)), (2, 2, 1))

    laws = set(LAWS) - GRAPHS - {"gradients"}  # this noise's flow does not read the encoder
    settings = {"kind": "variational", "inputs": pixels}
    with pytest.raises(AssertionError, match=law):
        check(made(fault), (2, 2, 1), laws=laws, **settings)
    check(made(VariationalDequantize), (2, 2, 1), laws=laws, **settings)


def test_attention_that_looks_at_other_images_breaks_its_law(monkeypatch):
    """The public Nyström package starts its pseudo-inverse from the largest norms of the batch."""
    module = importlib.import_module("mixerflow.nets.nystrom")

    def of_the_batch(k, steps=6):
        v = k.mT / (k.abs().sum(-2).amax() * k.abs().sum(-1).amax())
        for _ in range(steps):
            v = (2 * v) - v @ k @ v
        return v

    attentive = Coupling(0, DenseAttentionNet(2, 4, width=4, growth=2, depth=1), Affine(2.0))
    assert broken_laws(attentive, (4, 3, 4)) == set()
    monkeypatch.setattr(module.nystrom_attention, "__kwdefaults__", {"inverse": of_the_batch})
    assert {"rows", "batch size"} <= broken_laws(attentive, (4, 3, 4))


def test_a_fault_in_both_directions_is_not_seen_by_cancelling():
    fault, x = WrongBothWays(5), torch.randn(2, 5)
    z, log_det = fault(x)
    assert torch.allclose(log_det + fault.inverse(z)[1], torch.zeros(2))


class Estimated(ActNorm):
    """A log-det with noise on it; `bias` is the fault."""

    density = "estimate"
    draws = True

    def __init__(self, n, bias=0.0):
        super().__init__(n)
        self.bias = bias

    def forward(self, x, context=None, noise=None):
        z, log_det = super().forward(x)
        return z, log_det + self.bias + noise.normal(x.flatten(1)[:, 0], self.stream)


def test_estimated_log_dets_are_right_in_the_mean():
    assert broken_laws(Estimated(4), (4,), kind="estimate") == set()
    assert broken_laws(Estimated(4, bias=0.1), (4,), kind="estimate") == {"estimated log-det"}


class PositiveRoot(AbsoluteValue):
    """A surjection whose right inverse draws nothing: it takes the positive root."""

    def inverse(self, z, context=None, noise=None):
        return z.clone(), z.new_full((len(z),), math.log(2) * math.prod(z.shape[1:]))


def test_kinds_waive_what_cannot_hold():
    assert broken_laws(AbsoluteValue(), (4,), kind="surjection") == set()
    assert "left inverse" in broken_laws(AbsoluteValue(), (4,))
    wrong = broken_laws(PositiveRoot(), (4,), kind="surjection")
    assert wrong == {"inverse draws", "exchange"}


def test_unknown_laws_are_refused():
    with pytest.raises(ValueError, match=r"no such laws.*'sign'.*left inverse"):
        check(LU(3), (3,), laws={"sign"})


def test_the_subject_is_left_alone():
    transform = LU(3)
    check(transform, (3,), laws={"left inverse"})
    assert not transform.packed.any() and transform.packed.dtype == torch.float32
