"""Inception v3 as the Frechet inception distance uses it: 2048 features of an image.

The modules have the names of the published state dict, whose weights are those of TensorFlow's
file of 2015-12-05.

Reference: Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, "Rethinking the Inception architecture for
computer vision", 2015, arXiv:1512.00567.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 299
"""Height and width of the images that the net sees."""

Kernel = tuple[int, int]
Step = tuple[int, *tuple[Kernel, ...]]
"""Channels of a convolution and its kernel; of several kernels each is a convolution of the same
input, side by side."""
_1, _3, _5, _1X3, _3X1, _1X7, _7X1 = (1, 1), (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1)


class Conv(nn.Module):
    """A convolution, batch norm and ReLU; with stride 1 in a block the image keeps its size."""

    def __init__(
        self, before: int, after: int, kernel: Kernel, *, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)  # as TensorFlow counts


def _max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def _halving_max(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class Mixed(nn.Module):
    """Chains of convolutions of one input, concatenated.

    Args:
        before: channels of the input.
        chains: name of each chain, and its steps.
        pool: the pooling before the chain "branch_pool".
        halved: whether the image is halved: the last step of each chain has stride 2 and no
            padding, and the halved input is concatenated too.
    """

    def __init__(
        self,
        before: int,
        chains: dict[str, list[Step]],
        *,
        pool: Callable[[Tensor], Tensor] = _mean,
        halved: bool = False,
    ) -> None:
        super().__init__()
        self.pool, self.halved = pool, halved
        self.chains: list[list[list[str]]] = []
        for chain, steps in chains.items():
            names, channels = [], before
            for number, (after, *kernels) in enumerate(steps, 1):
                start = f"{chain}_{number}" if len(steps) > 1 else chain
                made = [start + end for end in ("ab" if len(kernels) > 1 else [""])]
                last = halved and number == len(steps)
                for name, kernel in zip(made, kernels, strict=True):
                    conv = Conv(channels, after, kernel, stride=1 + last, pad=not last)
                    self.add_module(name, conv)
                names.append(made)
                channels = after * len(kernels)
            self.chains.append(names)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            h = self.pool(x) if chain == [["branch_pool"]] else x
            for names in chain:
                h = torch.cat([self.get_submodule(name)(h) for name in names], 1)
            outputs.append(h)
        return torch.cat([*outputs, _halving_max(x)] if self.halved else outputs, 1)


def _block_a(before: int, pooled: int) -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch1x1": [(64, _1)],
        "branch5x5": [(48, _1), (64, _5)],
        "branch3x3dbl": [(64, _1), (96, _3), (96, _3)],
        "branch_pool": [(pooled, _1)],
    }
    return Mixed(before, chains)


def _block_b() -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch3x3": [(384, _3)],
        "branch3x3dbl": [(64, _1), (96, _3), (96, _3)],
    }
    return Mixed(288, chains, halved=True)


def _block_c(c: int) -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch1x1": [(192, _1)],
        "branch7x7": [(c, _1), (c, _1X7), (192, _7X1)],
        "branch7x7dbl": [(c, _1), (c, _7X1), (c, _1X7), (c, _7X1), (192, _1X7)],
        "branch_pool": [(192, _1)],
    }
    return Mixed(768, chains)


def _block_d() -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch3x3": [(192, _1), (320, _3)],
        "branch7x7x3": [(192, _1), (192, _1X7), (192, _7X1), (192, _3)],
    }
    return Mixed(768, chains, halved=True)


def _block_e(before: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    chains: dict[str, list[Step]] = {
        "branch1x1": [(320, _1)],
        "branch3x3": [(384, _1), (384, _1X3, _3X1)],
        "branch3x3dbl": [(448, _1), (384, _3), (384, _1X3, _3X1)],
        "branch_pool": [(192, _1)],
    }
    return Mixed(before, chains, pool=pool)


class InceptionV3(nn.Module):
    """Images ``(n, 3, H, W)`` with values 0 to 255 to features ``(n, 2048)``.

    Images are scaled to 299 x 299 pixels by `resized`, and ``(x - 128) / 128`` goes in. The
    features are the mean over the pixels of the last block. That block takes the maximum where
    others take the mean, as the net of these weights does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, _3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = Conv(32, 32, _3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, _3)
        self.Conv2d_3b_1x1 = Conv(64, 80, _1)
        self.Conv2d_4a_3x3 = Conv(80, 192, _3, pad=False)
        self.Mixed_5b, self.Mixed_5c = _block_a(192, 32), _block_a(256, 64)
        self.Mixed_5d, self.Mixed_6a = _block_a(288, 64), _block_b()
        self.Mixed_6b, self.Mixed_6c = _block_c(128), _block_c(160)
        self.Mixed_6d, self.Mixed_6e = _block_c(160), _block_c(192)
        self.Mixed_7a = _block_d()
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, _mean), _block_e(2048, _max)
        self.fc = nn.Linear(2048, 1008)  # the classes, which the published file has too

    def forward(self, images: Tensor) -> Tensor:
        x = (resized(images.to(self.fc.weight.dtype), SIDE) - 128) / 128
        for name, block in self.named_children():
            if name != "fc":
                x = block(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = _halving_max(x)
        return x.mean((2, 3))


def resized(images: Tensor, side: int) -> Tensor:
    """Scale images ``(n, C, H, W)`` to `side` x `side` as TensorFlow 1 does.

    Bilinear, between the pixels ``floor(s)`` and ``floor(s) + 1`` for the place ``s = i H / side``
    of the i-th row, and no pixel beyond the last; without antialiasing. Other libraries take
    ``(i + 1/2) H / side - 1/2``, which moves the image by half a pixel and changes FID.
    """
    rows, columns = (_weights(n, side).to(images) for n in images.shape[2:])
    return rows @ images @ columns.mT


def _weights(before: int, after: int) -> Tensor:
    """Return the weights ``(after, before)`` of pixels along one axis."""
    place = torch.arange(after, dtype=torch.float64) * before / after
    low = place.floor().long()
    high = (low + 1).clamp(max=before - 1)
    share = (place - low)[:, None]
    pixels = torch.eye(before, dtype=torch.float64)
    return pixels[low] * (1 - share) + pixels[high] * share
