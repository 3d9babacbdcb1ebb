"""Convolutional conditioners for images of one to three axes."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.norm import Norm, norm_of, squash
from mixerflow.registry import register

Axes = Literal[1, 2, 3]


class PerPixel(nn.Module):
    """A module of rows ``(rows, C)`` at each pixel of ``(B, C, *spatial)``.

    Args:
        module: keeps the shape of its rows.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Float[Tensor, "batch channels *spatial"]) -> Tensor:
        """``(B, C, *spatial)`` to the same."""
        last = x.movedim(1, -1)
        return self.module(last.flatten(0, -2)).reshape(last.shape).movedim(-1, 1)


def norm_of_channels(kind: Norm, width: int) -> nn.Module:
    """A normalisation of ``(B, width, *spatial)``, pixel by pixel, or nothing."""
    return nn.Identity() if kind == "none" else PerPixel(norm_of(kind, width))


def convolution(axes: int, given: int, out: int, size: int = 1, *, bias: bool = True) -> nn.Module:
    """A convolution over `axes` spatial axes that keeps their lengths.

    Raises:
        ValueError: a size that is even, or axes that are not 1, 2 or 3.
    """
    if axes not in (1, 2, 3) or size % 2 != 1:
        raise ValueError(
            f"convolutions have 1 to 3 axes and an odd size; got {axes} axes, size {size}"
        )
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    return kind(given, out, size, padding=size // 2, bias=bias)


class ImageConditioner(nn.Module):
    """What conditioners of images share: reading, context, and mostly an output that starts at 0.

    ``h = E s(x) + C c``, then `hidden` of a subclass, then ``out = L h``.

    Args:
        enter: ``(B, in_channels, *spatial)`` to the hidden width.
        leave: what makes the output.
        in_channels: channels to read.
        width: hidden channels.
        axes: spatial axes.
        squash: see `mixerflow.nets.squash`.
        context: length K of contexts, 0 for none.
        zero: whether all parameters of `leave` start at 0.
    """

    def __init__(
        self,
        enter: nn.Module,
        leave: nn.Module,
        *,
        in_channels: int,
        width: int,
        axes: Axes,
        squash: bool,
        context: int,
        zero: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.axes, self.squash = in_channels, axes, squash
        self.enter = enter
        self.context = convolution(axes, context, width, bias=False) if context else None
        self.leave = leave
        for parameter in leave.parameters() if zero else ():
            nn.init.zeros_(parameter)

    def hidden(self, h: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to what the last convolution reads."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "batch in *spatial"],
        context: Float[Tensor, "batch k *map"] | Float[Tensor, "batch k"] | None = None,
    ) -> Float[Tensor, "batch out *spatial"]:
        """``(B, in_channels, *spatial)`` and ``(B, K)`` or ``(B, K, *spatial)`` to the output."""
        return self.leave(self.hidden(self.read(x, context)))

    def read(self, x: Tensor, context: Tensor | None) -> Tensor:
        """What the net makes of image and context first: ``(B, width, *spatial)``.

        Raises:
            ValueError: other images than it reads, or no context or another map's.
        """
        name, wanted = type(self).__name__, self.axes + 2
        if x.dim() != wanted or x.shape[1] != self.in_channels:
            raise ValueError(
                f"{name}: reads {self.in_channels} channels on {self.axes} axes; got events "
                f"{tuple(x.shape[1:])}"
            )
        h = self.enter(squash(x) if self.squash else x)
        if self.context is not None:
            if context is None:
                raise ValueError(f"{name}: built for a context, and got none")
            if context.dim() == 2:  # a bias of every pixel
                context = context[(...,) + (None,) * self.axes]
            elif context.shape[2:] != x.shape[2:]:
                raise ValueError(
                    f"{name}: the context is a map of {tuple(context.shape[2:])}, and the image "
                    f"of {tuple(x.shape[2:])}"
                )
            h = h + self.context(context)
        return h


class ResidualBlock(nn.Module):
    """``h + K gelu(norm(P gelu(norm(h))))`` with a pointwise P and a convolution K."""

    def __init__(self, width: int, *, axes: int, kernel: int, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm_of_channels(norm, width), norm_of_channels(norm, width)
        self.mix = convolution(axes, width, width)
        self.look = convolution(axes, width, width, kernel)

    def forward(self, h: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to the same."""
        inner = self.mix(nn.functional.gelu(self.norm1(h)))
        return h + self.look(nn.functional.gelu(self.norm2(inner)))


@register
class ResidualConvNet(ImageConditioner):
    """``h = E s(x) + C c``, `depth` residual blocks, ``out = L gelu(h)``.

    Glow's conditioner, of convolutions 3-1-3, with residual connections: 3-(1-3)-3. The last
    convolution starts at 0: whatever map reads the output starts as the identity.

    Args:
        in_channels: channels of the conditioning images ``(B, in_channels, *spatial)``.
        out_channels: channels to give out.
        width: hidden channels.
        depth: residual blocks.
        norm: "batch", "layer" (over each pixel's channels) or "none", before each GELU of the
            blocks. Batch norm couples a training batch.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of contexts ``(B, K)``, added to every pixel, or ``(B, K, *spatial)``.
        kernel: side of the convolutions that are not pointwise; odd.
        axes: spatial axes.

    References:
        Kingma, Dhariwal: Glow: generative flow with invertible 1x1 convolutions (2018), section
        4. https://arxiv.org/abs/1807.03039
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
        super().__init__(
            convolution(axes, in_channels, width, kernel),
            convolution(axes, width, out_channels, kernel),
            in_channels=in_channels,
            width=width,
            axes=axes,
            squash=squash,
            context=context,
        )
        blocks = (ResidualBlock(width, axes=axes, kernel=kernel, norm=norm) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)

    def hidden(self, h: Tensor) -> Tensor:
        return nn.functional.gelu(self.blocks(h))


@register
class PlainConvNet(ImageConditioner):
    """``h = E x + C c``, ``out = L relu(P relu(h))``: convolutions 3-1-3 with biases, no norm.

    Its last convolution starts as the others do, unless told otherwise: what reads the output does
    not start as the identity.

    Args:
        in_channels: channels of the conditioning images ``(B, in_channels, *spatial)``.
        out_channels: channels to give out.
        width: hidden channels.
        zero: whether the last convolution starts at 0.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of contexts ``(B, K)``, added to every pixel, or ``(B, K, *spatial)``.
        axes: spatial axes.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Neural spline flows (2019), whose published code
        has this net. https://arxiv.org/abs/1906.04032
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
        super().__init__(
            convolution(axes, in_channels, width, 3),
            convolution(axes, width, out_channels, 3),
            in_channels=in_channels,
            width=width,
            axes=axes,
            squash=squash,
            context=context,
            zero=zero,
        )
        self.mix = convolution(axes, width, width)

    def hidden(self, h: Tensor) -> Tensor:
        return self.mix(h.relu()).relu()
