"""``mixerflow view``: a local page to look at a model."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from mixerflow import runs
from mixerflow.cli.evaluate import WeightsArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.reading import ReadingFlags, announce, load_run_data
from mixerflow.data import Splits, load, names
from mixerflow.data.sources import EMBEDDED
from mixerflow.errors import DataError
from mixerflow.terminal import say, tell
from mixerflow.view import Server, view_of


@dataclass(frozen=True, kw_only=True)
class _ViewArguments(WeightsArguments, ReadingFlags):
    """Look at a model in a browser: drop images, draw samples, walk between images."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    data: str | None = None
    """Images for examples and neighbours: a folder, a file or a set's name; by default the run's
    own where they are here, or else the embedded set where it fits."""
    neighbours: int = 2000
    """Neighbours are sought among the first so many training images."""
    port: int = 0
    """The port, of this machine only; 0 for a free one."""
    open: bool = False
    """Open the page in the browser."""


def main(arguments: list[str]) -> int:
    """Print the page's address, and serve it until a signal: the code is then 130 or 143."""
    given = parse(_ViewArguments, arguments, prog="mixerflow view")
    metadata = runs.read_metadata(given.run)
    splits = _images(given, metadata)
    viewed = view_of(
        given.run,
        splits,
        neighbours=given.neighbours,
        which=given.checkpoint,
        average=not given.raw,
        device=given.device,
        reading=given.reading(metadata),
    )
    server = Server(viewed, given.port)
    try:
        say(server.address, at_once=True)
        tell("open this address in a browser of this machine; Ctrl-C ends")
        if given.open and not webbrowser.open(server.address):
            tell("warning: no browser was found: open the address yourself")
        server.serve_forever()
    finally:
        server.close()
    return 0


def _images(given: _ViewArguments, metadata: dict[str, Any]) -> Splits | None:
    """Return the images that a flag names; else the run's own, or the embedded ones, or none."""
    if given.data is not None:
        return load_run_data(metadata, given.data, given)
    own = (metadata.get("source") or {}).get("data")
    try:
        if own == EMBEDDED or (own and own not in names()):  # no set is fetched unasked
            return load_run_data(metadata, None, given)
    except DataError as error:
        tell(f"{error.what}: --data SET names others")
    splits = load(EMBEDDED)
    if tuple((metadata.get("data") or {}).get("shape", ())) != splits.train.shape:
        tell("no images beside the model: --data SET gives examples and neighbours")
        return None
    announce(splits)
    return splits
