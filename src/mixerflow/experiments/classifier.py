"""A plain MLP-Mixer classifier, which a table of hybrid models has beside its rows."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mixerflow.core import Shape, as_tensor
from mixerflow.data import Images
from mixerflow.progress import ProgressBar
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

    @classmethod
    def sized(cls, shape: Shape, classes: int, *, full: bool) -> MixerClassifier:
        """Return a net with as many parameters as the tables' MixerFlows of these images.

        The twins have 0.56 million with their heads for colour and 0.41 million for grey, the
        paper's model 11.4 million.
        """
        if full:
            return cls(shape, classes, layers=11, channels=512, channel_width=1000)
        return cls(shape, classes, layers=4 if shape[0] > 1 else 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of the classes ``(B, K)`` of integer images ``(B, C, H, W)``."""
        tokens = self.embedding(x.float() / 127.5 - 1).flatten(2).mT
        return self.scores(self.norm(self.blocks(tokens)).mean(1))


@dataclass(frozen=True)
class Training:
    """How long and how a classifier trains: with Adam, on ``-log p(y | x)``."""

    steps: int | None = None
    """Optimiser steps; None for a budget in minutes."""
    minutes: float = 0.0
    """Processor time, where there are no steps."""
    lr: float = 1e-3
    """Learning rate, constant."""
    batch: int = 32
    """Images of a step."""
    ema: float = 0.99
    """Decay of the averaged weights, which classify in the end."""


def train_classifier(
    net: nn.Module, train: Images, test: Images, training: Training, *, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train a classifier on images with labels; return ``log p(k | x)`` of the test images.

    The images come in the order in which a flow of the same seed sees them. The second result has
    the parameters, steps and seconds of processor time.
    """
    device = next(net.parameters()).device
    batches = Batches(train, training.batch, seed=seed, device=device, conditional=True)
    averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(training.ema))
    adam = torch.optim.Adam(net.parameters(), lr=training.lr, fused=True)
    begun, step, spent = time.process_time(), 0, 0.0
    total = training.steps or math.ceil(60 * training.minutes)
    with ProgressBar("second" if training.steps is None else "step", total) as bar:
        while (done := int(spent) if training.steps is None else step) < total:
            x, labels = batches.at(step)
            assert labels is not None
            loss = cross_entropy(net(x), labels.to(device))
            adam.zero_grad()
            loss.backward()
            adam.step()
            averaged.update_parameters(net)
            step, spent = step + 1, time.process_time() - begun
            if step % 50 == 0:
                bar.update(done, f"MLP-Mixer: loss {loss.item():.3f}")
    parameters = sum(p.numel() for p in net.parameters())
    found = {"parameters": parameters, "steps": step, "seconds": spent}
    return _log_probs(averaged, test, device), found


@torch.no_grad()
def _log_probs(net: nn.Module, images: Images, device: torch.device) -> np.ndarray:
    parts = []
    for start in range(0, len(images), 256):
        x = as_tensor(images.pixels[start : start + 256]).to(device)
        parts.append(net(x).double().log_softmax(1).cpu().numpy())
    return np.concatenate(parts)
