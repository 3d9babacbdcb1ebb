"""A small convolutional net that tells the classes of real images, to judge others by.

Its parts are those of the first nets of the kind (LeCun, Bottou, Bengio, Haffner: Gradient-based
learning applied to document recognition, 1998), with batch norm (Ioffe, Szegedy: Batch
normalization, 2015, arXiv:1502.03167).
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mixerflow.caches import store, without_digest
from mixerflow.core import Shape
from mixerflow.data import Images
from mixerflow.errors import DataError
from mixerflow.evaluate.probe import Labelled, ProbeSettings, fit_classifier

FEATURES = 64
_WIDTHS = (32, 64, 64)
_SIDE = 32
"""Side to which larger images are averaged, so that their training takes no longer."""
_GRID = 4
_PART = 512


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is trained: Adam, whose rate falls to 0 along a half cosine.

    Attributes:
        images: images that the training sees, in whole passes over the set, at least one; of a
            larger set as many are drawn.
        batch: images of a step.
        lr: the first step's rate.
        decay: decoupled weight decay.
        seed: of the first weights and of the order of the images.
    """

    images: int = 100_000
    batch: int = 64
    lr: float = 3e-3
    decay: float = 0.01
    seed: int = 0

    def passes(self, count: int) -> tuple[int, int]:
        """Return the passes over `count` images, and the images of each."""
        return max(1, self.images // count), min(count, self.images)

    def seen(self, train: Images) -> int:
        """Return the images that the training sees, those of several passes more than once."""
        assert train.labels is not None
        epochs, own = self.passes(int((train.labels >= 0).sum()))
        return epochs * own


class Judge(nn.Module):
    """Three convolutions, a mean over 4 x 4 fields, and two linear layers.

    Args:
        shape: ``(C, H, W)`` of images of 8 bits.
        classes: K.
    """

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        layers: list[nn.Module] = []
        before = shape[0]
        for width, stride in zip(_WIDTHS, (2, 2, 1), strict=True):
            convolution = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(before * _GRID**2, FEATURES)
        self.head = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features before the last layer ``(n, 64)`` of values ``(n, C * H * W)``."""
        x = x.unflatten(1, self.shape).float() / 127.5 - 1
        height, width = (min(side, _SIDE) for side in self.shape[1:])
        x = x if (height, width) == self.shape[1:] else adaptive_avg_pool2d(x, (height, width))
        return self.last(adaptive_avg_pool2d(self.body(x), _GRID).flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes ``(n, K)`` of values ``(n, C * H * W)``, 0 to 255."""
        return self.head(self.features(x))

    @torch.no_grad()
    def judged(self, pixels: np.ndarray) -> Judged:
        """Judge images ``(n, C, H, W)``, uint8 or uint16."""
        parts = [_flat(pixels[i : i + _PART]) for i in range(0, len(pixels), _PART)]
        features = [self.features(part) for part in parts]
        probabilities = [self.head(part).double().softmax(1) for part in features]
        return Judged(torch.cat(probabilities), torch.cat(features))


@dataclass(frozen=True, eq=False)
class Judged:
    """What a judge says of images.

    Attributes:
        probabilities: ``p(k | x)``, ``(n, K)``.
        features: ``(n, 64)``.
    """

    probabilities: Tensor
    features: Tensor

    @property
    def predicted(self) -> Tensor:
        """The likeliest class of each image ``(n,)``."""
        return self.probabilities.argmax(1)


def judge_of(
    train: Images,
    test: Images,
    settings: JudgeSettings | None = None,
    *,
    cache: Path | None = None,
    on_image: Callable[[int], None] | None = None,
) -> tuple[Judge, float]:
    """Train a judge on images with labels, or take it from the cache; return its test accuracy too.

    It is a function of the images, their labels, the settings and the number of threads of torch.

    Args:
        train: the images; those with the label -1 are left out.
        test: other images, with labels of the same classes.
        settings: how it is trained.
        cache: folder that keeps it. What cannot be written is a warning.
        on_image: called with the number of images of each step of the training, in all
            `JudgeSettings.seen`; an error that it raises stops.

    Raises:
        DataError: images that `unjudgeable` names, or a judge that tells test images' classes no
            better than their most frequent class does, by three standard errors.
    """
    settings = settings or JudgeSettings()
    if words := unjudgeable(train) or unjudgeable(test):
        raise DataError(words, train.dataset_id, "give images with class labels")
    assert train.labels is not None and test.labels is not None
    classes = max(len(train.classes), 1 + int(max(train.labels.max(), test.labels.max())))
    judge = _made(train, classes, settings, cache, on_image)
    known = np.flatnonzero(test.labels >= 0)
    predicted = judge.judged(test.pixels[known]).predicted.numpy()
    accuracy = float(np.mean(predicted == test.labels[known]))
    chance = np.bincount(test.labels[known]).max() / len(known)
    if accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / len(known)):
        what = f"a net trained on the classes tells {100 * accuracy:.0f} % of test images right"
        what += f", no better than chance, {100 * chance:.0f} %"
        raise DataError(what, train.dataset_id, "give more images, or labels that they show")
    return judge, accuracy


def unjudgeable(images: Images) -> str:
    """Return why images cannot train a judge, or be judged; empty where they can."""
    if len(images.shape) != 3 or images.levels is None:
        return f"images of shape {images.shape}, {images.pixels.dtype}, have no picture"
    if images.labels is None or images.vector_length is not None:
        return "the images have no class labels"
    if len(np.unique(images.labels[images.labels >= 0])) < 2:
        return "the labelled images have fewer than two classes"
    return ""


def _made(
    train: Images,
    classes: int,
    settings: JudgeSettings,
    cache: Path | None,
    on_image: Callable[[int], None] | None,
) -> Judge:
    key = json.dumps(_key(train, classes, settings), sort_keys=True).encode()
    path = None if cache is None else cache / f"{hashlib.sha256(key).hexdigest()[:32]}.judge"
    judge = _initial(train.shape, classes, settings.seed)
    try:
        data = None if path is None else without_digest(path.read_bytes(), key)
        if data is not None:
            judge.load_state_dict(safetensors.torch.load(data))
            return judge
        if path is not None:
            warnings.warn(f"trained again: SHA-256 differs: {path}", stacklevel=4)
    except FileNotFoundError:
        pass
    except OSError as error:
        warnings.warn(f"trained again: {error}", stacklevel=4)
    _train(judge, train, settings, on_image)
    if path is not None:
        try:
            store(path, safetensors.torch.save(judge.state_dict()), key)
        except OSError as error:
            warnings.warn(f"the net that judges is not kept: {error}", stacklevel=4)
    return judge


def _key(train: Images, classes: int, settings: JudgeSettings) -> dict[str, Any]:
    """Return all that a judge depends on, but for rounding."""
    assert train.labels is not None
    labels = hashlib.sha256(train.labels.astype("<i8").tobytes()).hexdigest()
    net = {"widths": _WIDTHS, "side": _SIDE, "grid": _GRID, "features": FEATURES}
    images = {"images_sha256": train.fingerprint(), "labels_sha256": labels, "classes": classes}
    return {"format": 1, **images, **net, **asdict(settings), "torch": torch.__version__}


def _initial(shape: Shape, classes: int, seed: int) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Judge(shape, classes).eval()


def _train(
    judge: Judge,
    train: Images,
    settings: JudgeSettings,
    on_image: Callable[[int], None] | None,
) -> None:
    assert train.labels is not None
    known = np.flatnonzero(train.labels >= 0)
    epochs, count = settings.passes(len(known))
    order = np.random.default_rng(settings.seed).permutation(known)[:count]
    data = Labelled(_flat(train.pixels[order]), torch.from_numpy(train.labels[order]))
    groups = [{"params": list(judge.parameters()), "weight_decay": settings.decay}]
    probes = ProbeSettings(epochs=epochs, batch=settings.batch, lr=settings.lr)
    with torch.enable_grad():
        fit_classifier(judge, data, groups, probes, seed=settings.seed, on_batch=on_image)


def _flat(pixels: np.ndarray) -> Tensor:
    """Return 8-bit values ``(n, C * H * W)``: of 16 bits the upper ones."""
    values = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return torch.from_numpy(np.array(values)).flatten(1)
