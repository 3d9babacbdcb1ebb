"""One run of a table: a cell trained with one seed, in a run folder of its own, and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixerflow.core import Flow
from mixerflow.data import Images, Splits, hold_out
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.evaluate import bits, draw_pixels, grid_artefacts
from mixerflow.experiments.table import Budget, Cell
from mixerflow.models import MixerFlow, from_spec
from mixerflow.registry import restore, settings_of
from mixerflow.runs import RunFolder, load
from mixerflow.runs.files import write_atomically, writing
from mixerflow.training import TrainConfig, train

_DRAWN = 256


def border_ratio(flow: Flow, cell: Cell) -> float:
    """How much more neighbours differ across the borders of the base's patches in samples."""
    pixels, _ = draw_pixels(flow, _DRAWN, seed=1)
    base = cell.column.setups["gpu"].model
    cuts = isinstance(base, MixerFlow)
    patch = base.patching.of(flow.shape, 1, base.layers)[1] if cuts else 4
    return grid_artefacts(pixels, patch).ratio


MEASURES: dict[str, Callable[[Flow, Cell], float]] = {"border/inside": border_ratio}
"""What else is measured of every trained flow, and shown in a column of this name."""


@dataclass(frozen=True)
class Parts:
    """The images of one seed's runs: the same for every row."""

    train: Images
    validation: Images
    test: Images
    split: str

    @staticmethod
    def of(splits: Splits, seed: int, images: int) -> Parts:
        """4 % held out to validate on, and the first so many test images (0 for all) to judge by.

        Data without test images are judged by those held out.
        """
        kept, held = hold_out(splits.train, seed=seed)
        test, split = (held, "validation") if splits.test is None else (splits.test, "test")
        if 0 < images < len(test):
            test, split = test.take(np.arange(images)), f"{split}, first {images}"
        return Parts(kept, held, test, split)


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
    def figures_path(self) -> Path:
        """Where the figures of the trained flow are kept."""
        return self.path / "evaluations" / "reproduce.json"

    @property
    def config(self) -> TrainConfig:
        """The settings that it is trained with."""
        return self.cell.train(self.budget, self.seed)

    def header(self) -> dict[str, Any] | None:
        """What ``run.json`` says; None where nothing was begun."""
        folder = RunFolder(self.path)
        return folder.read_metadata() if folder.metadata_path.exists() else None

    def difference(self, header: Mapping[str, Any], data: Images | None = None) -> str:
        """In what a run that is there differs from this one; empty where in nothing.

        Settings that an older version did not know have their defaults.
        """
        try:
            model, _ = from_spec(header["model"])
            config = restore(TrainConfig, header["train"])
        except (CheckpointError, KeyError, TypeError):
            return "its settings are another version's"
        pairs = {
            "model": (model, self.cell.model(self.budget)),
            "train": (config, self.config),
        }
        for part, (theirs, mine) in pairs.items():
            if type(theirs) is not type(mine):
                return f"its {part} is another kind"
            before, now = settings_of(theirs), settings_of(mine)
            for name in dict.fromkeys([*now, *before]):
                old, new = before.get(name), now.get(name)
                if old != new:
                    return f"its {part}.{name} is {old}, not {new}"
        if data is not None and header["data"]["training_sha256"] != data.fingerprint():
            return f"it was trained on other images, {header['data']['dataset_id']}"
        return ""

    def figures(self) -> dict[str, Any] | None:
        """The figures of the trained flow; None where it is not trained or not judged yet."""
        try:
            return json.loads(self.figures_path.read_bytes())
        except (OSError, ValueError):
            return None

    def perform(
        self, parts: Parts, *, device: torch.device, about: dict[str, Any], quiet: bool
    ) -> int:
        """Train, or go on, and judge; what is there already is not done again.

        Returns:
            0, or 143 / 130 after SIGTERM / SIGINT.

        Raises:
            ConfigError: the folder holds a run of other settings or images.
            NonFiniteError: training did not recover from NaN or infinity.
        """
        header = self.header()
        if header is not None and (difference := self.difference(header, parts.train)):
            remedy = "delete or move that folder, or give another --runs"
            raise ConfigError(f"another run is here: {difference}", self.path, remedy)
        stages = self.cell.stages(self.budget, self.seed)
        paths = [self.path / f"stage-{k}" for k in range(1, len(stages))] + [self.path]
        for number, (path, (model, config)) in enumerate(zip(paths, stages, strict=True)):
            if _is_finished(path):
                continue
            torch.manual_seed(self.seed)
            flow = model.build(parts.train.shape).to(device)
            result = train(
                flow,
                parts.train,
                validation=parts.validation,
                out=path,
                config=config,
                begin=paths[number - 1] if number else None,
                metadata=about,
                quiet=quiet,
            )
            if result.exit_code:
                return result.exit_code
        if not self._judged(parts):
            self._judge(parts, device)
        return 0

    def _judged(self, parts: Parts) -> bool:
        figures = self.figures()
        return (
            figures is not None
            and figures["images_sha256"] == parts.test.fingerprint()
            and figures["measures"].keys() == MEASURES.keys()
        )

    def _judge(self, parts: Parts, device: torch.device) -> None:
        """Score the averaged weights of the last step: no step is chosen by its figure."""
        flow = load(self.path, which="last", device=device)
        figure = bits(
            flow,
            parts.test.pixels,
            labels=parts.test.labels if flow.context_net is not None else None,
            dataset_id=parts.test.dataset_id,
            split=parts.split,
        )
        measures = {name: measure(flow, self.cell) for name, measure in MEASURES.items()}
        record = figure.as_dict() | {
            "images_sha256": parts.test.fingerprint(),
            "measures": measures,
        }
        with writing(self.path):
            self.figures_path.parent.mkdir(exist_ok=True)
            write_atomically(self.figures_path, (json.dumps(record, indent=2) + "\n").encode())


def _is_finished(path: Path) -> bool:
    folder = RunFolder(path)
    return folder.metadata_path.exists() and folder.read_metadata().get("status") == "finished"
