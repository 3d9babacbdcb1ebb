"""How well flows tell classes: figures that tables of hybrid models have beside bits/dim."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from mixerflow.core import Flow
from mixerflow.data import Images, Splits
from mixerflow.errors import ConfigError
from mixerflow.evaluate import Classification, classify
from mixerflow.experiments.classifier import MixerClassifier, Training, train_classifier
from mixerflow.experiments.further import Figure, Further
from mixerflow.experiments.images import Budget, SeedImages
from mixerflow.means import mean_and_error


@dataclass(frozen=True)
class Told(Further):
    """Accuracy, loss and calibration of ``p(y | x)`` on all test images."""

    minutes: float = 4.0
    """Processor time of the MLP-Mixer at the budget `time`."""
    curves: tuple[tuple[str, str], ...] = ()
    """Rows, and the curves of a plot of accuracy against bits/dim that they are points of."""

    name: ClassVar[str] = "told"
    figures: ClassVar[tuple[Figure, ...]] = (
        Figure("accuracy", "accuracy, %", "higher", 2),
        Figure("loss", "-log p(y|x), nats"),
        Figure("calibration", "calibration error, %", "lower", 2),
    )
    about: ClassVar[str] = (
        "Classes as the averaged weights of the last step tell them, of all test images. The "
        "calibration error is the expected one, in 15 bins. The MLP-Mixer is a plain classifier "
        "with as many parameters as the flows, to 2 %: it trains on log p(y | x) with Adam at 1e-3 "
        "as long as they, on the same images in the same order, and has averaged weights too."
    )
    references: ClassVar[Mapping[str, str]] = {"mlp-mixer": "MLP-Mixer, a classifier alone"}

    def settings(self, budget: Budget) -> dict[str, Any]:
        return {"training": asdict(self._training(budget))}

    def _training(self, budget: Budget) -> Training:
        return {
            "tiny": Training(steps=6, batch=8),
            "cpu": Training(steps=500),
            "time": Training(minutes=self.minutes),
            "gpu": Training(steps=50_000, batch=512, ema=0.999),
        }[budget]

    def require(self, splits: Splits) -> None:
        for name, images in splits.parts().items():
            if images.labels is None or images.vector_length is not None:
                what = f"the {name} images have no classes for a head to tell"
                remedy = "give --data with class folders or labels"
                raise ConfigError(what, images.dataset_id, remedy)

    def measure(
        self, flow: Flow, folder: Path, images: SeedImages, seed: int, budget: Budget
    ) -> dict[str, Any]:
        test = images.test if budget == "tiny" else images.every_test
        return self._record(classify(flow, test.pixels), test)

    def measure_reference(
        self, name: str, images: SeedImages, seed: int, budget: Budget, device: torch.device
    ) -> dict[str, Any]:
        assert images.train.labels is not None
        test = images.test if budget == "tiny" else images.every_test
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            classes = int(images.train.labels.max()) + 1
            net = MixerClassifier.sized(images.train.shape, classes, full=budget == "gpu")
        net = net.to(device)
        log_probs, spent = train_classifier(
            net, images.train, test, self._training(budget), seed=seed
        )
        return self._record(log_probs, test) | spent

    @staticmethod
    def _record(log_probs: Any, test: Images) -> dict[str, Any]:  # noqa: ANN401
        assert test.labels is not None
        found = Classification(log_probs, test.labels)
        figures = {
            "accuracy": 100 * found.accuracy,
            "loss": found.loss,
            "calibration": 100 * found.reliability().error,
        }
        return {"figures": figures, "images": len(test)}

    def pictures(self, column: dict[str, Any]) -> dict[str, bytes]:
        rows = {row["row"]: row for row in column["rows"] if row["bits_per_dim"] is not None}
        curves: dict[str, list[tuple[float, float, float | None]]] = {}
        for name, curve in self.curves:
            accuracy = rows[name]["further"]["accuracy"] if name in rows else {}
            mean, error = (accuracy.get(key) for key in ("mean", "standard_error"))
            if mean is not None:
                points = curves.setdefault(curve, [])
                points.append((rows[name]["bits_per_dim"], mean, error))
        if not curves:
            return {}
        from mixerflow import plots  # matplotlib takes a second

        levels = {}
        for row in column["references"]:
            mean, _ = mean_and_error([r["further"]["figures"]["accuracy"] for r in row["runs"]])
            levels |= {row["label"]: mean} if mean is not None else {}
        picture = plots.points_plot(
            {name: sorted(points) for name, points in curves.items()},
            levels,
            title=f"{column['column']}: accuracy against bits/dim, from large lambda to small",
            across="bits/dim of the test images",
            label="accuracy, %",
        )
        return {"lambda.png": picture}


class FewLabels(Told):
    """`Told`, of flows that know few labels; the MLP-Mixer, which knows all, is not beside them."""

    about: ClassVar[str] = (
        "Classes as the averaged weights of the last step tell them, of all test images. The "
        "calibration error is the expected one, in 15 bins."
    )
    references: ClassVar[Mapping[str, str]] = {}

    def settings(self, budget: Budget) -> dict[str, Any]:
        return {}
