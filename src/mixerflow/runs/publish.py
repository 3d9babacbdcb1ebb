"""Published weights: the weights of a run as one small file, with a card for programs and people.

Matrices are kept in 16 bits, all else as it is. Conditioners' matrices, most of the file, are
bfloat16. Those that a flow multiplies its data with are float16, which takes as many bytes and
rounds to an eighth: in bfloat16 they alone would cost ten times the bits/dim of all conditioners.
A kernel of a convolution, ``(out, in, *kernel)``, is a matrix whose rows are as long as its fan-in,
``in * prod(kernel)``: it is a sum of so many products, over which roundings average out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixerflow import hub, pictures
from mixerflow.core import Flow, Transform
from mixerflow.errors import CheckpointError, ConfigError
from mixerflow.evaluate import Bits, draw_pixels, has_pictures, kind_of
from mixerflow.hub import Pushed
from mixerflow.named import HubName
from mixerflow.runs.evaluations import Evaluator
from mixerflow.runs.files import require_writable, without_nan, write_atomically, writing
from mixerflow.runs.fitting import vectors_of
from mixerflow.runs.folder import FORMAT
from mixerflow.runs.located import FILES, locate
from mixerflow.runs.manifest import MODEL, entry, pack_tensors, seal
from mixerflow.runs.metadata import device_name, versions
from mixerflow.runs.model_card import card_text, front_matter
from mixerflow.runs.thresholds import kept_fit
from mixerflow.runs.weights import (
    CARD,
    Weights,
    Which,
    device_of,
    is_published,
    read_metadata,
    read_weights,
)
from mixerflow.temporary import sweep

_SMALL = 1024
"""Numbers below which a matrix is not worth rounding: the colour transform has nine."""
PICTURE = "samples.png"
"""The file of samples beside the card."""
_SAMPLES = {"images": 64, "temperature": 0.8, "seed": 0}


def is_large(weight: Tensor) -> bool:
    """Whether it is a matrix, or a convolution's kernel, that is worth rounding.

    What has a number for each channel, ``(C, 1, 1)`` say, has a fan-in of 1 and is neither.
    """
    fan_in = weight.shape[1:].numel()
    return fan_in > 1 and weight.numel() >= _SMALL


def rounded(flow: Flow) -> dict[str, Tensor]:
    """A flow's state dict as it is published: its large matrices in 16 bits."""
    weights = flow.state_dict()
    for prefix, module in flow.named_modules(remove_duplicate=False):
        kind = torch.float16 if isinstance(module, Transform) else torch.bfloat16
        for name, matrix in module.named_parameters(prefix, recurse=False):
            if is_large(matrix):
                half = matrix.detach().to(kind)
                if half.isfinite().all():  # float16 ends at 65504
                    weights[name] = half
    return weights


def publish(
    run: Path,
    to: Path,
    evaluator: Evaluator,
    *,
    which: Which = "best",
    average: bool = True,
    limit_mb: float = 25.0,
    force: bool = False,
    on_card: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write a run's weights to a folder: `MODEL`, `CARD`, samples, and the card for people.

    A kill leaves each file whole or absent; the card is written last. Weights that their card does
    not verify are replaced by the same call again.

    Args:
        run: the run folder.
        to: the folder to write; published weights there are replaced only by better ones.
        evaluator: scores the weights, rounded and in float32.
        which: the checkpoint.
        average: publish the averaged weights, not the raw ones.
        limit_mb: largest size of the file, in millions of bytes.
        force: replace published weights whatever their bits/dim.
        on_card: called with the card before anything is written.

    Returns:
        The card.

    Raises:
        ConfigError: no run folder, too large a file, or the published weights are better.
        CheckpointError: the run's checkpoint, or the published weights, are damaged.
        DataError: images that do not fit.
        ResourceError: the folder cannot be written.
    """
    if is_published(locate(run).path):
        raise ConfigError("these weights are published already", run, "name a run folder")
    held = read_weights(run, which=which, average=average)
    before = _published(to, force=force)
    require_writable(to / MODEL)
    flow = held.flow(device_of(evaluator.device))
    half = rounded(flow)
    data = pack_tensors(half)
    if len(data) > 1e6 * limit_mb:
        what = f"{len(data) / 1e6:.1f} MB of weights are more than {limit_mb:g}"
        raise ConfigError(what, run, "publish a smaller model, or raise --limit-mb")
    flow.load_state_dict(half)
    figure = evaluator.score(flow, held.metadata)
    if not math.isfinite(figure.bits_per_dim):
        what = f"{figure.bits_per_dim} bits/dim on {figure.dataset_id}"
        raise CheckpointError(what, held.path, "publish another checkpoint")
    scored = figure.as_dict() | {
        "images_sha256": evaluator.images.fingerprint(),
        "device": device_name(flow.device),
        "versions": versions(),
    }
    _compare(before, scored, to)
    picture = _picture(flow, evaluator, held.metadata)
    flow.load_state_dict(held.tensors)
    exact = evaluator.score(flow, held.metadata)
    card = _card(held, scored, exact, data) | {"averaged": average}
    card = without_nan(card | ({"samples": _SAMPLES} if picture else {}))
    if on_card is not None:
        on_card(card)
    _write(to, card, data, picture)
    return card


def _picture(flow: Flow, evaluator: Evaluator, metadata: dict[str, Any]) -> bytes | None:
    """Return a PNG file of samples, in rows of 8; None for images that are no pictures.

    A flow conditional on vectors is given those of the images that score it.
    """
    if not has_pictures(flow) or len(flow.shape) != 3:
        return None
    vectors = vectors_of(flow, metadata, evaluator.images)
    seed, temperature = _SAMPLES["seed"], _SAMPLES["temperature"]
    count = _SAMPLES["images"]
    drawn = draw_pixels(flow, count, seed=seed, temperature=temperature, examples=vectors)
    return pictures.png_grid(drawn.pixels, columns=8)


def push(folder: Path, name: HubName, *, license: str = "", private: bool = False) -> Pushed:
    """Push published weights to a repository of the Hugging Face hub, in one commit.

    ``README.md`` there is the card for people, with the entries that the hub reads. Thresholds of
    outliers go along if they are of these weights; a warning says if not.

    Args:
        folder: published weights.
        name: the repository, which is made if it is missing.
        license: identifier of the weights' license, as the hub has it; empty for none.
        private: whether a repository that is made is private.

    Raises:
        CheckpointError: no published weights there, or damaged ones.
        ConfigError: the hub's package or a token is missing, or it may not write there.
        ResourceError: the hub cannot be reached, or fails.
    """
    held = read_weights(folder)
    if not held.published:
        remedy = "publish it first: `mixerflow publish RUN --to FOLDER`"
        raise ConfigError("a run, not published weights", folder, remedy)
    files = {each: (folder / each).read_bytes() for each in FILES if (folder / each).is_file()}
    fit = kept_fit(folder)
    if fit is not None and fit.key["weights_sha256"] != held.sha256:
        warnings.warn("the thresholds there are of other weights, and are left out", stacklevel=2)
        files = {each: data for each, data in files.items() if not each.startswith("outliers/")}
    card: dict[str, Any] = held.metadata if PICTURE in files else held.metadata | {"samples": None}
    title = name.repository.partition("/")[2]
    text = front_matter(title, card, license) + card_text(title, card)
    files["README.md"] = text.encode("utf-8", "backslashreplace")
    figure = card["figure"]
    message = f"{figure['bits_per_dim']:.4f} bits/dim on {figure['dataset_id']}, {figure['split']}"
    return hub.push(name, files, message, known=FILES, private=private)


def _published(to: Path, *, force: bool) -> dict[str, Any] | None:
    """Return the card of the weights to replace; None where any weights may be written."""
    if (to / "run.json").exists():
        raise ConfigError("a run is there", to, "publish to a folder of its own")
    return None if force or not is_published(to) else read_metadata(to)


def _compare(before: dict[str, Any] | None, scored: dict[str, Any], to: Path) -> None:
    """Raise a ConfigError unless the published weights are worse."""
    if before is None:
        return
    old = before["figure"]
    images = f"{old['images']} images of {old['dataset_id']}, {old['split']}"
    judged = {
        images: old["images_sha256"] == scored["images_sha256"],
        f"noise of seed {old['seed']}": old["seed"] == scored["seed"],
        kind_of(old): kind_of(old) == kind_of(scored),
    }
    other = [by for by, same in judged.items() if not same]
    if other:
        what = f"what is published was judged by {other[0]}"
        remedy = "give the same --data, --split, --images and --seed, or replace it with --force"
        raise ConfigError(what, to, remedy)
    if old["bits_per_dim"] <= scored["bits_per_dim"]:
        what = (
            f"what is published has {old['bits_per_dim']:.5f} bits/dim, "
            f"this run {scored['bits_per_dim']:.5f}"
        )
        raise ConfigError(what, to, "train further, or replace it with --force")


def _card(weights: Weights, scored: dict[str, Any], exact: Bits, data: bytes) -> dict[str, Any]:
    kept = ("recipe", "command", "source", "model", "train", "data", "parameters", "versions")
    pieces = weights.pieces
    return {
        "format": FORMAT,
        "status": "published",
        **{key: weights.metadata.get(key) for key in (*kept, "machine")},
        "objective": weights.metadata.get("objective") or "likelihood",
        "steps": sum(piece["steps"] for piece in pieces),
        "seconds": sum(piece["seconds"] or 0 for piece in pieces),
        "restarts": len(pieces) - 1,
        "pieces": pieces,
        "figure": scored,
        "float32": {
            "bits_per_dim": exact.bits_per_dim,
            "standard_error": exact.as_dict()["standard_error"],
        },
        "files": {MODEL: entry(data)},
    }


def _write(to: Path, card: dict[str, Any], data: bytes, picture: bytes | None) -> None:
    with writing(to, lambda: len(data)):
        to.mkdir(parents=True, exist_ok=True)
        sweep(to)
        write_atomically(to / MODEL, data)
        if picture is None:
            (to / PICTURE).unlink(missing_ok=True)
        else:
            write_atomically(to / PICTURE, picture)
        text = card_text(to.resolve().name, card)
        write_atomically(to / "card.md", text.encode("utf-8", "backslashreplace"))
        write_atomically(to / CARD, seal(card))
