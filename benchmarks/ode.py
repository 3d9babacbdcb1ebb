"""Solvers of continuous flows in a training step: time, evaluations, error; prints a table.

    python -m benchmarks.ode --out results/continuous/ode.json

A step is the forward and the backward pass of a recipe's model on a batch, with all of its
parameters moved from their start by random numbers of each of the `--sizes`. The solvers take the
same equations, at the same tolerances, in turns:

- "rows": the package's own, steps of each row (`mixerflow.transforms.ode.adapted_steps`);
- "torchdiffeq": dopri5, whose steps are those of the whole batch;
- "torchode": Dopri5 with steps of each row; all rows stay in the batch until the last is done.

All of them differentiate through their steps. The log-det is scaled by the event's length for the
others, as the package's own solver measures it. The errors are those of the first continuous flow:
the largest of any row against a solution at a thousandth of the tolerance, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from torch import Tensor

from benchmarks.common import Clock, emit, facts, figure, interleaved, keep, pin, ratio, spread
from benchmarks.kept import require_positive, told_in_a_line
from benchmarks.rivals import installed
from mixerflow.core import Flow, Noise, counting
from mixerflow.markdown import table
from mixerflow.recipes import recipe
from mixerflow.transforms import Continuous, continuous
from mixerflow.transforms.checks import perturb
from mixerflow.transforms.ode import (
    Field,
    Given,
    State,
    adapted_steps,
    difference,
    of_rows,
)

Solver = Callable[..., tuple[State, Tensor]]


def by_torchdiffeq(
    field: Field, start: State, given: Given, *, tolerance: float
) -> tuple[State, Tensor]:
    """As `adapted_steps`, by torchdiffeq's dopri5."""
    from torchdiffeq import odeint

    length = math.prod(start[0].shape[1:])

    def rates(t: Tensor, state: State) -> State:
        slope, rate = field(t, state[0], given)
        return slope, rate / length

    times = torch.tensor([0.0, 1.0], dtype=start[0].dtype)
    x, number = odeint(rates, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
    return (x[-1], number[-1] * length), torch.zeros_like(start[1])


def by_torchode(
    field: Field, start: State, given: Given, *, tolerance: float
) -> tuple[State, Tensor]:
    """As `adapted_steps`, by torchode's Dopri5."""
    import torchode  # pyright: ignore[reportMissingImports]

    shape = start[0].shape
    length = math.prod(shape[1:])

    def rates(t: Tensor, y: Tensor) -> Tensor:
        times = t.view(-1, *[1] * (len(shape) - 1))
        slope, rate = field(times, y[:, :-1].reshape(shape), given)
        return torch.cat([slope.flatten(1), rate[:, None] / length], 1)

    term = torchode.ODETerm(rates)
    control = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), control)
    state = torch.cat([start[0].flatten(1), start[1][:, None]], 1)
    times = state.new_tensor([0.0, 1.0]).expand(len(state), 2)
    found = solver.solve(torchode.InitialValueProblem(y0=state, t_eval=times)).ys[:, -1]
    ended = found[:, :-1].reshape(shape), found[:, -1] * length
    return ended, torch.zeros_like(start[1])


SOLVERS: dict[str, Solver] = {
    "rows": adapted_steps,
    "torchdiffeq": by_torchdiffeq,
    "torchode": by_torchode,
}


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    recipe: str = "ffjord-cifar10-tiny"
    sizes: tuple[float, ...] = (0.3, 1.0)
    """Sizes of the random numbers, see `mixerflow.transforms.checks.perturb`."""
    tolerances: tuple[float, ...] = (1e-2, 1e-5)
    batch: int = 32
    rounds: int = 5
    seed: int = 0
    clock: Clock = "cpu"
    out: Path | None = None
    """Where to write the JSON too."""

    def __post_init__(self) -> None:
        require_positive(self, "batch", "rounds")


def images(batch: int, shape: tuple[int, ...]) -> Tensor:
    """Smooth images, each of its own contrast, ``(batch, *shape)`` uint8."""
    coarse = torch.randn(batch, shape[0], *(max(1, side // 4) for side in shape[1:]))
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    contrast = torch.linspace(8, 64, batch).view(-1, 1, 1, 1)
    return (128 + contrast * smooth).clamp(0, 255).to(torch.uint8)


def measure(flow: Flow, x: Tensor, tolerance: float, given: Arguments) -> dict[str, Any]:
    """Time a step with each solver that is installed, and count what it takes."""
    solves = [part for part in flow.modules() if isinstance(part, Continuous)]
    for part in solves:
        part.train_tolerance = tolerance
    noise = Noise(given.seed, torch.arange(len(x)))

    def step(name: str) -> None:
        flow.zero_grad()
        with mock.patch.object(continuous, "adapted_steps", SOLVERS[name]):
            (-flow(x, None, noise).log_prob.mean()).backward()

    names = [name for name in SOLVERS if name == "rows" or installed(name)]
    seconds = interleaved(
        {name: lambda name=name: step(name) for name in names}, given.rounds, given.clock
    )
    rows: dict[str, Any] = {}
    for name in names:
        with counting() as found:
            step(name)
        rows[name] = {
            "seconds": spread(seconds[name]),
            "of_rows": ratio(seconds[name], seconds["rows"]),
            "calls": sum(each.calls for each in found),
            "evaluations_per_row": sum(each.rows / each.batch for each in found),
            "error": error(flow, x, SOLVERS[name], tolerance),
        }
    return rows


@torch.no_grad()
def error(flow: Flow, x: Tensor, solver: Solver, tolerance: float) -> dict[str, float]:
    """Largest and median error of a row, see `mixerflow.transforms.ode.difference`.

    And the largest change of a row that is solved without the rest of its batch.
    """
    steps = flow.transform.steps  # pyright: ignore[reportAttributeAccessIssue]
    for step in steps[:-1]:
        x = step(x, None, Noise(0, torch.arange(len(x))))[0]
    part = next(part for part in flow.modules() if isinstance(part, Continuous))
    signs = part._signs(x, Noise(0, torch.arange(len(x))))
    start, given = (x, x.new_zeros(len(x))), (None, signs)
    found = solver(part._field(), start, given, tolerance=tolerance)[0]
    first = torch.arange(1)
    alone = solver(
        part._field(), (x[:1], x.new_zeros(1)), of_rows(given, first), tolerance=tolerance
    )[0]
    flow.double()
    wide = (x.double(), x.double().new_zeros(len(x)))
    signs = None if signs is None else signs.double()
    wanted = adapted_steps(part._field(), wide, (None, signs), tolerance=1e-3 * tolerance)[0]
    flow.float()
    wrong = difference((found[0].double(), found[1].double()), wanted)
    change = difference(alone, (found[0][:1], found[1][:1]))
    return {
        "most": wrong.max().item(),
        "median": wrong.median().item(),
        "alone": change.item(),
    }


def told(result: dict[str, Any]) -> str:
    """Return the measurements as a table."""
    lines = []
    for case in result["cases"]:
        for name, row in case["solvers"].items():
            times = [figure(row[key]["median"]) for key in ("seconds", "of_rows")]
            counts = [figure(row["calls"]), figure(row["evaluations_per_row"])]
            errors = [f"{row['error'][key]:.0e}" for key in ("most", "alone")]
            case_of = [f"{case['size']:g}", f"{case['tolerance']:.0e}", name]
            lines.append([*case_of, *times, *counts, *errors])
    head = ["size", "tolerance", "solver", "s a step", "of rows"]
    return table([*head, "calls", "evaluations a row", "error", "alone"], lines)


def main() -> None:
    """Measure each size and tolerance, and print the table."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        pin(1, given.seed, given.clock)
        named = recipe(given.recipe)
        settings = {name: getattr(given, name) for name in ("recipe", "batch", "rounds", "clock")}
        facts_of = facts(given.seed, ("torchdiffeq", "torchode"))
        result: dict[str, Any] = {**facts_of, "settings": settings, "cases": []}
        for size in given.sizes:
            torch.manual_seed(given.seed)
            flow = named.model.build(named.shape).train()
            perturb(flow.transform, seed=given.seed, size=size)
            x = images(given.batch, named.shape)
            for tolerance in given.tolerances:
                solvers = measure(flow, x, tolerance, given)
                case = {"size": size, "tolerance": tolerance, "solvers": solvers}
                result["cases"].append(case)
                keep(result, given.out)
        emit(result, given.out)
        print(told(result))


if __name__ == "__main__":
    main()
