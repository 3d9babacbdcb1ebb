"""How figures of bits/dim, and the progress towards them, look on a terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE
from rich.table import Table

from mixerflow.core import Flow, is_estimated
from mixerflow.evaluate import Bits, density_of, estimator_of, probes_of
from mixerflow.progress import ProgressBar
from mixerflow.runs import Evaluator
from mixerflow.terminal import say, show


def bar_of(
    evaluator: Evaluator, flow: Flow, *, times: int = 1, done: int = 0, quiet: bool = False
) -> ProgressBar:
    """Return the bar of an evaluation, whose units are draws or probes, one an image."""
    passes = evaluator.passes(flow)
    many = "probe" if is_estimated(flow.density) else "draw"
    unit = "image" if passes == 1 else many
    return ProgressBar(unit, times * passes * len(evaluator.images), done=done, quiet=quiet)


def advance(bar: ProgressBar, count: int, passes: int) -> None:
    """Show the draws or probes done, and the speed."""
    bar.done += count
    speed = f"{_digits(bar.rate / passes)} images/s"
    bar.update(bar.done, speed if passes == 1 else f"{speed}, {_digits(bar.rate)} {bar.what}s/s")


def _digits(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def print_figures(figure: Bits) -> None:
    """Print the flow's figures, a column for each kind."""
    result = figure.as_dict()
    plural = "" if figure.images == 1 else "s"
    images = f"{figure.dataset_id}, {figure.split}: {figure.images:,} image{plural}"
    say(f"{images}; {density_of(result)}")
    kinds = [estimator_of(result | bound.as_dict()) for bound in figure.curve]
    heads = (kind.replace("-w", "-\nw").replace(" (", "\n(") for kind in kinds)
    table = Table("", *heads, box=SIMPLE)
    table.add_row("bits/dim", *(f"{bound.bits_per_dim:.3f}" for bound in figure.curve))
    if figure.images > 1:
        table.add_row("± s.e.", *(f"{bound.standard_error:.3f}" for bound in figure.curve))
    if not math.isnan(figure.estimator_error):
        table.add_row("± probes", f"{figure.estimator_error:.2g}")
    if len(figure.curve) > 1:
        table.add_row("gain", "", *(f"{bound.gain:.4f}" for bound in figure.curve[1:]))
        if figure.images > 1:
            table.add_row("± s.e.", "", *(f"{bound.gain_error:.4f}" for bound in figure.curve[1:]))
    show(table)
    if figure.probes is not None:
        say(*_probes_line(figure), "")
    if len(figure.curve) > 1:
        say("gain: mean over the images of how far below the single-sample figure", "")


def _probes_line(figure: Bits) -> list[str]:
    """Return what the error of an estimate is, or how to learn it."""
    words = probes_of(figure.as_dict())
    if math.isnan(figure.estimator_error):
        return [f"{words}: its own error is not known; give --probes 2 or more"]
    part = "" if figure.images == 1 else ", which ± s.e. contains"
    return [f"{words} an image: ± probes is the error of the log-dets alone{part}"]
