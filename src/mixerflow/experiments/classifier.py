"""A plain MLP-Mixer classifier, which a table of hybrid models has beside its rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

from mixerflow.core import Shape, as_tensor
from mixerflow.evaluate import Classification
from mixerflow.experiments.runs import SeedImages
from mixerflow.progress import ProgressBar
from mixerflow.runs.files import read_record, sealed, write_atomically, writing
from mixerflow.training.batches import Batches


class _MLP(nn.Module):
    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(features, width), nn.Linear(width, features)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(gelu(self.enter(x)))


class _MixerBlock(nn.Module):
    def __init__(self, patches: int, channels: int, patch_width: int, channel_width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.patch_mlp, self.channel_mlp = _MLP(patches, patch_width), _MLP(channels, channel_width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patch_mlp(self.norms[0](x).mT).mT
        return x + self.channel_mlp(self.norms[1](x))


class MixerClassifier(nn.Module):
    """An MLP-Mixer: patches, blocks that mix patches and channels in turn, a mean, a linear layer.

    Args:
        shape: the images' ``(C, H, W)``; values 0 to 255.
        classes: K.
        layers: number of blocks.
        patch: side of a patch.
        channels: channels of a patch.
        patch_width: width of the MLP of the patches.
        channel_width: width of the MLP of the channels.

    Reference: Tolstikhin et al., MLP-Mixer: an all-MLP architecture for vision (2021),
        arXiv:2105.01601.
    """

    def __init__(
        self,
        shape: Shape,
        classes: int,
        *,
        layers: int,
        patch: int = 4,
        channels: int = 128,
        patch_width: int = 64,
        channel_width: int = 512,
    ) -> None:
        super().__init__()
        depth, height, width = shape
        self.embedding = nn.Conv2d(depth, channels, patch, stride=patch)
        sizes = (height // patch) * (width // patch), channels, patch_width, channel_width
        self.blocks = nn.Sequential(*(_MixerBlock(*sizes) for _ in range(layers)))
        self.norm, self.scores = nn.LayerNorm(channels), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes ``(B, K)`` of integer images ``(B, C, H, W)``."""
        tokens = self.embedding(x.float() / 127.5 - 1).flatten(2).mT
        return self.scores(self.norm(self.blocks(tokens)).mean(1))


@dataclass(frozen=True)
class ClassifierTraining:
    """How a classifier trains beside a table's rows: as long as they, with Adam on log p(y | x)."""

    layers: int
    """Blocks of the MLP-Mixer."""
    lr: float = 1e-3
    """Adam's learning rate, constant."""
    batch: int = 32
    """Images of a step."""
    ema: float = 0.99
    """Decay of the averaged weights, of which the figures are."""


def train_classifier(
    net: nn.Module,
    images: SeedImages,
    training: ClassifierTraining,
    *,
    minutes: float | None,
    steps: int | None,
    seed: int,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a classifier for minutes of processor time or for steps; return its test figures.

    The images, their order and the held-out part are those of the table's flows of the same seed.
    """
    device = torch.device("cpu")
    batches = Batches(images.train, training.batch, seed=seed, device=device, conditional=False)
    averaged = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(training.ema)
    )
    adam = torch.optim.Adam(net.parameters(), lr=training.lr, fused=True)
    begun, step, spent = time.process_time(), 0, 0.0
    seconds = None if minutes is None else 60 * minutes
    with ProgressBar("second" if steps is None else "step", int(seconds or steps or 0)) as bar:
        while spent < seconds if seconds is not None else step < (steps or 0):
            x, labels = batches.at(step)
            loss = cross_entropy(net(x), _given(labels))
            adam.zero_grad()
            loss.backward()
            adam.step()
            averaged.update_parameters(net)
            step, spent = step + 1, time.process_time() - begun
            if not quiet and step % 50 == 0:
                bar.update(step if seconds is None else int(spent), f"loss {loss.item():.3f}")
    found = _classified(averaged, images)
    return found.as_dict() | {
        "parameters": sum(p.numel() for p in net.parameters()),
        "steps": step,
        "seconds": spent,
        "seed": seed,
    }


def _given(labels: Tensor | None) -> Tensor:
    assert labels is not None, "a classifier learns from labels"
    return labels


@torch.no_grad()
def _classified(net: nn.Module, images: SeedImages) -> Classification:
    test, parts = images.test, []
    assert test.labels is not None
    for start in range(0, len(test), 256):
        x = as_tensor(test.pixels[start : start + 256])
        parts.append(net(x).double().log_softmax(1).numpy())
    return Classification(np.concatenate(parts), test.labels)


def keep_classifier(
    path: Path,
    images: SeedImages,
    training: ClassifierTraining,
    *,
    minutes: float | None,
    steps: int | None,
    seed: int,
) -> None:
    """Train the MLP-Mixer of a column and a seed, unless its figures are in the file `path`."""
    sha256 = {"training_sha256": images.train.fingerprint()}
    sha256 |= {"images_sha256": images.test.fingerprint()}
    known = read_record(path, "delete this file") or {}
    if sha256.items() <= known.items():
        return
    assert images.train.labels is not None
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classes = int(images.train.labels.max()) + 1
        net = MixerClassifier(images.train.shape, classes, layers=training.layers)
        found = train_classifier(net, images, training, minutes=minutes, steps=steps, seed=seed)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, sealed(found | sha256))
