"""Glow in other libraries of flows, built from their own parts in the way their documents do.

Multi-scale: at each level a squeeze, then steps of ActNorm, a 1x1 mixing of channels and an affine
coupling whose net is convolutions 3x3, 1x1, 3x3 with ReLU; half of the channels leaves between
levels. What the libraries give differs a little:
    - nflows, normflows: the 1x1 convolution is learned, as L U with a fixed permutation, ActNorm's
      start depends on the data;
    - FrEIA: one `AllInOneBlock` a step, whose 1x1 convolution is a fixed random rotation and whose
      ActNorm starts at 1.

References:
    Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018).
    https://arxiv.org/abs/1807.03039
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.common import Work

Library = Literal["nflows", "normflows", "FrEIA"]
Measure = Literal["flop", "weights"]
LIBRARIES: tuple[Library, ...] = ("nflows", "normflows", "FrEIA")


def installed(package: str) -> bool:
    """Whether a package can be imported here."""
    return importlib.util.find_spec(package) is not None


class Convolution(NamedTuple):
    """One of a Glow's convolutions: output pixels an image, channels, side of the kernel."""

    pixels: int
    inputs: int
    outputs: int
    side: int


@dataclass(frozen=True)
class Glow:
    """A Glow of `levels` times `steps` steps over float images ``(C, H, W)``."""

    package: Library
    shape: tuple[int, int, int]
    levels: int = 3
    steps: int = 8
    """Steps a level."""
    hidden: int = 512
    """Width of the couplings' nets."""
    bins: int = 0
    """Bins of splines in place of the affine maps, which makes it a Neural Spline Flow; nflows."""

    @property
    def name(self) -> str:
        """Library and size."""
        kind = "NSF" if self.bins else "Glow"
        return f"{kind} {self.levels}x{self.steps}, {self.hidden} wide, {self.package}"

    def channels(self) -> list[int]:
        """Channels at each level, the finest first."""
        return [self.shape[0] * 2 ** (level + 2) for level in range(self.levels)]

    def convolutions(self) -> list[Convolution]:
        """Those of the couplings' nets, in order: nearly all of the work."""
        found = []
        for level, channels in enumerate(self.channels()):
            pixels = math.prod(side >> (level + 1) for side in self.shape[1:])
            net = [
                Convolution(pixels, channels // 2, self.hidden, 3),
                Convolution(pixels, self.hidden, self.hidden, 1),
                Convolution(pixels, self.hidden, channels // 2 * self.parameters(), 3),
            ]
            found += net * self.steps
        return found

    def parameters(self) -> int:
        """Parameters of the couplings' map, a number."""
        return 3 * self.bins - 1 if self.bins else 2

    def flop(self) -> int:
        """Floating-point operations of the nets, forward, an image."""
        return sum(2 * c.pixels * c.inputs * c.outputs * c.side**2 for c in self.convolutions())

    def weights(self) -> int:
        """Numbers in the nets' kernels."""
        return sum(c.inputs * c.outputs * c.side**2 for c in self.convolutions())

    def like(self, target: float, *, by: Measure) -> Glow:
        """The same with the width that brings `flop` or `weights` nearest.

        Widths are multiples of 8, from 128 on of 16, which vector units like.
        """
        widths = [*range(8, 128, 8), *range(128, 2049, 16)]
        sizes = [replace(self, hidden=hidden) for hidden in widths]
        return min(sizes, key=lambda glow: abs(getattr(glow, by)() - target))

    def build(self) -> Rival:
        """The model with the two calls that this benchmark makes of it."""
        warnings.filterwarnings("ignore", r"torch\.(lu|triangular_solve) is deprecated")
        warnings.filterwarnings("ignore", r"Inputs to the softmax are not scaled down")
        return {"nflows": _nflows, "normflows": _normflows, "FrEIA": _freia}[self.package](self)

    def work(self, batch: int) -> Work:
        """A training step with torch's Adam; the batch comes dequantised."""
        return work_of(self.build(), self.shape, batch)

    def path(self) -> contextlib.AbstractContextManager[object]:
        """Nothing to switch."""
        return contextlib.nullcontext()


def base(package: Library, shape: tuple[int, int, int]) -> Glow:
    """8 steps at each of three levels, fewer where the sides cannot be halved so often."""
    halvings = [next(i for i in range(32) if side >> i & 1) for side in shape[1:]]
    return Glow(package, shape, levels=max(1, min(3, *halvings)))


class Calls(NamedTuple):
    """What this benchmark asks of a library's model, each by the library's own call."""

    log_prob: Callable[[nn.Module, Tensor], Tensor]
    sample: Callable[[nn.Module, int], Tensor]
    encode: Callable[[nn.Module, Tensor], Tensor]
    """Latents ``(B, D)`` of images."""


class Rival(nn.Module):
    """A library's model, with the calls that this benchmark makes of it."""

    def __init__(self, inner: nn.Module, calls: Calls) -> None:
        super().__init__()
        self.inner, self.calls = inner, calls

    def log_prob(self, x: Tensor) -> Tensor:
        return self.calls.log_prob(self.inner, x)

    def sample(self, n: int) -> Tensor:
        return self.calls.sample(self.inner, n)

    def encode(self, x: Tensor) -> Tensor:
        return self.calls.encode(self.inner, x)


def work_of(model: Rival, shape: tuple[int, ...], batch: int) -> Work:
    """A rival's jobs on a batch that comes dequantised; a training step with torch's Adam."""
    x = torch.rand(batch, *shape) - 0.5
    with torch.no_grad():
        model.log_prob(x)  # the data-dependent start
    scored = copy.deepcopy(model).eval()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    dims = x[0].numel()

    def train() -> float:
        optimizer.zero_grad()
        loss = -model.log_prob(x).mean() / (dims * math.log(2))
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def log_prob() -> Tensor:
        return scored.log_prob(x)

    @torch.no_grad()
    def sample() -> Tensor:
        return scored.sample(batch)

    return Work(model, train, log_prob, sample)


class _ConvNet(nn.Sequential):
    """Convolutions 3x3, 1x1, 3x3; nflows passes a context, here always None."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        last = nn.Conv2d(hidden, outputs, 3, padding=1)
        nn.init.zeros_(last.weight)
        last.bias.data.zero_()
        first, middle = nn.Conv2d(inputs, hidden, 3, padding=1), nn.Conv2d(hidden, hidden, 1)
        super().__init__(first, nn.ReLU(), middle, nn.ReLU(), last)

    def forward(self, input: Tensor, context: None = None) -> Tensor:
        return super().forward(input)


def _nflows(glow: Glow) -> Rival:
    from nflows import transforms
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.utils import create_mid_split_binary_mask

    kind: Callable[..., nn.Module] = transforms.AffineCouplingTransform
    if glow.bins:
        kind = functools.partial(
            transforms.PiecewiseRationalQuadraticCouplingTransform,
            num_bins=glow.bins,
            tails="linear",
            tail_bound=3.0,
        )

    def step(channels: int) -> nn.Module:
        coupling = kind(
            create_mid_split_binary_mask(channels),
            lambda inputs, outputs: _ConvNet(inputs, outputs, glow.hidden),
        )
        mixing = transforms.OneByOneConvolution(channels)
        return transforms.CompositeTransform([transforms.ActNorm(channels), mixing, coupling])

    scales = transforms.MultiscaleCompositeTransform(glow.levels)
    shape = glow.shape
    for _ in range(glow.levels):
        squeeze = transforms.SqueezeTransform()
        squeezed = squeeze.get_output_shape(*shape)
        steps = [step(squeezed[0]) for _ in range(glow.steps)]
        shape = scales.add_transform(transforms.CompositeTransform([squeeze, *steps]), squeezed)
    flow = Flow(scales, StandardNormal([math.prod(glow.shape)]))
    return Rival(flow, Calls(Flow.log_prob, Flow.sample, Flow.transform_to_noise))


def _normflows(glow: Glow) -> Rival:
    import normflows as nf

    flows, bases = [], []
    for level in reversed(range(glow.levels)):  # the library counts from the latents
        channels = glow.channels()[level]
        blocks = [nf.flows.GlowBlock(channels, glow.hidden) for _ in range(glow.steps)]
        flows.append([*blocks, nf.flows.Squeeze()])
        kept = channels if level == glow.levels - 1 else channels // 2
        sides = (side >> (level + 1) for side in glow.shape[1:])
        bases.append(nf.distributions.DiagGaussian((kept, *sides)))
    merges = [nf.flows.Merge() for _ in range(glow.levels - 1)]
    flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)

    def encode(flow: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([z.flatten(1) for z in flow.inverse_and_log_det(x)[0]], 1)

    calls = Calls(lambda f, x: f.log_prob(x, None), lambda f, n: f.sample(n)[0], encode)
    return Rival(flow, calls)


def _freia(glow: Glow) -> Rival:
    import FrEIA.framework as ff
    import FrEIA.modules as fm

    def net(inputs: int, outputs: int) -> nn.Module:
        return _ConvNet(inputs, outputs, glow.hidden)

    nodes: list[ff.Node] = [ff.InputNode(*glow.shape)]
    last: object = nodes[0]
    leaving = []
    for level in range(glow.levels):
        nodes.append(ff.Node(last, fm.IRevNetDownsampling, {}))
        for _ in range(glow.steps):
            settings = {"subnet_constructor": net, "permute_soft": True}
            nodes.append(ff.Node(nodes[-1], fm.AllInOneBlock, settings))
        last = nodes[-1]
        if level < glow.levels - 1:
            split = ff.Node(last, fm.Split, {})
            flat = ff.Node(split.out0, fm.Flatten, {})
            nodes += [split, flat]
            leaving.append(flat.out0)
            last = split.out1
    nodes.append(ff.Node(last, fm.Flatten, {}))
    if leaving:
        nodes.append(ff.Node([*leaving, nodes[-1].out0], fm.Concat, {}))
    nodes.append(ff.OutputNode(nodes[-1]))
    dims = math.prod(glow.shape)

    def log_prob(inn: nn.Module, x: Tensor) -> Tensor:
        z, log_det = inn(x)
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1) + log_det

    def sample(inn: nn.Module, n: int) -> Tensor:
        return inn(torch.randn(n, dims), rev=True)[0]

    return Rival(ff.GraphINN(nodes), Calls(log_prob, sample, lambda inn, x: inn(x)[0]))
