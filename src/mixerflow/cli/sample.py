"""``mixerflow sample``: images drawn from a run."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from mixerflow import pictures, runs
from mixerflow.cli.copies import keeping
from mixerflow.cli.evaluate import WeightsArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.singles import require_own, write_singles
from mixerflow.core import Flow, VectorNet
from mixerflow.errors import ConfigError, ResourceError
from mixerflow.evaluate import class_count, draw_pixels, draw_values, has_pictures
from mixerflow.evaluate.codecs import shuffle_of
from mixerflow.runs.files import require_writable, write_atomically, writing
from mixerflow.terminal import say, tell

_ENDINGS = (".png", ".webp", ".bmp", ".tiff", ".npy")


@dataclass(frozen=True, kw_only=True)
class _SampleArguments(WeightsArguments):
    """Draw images from a run: a PNG grid, and single files on request; features as .npy."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many images."""
    temperature: float = 1.0
    """Scales the latents: below 1 gives likelier, less varied images."""
    label: str | None = None
    """Class to draw from a class-conditional run, by its name, or by its number where no class has
    that name; by default all in turn. Of a run with vectors, the vector: 0.5,-1,2."""
    seed: int = 0
    """Seed of the draws."""
    out: Path | None = None
    """The grid's file; by default in the run folder's samples. Of a run of floats it may end in
    .npy, for the values."""
    files: Path | None = None
    """A folder for the single images, as PNG files 00000.png and so on; it may hold no others."""
    force: bool = False
    """Remove the files of an earlier draw, numbers with .png, from that folder; keep all others."""
    shuffled: bool = False
    """Show the images as the model of a run with --shuffle sees them; by default they are put
    back."""
    scale: int = 2
    """Side of the square that stands for one pixel of the grid."""


def sample(arguments: list[str]) -> int:
    """Draw images, print how many values are clamped or not finite, and write the images."""
    given = parse(_SampleArguments, arguments, prog="mixerflow sample")
    _check(given)
    device = runs.device_of(given.device)
    held = runs.read_weights(given.run, which=given.checkpoint, average=not given.raw)
    flow = held.flow(device)
    shuffle = shuffle_of(flow) if given.shuffled else None
    if given.shuffled and shuffle is None:
        raise ConfigError("the run's pixels have their own order", "--shuffled", "leave it out")
    label = _label(flow, held.metadata["data"]["classes"], given.label)
    out = _require_places(given, flow, label)
    if out is not None and out.suffix == ".npy":
        return _write_values(flow, given, label, out)
    drawn = draw_pixels(
        flow, given.number, seed=given.seed, temperature=given.temperature, label=label
    )
    pixels, plural = drawn.pixels, "" if given.number == 1 else "s"
    if shuffle is not None:
        pixels = shuffle.cpu().shuffle(torch.from_numpy(pixels)).numpy()
    say(f"{given.number} image{plural}; {drawn}")
    writers: dict[Path, Callable[[Path], None]] = {}
    if out is not None:
        writers[out] = lambda path: pictures.save(pictures.grid(pixels, scale=given.scale), path)
    if given.files is not None:
        writers[given.files] = lambda path: write_singles(pixels, path, force=given.force)
    failed: list[ResourceError] = []
    for path, write in writers.items():  # one that fails leaves the other
        try:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
            say(f"in {path}")
        except ResourceError as error:
            failed.append(error)
    for error in failed[1:]:
        tell(f"error: {error}")
    if failed:
        raise failed[0]
    return 0


def _write_values(
    flow: Flow, given: _SampleArguments, label: int | torch.Tensor | None, out: Path
) -> int:
    """Draw float images, and write them as one array ``(n, *shape)``, float32."""
    drawn = draw_values(
        flow, given.number, seed=given.seed, temperature=given.temperature, label=label
    )
    wrong = int(drawn.nonfinite.sum())
    plural = "" if given.number == 1 else "s"
    say(f"{given.number} image{plural}; {wrong} of {drawn.nonfinite.numel()} values not finite")
    buffer = io.BytesIO()
    np.save(buffer, drawn.images.cpu().numpy())
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, buffer.getvalue())
    say(f"in {out}")
    return 0


def _require_places(
    given: _SampleArguments, flow: Flow, label: int | torch.Tensor | None
) -> Path | None:
    """Return the grid's file after a try of all places; None where nobody asked for a grid."""
    pictured, values = has_pictures(flow), given.out is not None and given.out.suffix == ".npy"
    if values and flow.levels is not None:
        raise ConfigError("the run's images are no floats", f"--out {given.out}", "write .png")
    if given.files is not None and (values or not pictured):
        remedy = "leave it out: --out FILE.npy has all values"
        raise ConfigError("values of floats are one file", "--files", remedy)
    if given.out is not None and not values and not pictured:
        what = f"images of shape {flow.shape} have no picture"
        raise ConfigError(what, f"--out {given.out}", "let it end in .npy")
    if given.files is not None:
        if not given.force:
            require_own(given.files, given.number)
        require_writable(given.files / "00000.png")
    if given.out is not None:
        require_writable(given.out)
        return given.out
    shown = "" if label is None else f"-label{label if isinstance(label, int) else given.label}"
    shown += "-shuffled" if given.shuffled else ""
    weights = ("" if given.checkpoint == "best" else "-last") + ("-raw" if given.raw else "")
    name = f"n{given.number}-t{given.temperature:g}-seed{given.seed}{shown}{weights}"
    name += ".png" if pictured else ".npy"
    out = given.run / "samples" / name
    if given.files is None:
        require_writable(out, "name a file elsewhere with --out")
        return out
    try:
        require_writable(out)
    except ResourceError as error:
        with keeping("the grid"):
            raise error
        return None
    return out


def _label(flow: Flow, classes: Sequence[str], word: str | None) -> int | torch.Tensor | None:
    """Return the number of the class that a word names, or is the number of; or the vector."""
    if isinstance(flow.context_net, VectorNet):
        return _vector(flow.context_net.length, word)
    if word is None:
        return None
    gaussians = flow.classifies and flow.head is None
    if flow.context_net is None and not gaussians:
        what = "the run draws no classes"
        raise ConfigError(what, "--label", "leave it out, or train with --model.classes auto")
    if word in classes:  # a name that is a number is a name
        return list(classes).index(word)
    count = len(classes)
    if gaussians or isinstance(flow.context_net, torch.nn.Embedding):
        count = class_count(flow)
    if word.isdecimal() and int(word) < count:
        return int(word)
    known = f"choose one of {', '.join(classes)}, or " if classes else "give "
    raise ConfigError(f"no class {word!r}", "--label", f"{known}0 to {count - 1}")


def _vector(length: int, word: str | None) -> torch.Tensor:
    """Return the vector of finite numbers that a word lists."""
    remedy = f"give {length} numbers with commas between them, as --label={'0.5,' * length}"[:-1]
    if word is None:
        raise ConfigError("the run is given vectors with its images", "--label", remedy)
    try:
        vector = torch.tensor([float(number) for number in word.split(",")])
    except ValueError:
        vector = torch.empty(0)
    if len(vector) != length or not vector.isfinite().all():
        raise ConfigError(f"no vector of length {length}: {word!r}", "--label", remedy)
    return vector


def _check(given: _SampleArguments) -> None:
    if given.number < 1:
        raise ConfigError(f"{given.number} images", "-n", "draw at least 1")
    if not 0 <= given.temperature < math.inf:
        raise ConfigError(f"{given.temperature}", "--temperature", "give 0 or more, finite")
    if not 0 <= given.seed < 2**63:
        raise ConfigError(f"{given.seed}", "--seed", "give 0 or more, less than 2^63")
    if given.scale < 1:
        raise ConfigError(f"{given.scale}", "--scale", "give at least 1")
    if given.out is not None and given.out.suffix.lower() not in _ENDINGS:
        raise ConfigError("not a picture's name", f"--out {given.out}", "let it end in .png")
