"""A block of a residual flow by the operators of the published implementation, written anew.

Chen et al., Residual flows (2019), arXiv:1906.02735, and their implementation in PyTorch: spectral
norms by power iteration, each convolution divided by its own; products with the Jacobian by
automatic differentiation of the net; in the forward pass, Neumann's series and its gradient, so
that little is stored ("memory-efficient"); in the backward pass the net's own gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, softplus

from mixerflow.moments import Saved
from mixerflow.transforms.series import PoissonTail


class PowerConv(nn.Module):
    """A convolution divided by ``max(1, s / coefficient)``, with s by power iteration."""

    def __init__(self, given: int, out: int, kernel: int, side: int, coefficient: float) -> None:
        super().__init__()
        made = nn.Conv2d(given, out, kernel, padding=kernel // 2)
        assert made.bias is not None
        self.weight, self.bias, self.coefficient = made.weight, made.bias, coefficient
        self.padding = kernel // 2
        self.register_buffer("u", torch.randn(1, out, side, side))
        self.register_buffer("v", torch.randn(1, given, side, side))
        self.iterate(200)

    @torch.no_grad()
    def iterate(self, most: int = 200, tolerance: float = 1e-3) -> int:
        """Go on with the power iteration until its vectors rest; return the steps."""
        for step in range(most):
            u, v = self.u, self.v
            new = conv_transpose2d(u, self.weight, padding=self.padding)
            self.v = new / new.norm()
            new = conv2d(self.v, self.weight, padding=self.padding)
            self.u = new / new.norm()
            moved = [(a - b).norm() / a.numel() ** 0.5 for a, b in ((u, self.u), (v, self.v))]
            sizes = [a.norm() / a.numel() ** 0.5 for a in (self.u, self.v)]
            if all(m < tolerance + tolerance * s for m, s in zip(moved, sizes, strict=True)):
                return step + 1
        return most

    def forward(self, x: Tensor) -> Tensor:
        s = (self.u * conv2d(self.v, self.weight, padding=self.padding)).sum()
        weight = self.weight / torch.clamp(s / self.coefficient, min=1.0)
        return conv2d(x, weight, self.bias, padding=self.padding)


class Swish(nn.Module):
    """LipSwish, operator by operator."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x: Tensor) -> Tensor:
        return (x * torch.sigmoid(x * softplus(self.beta))) / 1.1


class _Estimated(torch.autograd.Function):
    """``g(x)`` and Neumann's series, whose gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Saved, net: nn.Module, weights: list[float], probe: Tensor, *given: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, *parameters = given
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = net(x)
            power = mixed = probe
            for k, weight in enumerate(weights, 1):
                (power,) = torch.autograd.grad(value, x, power, retain_graph=True)
                mixed = mixed + (-1) ** k * weight * power
            (row,) = torch.autograd.grad(value, x, mixed, create_graph=True)
            series = (row * probe).flatten(1).sum(1)
            by = torch.autograd.grad(
                series.sum(), (x, *parameters), retain_graph=True, allow_unused=True
            )
        ctx.value, ctx.x, ctx.parameters, ctx.by = value, x, parameters, by
        return value.detach(), series.detach()

    @staticmethod
    def backward(ctx: Saved, by_value: Tensor, by_series: Tensor) -> tuple[Tensor | None, ...]:
        factor = by_series[0]  # the same for all rows: the loss is a mean
        with torch.enable_grad():
            found = torch.autograd.grad(
                ctx.value, (ctx.x, *ctx.parameters), by_value, allow_unused=True
            )
        both = zip(found, ctx.by, strict=True)
        return (
            None,
            None,
            None,
            *(b if a is None else a if b is None else a + factor * b for a, b in both),
        )


class PublishedBlock(nn.Module):
    """``x + g(x)`` of images ``(channels, side, side)`` with kernels 3-1-3, in training."""

    def __init__(
        self, channels: int, side: int, *, width: int, coefficient: float = 0.98, exact: int = 2
    ) -> None:
        super().__init__()
        sizes = [(channels, width, 3), (width, width, 1), (width, channels, 3)]
        steps: list[nn.Module] = []
        for given, out, kernel in sizes:
            steps += [Swish(), PowerConv(given, out, kernel, side, coefficient)]
        self.net, self.exact, self.tail = nn.Sequential(*steps), exact, PoissonTail()

    def update_norms(self) -> None:
        """What training does after each step of the optimiser."""
        for module in self.net:
            if isinstance(module, PowerConv):
                module.iterate()

    def forward(self, x: Tensor, probe: Tensor, further: int) -> tuple[Tensor, Tensor]:
        known = [1.0] * self.exact + [1 / p for p in self.tail.probabilities()]
        weights = known[: self.exact + further]
        value, series = _Estimated.apply(self.net, weights, probe, x, *self.net.parameters())  # type: ignore
        return x + value, series
