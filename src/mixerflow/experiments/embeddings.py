"""Table 7: classes told by one linear layer on frozen flows' latents, and by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow, as_tensor
from mixerflow.data import Images, Splits
from mixerflow.errors import ConfigError
from mixerflow.evaluate import (
    Labelled,
    ProbeFigure,
    ProbeSettings,
    Whitening,
    embed,
    passes_of,
    probe,
)
from mixerflow.experiments.field import CIFAR10_COLUMN, GLOW_32, MIXER, NSF_32
from mixerflow.experiments.further import Figure, Further
from mixerflow.experiments.images import Budget, SeedImages
from mixerflow.experiments.table import Claim, PublishedResult, Row, Setup, Table
from mixerflow.progress import ProgressBar

_DEPTHS = 8
"""Layers that are probed by depth, at equal distances, the latent among them."""
_TINY = 400
"""Images of each part at the budget `tiny`."""


@dataclass(frozen=True)
class Probing(Further):
    """Linear probes of the latent; of the first seed's flow, of layers at several depths too."""

    probes: ProbeSettings = ProbeSettings()  # noqa: RUF009

    name: ClassVar[str] = "probe"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("loss", "test loss, nats"),
        Figure("accuracy", "accuracy, %", "higher", 2),
    )
    about: ClassVar[str] = (
        "One linear layer on the frozen flow's latent, with noise at its centre, and alike on "
        "pixels. Each feature is standardised by the training images; Adam at 1e-3 with a cosine "
        "to 0, batches of 512, 30 epochs; of the decoupled weight decays "
        f"{', '.join(f'{decay:g}' for decay in ProbeSettings().decays)} the loss on the 4 % of the "
        "training images that are held out chooses one. Figures are of all test images; each seed "
        "has its own flow, held-out images and order. The paper does not say how its layer is "
        "trained. Depth is that of the first seed's flow."
    )
    references: ClassVar[Mapping[str, str]] = {
        "pixels": "Raw pixels",
        "whitened": "PCA-whitened pixels",
    }

    def settings(self, budget: Budget) -> dict[str, Any]:
        return asdict(self._probes(budget)) | {"depths": _DEPTHS}

    def _probes(self, budget: Budget) -> ProbeSettings:
        return replace(self.probes, epochs=2) if budget == "tiny" else self.probes

    def require(self, splits: Splits) -> None:
        where = splits.train.dataset_id
        if splits.test is None:
            raise ConfigError(
                "no test images, which the figures are of", where, "give --data others"
            )
        if any(each.labels is None for each in (splits.train, splits.test)):
            what = "the images have no classes, which a probe is to tell"
            raise ConfigError(what, where, "give --data with class folders or labels")

    def measure(
        self, flow: Flow, folder: Path, images: SeedImages, seed: int, budget: Budget
    ) -> dict[str, Any]:
        parts, last = _parts(images, budget), len(flow.layer_shapes())
        spread = np.linspace(0, last, _DEPTHS + 1).round().astype(int)
        layers = sorted({*spread[1:].tolist()}) if seed == 0 else [last]
        found = {}
        for some in passes_of(flow, sum(map(len, parts)), layers):
            features = [embed(flow, part.pixels, some) for part in parts]
            for layer in some:
                own = [each.pop(layer).to(flow.device) for each in features]
                found[layer] = self._probe(f"layer {layer}", own, parts, seed, budget)
        depths = {str(layer): each for layer, each in found.items()} if seed == 0 else {}
        return {**found[last], "depths": depths, "layers": last}

    def measure_reference(
        self, name: str, images: SeedImages, seed: int, budget: Budget, device: torch.device
    ) -> dict[str, Any]:
        parts = _parts(images, budget)
        pixels = [as_tensor(part.pixels).flatten(1).to(device) for part in parts]
        if name == "whitened":
            whitening = Whitening(pixels[0])
            pixels = [whitening(each) for each in pixels]
        return self._probe(self.references[name], pixels, parts, seed, budget)

    def _probe(
        self,
        what: str,
        features: Sequence[Tensor],
        parts: Sequence[Images],
        seed: int,
        budget: Budget,
    ) -> dict[str, Any]:
        """Probe features of the training, held-out and test images; return the record."""
        settings, device = self._probes(budget), features[0].device
        labels = [_labels(part).to(device) for part in parts]
        train, held_out, test = map(Labelled, features, labels)
        with ProgressBar("image", settings.epochs * len(train)) as bar:
            figure = probe(
                train,
                held_out,
                test,
                classes=1 + max(int(each.max()) for each in labels),
                settings=settings,
                seed=seed,
                on_batch=lambda count: bar.update(bar.done + count, f"probe of {what}"),
            )
        return _record(figure, len(test))

    def pictures(self, column: dict[str, Any]) -> dict[str, bytes]:
        from mixerflow import plots  # matplotlib takes a second

        pixels, white = (_first_accuracy(row) for row in column["references"])
        curves = {}
        for row in column["rows"]:
            known = [run["further"] for run in row["runs"] if run.get("further")]
            for record in (each for each in known if each["depths"]):
                found = {int(k): each["figures"] for k, each in record["depths"].items()}
                points = [(k / record["layers"], each["accuracy"]) for k, each in found.items()]
                start = [(0.0, pixels)] if pixels is not None else []
                curves[row["label"]] = [(x, y, None) for x, y in start + sorted(points)]
        if not curves:
            return {}
        levels = {"Raw pixels": pixels, "PCA-whitened pixels": white}
        drawn = {name: value for name, value in levels.items() if value is not None}
        return {
            "depth.png": plots.points_plot(
                curves,
                drawn,
                title=f"{column['column']}: accuracy of a linear probe, first seed",
                across="layer, as a share of the flow's layers",
                label="accuracy, %",
            )
        }


def _parts(images: SeedImages, budget: Budget) -> list[Images]:
    """Return the training, held-out and test images of a seed's probes."""
    parts = [images.train, images.validation, images.every_test]
    return [part.first(_TINY) for part in parts] if budget == "tiny" else parts


def _labels(images: Images) -> Tensor:
    assert images.labels is not None
    return torch.from_numpy(images.labels)


def _record(figure: ProbeFigure, images: int) -> dict[str, Any]:
    figures = {"loss": figure.loss, "accuracy": 100 * figure.accuracy}
    chosen = {"decay": figure.decay, "held_out": figure.held_out, "features": figure.features}
    return {"figures": figures, **chosen, "images": images}


def _first_accuracy(row: dict[str, Any]) -> float | None:
    found = [run["further"]["figures"]["accuracy"] for run in row["runs"]]
    return found[0] if found else None


def _longer(setups: Mapping[Budget, Setup]) -> dict[Budget, Setup]:
    """Give the budget `time` 4 minutes, and the start of the tables that have as many."""
    setup = setups["time"]
    train = replace(setup.train, minutes=4.0, initial=512)
    return {**setups, "time": replace(setup, train=train)}


def _row(row: Row, loss: float, accuracy: float, bits: float) -> Row:
    return replace(
        row,
        setups=_longer(row.setups) if row.setups else {},
        published={"cifar10": PublishedResult(bits, None, "Table 1")},
        further={"cifar10": {"loss": loss, "accuracy": accuracy}},
    )


TABLE_7 = Table(
    "table-7",
    "Table 7: classes from frozen flows",
    "Loss and accuracy of a linear layer on CIFAR-10. Twins, of the budgets cpu and time, have as "
    "many parameters as MixerFlow's. The paper's bits/dim are those of its Table 1.",
    columns=(replace(CIFAR10_COLUMN, setups=_longer(CIFAR10_COLUMN.setups)),),
    rows=(
        _row(MIXER, 1.54, 45.11, 3.46),
        _row(GLOW_32, 1.69, 41.23, 3.51),
        _row(NSF_32, 1.67, 41.27, 3.50),
    ),
    claims=tuple(
        Claim("mixer", other, f"MixerFlow's latent is better than {words}", figure=figure)
        for figure in ("loss", "accuracy")
        for other, words in (
            ("glow", "Glow's"),
            ("nsf", "Neural Spline's"),
            ("pixels", "raw pixels"),
            ("whitened", "whitened pixels"),
        )
    ),
    further=Probing(),
)
TABLES = (TABLE_7,)
