"""Values that are not finite in a sample are counted, said and seen."""

import math
import warnings

import numpy as np
import pytest
import torch

from mixerflow import pictures
from mixerflow.core import Flow, NonFiniteWarning, StandardNormal
from mixerflow.evaluate import draw_pixels, to_pixels
from mixerflow.transforms import Dequantize, Rescale

MAGENTA = [255, 0, 255]


class Fixed(StandardNormal):
    """A base whose draws are set."""

    def __init__(self, z):
        super().__init__()
        self.z = z

    def sample(self, like, generator, context=None):
        return self.z.expand(len(like), -1)


def flow_of(levels, channels, bad):
    """A flow over images of 2 x 2 pixels whose draws end in the value `bad`."""
    z = torch.arange(4.0 * channels)[None]
    z[0, -1] = bad
    transform = Rescale(1.0) if levels is None else Dequantize(levels)
    return Flow(transform, (channels, 2, 2), Fixed(z), levels=levels)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [None, 20, 256, 2**16])
def test_a_value_that_is_not_finite_is_counted_and_seen(levels, channels, bad):
    flow = flow_of(levels, channels, bad)
    drawn = draw_pixels(flow, 3, seed=0)
    assert (drawn.nonfinite_values, drawn.nonfinite_images, drawn.clamped) == (3, 3, 0)
    assert "3 values in 3 of 3 images not finite, shown in magenta" in str(drawn)
    assert drawn.pixels.dtype == np.uint8
    assert drawn.pixels[0, :3, 1, 1].tolist() == MAGENTA
    assert not (drawn.pixels[0, :3].reshape(3, 4)[:, :3].T == MAGENTA).all(1).any()
    sheet = np.asarray(pictures.grid(drawn.pixels, columns=1, pad=0))
    assert sheet[1, 1].tolist() == MAGENTA
    for images in (flow.sample, lambda n: flow.decode(torch.zeros(n, 1) + flow.base.z)):
        with pytest.warns(NonFiniteWarning, match="3 values in 3 of 3 images \\(0, 1, 2\\)"):
            images(3)


@pytest.mark.parametrize("levels", [None, 20, 256, 2**16])
def test_finite_samples_are_as_they_were(levels):
    flow = flow_of(levels, 1, 3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn, images = draw_pixels(flow, 2, seed=0), flow.sample(2)
    assert drawn.nonfinite_values == drawn.nonfinite_images == 0
    assert drawn.pixels.shape == (2, 1, 2, 2) and "not finite" not in str(drawn)
    np.testing.assert_array_equal(drawn.pixels, to_pixels(flow, images))
    highest = 255 if levels in (None, 20, 256) else 65535
    top = 3 if levels is None else levels - 1
    wanted = np.round(np.arange(4) * highest / top).astype(int)
    assert drawn.pixels[0].flatten().tolist() == wanted.tolist()


def test_floats_of_any_range_are_scaled_by_the_finite_ones():
    flow = flow_of(None, 1, math.nan)
    images = torch.tensor([-3e38, 0.0, 3e38, math.nan]).reshape(1, 1, 2, 2)
    assert to_pixels(flow, images)[0].reshape(3, 4).T.tolist() == [
        *([value] * 3 for value in (0, 128, 255)),
        MAGENTA,
    ]
    assert to_pixels(flow, images[:0]).shape == (0, 1, 2, 2)
    assert (to_pixels(flow, images * math.nan)[0].reshape(3, 4).T == MAGENTA).all()
