"""Appendix D, the changes that did not help, and section 7, the changes that might help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mixerflow import parts
from mixerflow.experiments.base import CIFAR10, TWIN, changed, column
from mixerflow.experiments.table import Claim, PublishedResult, Row, Table
from mixerflow.models import MixerFlow
from mixerflow.parts import GlowSteps, Model, PatchAttention, Scales
from mixerflow.registry import evolve, settings_of
from mixerflow.train_config import TrainConfig
from mixerflow.transforms import Affine, FlooredAffine

_D_TWIN = evolve(TWIN, {"patching.shift": (0, 0, 0, 1), "flow.elementwise": Affine()})


def _add_part(where: str, part: type) -> Callable[[Model], Model]:
    """Add a part whose net is as wide as the nets of the mixing."""

    def change(model: Model) -> Model:
        width = settings_of(model)["flow.net.width"]
        return evolve(model, {where: part, f"{where}.net.width": width})

    return change


def _double_shifts(model: Model) -> Model:
    """Halve the period of the shift layers."""
    assert isinstance(model, MixerFlow)
    shift = model.patching.shift
    assert isinstance(shift, tuple)
    return evolve(model, {"patching.shift": shift[len(shift) // 2 :]})


def _train_with(**settings: float) -> Callable[[TrainConfig], TrainConfig]:
    return lambda train: replace(train, **settings)


_SINUSOIDAL = changed(positions=parts.SinusoidalEncoding())
_ATTENTION = _add_part("beside", PatchAttention)

APPENDIX_D = Table(
    "appendix-d",
    "Appendix D and section 7: changes that did not help, and changes that might",
    "Negative log-likelihood in bits per dimension on CIFAR-10; the paper gives no figures for "
    "these. In the twin one layer of four is a shift layer, two in the row that shifts more often.",
    columns=(column("cifar10", MixerFlow(), CIFAR10, _D_TWIN, twin_steps=500),),
    rows=(
        Row("base", "MixerFlow", published={"cifar10": PublishedResult(3.46, 11.34, "Table 1")}),
        Row("no-shift", "No shift layers", changed(patching__shift=0)),
        Row("larger-shift", "Larger shifts, 2 pixels", changed(patching__shift=(0, 0, 0, 2))),
        Row("frequent-shift", "Shift layers twice as often", _double_shifts),
        Row("stripes", "Stripes", changed(patching__cut="stripes")),
        Row("bands", "Bands", changed(patching__cut="bands")),
        Row("dilated", "Dilated patches", changed(patching__cut="dilated")),
        Row("growing-patches", "Patches of 2, then 4 pixels", changed(patching__size=(2, 4))),
        Row("shrinking-patches", "Patches of 4, then 2 pixels", changed(patching__size=(4, 2))),
        Row("squeeze", "Squeezed first", changed(squeeze=2)),
        Row("grown", "Depth grown in two stages", stages=2),
        Row("falling-rates", "The last layer at half the rate", training=_train_with(layer_lr=0.5)),
        Row("rising-rates", "The last layer at twice the rate", training=_train_with(layer_lr=2.0)),
        Row("floored", "Scales bounded away from 0", changed(flow__elementwise=FlooredAffine())),
        Row("cauchy", "Cauchy base", changed(base=parts.CauchyBase())),
        Row("student", "Student-t base", changed(base=parts.StudentTBase())),
        Row("mixture", "Gaussian-mixture base", changed(base=parts.MixtureBase())),
        Row("slab", "Spike-and-slab base", changed(base=parts.SpikeAndSlabBase())),
        Row("learned-positions", "Learned positions", changed(positions=parts.LearnedEncoding())),
        Row("sinusoidal-positions", "Sinusoidal positions", _SINUSOIDAL),
        Row("scales", "Two scales", _add_part("scales", Scales)),
        Row("glow", "Glow's steps first", _add_part("glow", GlowSteps)),
        Row("convolution", "Convolutional couplings in each layer", _add_part("beside", GlowSteps)),
        Row("attention", "Attention between patches in each layer", _ATTENTION),
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
