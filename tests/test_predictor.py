"""The predictor of pixels, which codes images without the flow: exact, small, and safe."""

import ctypes
import io

import numpy as np
import pytest
from PIL import Image

from mixerflow.data import load
from native_builds import build, pointer

EMPTY = 1 << 32  # the state of a stack without words


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-shared", "-fPIC")
    return ctypes.CDLL(str(build("predictor.c", tmp_path_factory.mktemp("c") / "p.so", *flags)))


def push(native, pixels, levels, words=(), state=EMPTY):
    """The words and the stack, its state and count, with images ``(N, C, H, W)`` on top."""
    room = np.zeros(len(words) + pixels.size * 2 + 16, np.uint32)
    room[: len(words)] = words
    stack = np.array([state, len(words)], np.uint64)
    shape = np.array([*pixels.shape[1:], levels], np.int32)
    counts = ctypes.c_int64(len(room)), ctypes.c_int64(len(pixels))
    given = pointer(room), counts[0], pointer(stack), pointer(shape), pointer(pixels), counts[1]
    assert native.push(*given) == 0
    return room, stack


def pop(native, words, stack, shape, levels):
    pixels, shape_ = np.empty(shape, np.uint16), np.array([*shape[1:], levels], np.int32)
    arguments = (pointer(shape_), pointer(pixels), ctypes.c_int64(len(pixels)))
    failed = native.pop(pointer(words), pointer(stack), *arguments)
    return pixels, failed


def bits(stack):
    return 32 * int(stack[1]) + float(np.log2(float(stack[0]))) - 32


def pictures(shape, levels, seed=0):
    """Smooth images with some noise."""
    dice = np.random.default_rng(seed)
    *_, height, width = shape
    x, y = np.arange(width) / 9, np.arange(height)[:, None] / 7
    waves = np.sin(x + y + dice.uniform(0, 6, (*shape[:2], 1, 1)))
    noisy = waves + dice.normal(0, 0.1, shape)
    return np.clip((noisy + 1.2) / 2.4 * levels, 0, levels - 1).astype(np.uint16)


@pytest.mark.parametrize("levels", [2, 3, 5, 8, 17, 256, 1000, 65536])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 1, 1, 1),
        (2, 1, 1, 9),
        (2, 1, 9, 1),
        (2, 2, 5, 4),
        (3, 3, 8, 8),
        (1, 6, 2, 3),
        (0, 3, 4, 4),
    ],
)
def test_images_come_back(native, shape, levels):
    dice = np.random.default_rng(1)
    for pixels in (pictures(shape, levels), dice.integers(0, levels, shape, dtype=np.uint16)):
        words, stack = push(native, pixels, levels)
        back, failed = pop(native, words, stack, shape, levels)
        assert failed == 0 and (back == pixels).all()
        assert stack.tolist() == [EMPTY, 0]  # what lay below is as it was


def test_what_lies_below_stays_and_the_first_image_comes_first(native):
    images, below = pictures((3, 1, 6, 6), 256), (0x123456789ABCDEF0, 7, 11)
    words, stack = push(native, images[2:], 256, below[1:], below[0])
    held, count = words[: int(stack[1])], int(stack[1])
    words, stack = push(native, images[:2], 256, held, int(stack[0]))
    assert (words[:count] == held).all()
    assert (pop(native, words, stack, (2, 1, 6, 6), 256)[0] == images[:2]).all()
    assert (pop(native, words, stack, (1, 1, 6, 6), 256)[0] == images[2:]).all()
    assert (int(stack[0]), *words[: int(stack[1])]) == below


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_constants_cost_little_and_noise_no_more_than_its_bits(native, levels):
    constant = np.full((4, 3, 16, 16), levels - 1, np.uint16)
    assert bits(push(native, constant, levels)[1]) / constant.size < 0.12
    noise = np.random.default_rng(0).integers(0, levels, (4, 3, 32, 32), dtype=np.uint16)
    assert bits(push(native, noise, levels)[1]) / noise.size < 1.06 * np.log2(levels)


def test_photographs_are_smaller_than_as_png(native):
    images = load("fashion-mini").test.pixels[:8].astype(np.uint16)
    _, stack = push(native, images, 256)
    png = 0
    for image in images[:, 0].astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG", optimize=True)
        png += 8 * len(file.getvalue())
    assert bits(stack) < 0.8 * png


def test_damaged_words_give_pixels_in_their_range(native):
    dice = np.random.default_rng(2)
    for levels in (2, 3, 200, 65536):
        for count in (0, 3, 100):
            words = dice.integers(0, 1 << 32, 100, dtype=np.uint32)
            stack = np.array([dice.integers(1 << 32, 1 << 63), count], np.uint64)
            pixels, failed = pop(native, words, stack, (3, 3, 8, 8), levels)
            assert pixels.max() < levels and failed == (0 if stack[1] else 4)
