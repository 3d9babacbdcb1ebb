"""Parameters of a table's twins beside MixerFlow's, so that widths can be set.

    python -m benchmarks.parameters added-dimensions
    python -m benchmarks.parameters added-dimensions --row glow --setting net.width --values 150 160

The dequantiser is not counted: it may be learned, and then comes on top. Nothing is trained; flows
are built on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import tyro

from benchmarks.kept import told_in_a_line
from mixerflow.core import Shape
from mixerflow.errors import ConfigError
from mixerflow.experiments.table import Cell, Table
from mixerflow.experiments.tables import table as table_named
from mixerflow.markdown import table
from mixerflow.parts import Model, ScaledPixels
from mixerflow.registry import evolve


@dataclass(frozen=True)
class Arguments:
    """What to count."""

    table: tyro.conf.Positional[str]
    """A table of `mixerflow reproduce`."""
    to: str = "mixer"
    """Row that the others are compared with."""
    row: str = ""
    """The only row to count; all by default."""
    setting: str = ""
    """Setting of its model to change, such as `net.width`."""
    values: tuple[int, ...] = ()
    """Numbers to give it in turn."""

    def __post_init__(self) -> None:
        if bool(self.setting) != bool(self.values) or (self.setting and not self.row):
            raise ConfigError("incomplete", "--setting", "give --row, --setting and --values")


def parameters(model: Model, shape: Shape) -> int:
    """Number of a model's parameters, without those of the dequantiser."""
    with torch.device("meta"):
        flow = replace(model, pixels=ScaledPixels()).build(shape)
    return sum(p.numel() for p in flow.parameters())


def counts(of: Table, given: Arguments) -> Iterator[tuple[str, str, int, float]]:
    """Yield row, column, parameters of its twin, and how many times those of the row `to`."""
    wanted = {
        cell.column.name: parameters(cell.model("time"), cell.column.shape)
        for cell in of.choose([given.to])
    }

    def counted(cell: Cell, model: Model, suffix: str) -> tuple[str, str, int, float]:
        found = parameters(model, cell.column.shape)
        name = cell.column.name
        return f"{cell.row.name}{suffix}", name, found, found / wanted[name]

    for cell in of.choose([given.row] if given.row else []):
        model = cell.model("time")
        if not given.values:
            yield counted(cell, model, "")
        for value in given.values:
            changed = evolve(model, {given.setting: value})
            yield counted(cell, changed, f", {given.setting} {value}")


def main() -> None:
    """Count and print."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        lines = [
            [row, column, f"{found:,}", f"{share - 1:+.2%}"]
            for row, column, found, share in counts(table_named(given.table), given)
        ]
        print(table(["row", "column", "parameters", f"beside {given.to}"], lines))


if __name__ == "__main__":
    main()
