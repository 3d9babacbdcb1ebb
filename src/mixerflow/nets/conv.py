"""Convolutional conditioners for images of one to three axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, conv3d, gelu

from mixerflow.moments import ALL, Entries
from mixerflow.nets.base import Conditioner, squash, zeroed
from mixerflow.nets.norm import Norm, SyncedBatchNorm, norm_of
from mixerflow.registry import register

Axes = Literal[1, 2, 3]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class PerPixel(nn.Module):
    """Apply a module of vectors ``(rows, C)`` at each pixel of ``(B, C, *spatial)``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        last = x.movedim(1, -1)
        return self.module(last.flatten(0, -2)).reshape(last.shape).movedim(-1, 1)


def norm_of_channels(kind: Norm, width: int) -> nn.Module:
    """A normalisation of ``(B, width, *spatial)``, pixel by pixel, or the identity."""
    return nn.Identity() if kind == "none" else PerPixel(norm_of(kind, width))


def convolution(
    axes: int, n: int, out: int, size: int = 1, *, stride: int = 1, bias: bool = True
) -> Convolution:
    """A convolution over 1 to 3 spatial axes: of odd size, it keeps their lengths.

    With a stride it has that size, and divides the lengths by it.
    """
    if axes not in (1, 2, 3) or (stride == 1 and size % 2 != 1):
        got = f"{axes} axes, size {size}"
        raise ValueError(f"convolutions have 1 to 3 axes and an odd size; got {got}")
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    if stride > 1:
        return kind(n, out, stride, stride=stride, bias=bias)
    return kind(n, out, size, padding=size // 2, bias=bias)


def absorb(by: Convolution, scale: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of ``(K x + shift) * scale`` for a convolution K.

    `scale` and `shift` have a number for each output channel, ``(out, 1, ...)`` with a 1 for each
    spatial axis.
    """
    bias = by.bias
    if shift is not None:
        bias = shift.flatten() if bias is None else bias + shift.flatten()
    return by.weight * scale[:, None], None if bias is None else bias * scale.flatten()


def convolve(
    by: nn.Module, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Return ``(K x + shift) * scale`` of a convolution K made by `convolution`, without a stride.

    Scale and shift go into K's weights: these are few, and the image is not read again.
    """
    if scale is None or not isinstance(by, Convolution):
        return by(x)
    function = (conv1d, conv2d, conv3d)[scale.dim() - 2]
    weight, bias = absorb(by, scale, shift)
    return function(x, weight, bias, padding=weight.shape[2] // 2)


def channels_last(x: Tensor) -> Tensor:
    """Return images, or kernels, of two axes with their channels last in memory, on a CPU.

    There, convolutions of few channels to and fro are several times as fast so.
    """
    if x.dim() != 4 or x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)


class ImageConditioner(Conditioner):
    """Base of the nets of images: ``h = E s(x) + C c``, `hidden` of a subclass, ``out = L h``.

    Constructors of subclasses take, with `width`, `norm`, `squash` and `context` of `Conditioner`:

    - in_channels, out_channels: channels of the images ``(B, in_channels, *spatial)``, and of the
      output;
    - axes: number of spatial axes.

    A context ``(B, K)`` is added to every pixel; it may also be a map ``(B, K, *spatial)``. Norms
    are over each pixel's channels.

    Args:
        enter: the convolution E.
        leave: the module L.
        squash, context: see `Conditioner`.
        zero: whether all parameters of L start at 0. Whatever map reads the output then starts as
            the identity.
    """

    def __init__(
        self, enter: Convolution, leave: nn.Module, *, squash: bool, context: int, zero: bool = True
    ) -> None:
        super().__init__()
        self.in_channels, self.squash = enter.in_channels, squash
        self.axes: Axes = enter.weight.dim() - 2  # pyright: ignore[reportAttributeAccessIssue]
        self.enter = enter
        width = enter.out_channels
        self.context = convolution(self.axes, context, width, bias=False) if context else None
        self.leave = zeroed(leave) if zero else leave

    def hidden(self, h: Tensor) -> Tensor:
        """Return the input of L: ``(B, width, *spatial)`` of the entered images."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "batch in *spatial"],
        context: Float[Tensor, "batch k *map"] | Float[Tensor, "batch k"] | None = None,
    ) -> Float[Tensor, "batch out *spatial"]:
        return self.leave(self.hidden(self.read(x, context))).contiguous()

    def read(
        self,
        x: Tensor,
        context: Tensor | None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Return ``E s(x) + C c``, ``(B, width, *spatial)``; wrong shapes are a ValueError.

        With `scale` and `shift`, ``(width, 1, ...)``, it is ``(E s(x) + C c + shift) * scale``.
        """
        name, sides = type(self).__name__, tuple(x.shape[2:])
        if x.dim() != self.axes + 2 or x.shape[1] != self.in_channels:
            wanted = f"{self.in_channels} channels on {self.axes} axes"
            raise ValueError(f"{name}: reads {wanted}; got events {tuple(x.shape[1:])}")
        if self.axes == 2 and x.device.type == "cpu":  # oneDNN and norms are fastest in this order
            x = x.contiguous(memory_format=torch.channels_last)
        h = convolve(self.enter, squash(x) if self.squash else x, scale, shift)
        if self.context is None:
            return h
        context = self.require_context(context)
        given = tuple(context.shape[2:])
        if context.dim() == 2:  # the same at every pixel
            context = context[(...,) + (None,) * self.axes]
        elif given != sides:
            raise ValueError(f"{name}: the context is a map of {given}, and the image of {sides}")
        return h + convolve(self.context, context, scale)


def is_batch_norm(norm: nn.Module) -> bool:
    """Whether a module that `norm_of_channels` made is a batch norm."""
    return isinstance(norm, PerPixel) and isinstance(norm.module, SyncedBatchNorm)


def bias_of(by: nn.Module, part: slice = ALL) -> Entries:
    """The bias of a map that has one, or a part of it."""
    assert isinstance(by.bias, nn.Parameter)
    return by.bias, part


class ResidualBlock(nn.Module):
    """``h + K gelu(norm(P gelu(norm(h))))`` with a pointwise P and a convolution K."""

    def __init__(self, width: int, *, axes: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of_channels(norm, width), norm_of_channels(norm, width)
        self.mix = convolution(axes, width, width)
        self.look = convolution(axes, width, width, kernel)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.look(gelu(self.norm2(self.mix(gelu(self.norm1(h))))))

    def idle(self) -> Iterator[Entries]:
        if is_batch_norm(self.norm2):
            yield bias_of(self.mix)


@register
class ResidualConvNet(ImageConditioner):
    """``h = E s(x) + C c``, `depth` residual blocks, ``out = L gelu(h)``.

    Glow's conditioner, of convolutions 3-1-3, with residual connections: 3-(1-3)-3. The last
    convolution starts at 0: whatever map reads the output starts as the identity.

    Args, besides those of `ImageConditioner`:
        depth: residual blocks, with `norm` before each GELU.
        kernel: side of the convolutions that are not pointwise; odd.

    Reference: Kingma, Dhariwal, Glow (2018), section 4, arXiv:1807.03039.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        depth: int = 1,
        norm: Norm = "none",
        squash: bool = True,
        context: int = 0,
        kernel: int = 3,
        axes: Axes = 2,
    ) -> None:
        enter = convolution(axes, in_channels, width, kernel)
        leave = convolution(axes, width, out_channels, kernel)
        super().__init__(enter, leave, squash=squash, context=context)
        blocks = (ResidualBlock(width, axes=axes, kernel=kernel, norm=norm) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)

    def hidden(self, h: Tensor) -> Tensor:
        return gelu(self.blocks(h))


@register
class PlainConvNet(ImageConditioner):
    """``h = E x + C c``, ``out = L relu(P relu(h))``: convolutions 3-1-3 with biases, no norm.

    Args, besides those of `ImageConditioner`:
        zero: whether the last convolution starts at 0; otherwise whatever map reads the output does
            not start as the identity.

    Reference: Durkan et al., Neural spline flows (2019), whose published code has this net,
        arXiv:1906.04032.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        zero: bool = False,
        squash: bool = False,
        context: int = 0,
        axes: Axes = 2,
    ) -> None:
        enter = convolution(axes, in_channels, width, 3)
        leave = convolution(axes, width, out_channels, 3)
        super().__init__(enter, leave, squash=squash, context=context, zero=zero)
        self.mix = convolution(axes, width, width)

    def hidden(self, h: Tensor) -> Tensor:
        return self.mix(h.relu_()).relu_()  # convolutions keep what they read, not this


@register
class WideningConvNet(ImageConditioner):
    """``h = E x + C c``, ``out = L relu(h)``: E is 3x3 and widens the image, L is pointwise.

    DenseFlow's net of the noise that it adds: it reads many channels, and each `factor` times. The
    output starts at 0.

    Args, besides those of `ImageConditioner`:
        factor: hidden channels over input channels.

    Reference: Grcić et al., Densely connected normalizing flows (2021), section 3.1,
        arXiv:2106.04627.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        factor: int = 4,
        context: int = 0,
        axes: Axes = 2,
    ) -> None:
        width = factor * in_channels
        enter = convolution(axes, in_channels, width, 3)
        leave = convolution(axes, width, out_channels)
        super().__init__(enter, leave, squash=False, context=context)

    def hidden(self, h: Tensor) -> Tensor:
        return h.relu()
