"""RealNVP in normflows: the couplings and nets of `mixerflow.models.RealNVP`, of two scales.

Checkerboard couplings are the library's `MaskedAffineFlow`, channel couplings its
`AffineCouplingBlock`. The nets have the same convolutions and norms as ours, in torch's modules:
the library has no such net. Scale and shift come from one net, as in the paper. The channels that
leave between the scales are half of the squeezed image's, and not a colour of the board.

Reference: Dinh et al., Density estimation using Real NVP (2017), arXiv:1605.08803.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.common import Work
from benchmarks.rivals import Calls, Rival, work_of


@dataclass(frozen=True)
class RealNVP:
    """A RealNVP of two scales over float images ``(C, H, W)`` with even sides."""

    shape: tuple[int, int, int]
    width: int
    """Hidden channels of the nets at full resolution; elsewhere nets are twice as wide."""
    depth: int
    """Residual blocks of a net."""
    package: str = "normflows"

    @property
    def name(self) -> str:
        """Library and size."""
        return f"RealNVP, {self.width} wide, {self.depth} deep, {self.package}"

    def work(self, batch: int) -> Work:
        """The jobs, see `work_of`."""
        return work_of(self.build(), self.shape, batch)

    def path(self) -> contextlib.AbstractContextManager[object]:
        """Nothing to switch."""
        return contextlib.nullcontext()

    def build(self) -> Rival:
        """The model with the library's own calls."""
        import normflows as nf

        channels, *sides = self.shape
        half, wide = tuple(side // 2 for side in sides), 2 * self.width
        last = (2 * channels, *half)
        normal = nf.distributions.DiagGaussian
        flow = nf.MultiscaleFlow(
            [normal(last, trainable=False), normal(last, trainable=False)],
            [
                [self._board(last, wide, odd) for odd in (True, False, True, False)],
                [
                    *(self._halves(4 * channels, wide, mode) for mode in _MODES),
                    nf.flows.Squeeze(),
                    *(self._board(self.shape, self.width, odd) for odd in (False, True, False)),
                ],
            ],
            [nf.flows.Merge()],
            class_cond=False,
        )

        def encode(flow: nn.Module, x: Tensor) -> Tensor:
            return torch.cat([z.flatten(1) for z in flow.inverse_and_log_det(x)[0]], 1)

        calls = Calls(lambda f, x: f.log_prob(x, None), lambda f, n: f.sample(n)[0], encode)
        return Rival(flow, calls)

    def _board(self, shape: tuple[int, ...], width: int, odd: bool) -> nn.Module:
        import normflows as nf

        rows, columns = torch.arange(shape[1])[:, None], torch.arange(shape[2])
        mask = ((rows + columns + odd) % 2).float().expand(shape)
        net = _Net(shape[0], 2 * shape[0], width, self.depth)
        return nf.flows.MaskedAffineFlow(mask, _Later(net), net)

    def _halves(self, channels: int, width: int, mode: str) -> nn.Module:
        import normflows as nf

        net = _Net(channels // 2, channels, width, self.depth)
        return nf.flows.AffineCouplingBlock(_Both(net), split_mode=mode)


_MODES = ("channel", "channel_inv", "channel")


class _Block(nn.Sequential):
    def __init__(self, width: int) -> None:
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(2)]
        steps = [[nn.BatchNorm2d(width), nn.ReLU(), conv] for conv in convolutions]
        super().__init__(*steps[0], *steps[1])

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class _Net(nn.Module):
    """The log-scale; the shift is kept, and `_Later` gives it."""

    shift: Tensor

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.skips = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(depth + 1))
        self.end = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, outputs, 1))
        for parameter in self.end[-1].parameters():
            nn.init.zeros_(parameter)
        self.gain = nn.Parameter(torch.ones(outputs // 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        out = self.skips[0](h)
        for block, skip in zip(self.blocks, list(self.skips)[1:], strict=True):
            h = block(h)
            out = out + skip(h)
        s, self.shift = self.end(out).chunk(2, 1)
        return self.gain * s.tanh()


class _Later(nn.Module):
    """The shift of a net whose log-scale the library asked for before."""

    def __init__(self, net: _Net) -> None:
        super().__init__()
        self.of = net

    def forward(self, x: Tensor) -> Tensor:
        return self.of.shift


class _Both(nn.Module):
    """Shift and log-scale of a net, which alternate, as the library's coupling reads them."""

    def __init__(self, net: _Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        log_scale = self.net(x)
        return torch.stack([self.net.shift, log_scale], 2).flatten(1, 2)
