"""A causal transformer flow over patches of an image, written for the benchmark from its paper.

The image is a sequence of patches ``x_1 .. x_T``. A block keeps their number and maps each by what
is before it:

    z_t = (x_t - mu(x_<t)) exp(-a(x_<t)),        log-det = -sum_t sum a(x_<t),

mu and a from a transformer with causal attention, whose input is a learned start and the patches
but the last. The order is reversed between blocks; the last block's output is standard normal. The
paper adds Gaussian noise to the images, which makes better samples and no likelihood of the images
themselves; here the data are dequantised, as for the other models, and the density is exact.

Reference: Zhai et al., Normalizing flows are capable generative models (2024), arXiv:2412.06329.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rivals import Calls, Rival
from mixerflow.errors import ConfigError

_EXPANSION = 4
"""Width of the hidden layer of a perceptron over the transformer's."""
_HEAD = 32
"""Width of an attention head, at most."""


@dataclass(frozen=True)
class Transformer:
    """A causal transformer flow over float images ``(C, H, W)``.

    The default sizes were the best of nine on CIFAR-10 after 15 CPU seconds of one thread: many
    narrow blocks beat few wide ones, and patches of 4 pixels those of 2. After 40 seconds a width
    of 32 was still better than 64.

    Raises:
        ConfigError: patches that do not fit the image.
    """

    shape: tuple[int, int, int]
    patch: int = 4
    """Side of a patch in pixels."""
    width: int = 32
    """Width of the transformers."""
    blocks: int = 8
    """Blocks, each an autoregressive map of the sequence."""
    layers: int = 1
    """Layers of attention and perceptron in a block."""
    package: str = "torch"

    def __post_init__(self) -> None:
        where = f"transformer-{self.patch}-{self.width}-{self.blocks}-{self.layers}"
        if min(self.patch, self.width, self.blocks, self.layers) < 1:
            raise ConfigError("a size less than 1", where, "give whole numbers from 1 on")
        if any(side % self.patch for side in self.shape[1:]):
            what = f"patches of {self.patch} do not fill images {self.shape}"
            raise ConfigError(what, where, "name another size, transformer-2-...")
        if self.width % min(_HEAD, self.width):
            what = f"a width of {self.width} in heads of {_HEAD}"
            raise ConfigError(what, where, f"give a multiple of {_HEAD}")

    @property
    def name(self) -> str:
        """Kind and size."""
        sizes = f"{self.blocks}x{self.layers} layers, {self.width} wide"
        return f"transformer flow, patches of {self.patch}, {sizes}"

    def build(self) -> Rival:
        """The model with the calls that benchmarks make of it."""
        calls = Calls(CausalFlow.log_prob, CausalFlow.sample, lambda f, x: f.encode(x)[0])
        return Rival(CausalFlow(self), calls)


class CausalFlow(nn.Module):
    """Blocks of causal affine maps of a sequence of patches, reversed between blocks."""

    def __init__(self, sizes: Transformer) -> None:
        super().__init__()
        channels, *sides = sizes.shape
        self.shape, self.patch = sizes.shape, sizes.patch
        self.count = math.prod(side // sizes.patch for side in sides)
        self.values = channels * sizes.patch**2
        nets = (Causal(self.values, self.count, sizes) for _ in range(sizes.blocks))
        self.nets = nn.ModuleList(nets)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latents ``(B, D)`` of images ``(B, C, H, W)``, and log-dets ``(B,)``."""
        z = functional.pixel_unshuffle(x, self.patch).flatten(2).mT
        log_det = x.new_zeros(len(x))
        for number, net in enumerate(self.nets):
            z = z.flip(1) if number else z
            mu, a = net(z)
            z = (z - mu) * (-a).exp()
            log_det = log_det - a.sum((1, 2))
        return z.flatten(1), log_det

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` of latents ``(B, D)``: one pass of a net for each patch."""
        x = z.reshape(len(z), self.count, self.values)
        for number, net in reversed([*enumerate(self.nets)]):
            z, x = x, torch.zeros_like(x)
            for t in range(self.count):
                mu, a = net(x)
                x[:, t] = z[:, t] * a[:, t].exp() + mu[:, t]
            x = x.flip(1) if number else x
        rows = self.shape[1] // self.patch
        return functional.pixel_shuffle(x.mT.unflatten(2, (rows, -1)), self.patch)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density ``(B,)`` of images, in nats."""
        z, log_det = self.encode(x)
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1) + log_det

    def sample(self, n: int) -> Tensor:
        """Draw images ``(n, C, H, W)``."""
        like = next(self.parameters())
        return self.decode(torch.randn(n, self.count * self.values).to(like))


class Causal(nn.Module):
    """A transformer from patches ``(B, T, V)`` to mu and a, ``(B, T, V)`` each; row t sees t' < t.

    Both are 0 at first.
    """

    def __init__(self, values: int, count: int, sizes: Transformer) -> None:
        super().__init__()
        self.inward = nn.Linear(values, sizes.width)
        self.start = nn.Parameter(0.02 * torch.randn(sizes.width))
        self.positions = nn.Parameter(0.02 * torch.randn(count, sizes.width))
        self.layers = nn.Sequential(*(_Layer(sizes.width) for _ in range(sizes.layers)))
        self.norm = nn.LayerNorm(sizes.width)
        self.outward = nn.Linear(sizes.width, 2 * values)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start = self.start.expand(len(x), 1, -1)
        h = torch.cat([start, self.inward(x[:, :-1])], 1) + self.positions
        mu, a = self.outward(self.norm(self.layers(h))).chunk(2, -1)
        return mu, a


class _Layer(nn.Module):
    """Causal attention, then a perceptron, each added to its input, which it sees normalised."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // min(_HEAD, width)
        self.norm, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.keys, self.mixing = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = _EXPANSION * width
        self.perceptron = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.keys(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        parts = (part.transpose(1, 2) for part in (q, k, v))
        seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.mixing(seen.transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm_2(x))
