"""What a table of the paper is: columns of data, rows of models, and claims about the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar, get_args

from mixerflow.core import Shape
from mixerflow.errors import ConfigError, nearest
from mixerflow.models.recipe import PublishedResult
from mixerflow.parts import Model
from mixerflow.registry import evolve, settings_of
from mixerflow.train_config import TrainConfig

Budget = Literal["tiny", "cpu", "gpu"]
"""tiny: seconds a run, tells nothing; cpu: minutes a run, a small twin; gpu: as in the paper."""
BUDGETS: tuple[Budget, ...] = get_args(Budget)

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """What a budget is in a column; every row starts from it."""

    model: Model
    """The base that each row changes."""
    train: TrainConfig
    """With its number of steps: rows are compared at equal steps. The seed is set by each run."""
    images: int
    """Test images that the figures are of, the first so many; 0 for all."""
    time: str
    """A run's time, in words."""


@dataclass(frozen=True)
class Column:
    """Data that the rows are compared on."""

    name: str
    data: str
    """What `mixerflow.data.load` takes, unless ``--data`` says otherwise."""
    shape: Shape
    """Of those images."""
    setups: Mapping[Budget, Setup]


def _same(value: T) -> T:
    return value


@dataclass(frozen=True)
class Row:
    """A model of the table: the same change of the column's base at every budget."""

    name: str
    """For the command line and for folders."""
    label: str
    """As the paper has it."""
    change: Callable[[Model], Model] = _same
    """What makes it of the base."""
    published: Mapping[str, PublishedResult] = field(default_factory=dict)
    """Column -> the paper's figures."""
    training: Callable[[TrainConfig], TrainConfig] = _same
    """What it trains otherwise; not the steps or the batch."""
    stages: int = 1
    """Equal shares of the steps in which a model's layers grow to their number."""
    full: Callable[[Model], Model] = _same
    """What the paper's own model has besides, which would set rows of twins apart by more than what
    the row is about."""


@dataclass(frozen=True)
class Claim:
    """That a row has fewer bits/dim than another, in every column that has both."""

    better: str
    worse: str
    words: str
    """What the paper says."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of the paper."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every row in every column."""
        return tuple(Cell(self, row, column) for row in self.rows for column in self.columns)

    def choose(self, names: Iterable[str]) -> tuple[Cell, ...]:
        """The cells of these rows, or of these names; all of them for none.

        Raises:
            ConfigError: no such row; names the nearest.
        """
        wanted = set(names)
        known = {name for cell in self.cells for name in (cell.row.name, cell.name)}
        for name in sorted(wanted - known):
            remedy = nearest(name, [row.name for row in self.rows], cutoff=0.4)
            raise ConfigError(f"no such row of {self.name}", name, remedy)
        return tuple(c for c in self.cells if not wanted or wanted & {c.row.name, c.name})


@dataclass(frozen=True, eq=False)
class Cell:
    """A row in a column: what is trained, once a seed."""

    table: Table
    row: Row
    column: Column

    @property
    def name(self) -> str:
        """The row's name, and the column's where there are several."""
        several = len(self.table.columns) > 1
        return f"{self.row.name}-{self.column.name}" if several else self.row.name

    @property
    def published(self) -> PublishedResult:
        """The paper's figures."""
        return self.row.published.get(self.column.name, PublishedResult(None))

    def model(self, budget: Budget) -> Model:
        """The model."""
        model = self.row.change(self.column.setups[budget].model)
        return self.row.full(model) if budget == "gpu" else model

    def stages(self, budget: Budget, seed: int) -> list[tuple[Model, TrainConfig]]:
        """Return the models of growing depth that are trained in turn, each with its settings.

        Stage k of n has the first ``ceil(k L / n)`` of L layers and the k-th share of the steps.
        """
        config = replace(self.row.training(self.column.setups[budget].train), seed=seed)
        model, n, steps = self.model(budget), self.row.stages, config.steps
        if n == 1 or steps is None:
            return [(model, config)]
        ends = [k * steps // n for k in range(n + 1)]
        return [
            (
                evolve(model, {"layers": -(-k * settings_of(model)["layers"] // n)}),
                replace(
                    config,
                    steps=ends[k] - ends[k - 1],
                    schedule_start=ends[k - 1],
                    schedule_steps=steps,
                ),
            )
            for k in range(1, n + 1)
        ]

    def train(self, budget: Budget, seed: int) -> TrainConfig:
        """Return the settings of the last stage, or of the only one."""
        return self.stages(budget, seed)[-1][1]
