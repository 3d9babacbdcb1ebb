"""The figures that the DenseFlow slides print: constants, which nothing here trains.

The slides print DenseFlow's figures on the new, anti-aliased ImageNet beside those of the others on
the old one; here the two have columns of their own. The kinds of figures are not in the slides, but
from the models' papers, and say no more than is known.

Reference: Grcić, Grubišić, Šegvić, Densely connected normalizing flows (2021), arXiv:2106.04627;
    the slides of the authors' talk at NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mixerflow.evaluate import FID
from mixerflow.experiments.table import Figures, Quoted
from mixerflow.models.baseline_recipes import RECIPES as BASELINES
from mixerflow.models.denseflow_recipes import RECIPES as DENSEFLOWS
from mixerflow.models.recipe import UNIFORM, PublishedResult, Recipe

CIFAR10, CELEBA = "cifar10", "celeba64"
OLD_32, OLD_64, NEW_32, NEW_64 = (f"imagenet{n}-{age}" for age in ("old", "new") for n in (32, 64))
BITS, KIND = "bits/dim", "kind"


def published(recipe: Recipe) -> PublishedResult:
    """Return the result of a recipe that has one."""
    assert recipe.published is not None
    return recipe.published


DENSEFLOW: Mapping[str, PublishedResult] = {
    column: published(DENSEFLOWS[f"denseflow-{name}"])
    for column, name in (
        (CIFAR10, "cifar10"),
        (NEW_32, "imagenet32"),
        (CELEBA, "celeba64"),
        (NEW_64, "imagenet64"),
    )
}
_OURS = ("denseflow", "DenseFlow-74-10, Grcić et al. (2021)", "The slides' own model")
_NVP = published(BASELINES["realnvp-cifar10"]).bits_per_dim

# bits/dim on CIFAR-10, the old ImageNet at 32 pixels, CelebA, the old ImageNet at 64 pixels
_DENSITY = f"""
Variational autoencoders
conv-draw | Conv Draw, Gregor et al. (2016) | 3.58 4.40 - 4.10
dvae++ | DVAE++, Vahdat et al. (2018) | 3.38 - - -
iaf-vae | IAF-VAE, Kingma et al. (2016) | 3.11 - - -
biva | BIVA, Maaløe et al. (2019) | 3.08 3.96 2.48 -
ddpm | Imp. DDPM, Nichol and Dhariwal (2021) | 2.94 - - 3.53
Autoregressive models
gated-pixelcnn | Gated PixelCNN, Oord et al. (2016) | 3.03 3.83 - 3.57
pixelrnn | PixelRNN, Van Oord et al. (2016) | 3.00 3.86 - 3.63
pixelcnn++ | PixelCNN++, Salimans et al. (2017) | 2.92 - - -
image-transformer | Image Transformer, Parmar et al. (2018) | 2.90 3.77 2.61 -
pixelsnail | PixelSNAIL, Chen et al. (2018) | 2.85 3.80 - -
spn | SPN, Menick and Kalchbrenner (2019) | - 3.85 - 3.53
routing-transformer | Routing transformer, Roy et al. (2021) | 2.95 - - 3.43
Normalising flows
realnvp | Real NVP, Dinh et al. (2017) | {_NVP} 4.28 3.02 3.98
glow | GLOW, Kingma and Dhariwal (2018) | 3.35 4.09 - 3.81
residual-flow | Residual Flow, Chen et al. (2019) | 3.28 4.01 - 3.78
i-densenet | i-DenseNet, Perugachi-Diaz et al. (2021) | 3.25 3.98 - -
flow++ | Flow++, Ho et al. (2019) | 3.08 3.86 - 3.69
anf | ANF, Huang et al. (2020) | 3.05 3.92 - 3.66
vflow | VFlow, Chen et al. (2020) | 2.98 3.83 - 3.66
Hybrid architectures
macow | MaCow, Ma et al. (2019) | 3.16 - - 3.69
survae | SurVAE Flow, Nielsen et al. (2020) | 3.08 4.00 - 3.70
nvae | NVAE, Vahdat and Kautz (2020) | 2.91 3.92 2.03 -
pixelvae++ | PixelVAE++, Sadeghi et al. (2019) | 2.90 - - -
delta-vae | δ-VAE, Razavi et al. (2019) | 2.83 3.77 - -
"""
_FID = """
Autoregressive models
pixelcnn | PixelCNN, Ostrovski et al. (2018) and Van Oord et al. (2016) | 65.93
pixeliqn | PixelIQN, Ostrovski et al. (2018) | 49.46
Normalising flows
i-resnet | i-ResNet, Behrmann et al. (2019) | 65.01
glow | Glow, Kingma and Dhariwal (2018) | 46.90
residual-flow | Residual flow, Chen et al. (2019) | 46.37
GANs
dcgan | DCGAN, Ostrovski et al. (2018) and Radford et al. (2016) | 37.11
wgan-gp | WGAN-GP, Gulrajani et al. (2017) and Ostrovski et al. (2018) | 36.40
da-stylegan2 | DA-StyleGAN V2, Zhao et al. (2020) | 5.79
Hybrid architectures
survae | SurVAE-flow, Nielsen et al. (2020) | 49.03
vaebm | VAEBM, Xiao et al. (2020) | 12.19
"""
# GPUs' type, their number and hours; "n/a" is the slides'
_COSTS: Mapping[str, Mapping[str, tuple[str, int | str, str]]] = {
    "vflow": {
        CIFAR10: ("RTX 2080Ti", 16, "~500"),
        OLD_32: ("Tesla V100", 16, "~1440"),
        CELEBA: ("n/a", "n/a", "n/a"),
    },
    "nvae": {
        CIFAR10: ("Tesla V100", 8, "55"),
        OLD_32: ("Tesla V100", 24, "70"),
        CELEBA: ("Tesla V100", 8, "92"),
    },
    "denseflow": {
        CIFAR10: ("RTX 3090", 1, "250"),
        NEW_32: ("Tesla V100", 1, "310"),
        CELEBA: ("Tesla V100", 1, "224"),
    },
}

_BOUND, _EXACT = "lower bound of the probability", "exact probability"
_ESTIMATE = "estimated density, uniform dequantisation"
_VARIATIONAL = "exact density, variational dequantisation"
_WEIGHTED = f"{_VARIATIONAL}, importance-weighted"
_ADDED = "lower bound of the density, variational dequantisation, importance-weighted (K unknown)"
_KINDS = {
    "Variational autoencoders": _BOUND,
    "Autoregressive models": _EXACT,
    "realnvp": UNIFORM,
    "glow": UNIFORM,
    "residual-flow": _ESTIMATE,
    "i-densenet": _ESTIMATE,
    "flow++": f"{_WEIGHTED} (K = 4,096)",
    "anf": _ADDED,
    "vflow": _ADDED,
    "macow": _VARIATIONAL,
    "survae": f"{_WEIGHTED} (K = 1,000)",
    "Hybrid architectures": _BOUND,
}


def _lines(text: str) -> Iterator[tuple[str, str, str, list[float | None]]]:
    """Read group, name, label and figures of each model."""
    group = ""
    for line in text.strip().splitlines():
        name, *rest = (part.strip() for part in line.split("|"))
        if rest:
            label, figures = rest
            numbers = [None if each == "-" else float(each) for each in figures.split()]
            yield group, name, label, numbers
        group = group if rest else name


def _density() -> Iterator[Quoted]:
    for group, name, label, bits in _lines(_DENSITY):
        kind = _KINDS.get(name) or _KINDS[group]
        places = zip((CIFAR10, OLD_32, CELEBA, OLD_64), bits, strict=True)
        known = {column: {BITS: each, KIND: kind} for column, each in places if each is not None}
        yield Quoted(name, label, group, known)
    own = {
        column: {BITS: result.bits_per_dim, KIND: result.note.partition(";")[0]}
        for column, result in DENSEFLOW.items()
    }
    yield Quoted(*_OURS, own)


DENSITY = {each.name: each for each in _density()}
"""The slides' bits/dim, by name."""


def _cost(name: str) -> Quoted:
    model = DENSITY[name]
    figures: dict[str, Figures] = {}
    for column, (kind, count, hours) in _COSTS[name].items():
        bits = model.figures.get(column, {BITS: None})
        figures[column] = {"GPU type": kind, "GPUs": count, "hours": hours, **bits}
    return Quoted(name, model.label, model.group, figures)


COSTS = {name: _cost(name) for name in _COSTS}
"""The slides' cost of training, by name."""

DISTANCES = {
    each.name: each
    for each in (
        *(
            Quoted(name, label, group, {CIFAR10: {FID: fid}})
            for group, name, label, (fid,) in _lines(_FID)
        ),
        Quoted(*_OURS, {CIFAR10: {FID: 34.90}}),
    )
}
"""The slides' Frechet distances of samples, by name."""
