"""The codec's arithmetic against Python's integers, and against mpmath's functions."""

import ctypes
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from native_builds import build, pointer

EMPTY = 1 << 32
WORD = (1 << 32) - 1


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    to = tmp_path_factory.mktemp("c") / "arithmetic.so"
    return ctypes.CDLL(str(build("arithmetic.c", to, "-O1", "-w", "-shared", "-fPIC")))


class Coder:
    """The stack, by integers of any size."""

    def __init__(self, state=EMPTY, words=()):
        self.state, self.words = state, list(words)

    def push(self, values, value):
        self._put(self.state * values + value)

    def pop(self, values):
        if self.state < values << 32:
            self.state = self.state << 32 | self.words.pop()
        self.state, value = divmod(self.state, values)
        return value

    def push_symbol(self, start, frequency):
        if self.state >= frequency << 40:
            self.words.append(self.state & WORD)
            self.state >>= 32
        whole, rest = divmod(self.state, frequency)
        self.state = (whole << 24) + start + rest

    def pop_symbol(self, start, frequency):
        slot = self.state % (1 << 24)
        self.state = (self.state >> 24) * frequency + slot - start
        if self.state < EMPTY:
            self.state = self.state << 32 | self.words.pop()
        return slot

    def _put(self, state):
        if state >> 64:
            self.words.append(state & WORD)
            state >>= 32
        self.state = state


def memory(coder):
    """A coder's words, with room, and its state and count, as C takes them."""
    words = np.zeros(len(coder.words) + 4096, np.uint32)
    words[: len(coder.words)] = coder.words
    return words, np.array([coder.state, len(coder.words)], np.uint64)


def same(coder, words, stack):
    return (coder.state, coder.words) == (int(stack[0]), words[: int(stack[1])].tolist())


def filled(dice, words=200):
    return Coder(int(dice.integers(EMPTY, 1 << 63)), dice.integers(0, 1 << 32, words).tolist())


def test_the_coder_is_that_of_whole_numbers(native):
    dice = np.random.default_rng(0)
    for _ in range(20):
        coder, operations = filled(dice), np.zeros((400, 4), np.uint32)
        words, stack = memory(coder)
        expected = []
        for row in operations:
            kind = int(dice.integers(6))
            values = int(dice.integers(1, 1 << int(dice.integers(1, 33))))
            bits = int(dice.integers(1, 32))
            frequency = int(dice.integers(1, 1 << int(dice.integers(1, 24)), endpoint=True))
            start = int(dice.integers(0, (1 << 24) - frequency, endpoint=True))
            row[0], row[1] = kind, (values, bits, start)[kind // 2]
            row[2] = frequency
            if kind == 0:
                row[3] = dice.integers(0, values)
                coder.push(values, int(row[3]))
            elif kind == 2:
                row[3] = dice.integers(0, 1 << bits)
                coder.push(1 << bits, int(row[3]))
            elif kind == 4:
                coder.push_symbol(start, frequency)
            elif kind == 5:  # a symbol is popped that was on top
                slot = coder.state % (1 << 24)
                row[1], row[2] = slot - min(slot, 5), 6 + (slot < 5)
                row[2] = min(int(row[2]), (1 << 24) - int(row[1]))
            popped = {
                1: lambda: coder.pop(values),  # noqa: B023
                3: lambda: coder.pop(1 << bits),  # noqa: B023
                5: lambda: coder.pop_symbol(int(row[1]), int(row[2])),  # noqa: B023
            }.get(kind, lambda: int(row[3]))()  # noqa: B023
            expected.append(popped)
        native.code(
            ctypes.c_int64(400),
            pointer(operations),
            pointer(stack),
            pointer(words),
            ctypes.c_int64(len(words)),
        )
        assert operations[:, 3].tolist() == expected and same(coder, words, stack)


def nearest(x):
    """The nearest integer, ties to even, of a Fraction."""
    return round(x)


def couple(coder, numbers, units, offsets, says, scale_of):
    """A coupling's step by integers; its shift by doubles, one operation at a time."""
    given, numbers = len(numbers) // 2, [int(n) for n in numbers]
    changed = range(given, len(numbers))
    ranges = [min(max(nearest(Fraction(scale_of(float(s))) * 65536), 1), 1 << 30) for s in says[0]]
    for i, values in zip(changed, ranges, strict=True):
        whole = values * numbers[i] + coder.pop(values)
        numbers[i], low = divmod(whole, 65536)
        coder.push(65536, low)
    for i, values, shift in zip(changed, ranges, says[1], strict=True):
        left = offsets[i] - 0.5 * units[i]
        numbers[i] += nearest(Fraction((left * (values / 65536) + float(shift)) / units[i]))
    return numbers


def test_a_coupling_is_the_step_of_whole_numbers_and_comes_back(native):
    dice = np.random.default_rng(1)
    moved = 0

    def scale_of(x):
        y = np.zeros(1, np.float32)
        native.own_floats(0, ctypes.c_int64(1), pointer(np.array([x], np.float32)), pointer(y))
        return float(y[0])

    for _ in range(300):
        count, coder = int(dice.integers(2, 17)), filled(dice, 40)
        size = 1 << int(dice.integers(1, 44))
        n = dice.integers(-size, size, count).astype(np.float64)
        units = dice.uniform(-1, 1, count) * 2.0 ** -dice.integers(1, 20)
        offsets = dice.normal(0, 3, count)
        says = dice.normal(0, 2, (2, count - count // 2)).astype(np.float32)
        if dice.integers(5) == 0:
            says[0, 0] = dice.choice([-30, 30])  # a scale at its end
        before, (words, stack) = n.copy(), memory(coder)
        first = words.copy(), stack.copy()

        def call(inverse):
            arrays = (pointer(each) for each in (n, units, offsets, says, stack, words))  # noqa: B023
            return native.couple(inverse, count, *arrays, ctypes.c_int64(len(words)))  # noqa: B023

        expected = couple(coder, n, units, offsets, says, scale_of)
        if call(0):
            assert max(map(abs, expected)) >= 1 << 45  # refused, as it leaves its bounds
            continue
        assert n.tolist() == expected and same(coder, words, stack)
        moved += 1
        assert call(1) == 0 and (n == before).all()
        assert int(stack[0]) == int(first[1][0])
        assert (words[: int(stack[1])] == first[0][: int(first[1][1])]).all()
    assert moved > 200


def apply(native, which, x):
    y, kind = np.empty_like(x), native.own_floats if x.dtype == np.float32 else native.own_doubles
    kind(which, ctypes.c_int64(x.size), pointer(x), pointer(y))
    return y


def exactly(function, x):
    with mpmath.workprec(120):
        return [function(mpmath.mpf(float(each))) for each in x]


def in_ulps(found, true):
    with mpmath.workprec(120):
        spacing = np.spacing(np.abs(found))
        errors = (abs(float(t - mpmath.mpf(float(f)))) for f, t in zip(found, true, strict=True))
        return max(error / float(ulp) for error, ulp in zip(errors, spacing, strict=True))


def squash(x):
    return mpmath.sign(x) * mpmath.log1p(abs(x))


def gelu(x):
    return x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2


def spread(dice, low, high, count, dtype):
    """Numbers between two ends, evenly and evenly in their logarithms."""
    even = dice.uniform(low, high, count)
    small = np.exp(dice.uniform(-30, math.log(high), count)) * dice.choice([-1, 1], count)
    return np.concatenate([even, small[small >= low]]).astype(dtype)


@pytest.mark.parametrize(
    ("which", "function", "low", "high", "dtype", "ulps"),
    [
        (0, mpmath.exp, -87, 88, np.float32, 2),
        (1, mpmath.log, 1, 3e38, np.float32, 2),
        (2, squash, -1e9, 1e9, np.float32, 3),
        (0, mpmath.exp, -700, 700, np.float64, 2),
        (1, mpmath.log, 1e-300, 1e300, np.float64, 2),
    ],
)
def test_own_functions_are_right_to_units_in_the_last_place(
    native, which, function, low, high, dtype, ulps
):
    x = spread(np.random.default_rng(which), low, high, 1000, dtype)
    assert in_ulps(apply(native, which, x), exactly(function, x)) < ulps


@pytest.mark.parametrize(
    ("which", "function", "error"), [(3, mpmath.tanh, 2e-7), (4, mpmath.erf, 6e-7), (5, gelu, 8e-7)]
)
def test_bounded_functions_are_right_to_an_absolute_error(native, which, function, error):
    x = spread(np.random.default_rng(which), -6, 6, 1000, np.float32)
    found = apply(native, which, x).astype(float)
    assert np.abs(found - np.array(exactly(function, x), float)).max() < error
    assert np.isfinite(apply(native, which, np.array([1e30, -1e30, 88, -88], np.float32))).all()


def test_nearest_is_to_even(native):
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 2**45 + 0.5, -(2**45) - 1.5, 3.49, 1e300])
    assert apply(native, 2, x).tolist() == np.rint(x).tolist()
