"""Appendix D, the things that did not help, and section 7, the things hoped for."""

from __future__ import annotations

from dataclasses import replace

from mixerflow.experiments.base import (
    APPENDIX_D_STEPS,
    CIFAR10,
    CIFAR10_SHAPE,
    GPU_TIME,
    PAPER,
    TWIN,
    changed,
    setups,
    shifted_twice_as_often,
)
from mixerflow.experiments.table import Claim, Column, Published, Row, Setup, Table
from mixerflow.training import TrainConfig

_D_BASE = replace(TWIN, shift=1, shift_every=4, scale_bound=None)


def _falling(train: TrainConfig) -> TrainConfig:
    return replace(train, layer_lr=0.5)


def _rising(train: TrainConfig) -> TrainConfig:
    return replace(train, layer_lr=2.0)


APPENDIX_D = Table(
    "appendix-d",
    "Appendix D and section 7: things that did not help, and things hoped for",
    "Negative log-likelihood in bits per dimension on CIFAR-10; the paper gives no figures for "
    "these. In the twin one layer of four is a shift layer, two in the row that shifts more often.",
    columns=(
        Column(
            "cifar10",
            "cifar10",
            CIFAR10_SHAPE,
            setups(Setup(PAPER, CIFAR10, 0, GPU_TIME), _D_BASE, APPENDIX_D_STEPS),
        ),
    ),
    rows=(
        Row("base", "MixerFlow", published={"cifar10": Published(3.46, 11.34, "Table 1")}),
        Row("no-shift", "No shift layers", changed(shift=0)),
        Row("larger-shift", "Larger shifts, 2 pixels", changed(shift=2)),
        Row("frequent-shift", "Shift layers twice as often", shifted_twice_as_often),
        Row("stripes", "Stripes", changed(cut="stripes")),
        Row("bands", "Bands", changed(cut="bands")),
        Row("dilated", "Dilated patches", changed(cut="dilated")),
        Row("growing-patches", "Patches of 2, then 4 pixels", changed(patches=(2, 4))),
        Row("shrinking-patches", "Patches of 4, then 2 pixels", changed(patches=(4, 2))),
        Row("squeeze", "Squeezed first", changed(squeeze=2)),
        Row("grown", "Depth grown in two stages", training=lambda t: replace(t, grow=2)),
        Row("falling-rates", "The last layer at half the rate", training=_falling),
        Row("rising-rates", "The last layer at twice the rate", training=_rising),
        Row("floored", "Scales bounded away from 0", changed(law="floored")),
        Row("cauchy", "Cauchy base", changed(base="cauchy")),
        Row("student", "Student-t base", changed(base="student-t")),
        Row("mixture", "Gaussian-mixture base", changed(base="mixture")),
        Row("slab", "Spike-and-slab base", changed(base="spike-and-slab")),
        Row("learned-positions", "Learned positions", changed(positions="learned")),
        Row("sinusoidal-positions", "Sinusoidal positions", changed(positions="sinusoidal")),
        Row("scales", "Two scales", changed(scales=2)),
        Row("glow", "Glow's steps first", changed(glow=1)),
        Row("convolution", "Convolutional couplings in each layer", changed(extra="convolution")),
        Row("attention", "Attention between patches in each layer", changed(extra="attention")),
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
