"""What outlier scores are made of: log-densities of each image, and the length of its file.

A length is that of one lossless file an image, in bits, with its header, which is the same for all
images of one shape. Which compressor counts is a function of the images' kind: WebP where it has
such images (8 bits, one or three channels), PNG for 16-bit grey ones, else zlib on the differences
of neighbours. WebP's method 2 codes some 3,000 images of 32 x 32 pixels a second.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixerflow.core import Flow, Noise, as_tensor, evaluating, is_estimated
from mixerflow.detection.classes import contexts, is_mixture, mixed
from mixerflow.errors import ConfigError

Compressor = Literal["webp", "png", "zlib"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of each of N images, ``(N,)`` float64.

    Attributes:
        dims: D, the number of values in an image.
        log_prob: ``log p(x)`` in nats, with the noise of the image's own pixels.
        log_base: ``log p(z)`` of its latent, in nats.
        complexity: bits of a lossless file; None where they were not asked for.
        background: ``log p(x)`` under a background flow; None without one.
        places: ``-log p`` of each place ``(N, places)``, in nats, of a flow that maps each place by
            itself; None where they were not asked for.
        class_log_probs: ``log p(k | x)`` of each class ``(N, K)``, in nats, classes as frequent as
            each other unless a head has learned it; None where they were not asked for.
    """

    dims: int
    log_prob: np.ndarray
    log_base: np.ndarray
    complexity: np.ndarray | None = None
    background: np.ndarray | None = None
    places: np.ndarray | None = None
    class_log_probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.log_prob)

    @property
    def log_det(self) -> np.ndarray:
        """``log|det dz/dx|``, in nats: the rest of ``log p(x)``."""
        return self.log_prob - self.log_base

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that there are, by name."""
        every = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: each for name, each in every.items() if isinstance(each, np.ndarray)}

    def take(self, indices: np.ndarray) -> Measured:
        """Return what is known of the images at `indices`."""
        return replace(self, **{name: each[indices] for name, each in self.arrays().items()})


def joined(parts: list[Measured]) -> Measured:
    """Return what is known of several sets of images as one."""
    names = parts[0].arrays()
    arrays = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in names}
    return replace(parts[0], **arrays)


def compressor_of(pixels: np.ndarray) -> Compressor:
    """Return the compressor that counts for images ``(N, C, *spatial)`` of this kind.

    Raises:
        ConfigError: floats, of which no lossless file is a length.
    """
    if pixels.dtype.kind not in "ui":
        what = f"{pixels.dtype} has no compressed length"
        raise ConfigError(what, "complexity", "choose scores without it with --scores")
    flat = pixels.ndim == 4 and max(pixels.shape[2:]) < 2**14
    if flat and pixels.dtype == np.uint8 and pixels.shape[1] in (1, 3):
        return "webp"
    return "png" if flat and pixels.dtype == np.uint16 and pixels.shape[1] == 1 else "zlib"


def stored(pixels: np.ndarray, levels: int | None) -> np.ndarray:
    """Return integers in the type in which images of so many levels are stored.

    The same pixels have one compressed length then, whatever type they come in.

    Raises:
        ConfigError: floats.
    """
    if pixels.dtype.kind not in "ui":
        what = f"{pixels.dtype} has no compressed length"
        raise ConfigError(what, "images", "give integers, as the flow's levels say")
    if levels is None or levels > 2**16:
        return pixels
    return pixels.astype(np.uint8 if levels <= 2**8 else np.uint16)


def complexity(pixels: np.ndarray) -> np.ndarray:
    """Return the bits of a lossless file of each image ``(N, C, *spatial)``, see the module."""
    lengths = {"webp": _webp, "png": _png, "zlib": _zlib}[compressor_of(pixels)]
    return np.array([8.0 * lengths(image) for image in pixels])


def _webp(image: np.ndarray) -> int:
    return _file(image, "WEBP", lossless=True, quality=100, method=2)


def _png(image: np.ndarray) -> int:
    return _file(image, "PNG", optimize=True)


def _file(image: np.ndarray, kind: str, **settings: object) -> int:
    cells = np.ascontiguousarray(np.moveaxis(image, 0, -1))
    buffer = io.BytesIO()
    Image.fromarray(cells[..., 0] if len(image) == 1 else cells).save(buffer, kind, **settings)
    return buffer.tell()


def _zlib(image: np.ndarray) -> int:
    differences = np.diff(image, axis=-1, prepend=image.dtype.type(0))
    return len(zlib.compress(np.ascontiguousarray(differences).tobytes(), 9))


def note_of(flow: Flow) -> str:
    """Return a sentence on the error of a flow's estimated log-density; "" where it is none."""
    if not is_estimated(flow.density):
        return ""
    return "log p of this flow is an estimate by one probe an image: scores have its error too"


@torch.no_grad()
def measure(
    flow: Flow,
    images: np.ndarray | Tensor,
    *,
    labels: np.ndarray | Tensor | None = None,
    background: Flow | None = None,
    lengths: bool = True,
    places: bool = False,
    classes: bool = False,
    batch: int = 128,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Measured:
    """Measure images ``(N, *shape)`` under a flow, in eval mode.

    An image's figures depend on no other image and not on `batch`: noise is a function of `seed`
    and the image's own pixels. An estimated density is taken as it is, by one probe an image.

    Args:
        flow: the model, whose density counts.
        images: integers as the flow's levels say, or floats.
        labels: class numbers or vectors, for a conditional flow. Without them a class-conditional
            flow is the mixture of its K classes, ``log p(x) = log 1/K sum_k p(x | k)``, in K
            passes, and `log_base` is that of the likeliest class.
        background: a second flow of images of the same shape, see `LikelihoodRatio`. It has no
            context.
        lengths: whether images are compressed too.
        places: whether each place is scored too, in a second pass; see `factorises`.
        classes: whether the classes' probabilities are told, from the same passes: of a flow with
            a head, or of a class-conditional one without labels.
        batch: images at a time.
        seed: seed of the noise.
        on_batch: called with the number of images after each batch; what it raises stops.

    Raises:
        ValueError: images of another shape or range, or not one label for each.
        ConfigError: a batch below 1, a background flow of other images, lengths of floats, or
            classes of a flow that tells none in these passes.
        MixesPlaces: scores of places of a flow that mixes them.
    """
    if batch < 1:
        raise ConfigError(f"{batch} images at a time", "batch", "give at least 1")
    if background is not None:
        _require_background(flow, background)
    if classes and not tells_classes(flow, given=labels is not None):
        what = "a flow without a head, or with labels given, tells no classes"
        raise ConfigError(what, "classes", "leave them out")
    x, context = as_tensor(images), None if labels is None else as_tensor(labels)
    if context is not None and len(context) != len(x):
        raise ValueError(f"measure: {len(context)} labels for {len(x)} images")
    parts = []
    with evaluating(flow) as scored:
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            given = None if context is None else context[start : start + batch]
            noise, pixels = Noise.of(seed, part), part.to(flow.device)
            log_prob, log_base, told = _densities(scored, pixels, given, noise, classes=classes)
            second = None if background is None else _log_prob(background, part, noise)
            bits = complexity(stored(part.cpu().numpy(), flow.levels)) if lengths else None
            each = _places(scored, pixels, given, noise) if places else None
            parts.append(Measured(flow.dims, log_prob, log_base, bits, second, each, told))
            if on_batch is not None:
                on_batch(len(part))
    if not parts:
        raise ValueError("measure: no images")
    return joined(parts)


def tells_classes(flow: Flow, *, given: bool = False) -> bool:
    """Whether `measure` can tell the classes of images, which are `given` their labels or not."""
    return flow.classifies or (is_mixture(flow) and not given)


def _densities(
    flow: Flow, x: Tensor, context: Tensor | None, noise: Noise, *, classes: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return ``log p(x)``, ``log p(z)`` ``(B,)`` and, if asked for, ``log p(k | x)`` ``(B, K)``.

    Without a class, the first two are those of all classes.
    """
    every = [flow(x, each, noise) for each in contexts(flow, context, len(x))]
    log_prob = torch.stack([each.log_prob.double() for each in every])
    log_base = log_prob - torch.stack([each.log_det.double() for each in every])
    likeliest = log_prob.nan_to_num(nan=-math.inf).argmax(0, keepdim=True)
    log_base, told = log_base.gather(0, likeliest)[0], None
    if classes:
        scores = flow.logits(every[0].z).double() if flow.classifies else log_prob.T
        told = scores.log_softmax(1).cpu().numpy()
    return mixed(log_prob).cpu().numpy(), log_base.cpu().numpy(), told


def _places(flow: Flow, x: Tensor, context: Tensor | None, noise: Noise) -> np.ndarray:
    return -flow.log_prob_by_place(x, context, noise).flatten(1).double().cpu().numpy()


def _log_prob(flow: Flow, x: Tensor, noise: Noise) -> np.ndarray:
    with evaluating(flow) as scored:
        return scored.log_prob(x.to(flow.device), None, noise).double().cpu().numpy()


def _require_background(flow: Flow, background: Flow) -> None:
    where, remedy = "--background", "give a flow of the same images"
    if background.context_net is not None:
        raise ConfigError("a conditional flow", where, "give one without classes")
    for name in ("shape", "levels"):
        mine, theirs = getattr(flow, name), getattr(background, name)
        if mine != theirs:
            raise ConfigError(f"its images have {name} {theirs}, not {mine}", where, remedy)
