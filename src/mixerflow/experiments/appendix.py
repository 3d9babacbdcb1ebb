"""Appendix D, the things that did not help, and section 7, the things hoped for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow.experiments.base import (
    APPENDIX_D_STEPS,
    CIFAR10,
    GPU_TIME,
    TWIN,
    changed,
    setups,
    shifted_twice_as_often,
)
from mixerflow.experiments.table import Claim, Column, PublishedResult, Row, Setup, Table
from mixerflow.models import MixerFlow, recipe
from mixerflow.parts import (
    CauchyBase,
    GlowSteps,
    LearnedEncoding,
    MixtureBase,
    Model,
    PatchAttention,
    Scales,
    SinusoidalEncoding,
    SpikeAndSlabBase,
    StudentTBase,
)
from mixerflow.registry import evolve, settings_of
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import Affine, FlooredAffine

_D_BASE = evolve(TWIN, {"patching.shift": (0, 0, 0, 1), "flow.elementwise": Affine()})


def _beside(where: str, part: type) -> Callable[[Model], Model]:
    """With a part whose net is as wide as those of the mixing."""

    def change(model: Model) -> Model:
        width = settings_of(model)["flow.net.width"]
        return evolve(model, {where: part, f"{where}.net.width": width})

    return change


def _falling(train: TrainConfig) -> TrainConfig:
    return replace(train, layer_lr=0.5)


def _rising(train: TrainConfig) -> TrainConfig:
    return replace(train, layer_lr=2.0)


_SINUSOIDAL = changed(positions=SinusoidalEncoding())

APPENDIX_D = Table(
    "appendix-d",
    "Appendix D and section 7: things that did not help, and things hoped for",
    "Negative log-likelihood in bits per dimension on CIFAR-10; the paper gives no figures for "
    "these. In the twin one layer of four is a shift layer, two in the row that shifts more often.",
    columns=(
        Column(
            "cifar10",
            *recipe.CIFAR10,
            setups(Setup(MixerFlow(), CIFAR10, 0, GPU_TIME), _D_BASE, APPENDIX_D_STEPS),
        ),
    ),
    rows=(
        Row("base", "MixerFlow", published={"cifar10": PublishedResult(3.46, 11.34, "Table 1")}),
        Row("no-shift", "No shift layers", changed(patching__shift=0)),
        Row("larger-shift", "Larger shifts, 2 pixels", changed(patching__shift=(0, 0, 0, 2))),
        Row("frequent-shift", "Shift layers twice as often", shifted_twice_as_often),
        Row("stripes", "Stripes", changed(patching__cut="stripes")),
        Row("bands", "Bands", changed(patching__cut="bands")),
        Row("dilated", "Dilated patches", changed(patching__cut="dilated")),
        Row("growing-patches", "Patches of 2, then 4 pixels", changed(patching__size=(2, 4))),
        Row("shrinking-patches", "Patches of 4, then 2 pixels", changed(patching__size=(4, 2))),
        Row("squeeze", "Squeezed first", changed(squeeze=2)),
        Row("grown", "Depth grown in two stages", stages=2),
        Row("falling-rates", "The last layer at half the rate", training=_falling),
        Row("rising-rates", "The last layer at twice the rate", training=_rising),
        Row("floored", "Scales bounded away from 0", changed(flow__elementwise=FlooredAffine())),
        Row("cauchy", "Cauchy base", changed(base=CauchyBase())),
        Row("student", "Student-t base", changed(base=StudentTBase())),
        Row("mixture", "Gaussian-mixture base", changed(base=MixtureBase())),
        Row("slab", "Spike-and-slab base", changed(base=SpikeAndSlabBase())),
        Row("learned-positions", "Learned positions", changed(positions=LearnedEncoding())),
        Row("sinusoidal-positions", "Sinusoidal positions", _SINUSOIDAL),
        Row("scales", "Two scales", _beside("scales", Scales)),
        Row("glow", "Glow's steps first", _beside("glow", GlowSteps)),
        Row("convolution", "Convolutional couplings in each layer", _beside("beside", GlowSteps)),
        Row(
            "attention",
            "Attention between patches in each layer",
            _beside("beside", PatchAttention),
        ),
    ),
    claims=(
        Claim("larger-shift", "no-shift", "larger shifts are better than none"),
        Claim("frequent-shift", "no-shift", "more frequent shifts are better than none"),
        Claim("base", "larger-shift", "larger shifts do not help beyond 1 pixel"),
        Claim("base", "frequent-shift", "more frequent shifts do not help"),
        Claim("base", "stripes", "stripes do not help"),
        Claim("base", "bands", "bands do not help"),
        Claim("base", "dilated", "dilated patches do not help"),
        Claim("base", "growing-patches", "patches that grow with depth do not help"),
        Claim("base", "shrinking-patches", "patches that shrink with depth do not help"),
        Claim("base", "squeeze", "squeezing does not help"),
        Claim("base", "grown", "growing depth does not help"),
        Claim("base", "falling-rates", "learning rates by layer do not help (falling)"),
        Claim("base", "rising-rates", "learning rates by layer do not help (rising)"),
        Claim("base", "floored", "scales bounded away from 0 do not help"),
        Claim("base", "cauchy", "a Cauchy base does not help"),
        Claim("base", "student", "fat-tailed bases do not help (here Student's)"),
        Claim("base", "mixture", "a Gaussian mixture does not help"),
        Claim("base", "slab", "a spike-and-slab base does not help"),
        Claim("base", "learned-positions", "learned positions do not help"),
        Claim("base", "sinusoidal-positions", "sinusoidal positions do not help"),
        Claim("scales", "base", "several scales might help (section 7)"),
        Claim("glow", "base", "Glow-like layers first might help (section 7)"),
        Claim("convolution", "base", "convolutional layers might help (section 7)"),
        Claim("attention", "base", "attention might help (section 7)"),
    ),
)
