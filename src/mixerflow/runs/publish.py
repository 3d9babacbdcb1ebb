"""Published weights: those of a run as one small file, and a card that tells of them.

Matrices are kept in 16 bits, all else as it is. Conditioners' matrices, most of the file, are
bfloat16. Those that a flow multiplies its data with are float16, which takes as many bytes and
rounds to an eighth: in bfloat16 they alone would cost ten times the bits/dim of all conditioners.
A kernel of a convolution, ``(out, in, *kernel)``, is a matrix whose rows are as long as its fan-in,
``in * prod(kernel)``: it is a sum of so many products, over which roundings average out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixerflow.core import Flow, Transform
from mixerflow.data import Images
from mixerflow.errors import CheckpointError, ConfigError, DataError
from mixerflow.evaluate import Bits, bits
from mixerflow.processes import SINGLE, Processes
from mixerflow.runs.card import card_text
from mixerflow.runs.files import sweep, write_atomically, writing
from mixerflow.runs.folder import FORMAT
from mixerflow.runs.manifest import MODEL, entry, pack_tensors, seal
from mixerflow.runs.metadata import device_name, versions
from mixerflow.runs.weights import (
    CARD,
    Stored,
    device_of,
    is_published,
    labels_of,
    read_header,
    stored,
)

_SMALL = 1024
"""Numbers below which a matrix is not worth rounding: the colour transform has nine."""
_SAME = ("images_sha256", "seed", "dequantization")
"""What two figures must agree in to be compared, besides the model's shape."""


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


@dataclass(frozen=True)
class Evaluator:
    """The images that weights are judged by, and how.

    Attributes:
        images: of the model's shape.
        split: which part of their data they are.
        seed: of the dequantisation noise.
        batch: images at a time.
        device: where to compute.
        importance_samples: draws of noise an image.
        on_batch: called with the number of images done.
        processes: among which the images are shared.
    """

    images: Images
    split: str
    seed: int = 0
    batch: int = 128
    device: str = "cpu"
    importance_samples: int = 1
    on_batch: Callable[[int], None] | None = None
    processes: Processes = SINGLE

    def score(self, flow: Flow, header: dict[str, Any]) -> Bits:
        """Bits/dim of a flow whose run's ``run.json`` is `header`.

        Raises:
            DataError: images of another shape, or without the labels that it needs.
        """
        images = self.images
        if images.shape != flow.shape:
            what = f"images are {images.shape}, the run's are {flow.shape}"
            raise DataError(what, images.dataset_id, "give images of that shape")
        return bits(
            flow,
            images.pixels,
            labels=None if flow.context_net is None else labels_of(header, images),
            batch=self.batch,
            importance_samples=self.importance_samples,
            seed=self.seed,
            dataset_id=images.dataset_id,
            split=self.split,
            on_batch=self.on_batch,
            processes=self.processes,
        )


def publish(
    run: Path,
    to: Path,
    judge: Evaluator,
    *,
    which: Literal["best", "last"] | int = "best",
    average: bool = True,
    limit_mb: float = 25.0,
    force: bool = False,
) -> dict[str, Any]:
    """Write a run's weights to a folder: `MODEL`, `CARD`, and the card for people.

    Each file is there whole or not at all, the card last: a kill in between leaves weights that
    their card does not verify, and the same call again mends that.

    Args:
        run: the run folder.
        to: the folder to write; what is published there is replaced only by what is better.
        judge: scores the weights, rounded and as they were.
        which: the checkpoint.
        average: the averaged weights, not the raw ones.
        limit_mb: the most that the file may have, in millions of bytes.
        force: replace what is published there, whatever its figure.

    Returns:
        The card.

    Raises:
        ConfigError: no run folder, too large a file, or what is published there is better.
        CheckpointError: the run's checkpoint, or what is published there, is damaged.
        DataError: images that do not fit.
        ResourceError: the folder cannot be written.
    """
    if is_published(run):
        raise ConfigError("these weights are published already", run, "name a run folder")
    held = stored(run, which=which, average=average)
    before = _published(to, force=force)
    flow = held.flow(device_of(judge.device))
    weights = rounded(flow)
    data = pack_tensors(weights)
    if len(data) > 1e6 * limit_mb:
        what = f"{len(data) / 1e6:.1f} MB of weights are more than {limit_mb:g}"
        raise ConfigError(what, run, "publish a smaller model, or raise --limit-mb")
    flow.load_state_dict(weights)
    figure = judge.score(flow, held.header)
    if not math.isfinite(figure.bits_per_dim):
        what = f"{figure.bits_per_dim} bits/dim on {figure.dataset_id}"
        raise CheckpointError(what, held.path, "publish another checkpoint")
    scored = figure.as_dict() | {
        "images_sha256": judge.images.fingerprint(),
        "device": device_name(flow.device),
        "versions": versions(),
    }
    _compare(before, scored, to)
    flow.load_state_dict(held.weights)
    exact = judge.score(flow, held.header)
    card = _card(held, scored, exact, data) | {"averaged": average}
    _write(to, card, data)
    return card


def _published(to: Path, *, force: bool) -> dict[str, Any] | None:
    """The card of what is to be outdone."""
    if (to / "run.json").exists():
        raise ConfigError("a run is there", to, "publish to a folder of its own")
    return None if force or not is_published(to) else read_header(to)


def _compare(before: dict[str, Any] | None, scored: dict[str, Any], to: Path) -> None:
    """Raise a ConfigError unless what is published is worse."""
    if before is None:
        return
    old = before["figure"]
    other = [key for key in _SAME if old[key] != scored[key]]
    if other:
        by = {"seed": f"noise of seed {old['seed']}", "dequantization": old["dequantization"]}
        images = f"{old['images']} images of {old['dataset_id']}, {old['split']}"
        what = f"what is published was judged by {by.get(other[0], images)}"
        remedy = "give the same --data, --split, --images and --seed, or replace it with --force"
        raise ConfigError(what, to, remedy)
    if old["bits_per_dim"] <= scored["bits_per_dim"]:
        what = (
            f"what is published has {old['bits_per_dim']:.5f} bits/dim, "
            f"this run {scored['bits_per_dim']:.5f}"
        )
        raise ConfigError(what, to, "train further, or replace it with --force")


def _card(held: Stored, scored: dict[str, Any], exact: Bits, data: bytes) -> dict[str, Any]:
    kept = ("recipe", "command", "source", "model", "train", "data", "parameters", "versions")
    pieces = held.pieces
    return {
        "format": FORMAT,
        "status": "published",
        **{key: held.header.get(key) for key in (*kept, "machine")},
        "objective": held.header.get("objective") or "likelihood",
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


def _write(to: Path, card: dict[str, Any], data: bytes) -> None:
    with writing(to, lambda: len(data)):
        to.mkdir(parents=True, exist_ok=True)
        sweep(to)
        write_atomically(to / MODEL, data)
        write_atomically(to / "card.md", card_text(to.name, card).encode())
        write_atomically(to / CARD, seal(card))
