"""One run of a table: a cell trained with one seed, in a run folder of its own, and its figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.evaluate import bits, draw_pixels, grid_artefacts, high_frequency_power
from mixerflow.experiments.images import Budget, SeedImages
from mixerflow.experiments.table import Cell
from mixerflow.models import MixerFlow, from_spec
from mixerflow.registry import restore, settings_of
from mixerflow.runs import RunFolder, load
from mixerflow.runs.files import read_record, sealed, write_atomically, writing
from mixerflow.temporary import sweep, temporary_path
from mixerflow.terminal import tell
from mixerflow.training import TrainConfig, train

_SAMPLES = 256


def _border_ratio(samples: np.ndarray, test: np.ndarray, cell: Cell) -> float:
    """Compare neighbours across the base's patch borders with others."""
    base, shape = cell.column.setups["gpu"].model, samples.shape[1:]
    is_mixer = isinstance(base, MixerFlow)
    patch = base.patching.of(shape, 1, base.layers)[1] if is_mixer else 4
    return grid_artefacts(samples, patch).ratio


def _fine_detail(samples: np.ndarray, test: np.ndarray, cell: Cell) -> float:
    """Compare the power of high frequencies with that of test images."""
    return high_frequency_power(samples) / high_frequency_power(test)


# further measures of a trained flow, by their column: of its finite samples, and of test images
_MEASURES = {"border/inside": _border_ratio, "high frequencies/test": _fine_detail}


@dataclass(frozen=True)
class Run:
    """A cell with a seed at a budget, and its folder."""

    cell: Cell
    budget: Budget
    seed: int
    root: Path
    """The runs of the cell's table at that budget."""

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.root / self.cell.name / f"seed-{self.seed}"

    @property
    def _figures_path(self) -> Path:
        return self.path / "evaluations" / "reproduce.json"

    def read_metadata(self) -> dict[str, Any] | None:
        """The content of ``run.json``, or None where the run has not begun."""
        return _recorded(self.path)

    def difference(self, recorded: Mapping[str, Any], images: Images | None = None) -> str:
        """The first difference of the run in the folder from this one; empty without any.

        Settings that an older version did not know have their defaults.
        """
        try:
            model, _ = from_spec(recorded["model"])
            config = restore(TrainConfig, recorded["train"])
        except (CheckpointError, KeyError, TypeError):
            return "its settings are another version's"
        for part, old, new in (
            ("model", model, self.cell.model(self.budget)),
            ("train", config, self.cell.train(self.budget, self.seed)),
        ):
            if type(old) is not type(new):
                return f"its {part} is another kind"
            before, now = settings_of(old), settings_of(new)
            for name in dict.fromkeys([*now, *before]):
                # a table always holds out its own images; how many are scored changes no weight
                if name in ("validation", "evaluate_images"):
                    continue
                if before.get(name) != now.get(name):
                    return f"its {part}.{name} is {before.get(name)}, not {now.get(name)}"
        if images is not None and recorded["data"]["training_sha256"] != images.fingerprint():
            return f"it was trained on other images, {recorded['data']['dataset_id']}"
        return ""

    def figures(self) -> dict[str, Any] | None:
        """Return the figures of the trained flow, or None where there are none yet."""
        try:
            return read_record(self._figures_path, "")
        except CheckpointError:  # scored anew
            return None

    def train_and_score(
        self, images: SeedImages, device: torch.device, metadata: dict[str, Any]
    ) -> int:
        """Train, or resume training, and score the flow; finished work is not repeated.

        Returns 0, or 143 / 130 after SIGTERM / SIGINT.

        Raises:
            ConfigError: the folder holds a run of other settings or images.
            NonFiniteError: training did not recover from NaN or infinity.
        """
        self._adopt(images.train)
        recorded = self.read_metadata()
        if recorded is not None and (difference := self.difference(recorded, images.train)):
            remedy = "delete or move that folder, or give another --runs"
            raise ConfigError(f"another run is here: {difference}", self.path, remedy)
        stages = self.cell.stages(self.budget, self.seed)
        paths = [self.path / f"stage-{k}" for k in range(1, len(stages))] + [self.path]
        for number, (path, (model, config)) in enumerate(zip(paths, stages, strict=True)):
            if any(_is_finished(each) for each in (path, self.path)):
                continue
            torch.manual_seed(self.seed)
            flow = model.build(images.train.shape).to(device)
            result = train(
                flow,
                images.train,
                validation=images.validation,
                out=path,
                config=config,
                begin=paths[number - 1] if number else None,
                metadata=metadata,
            )
            if result.exit_code:
                return result.exit_code
        figures, sha256 = self.figures(), images.test.fingerprint()
        if figures is None or self._lacks(figures, sha256):
            self._score(images, sha256, device)
        return 0

    def _lacks(self, figures: Mapping[str, Any], sha256: str) -> bool:
        """Whether figures are of other images or weights, or some of them are missing."""
        column = self.cell.column
        draws = (figures.get("weighted") or {}).get("importance_samples")
        known = (figures["images_sha256"], figures.get("weights", "last"), *figures["measures"])
        missing = column.weighted is not None and draws != column.weighted[0]
        return missing or known != (sha256, column.which, *_MEASURES)

    def _adopt(self, images: Images) -> None:
        """Copy the finished run of another row or table that is the same, if there is one."""
        if self.path.exists():
            return
        for other in sorted(self.root.parent.parent.glob(f"*/{self.budget}/*/seed-{self.seed}")):
            recorded = _recorded(other)
            same = recorded is not None and not self.difference(recorded, images)
            if not same or not _is_finished(other):
                continue
            copy = temporary_path(self.path)
            try:
                with writing(self.root):
                    sweep(self.path.parent)
                    shutil.copytree(other, copy)
                copy.rename(self.path)
            except OSError:  # another process was faster
                return
            finally:
                shutil.rmtree(copy, ignore_errors=True)
            tell(f"copied from {other}, which is the same run")
            return

    def _score(self, images: SeedImages, sha256: str, device: torch.device) -> None:
        """Score averaged weights: no step is chosen by its figure on these images."""
        flow = load(self.path, which=self.cell.column.which, device=device)
        test, split = images.test, images.split
        labels = None if flow.context_net is None else test.labels
        figure = bits(flow, test.pixels, labels=labels, dataset_id=test.dataset_id, split=split)
        drawn = draw_pixels(flow, _SAMPLES, seed=1)
        samples = drawn.pixels[drawn.nonfinite == 0]
        measures: dict[str, float | None] = {}
        for name, measure in _MEASURES.items():
            try:
                measures[name] = measure(samples, test.pixels, self.cell)
            except (ValueError, ZeroDivisionError):  # no finite samples, constant or small images
                measures[name] = None
        record = figure.as_dict() | {
            "images_sha256": sha256,
            "weights": self.cell.column.which,
            "measures": measures,
            "weighted": self._weighted(flow, test, labels),
        }
        with writing(self.path):
            self._figures_path.parent.mkdir(exist_ok=True)
            write_atomically(self._figures_path, sealed(record))

    def _weighted(
        self, flow: Flow, test: Images, labels: np.ndarray | None
    ) -> dict[str, Any] | None:
        """Return the importance-weighted figure of the first test images, if it is asked for."""
        if self.cell.column.weighted is None:
            return None
        draws, count = self.cell.column.weighted
        first = test.first(min(count, len(test)))
        labels = None if labels is None else labels[: len(first)]
        bound = bits(flow, first.pixels, labels=labels, importance_samples=draws).curve[-1]
        return bound.as_dict() | {"images": len(first)}


def _recorded(path: Path) -> dict[str, Any] | None:
    folder = RunFolder(path)
    return folder.read_metadata() if folder.metadata_path.exists() else None


def _is_finished(path: Path) -> bool:
    return (_recorded(path) or {}).get("status") == "finished"
