"""A table of the paper: columns of data, rows of models, and claims about the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from mixerflow.core import Shape
from mixerflow.errors import ConfigError, nearest
from mixerflow.experiments.further import Further
from mixerflow.experiments.images import Budget
from mixerflow.models.recipe import PublishedResult
from mixerflow.parts import Model, Shuffle
from mixerflow.registry import evolve, settings_of
from mixerflow.train_config import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Setup:
    """A model and its training at a budget: the base of a column, which each row changes."""

    model: Model
    train: TrainConfig
    """Training settings with a number of steps, or with minutes of processor time: rows are
    compared after equal steps, or after equal time."""


@dataclass(frozen=True)
class Column:
    """Data that the rows are compared on."""

    name: str
    shape: Shape
    setups: Mapping[Budget, Setup]
    data: str = ""
    """The images, which `mixerflow.data.load` takes unless ``--data`` names others; the column's
    name unless given."""
    shuffle: Shuffle | None = None
    """Order of the pixels in which every row's model sees images."""
    images: int | None = None
    """Training images, a random part of them, the same for all rows; None for all."""
    which: Literal["last", "best"] = "last"
    """Step whose weights give the figures: the last, or the best on the held-out images."""
    weighted: tuple[int, int] | None = None
    """Draws of noise an image, and the number of test images, of a further figure, which is
    importance-weighted; None for no such figure."""

    @property
    def source(self) -> str:
        """The name of the images."""
        return self.data or self.name


def _same(value: T) -> T:
    return value


@dataclass(frozen=True)
class Row:
    """A model of the table: the same change of the column's base at every budget."""

    name: str
    """The name on the command line and in folders."""
    label: str
    """The name in the paper."""
    change: Callable[[Model], Model] = _same
    """Makes the row's model from the base."""
    published: Mapping[str, PublishedResult] = field(default_factory=dict)
    """Column -> the paper's figures."""
    training: Callable[[TrainConfig], TrainConfig] = _same
    """Changes the training settings, but neither the steps nor the batch."""
    stages: int = 1
    """Equal shares of the steps in which a model's layers grow to their number."""
    full: Callable[[Model], Model] = _same
    """A further change at the `gpu` budget only: the paper's model has it, but among the twins it
    would add a second difference to the row's own."""
    setups: Mapping[Budget, Setup] = field(default_factory=dict)
    """The row's own models and training, where they are no change of the base."""
    in_column: Mapping[str, Mapping[Budget, Setup]] = field(default_factory=dict)
    """Column -> what stands there in place of `setups`."""
    further: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Column -> the paper's figures of the table's `Further`, by their names."""


Figures = Mapping[str, float | int | str | None]
"""Figures by their names."""


@dataclass(frozen=True)
class Quoted:
    """Published figures of a model that the table quotes: constants, which nothing here trains."""

    name: str
    label: str
    """The model, its authors and the year."""
    group: str
    figures: Mapping[str, Figures]
    """Column -> name of a figure -> the figure, None where the source has none."""


@dataclass(frozen=True)
class Claim:
    """The claim that a row has fewer bits/dim than another, or loses fewer, in every column.

    With a `figure`, that it is better by this one.
    """

    better: str
    worse: str
    words: str
    """The paper's statement."""
    against: str = ""
    """A column: the claim is that the row loses fewer bits/dim against itself in that column; in
    that column there is no such claim."""
    column: str = ""
    """The only column that the claim is about; empty for every column."""
    kinds: Literal["same", "any"] = "same"
    """Which figures are compared: of one kind only, or of any: an exact density under uniform
    noise, one under learned noise and a lower bound all bound the images' code length from above,
    in expectation, and some do it more tightly than others."""
    figure: str = ""
    """Name of a figure of the table's `Further` that the claim is about; empty for bits/dim."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table of the paper."""

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    quoted: tuple[Quoted, ...] = ()
    """Published figures beside the rows'; no claim is about them."""
    costs: bool = False
    """Whether the full models' speed is measured, for the time that their schedules take here."""
    distances: bool = False
    """Whether samples are compared with images by their Frechet distance, given a features net."""
    further: Further | None = None
    """Figures that are measured after training, beside those of all tables."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every row in every column."""
        return tuple(Cell(self, row, column) for row in self.rows for column in self.columns)

    def choose(self, names: Iterable[str], columns: Iterable[str] = ()) -> tuple[Cell, ...]:
        """Return the cells of some rows and columns; all rows or all columns for no names.

        Among the names of rows may be those of cells.
        """
        wanted, places = set(names), set(columns)
        cells = [(cell, {cell.row.name, cell.name}) for cell in self.cells]
        for kind, given, known in (
            ("row", wanted, {name for _, both in cells for name in both}),
            ("column", places, {column.name for column in self.columns}),
        ):
            for name in sorted(given - known):
                if kind == "row" and name in {each.name for each in self.quoted}:
                    what = f"{name} is quoted in {self.name}: no model of that name is here"
                    remedy = f"leave it out; rows are {', '.join(row.name for row in self.rows)}"
                    raise ConfigError(what, "--rows", remedy)
                remedy = nearest(name, sorted(known), cutoff=0.4)
                raise ConfigError(f"no such {kind} of {self.name}", name, remedy)
        chosen = tuple(
            cell
            for cell, both in cells
            if (not wanted or wanted & both) and (not places or cell.column.name in places)
        )
        if not chosen:
            raise ConfigError("no row is in these columns", "--rows", "leave out --columns")
        return chosen


@dataclass(frozen=True, eq=False)
class Cell:
    """A row in a column, which is trained once for each seed."""

    table: Table
    row: Row
    column: Column

    @property
    def name(self) -> str:
        """The row's name, and the column's in a table of several columns."""
        several = len(self.table.columns) > 1
        return f"{self.row.name}-{self.column.name}" if several else self.row.name

    @property
    def published(self) -> PublishedResult:
        """The paper's figures."""
        return self.row.published.get(self.column.name, PublishedResult(None))

    def _own(self, budget: Budget) -> Setup | None:
        """Return the row's own setup, if it is no change of the base."""
        return self.row.in_column.get(self.column.name, self.row.setups).get(budget)

    def model(self, budget: Budget) -> Model:
        """Return the row's model at a budget."""
        own = self._own(budget)
        model = own.model if own else self.row.change(self.column.setups[budget].model)
        model = self.row.full(model) if budget == "gpu" else model
        return replace(model, shuffle=self.column.shuffle) if self.column.shuffle else model

    def _config(self, budget: Budget, seed: int) -> TrainConfig:
        own = self._own(budget)
        base = own.train if own else self.row.training(self.column.setups[budget].train)
        return replace(base, seed=seed)

    def stages(self, budget: Budget, seed: int) -> list[tuple[Model, TrainConfig]]:
        """Return the models of growing depth that are trained in turn, each with its settings.

        Stage k of n has the first ``ceil(k L / n)`` of L layers and the k-th share of the steps.
        """
        config = self._config(budget, seed)
        model, n, steps = self.model(budget), self.row.stages, config.steps
        if n == 1 or steps is None:
            return [(model, config)]
        stages = []
        for k in range(1, n + 1):
            start, end = (k - 1) * steps // n, k * steps // n
            layers = -(-k * settings_of(model)["layers"] // n)
            share = replace(config, steps=end - start, schedule_start=start, schedule_steps=steps)
            stages.append((evolve(model, {"layers": layers}), share))
        return stages

    def train(self, budget: Budget, seed: int) -> TrainConfig:
        """Return the training settings of the last stage, or of the only one."""
        return self.stages(budget, seed)[-1][1]
