"""Small runs with thresholds, and what a page needs of them."""

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mixerflow.data import Splits, make_images
from mixerflow.data.decode import decode_image
from mixerflow.detection import fit_scores, measure, scores_for
from mixerflow.recipes import build
from mixerflow.runs import InsideFit, keep_fit, load, read_weights
from mixerflow.training import TrainConfig, train
from mixers import mixer

CLASSES = ("dots", "stripes", "plain")


def pictured(n, channels=1, seed=0):
    """Images (n, channels, 8, 8) of three classes."""
    rng = np.random.default_rng(seed)
    ramp = rng.integers(20, 160, (n, 1, 1, 1)) + 5 * np.arange(64).reshape(1, 1, 8, 8) // 4
    pixels = np.clip(ramp + rng.integers(0, 12, (n, channels, 8, 8)), 0, 255).astype(np.uint8)
    labels = rng.integers(0, 3, n)
    return make_images(pixels, labels, classes=CLASSES, dataset_id="ramps")


def small_view(out, channels=1, classes=True, thresholds=True):
    """A trained run, its images, and thresholds from inside images."""
    count = 3 if classes else 0
    model = mixer(layers=2, flow_layers=2, hidden=8, patch=2, shift=1, norm="none", classes=count)
    torch.manual_seed(0)
    flow = build(model, (channels, 8, 8))
    splits = Splits(pictured(60, channels), pictured(9, channels, seed=3))
    config = TrainConfig(steps=30, batch=16, lr=1e-2, warmup=2, initial=16, evaluate_every=30)
    train(flow, splits.train, out=out, config=config, quiet=True)
    if thresholds:
        inside = measure(load(out), pictured(80, channels, seed=5).pixels)
        key = {"weights_sha256": read_weights(out).sha256, "background_sha256": None, "seed": 0}
        fitted = fit_scores(inside, scores_for(lengths=True, background=False, places=False))
        keep_fit(out, InsideFit(fitted, inside, key, {"dataset_id": "ramps", "split": "test"}))
    return splits


def png_of(pixels, kind="PNG"):
    """The file of an image (C, H, W)."""
    buffer = io.BytesIO()
    cells = np.moveaxis(pixels, 0, -1)
    Image.fromarray(cells[..., 0] if len(pixels) == 1 else cells).save(buffer, kind)
    return buffer.getvalue()


def coded(pixels):
    """The same, as the page sends it."""
    return base64.b64encode(png_of(pixels)).decode()


def decoded(text):
    """The image of an answer, by the package's own decoder."""
    return decode_image(base64.b64decode(text), Path("an answer"))
