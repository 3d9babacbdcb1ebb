"""Couplings of images by residual convolutions as operations of a program."""

from __future__ import annotations

import itertools

import numpy as np
from torch import Tensor, nn

from mixerflow.compression.assembly import Assembly, Positions
from mixerflow.compression.constants import Numbers, contracted
from mixerflow.compression.lowered_couplings import map_of
from mixerflow.compression.lowered_nets import Norms, float32, norms_of, values
from mixerflow.compression.program import Operation
from mixerflow.compression.refusal import refused
from mixerflow.core import Shape
from mixerflow.nets import ResidualConvNet
from mixerflow.nets.conv import Convolution, PerPixel, ResidualBlock
from mixerflow.transforms.elementwise import Elementwise

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def add_convolution(
    assembly: Assembly,
    parts: tuple[Positions, Positions],
    sides: Shape,
    net: ResidualConvNet,
    elementwise: Elementwise,
    classes: Tensor | None,
) -> None:
    """Add a coupling of an image's channels by a residual convolutional net.

    Args:
        assembly: is added to.
        parts: positions ``(pixels, given)`` and ``(pixels, changed)``.
        sides: of the image, whose pixels they are in row-major order.
        net: the coupling's.
        elementwise: the coupling's.
        classes: the contexts of classes ``(classes, k)``; None for none.
    """
    given, changed = parts
    kind, limit = map_of(elementwise)
    size = net.enter.kernel_size[0]
    enter = _convolution(net.enter, size)
    hidden, taps, reads = enter[0].shape
    if reads != given.shape[1]:
        raise refused("a net that reads another number of channels than its coupling has")
    numbers = [*enter]
    by_class = classes is not None and net.context is not None
    if classes is not None and net.context is not None:
        matrix = _convolution(net.context, 1)[0][:, 0]
        numbers.append(contracted(values(classes), matrix))
    blocks = [_block(block, hidden, size) for block in net.blocks]
    norms = {(each.kind, each.epsilon) for each, _ in blocks}
    if len(norms) != 1:
        raise refused("a net whose norms are not alike")
    norm, epsilon = norms.pop()
    numbers += [each for _, block in blocks for each in block]
    numbers += _convolution(net.leave, size)
    at = neighbours(sides, size)
    words = [given.shape[1], *kind, hidden, int(net.squash), norm, int(by_class), len(blocks), taps]
    rows = np.concatenate([given, changed], 1)
    limits = np.array([limit, epsilon])
    numbers = [limits, *float32(numbers)]
    assembly.add(Operation.CONVOLUTION, rows, *words, *at.ravel().tolist(), numbers=numbers)


def neighbours(sides: Shape, size: int) -> np.ndarray:
    """Return the pixel that each tap of a kernel reads at each pixel, ``(taps, pixels)``.

    Kernels have that odd side. A tap outside of the image reads the number of pixels.
    """
    pixels = int(np.prod(sides))
    image = np.pad(np.arange(pixels).reshape(sides), size // 2, constant_values=pixels)
    starts = itertools.product(range(size), repeat=len(sides))
    boxes = (tuple(slice(a, a + n) for a, n in zip(s, sides, strict=True)) for s in starts)
    return np.stack([image[box].ravel() for box in boxes])


def _block(block: nn.Module, hidden: int, size: int) -> tuple[Norms, list[Numbers]]:
    """Return the norms of a residual block, and its numbers."""
    if not isinstance(block, ResidualBlock) or type(block) is not ResidualBlock:
        raise refused(f"a net with {type(block).__name__} in place of a residual block")
    norms = norms_of(_of_rows(block.norm1), _of_rows(block.norm2), hidden)
    weight, bias = _convolution(block.mix, 1)
    mix = norms.folded(weight[:, 0], bias)
    return norms, [*norms.first, *mix, *norms.second, *_convolution(block.look, size)]


def _of_rows(norm: nn.Module) -> nn.Module:
    """Return the norm of vectors that a norm of pixels applies."""
    return norm.module if isinstance(norm, PerPixel) else norm


def _convolution(module: nn.Module, size: int) -> list[Numbers]:
    """Return weight ``(out, taps, in)`` and bias of a convolution that keeps the sides."""
    if not isinstance(module, Convolution) or type(module) not in _CONVOLUTIONS:
        raise refused(f"a net with {type(module).__name__} in place of a convolution")
    axes = module.weight.dim() - 2
    settings = (module.kernel_size, module.stride, module.padding, module.dilation)
    wanted = tuple((number,) * axes for number in (size, 1, size // 2, 1))
    if settings != wanted or module.groups != 1 or module.padding_mode != "zeros" or size % 2 != 1:
        raise refused("a convolution with another kernel, stride or padding than its model has")
    weight = values(module.weight)
    flat = weight.reshape(*weight.shape[:2], -1).swapaxes(1, 2)
    return [np.ascontiguousarray(flat), values(module.bias, len(weight))]
