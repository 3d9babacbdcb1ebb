"""A training step of a residual block beside the published implementation's operators.

    python -m benchmarks.residual_block [--width 512] [--batch 8] [--rounds 7] [--out FILE]

A job is one step of one block on a batch: bounds of the norms, the forward pass with the log-det's
estimate, the backward pass, and, of the published block, the power iteration that follows a step.
Both blocks have the same sizes, take the same images and draw the same numbers of terms, whose mean
is that of training. The rival is the published arithmetic, written anew (`rival_residual`).

"Without slopes" is our block with products by automatic differentiation, as for any net that has no
products of its own, in place of the activations' slopes.

JSON goes to standard output, a table in Markdown to standard error. With one thread, time is the
process's own processor time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.common import emit, facts, figure, interleaved, keep, pin, ratio, spread
from benchmarks.kept import require_positive, told_in_a_line
from benchmarks.rival_residual import PublishedBlock
from mixerflow.markdown import table
from mixerflow.nets import LipschitzConvNet
from mixerflow.transforms import Residual
from mixerflow.transforms.series import PoissonTail

_STAGES = ((3, 32), (12, 16), (48, 8))
"""Channels and sides of the three stages of a residual flow of 3x32x32."""


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    width: int = 512
    """Hidden channels."""
    batch: int = 8
    rounds: int = 7
    """Rounds; in each, every job runs once for each number of terms."""
    further: tuple[int, ...] = (0, 1, 2, 2, 3, 4)
    """Terms after the first two, of the steps of a round; their mean is the Poisson tail's, 2."""
    threads: int = 1
    seed: int = 0
    out: Path | None = None
    """Where to write the JSON too."""


class _Told(PoissonTail):
    """A tail that is told how many terms come next."""

    def further(self, uniform: Tensor) -> Tensor:
        return torch.full(uniform.shape, _next[0])


_next = [0]


class _Plain(torch.nn.Module):
    """A net without its products: they are then by automatic differentiation."""

    def __init__(self, net: LipschitzConvNet) -> None:
        super().__init__()
        self.net = net

    def prepare(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        prepared = self.net.prepare(context)
        return lambda x: prepared(x)


def ours(channels: int, side: int, given: Arguments, *, slopes: bool = True) -> Residual:
    """Our block, with weights that are not 0."""
    net = LipschitzConvNet(channels, (side, side), width=given.width, coefficient=0.98)
    torch.nn.init.normal_(net.linears[-1].weight, std=0.01)
    block = Residual(net if slopes else _Plain(net), log_det="unbiased", tail=_Told())
    return block.train()


def jobs(channels: int, side: int, given: Arguments) -> dict[str, Callable[[], object]]:
    """A round of each: as many steps as there are numbers of terms."""
    x = torch.randn(given.batch, channels, side, side)
    theirs = PublishedBlock(channels, side, width=given.width).train()
    torch.nn.init.normal_(theirs.net[-1].weight, std=0.01)

    def step_of(block: Residual) -> Callable[[], None]:
        parameters = list(block.parameters())

        def run() -> None:
            for number in given.further:
                _next[0] = number
                leaf = x.clone().requires_grad_()
                z, log_det = block(leaf)
                loss = (0.5 * z.square().flatten(1).sum(1) - log_det).mean()
                torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)

        return run

    def published() -> None:
        for number in given.further:
            leaf = x.clone().requires_grad_()
            probe = torch.randn_like(x)
            z, series = theirs(leaf, probe, number)
            loss = (0.5 * z.square().flatten(1).sum(1) - series).mean()
            torch.autograd.grad(loss, [leaf, *theirs.parameters()], allow_unused=True)
            theirs.update_norms()

    return {
        "ours": step_of(ours(channels, side, given)),
        "ours, without slopes": step_of(ours(channels, side, given, slopes=False)),
        "published": published,
    }


def measure(channels: int, side: int, given: Arguments) -> dict[str, Any]:
    """Seconds of a step of each, and the published block's over ours."""
    seconds = interleaved(
        jobs(channels, side, given), given.rounds, "cpu" if given.threads == 1 else "wall"
    )
    steps = len(given.further)
    return {
        "channels": channels,
        "side": side,
        "seconds": {k: spread([s / steps for s in v]) for k, v in seconds.items()},
        "faster": {name: ratio(seconds["published"], seconds[name]) for name in list(seconds)[:-1]},
    }


def main() -> None:
    """Time the blocks and print."""
    given = tyro.cli(Arguments)
    with told_in_a_line(Arguments):
        require_positive(given, "width", "batch", "rounds")
    pin(given.threads, given.seed)
    result: dict[str, Any] = {**facts(given.seed), "width": given.width, "batch": given.batch}
    result |= {"further": given.further, "stages": []}
    rows = []
    for channels, side in _STAGES:
        row = measure(channels, side, given)
        result["stages"].append(row)
        keep(result, given.out)
        cells = [f"{channels}x{side}x{side}"]
        cells += [figure(1e3 * each["median"]) for each in row["seconds"].values()]
        cells += [
            f"{each['median']:.2f} ({each['least']:.2f}-{each['most']:.2f})"
            for each in row["faster"].values()
        ]
        rows.append(cells)
    heads = ["events", "ours, ms", "without slopes", "published", "faster", "without slopes"]
    print(table(heads, rows), file=sys.stderr)
    emit(result, given.out)


if __name__ == "__main__":
    main()
