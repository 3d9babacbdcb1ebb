"""DenseFlow's coupling beside Flow++'s and Glow's: what a step and an inverse of one cost.

    python -m benchmarks.coupling --out results/added/coupling.json

A coupling is one transform: a net reads half of an image, and the other half is transformed.

- DenseFlow: a dense block beside Nyström attention, affine.
- Flow++: gated convolutions and attention, a mixture of logistic distributions, affine.
- Glow: convolutions 3-1-3, affine.

The images are those of the models' first scales, squeezed, in halves of the channels, and at full
resolution, in even and odd columns. Each coupling has its published size; and the width at which it
has nearly as many parameters as DenseFlow's. A step is the forward pass with the loss of a standard
normal, and the backward pass to weights and image. All couplings take turns; time is the processor
time of one thread. Memory is the most that a step allocates beyond weights and gradients, see
`benchmarks.memory`.

The inverse of a mixture is a search: the net runs once, the mixture many times, until the slowest
number of the batch has converged. Both are counted. At the start of training all nets give 0, and
the search ends at once: so nets have random weights, and outputs of unit variance.

JSON goes to `--out`, a table in Markdown to standard output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import tyro
from torch import Tensor, nn

from benchmarks.common import facts, figure, interleaved, keep, pin, ratio, spread
from benchmarks.kept import require_positive, told_in_a_line
from benchmarks.memory import peak_of
from mixerflow.core import Shape, Transform
from mixerflow.markdown import table
from mixerflow.parts import DenseAttention, GatedAttention, GlowConv
from mixerflow.parts.image_nets import ImageNet
from mixerflow.transforms import (
    Affine,
    Columns,
    Coupling,
    Elementwise,
    LogisticMixture,
    SigmoidAffine,
)
from mixerflow.transforms.checks.subject import perturb
from mixerflow.transforms.coupling import Halves, Split
from mixerflow.transforms.logistic import Mixture

JOBS = ("step", "inverse", "net")
"""A step, the inverse, and of that the net alone."""


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    dense: DenseAttention = field(default=DenseAttention())
    """Net of DenseFlow's coupling."""
    gated: GatedAttention = field(default=GatedAttention())
    """Net of Flow++'s."""
    components: int = 32
    """Logistic distributions of its mixture."""
    glow: GlowConv = field(default=GlowConv())
    """Net of Glow's."""
    side: int = 32
    """Pixels a side of an image of 3 channels."""
    batch: int = 8
    rounds: int = 5
    seed: int = 0
    note: str = ""
    """Words about the machine for the JSON, such as who else was at work on it."""
    out: Path | None = None
    """Where to write the JSON."""

    def __post_init__(self) -> None:
        require_positive(self, "components", "side", "batch", "rounds")

    def kinds(self) -> dict[str, tuple[ImageNet, Elementwise]]:
        """The couplings at their published sizes; the first is the measure of the others."""
        return {
            "DenseFlow": (self.dense, Affine(2.0)),
            "Flow++": (self.gated, LogisticMixture(self.components)),
            "Glow": (self.glow, SigmoidAffine()),
        }

    def places(self) -> dict[str, tuple[Shape, Split]]:
        """Images, and how they are split."""
        half = self.side // 2
        return {
            "halves of the channels": ((12, half, half), Halves()),
            "columns": ((3, self.side, self.side), Columns()),
        }


def coupling(net: ImageNet, elementwise: Elementwise, shape: Shape, split: Split) -> Coupling:
    """The coupling of images of a shape."""
    given, changed = split.parts(torch.empty(1, *shape, device="meta"))
    out = elementwise.params * changed.shape[1]
    return Coupling(split, net.build(given.shape[1], out, sides=given.shape[2:]), elementwise)


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def fitted(net: Any, wanted: int, count: Callable[[Any], int]) -> Any:  # noqa: ANN401
    """The net of the width at which `count` is nearest to `wanted`; the count grows with it."""
    best, missed = net, abs(count(net) - wanted)
    for width in range(1, 10**4):
        try:
            found = count(narrow := replace(net, width=width))
        except ValueError:  # a width that heads do not divide, for example
            continue
        if abs(found - wanted) < missed:
            best, missed = narrow, abs(found - wanted)
        if found > wanted:
            break
    return best


def sized(given: Arguments, shape: Shape, split: Split) -> Iterator[tuple[str, str, Any, Any]]:
    """Yield size, name, net and elementwise map of each coupling to measure."""

    def count(net: Any, elementwise: Elementwise) -> int:  # noqa: ANN401
        with torch.device("meta"):
            return parameters(coupling(net, elementwise, shape, split))

    kinds = given.kinds()
    for name, (net, elementwise) in kinds.items():
        yield "published", name, net, elementwise
    first, *others = kinds
    wanted = count(*kinds[first])
    for name in others:
        net, elementwise = kinds[name]
        equal = fitted(net, wanted, lambda net, e=elementwise: count(net, e))
        yield "equal parameters", name, equal, elementwise


class Unit(nn.Module):
    """A net whose output for `x` has mean square 1."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net = net
        with torch.no_grad():
            self.factor = float(net(x, None).square().mean().rsqrt())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The net's output, rescaled."""
        return self.factor * self.net(x, context)


def started(made: Coupling, x: Tensor, seed: int) -> Coupling:
    """A coupling with random weights, started from images `x` ``(B, C, *spatial)``."""
    made.initialize(x)
    perturb(made, seed=seed)
    for part in made.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 0.0  # or steps would change what is inverted
    made.net = Unit(made.eval().net, made.split.parts(x)[0])
    return made


class Jobs:
    """What a coupling does with a batch."""

    def __init__(self, made: Coupling, x: Tensor) -> None:
        self.made, self.x = made, x
        with torch.no_grad():
            self.z = made(x)[0]
        self.given = made.split.parts(self.z)[0]

    def step(self) -> None:
        """Forward and backward pass; gradients of the weights are added to what is there."""
        x = self.x.clone().requires_grad_()
        z, log_det = self.made.train()(x)
        (0.5 * z.square().flatten(1).sum(1) - log_det).mean().backward()

    @torch.no_grad()
    def inverse(self) -> Tensor:
        """The images of the latents."""
        return self.made.eval().inverse(self.z)[0]

    @torch.no_grad()
    def net(self) -> Tensor:
        """What the net gives for the half that it reads."""
        return self.made.eval().net(self.given, None)


def counted(made: Transform, net: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Evaluations of the net in a call, and of the mixture where there is one."""
    counts, logit, search = {"net": 0, "mixture": 0}, Mixture.logit, Mixture.search

    def called(*_: object) -> None:
        counts["net"] += 1

    def counting(mixture: Mixture, x: Tensor) -> tuple[Tensor, Tensor]:
        counts["mixture"] += 1
        return logit(mixture, x)

    def searching(mixture: Mixture) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        value = search(mixture)

        def one(x: Tensor) -> tuple[Tensor, Tensor]:
            before = counts["mixture"]
            found = value(x)
            counts["mixture"] = before + 1  # with what it calls for far tails
            return found

        return one

    hook = net.register_forward_hook(called)
    with (
        mock.patch.object(Mixture, "logit", counting),
        mock.patch.object(Mixture, "search", searching),
    ):
        run()
    hook.remove()
    return counts


def measure(given: Arguments, place: str) -> list[dict[str, Any]]:
    """Return a row for each coupling at a place."""
    shape, split = given.places()[place]
    x = torch.randn(given.batch, *shape)
    jobs, rows = {}, []
    for size, name, net, elementwise in sized(given, shape, split):
        made = started(coupling(net, elementwise, shape, split), x, given.seed)
        job = jobs[size, name] = Jobs(made, x)
        job.step()  # after it, gradients are there
        with peak_of(x.device) as peak:
            job.step()
        error = float((job.inverse() - x).abs().max())
        rows.append(
            {"place": place, "shape": shape, "size": size, "coupling": name}
            | {"net": asdict(net), "elementwise": repr(elementwise)}
            | {"parameters": parameters(made), "peak_bytes": peak[0], "inverse_error": error}
            | {job_name: counted(made, made.net, getattr(job, job_name)) for job_name in JOBS}
        )
    runs = {(*key, what): getattr(job, what) for key, job in jobs.items() for what in JOBS}
    seconds = interleaved(runs, given.rounds, "cpu")
    for row in rows:
        key, first = (row["size"], row["coupling"]), ("published", next(iter(given.kinds())))
        for what in JOBS:
            taken = seconds[*key, what]
            row[what]["images_per_second"] = spread([given.batch / each for each in taken])
            row[what]["slower"] = ratio(taken, seconds[*first, what])
        row["net"]["share_of_inverse"] = ratio(seconds[*key, "net"], seconds[*key, "inverse"])
    return rows


def shown(result: dict[str, Any]) -> str:
    """The measurements as a table."""
    lines = []
    for row in result["rows"]:
        cells = [f"{'x'.join(map(str, row['shape']))}, {row['place']}", row["coupling"]]
        cells += [row["size"], f"{row['parameters']:,}"]
        for what in JOBS[:2]:
            speed, slower = row[what]["images_per_second"], row[what]["slower"]
            cells.append(f"**{figure(speed['median'])}** ({slower['median']:.2f})")
        cells.append(figure(row["peak_bytes"] / 1e6))
        cells.append(f"{row['net']['share_of_inverse']['median']:.0%}")
        cells += [str(row["inverse"][each]) for each in ("net", "mixture")]
        lines.append(cells)
    heads = ["images", "coupling", "size", "par.", "step, images/s (times DenseFlow's time)"]
    heads += ["inverse, images/s", "MB of a step", "the net's share of the inverse"]
    heads += ["nets of an inverse", "mixtures of an inverse"]
    return table(heads, lines)


def main() -> None:
    """Measure and print."""
    with told_in_a_line(Arguments):
        given = tyro.cli(Arguments, description=__doc__)
        pin(1, given.seed, "cpu")
        result: dict[str, Any] = {**facts(given.seed), "note": given.note, "rows": []}
        result["settings"] = {"batch": given.batch, "rounds": given.rounds, "side": given.side}
        for place in given.places():
            result["rows"] += measure(given, place)
            keep(result, given.out)
        print(shown(result))


if __name__ == "__main__":
    main()
