"""What users give: arrays of any kind, labels, images with labels, flows that cannot compute."""

import functools

import numpy as np
import pytest
import torch

from helpers import MODEL, SHAPE, flow_of, images, settings
from mixerflow.core import as_tensor
from mixerflow.data import make_images
from mixerflow.errors import ConfigError, DataError, MixerFlowError
from mixerflow.evaluate import bits, draw_pixels
from mixerflow.recipes import build
from mixerflow.training import train
from mixers import vary

CONDITIONAL = vary(MODEL, classes=3)
PIXELS = images(4).pixels


@functools.cache
def flow():
    return flow_of().eval()


@functools.cache
def labelled():
    return flow_of(CONDITIONAL).eval()


READ_ONLY = PIXELS.copy()
READ_ONLY.flags.writeable = False
SAME = {
    "array": PIXELS,
    "tensor": torch.from_numpy(PIXELS),
    "Images": make_images(PIXELS, None, dataset_id="a"),
    "list": PIXELS.tolist(),
    "read-only": READ_ONLY,
    "negative strides": np.ascontiguousarray(PIXELS[::-1, :, ::-1])[::-1, :, ::-1],
    "not contiguous": np.asfortranarray(PIXELS),
    "other byte order": PIXELS.astype(">i4"),
    "int64": PIXELS.astype(np.int64),
    "uint16": PIXELS.astype(np.uint16),
    "uint32": PIXELS.astype(np.uint32),
    "uint64": PIXELS.astype(np.uint64),
    "float64": PIXELS.astype(np.float64),
    "long double": PIXELS.astype(np.longdouble),
    "float16": PIXELS.astype(np.float16),
    "requires grad": torch.from_numpy(PIXELS).double().requires_grad_(),
    "strided tensor": torch.from_numpy(PIXELS).movedim(1, -1).contiguous().movedim(-1, 1),
}


@pytest.mark.parametrize("name", SAME)
def test_images_of_any_kind_have_the_same_figures(name):
    x, reference = SAME[name], torch.from_numpy(PIXELS)
    assert torch.equal(flow().bits_per_dim(x), flow().bits_per_dim(reference))
    assert np.array_equal(bits(flow(), x).per_image, bits(flow(), reference).per_image)
    z = flow().encode(x)
    assert torch.equal(z, flow().encode(reference))
    assert flow().log_prob(x).shape == (4,)
    assert torch.equal(flow().decode(z.numpy()[::-1][::-1]), reference)


REFUSED = [None, "cifar10", PIXELS.astype(complex), np.array([{}]), [[1, 2], [3]], 3, object()]


@pytest.mark.parametrize("x", REFUSED, ids=lambda x: type(x).__name__)
def test_what_is_no_images_is_refused_in_a_line(x):
    for call in (flow().bits_per_dim, flow().encode, flow().log_prob, flow().decode):
        with pytest.raises((ValueError, TypeError)) as caught:
            call(x)
        assert "\n" not in str(caught.value)
    with pytest.raises((ValueError, TypeError)):
        bits(flow(), x)
    with pytest.raises(MixerFlowError):
        train(flow_of(), x, config=settings(), quiet=True)


def label_calls():
    """Every function that takes the labels of images."""
    x, z = torch.from_numpy(PIXELS), torch.zeros(4, 16)
    return {
        "log_prob": lambda labels: labelled().log_prob(x, labels),
        "bits_per_dim": lambda labels: labelled().bits_per_dim(x, labels),
        "bits": lambda labels: bits(labelled(), x, labels=labels),
        "encode": lambda labels: labelled().encode(x, labels),
        "decode": lambda labels: labelled().decode(z, labels),
        "sample": lambda labels: labelled().sample(4, labels),
        "draw": lambda labels: labelled().draw(4, labels),
        "initialize": lambda labels: labelled().initialize(x, labels),
        "train": lambda labels: train(
            labelled(), x, labels=labels, config=settings(steps=1), quiet=True
        ),
    }


NO_LABELS = {
    "fractions": [0.7, 1.9, 0.0, 1.0],
    "negative": [0, -1, 2, 1],
    "too large": [0, 1, 2, 3],
    "too few": [0, 1, 2],
    "too many": [0, 1, 2, 0, 1],
    "not finite": [0.0, float("nan"), 1.0, 2.0],
    "complex": [0j, 1, 2, 0],
    "text": ["0", "1", "2", "0"],
    "matrix": [[0], [1], [2], [0]],
    "yes or no": [True, False, True, False],
}


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize("wrong", NO_LABELS)
@pytest.mark.parametrize("call", label_calls())
def test_labels_that_are_no_classes_are_refused(call, wrong, kind):
    labels = NO_LABELS[wrong]
    labels = np.array(labels) if kind == "array" else labels
    with pytest.raises((ValueError, TypeError, MixerFlowError)) as caught:
        label_calls()[call](labels)
    assert "\n" not in str(caught.value) and "index" not in str(caught.value)


@pytest.mark.parametrize("label", [0.7, 1.9, -1, 3, float("nan"), True, 1j, "0"])
def test_one_label_for_all_is_as_strict(label):
    for call in (
        lambda: labelled().sample(2, label),
        lambda: labelled().draw(2, label),
        lambda: draw_pixels(labelled(), 2, seed=0, label=label),
    ):
        with pytest.raises((ValueError, TypeError)):
            call()


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int32, np.float32, np.dtype(">i8")])
def test_whole_numbers_of_any_kind_are_labels(kind):
    labels = np.array([0, 1, 2, 1]).astype(kind)
    wanted = labelled().bits_per_dim(PIXELS, [0, 1, 2, 1])
    assert torch.equal(labelled().bits_per_dim(PIXELS, labels), wanted)
    assert np.allclose(bits(labelled(), PIXELS, labels=labels).per_image, wanted)
    assert torch.equal(labelled().encode(PIXELS, labels), labelled().encode(PIXELS, [0, 1, 2, 1]))


def test_bits_reads_the_labels_and_the_name_of_images():
    given = make_images(PIXELS, np.array([0, 1, 2, 1]), dataset_id="ramps")
    figure = bits(labelled(), given)
    assert figure.dataset_id == "ramps"
    assert np.array_equal(figure.per_image, bits(labelled(), PIXELS, labels=given.labels).per_image)
    assert bits(flow(), given).images == 4, "a flow without classes ignores them"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_in_a_line(dtype):
    made = flow_of().to(dtype)
    calls = [
        lambda: made.log_prob(PIXELS),
        lambda: made.bits_per_dim(PIXELS),
        lambda: made.encode(PIXELS),
        lambda: made.decode(torch.zeros(1, 16)),
        lambda: made.sample(2),
        lambda: bits(made, PIXELS),
        lambda: draw_pixels(made, 2, seed=0),
        lambda: made.initialize(torch.from_numpy(PIXELS)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="flows compute in float32"):
            call()
    with pytest.raises(ConfigError, match="float"):
        train(made, PIXELS, config=settings(), quiet=True)


def test_train_takes_arrays_for_validation():
    config = settings(steps=1)
    figures = [
        train(flow_of(), PIXELS, validation=each, config=config, quiet=True).validation
        for each in (PIXELS, torch.from_numpy(PIXELS), make_images(PIXELS, None, dataset_id="a"))
    ]
    assert len({figure.bits_per_dim for figure in figures}) == 1
    for wrong in (PIXELS[:, :, :2], PIXELS.astype(np.float32), PIXELS[:0], "cifar10"):
        with pytest.raises(MixerFlowError):
            train(flow_of(), PIXELS, validation=wrong, config=config, quiet=True)
    with pytest.raises(ConfigError, match="validation images of array: give labels"):
        train(labelled(), PIXELS, labels=[0, 1, 2, 0], validation=PIXELS, config=config)
    with pytest.raises(ConfigError, match="beside an Images"):
        train(flow_of(), images(4), labels=[0, 1, 2, 0], config=config)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_train_makes_its_own_gradients(without):
    config = settings(steps=2)
    wanted = train(flow_of(), PIXELS, config=config, quiet=True).validation.bits_per_dim
    made = flow_of()
    with without():
        done = train(made, PIXELS, config=config, quiet=True)
    assert done.validation.bits_per_dim == wanted
    with torch.inference_mode():
        inner = flow_of()
    with pytest.raises(ConfigError, match="inference_mode"):
        train(inner, PIXELS, config=config, quiet=True)


@pytest.mark.parametrize("flow", ["mixerflow-tiny", MODEL, None, torch.nn.Linear(2, 2)])
def test_train_says_what_is_no_flow(flow):
    with pytest.raises(ConfigError, match=r"is no flow: train: make one with mixerflow\.build"):
        train(flow, PIXELS)
    with pytest.raises(ConfigError, match="is no TrainConfig"):
        train(flow_of(), PIXELS, config={"steps": 2})


@pytest.mark.parametrize("changes", [{"norm": "batch"}, {"norm": "none", "actnorm": "batch"}])
def test_batch_norm_of_one_row_is_refused_with_its_remedy(changes):
    one_patch = vary(MODEL, patch=4, shift=0, **changes)
    one = torch.from_numpy(PIXELS[:1])
    for call in (
        lambda: build(one_patch, SHAPE).train().log_prob(one),
        lambda: build(one_patch, SHAPE).train().initialize(one),
        lambda: train(build(one_patch, SHAPE), PIXELS, config=settings(batch=1), quiet=True),
        lambda: train(build(one_patch, SHAPE), PIXELS[:2], config=settings(), quiet=True),
    ):
        with pytest.raises(ConfigError, match=r"train\.batch: train on 2 or more images"):
            call()
    assert build(one_patch, SHAPE).eval().bits_per_dim(one).isfinite().all()
    with pytest.raises(DataError):
        train(build(one_patch, SHAPE), PIXELS[:1], config=settings(), quiet=True)


@pytest.mark.parametrize("n", [2.0, "2", None, -1, np.nan, [2]])
def test_a_number_of_images_is_an_integer(n):
    for call in (flow().sample, flow().draw):
        with pytest.raises(ValueError, match="n="):
            call(n)


def test_numbers_of_images_may_be_numpy_s():
    for n in (np.int64(2), np.array(2), torch.tensor(2)):
        assert len(flow().sample(n)) == len(draw_pixels(flow(), n, seed=np.int64(1)).pixels) == 2
    assert flow().sample(0).shape == (0, *SHAPE) and len(flow().decode(torch.zeros(0, 16))) == 0
    assert flow().encode(PIXELS[:0]).shape == (0, 16) and len(flow().bits_per_dim(PIXELS[:0])) == 0
    assert as_tensor(np.arange(3)[::-1]).tolist() == [2, 1, 0]
