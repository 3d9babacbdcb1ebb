"""What users give `train`: checked, and as `Images`, before anything is written or trained."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixerflow.core import Flow
from mixerflow.data import Images, make_images
from mixerflow.errors import ConfigError, DataError
from mixerflow.evaluate import class_count
from mixerflow.runs import require_context
from mixerflow.train_config import TrainConfig


def check_kinds(flow: object, config: object) -> None:
    """Raise a ConfigError unless these are a flow that can train, and settings."""
    if not isinstance(flow, Flow):
        what = f"{type(flow).__name__} is no flow"
        raise ConfigError(what, "train", "make one with mixerflow.build")
    if not isinstance(config, TrainConfig):
        what = f"{type(config).__name__} is no TrainConfig"
        raise ConfigError(what, "config", "give mixerflow.training.TrainConfig(...)")
    if any(tensor.is_inference() for tensor in (*flow.parameters(), *flow.buffers())):
        what = "the flow was made under torch.inference_mode, and has no gradients"
        raise ConfigError(what, "train", "make it outside")
    if flow.dtype in (torch.float16, torch.bfloat16):
        what = f"the flow's weights are {flow.dtype}"
        raise ConfigError(what, "train", "call .float() on it, and use precision='bfloat16'")


def check_fit(flow: Flow, images: Images, kind: str = "") -> None:
    """Raise a ConfigError unless the images, named `kind` and their own name, fit the flow."""
    if flow.inference:
        raise ConfigError("an inference copy cannot train", "flow.fused()", "train the flow itself")
    where = kind + images.dataset_id
    if images.shape != flow.shape:
        what = f"the flow takes images {flow.shape}, these are {images.shape}"
        raise ConfigError(what, where, "build the flow for their shape")
    if flow.levels is None and images.levels is not None:
        raise ConfigError("the flow takes floats, these are integers", where, "convert them")
    if flow.levels is not None and images.levels is None:
        remedy = "multiply by 255, round, and convert to uint8, or build the flow with levels=None"
        raise ConfigError(f"the flow takes {flow.levels} levels, these are floats", where, remedy)
    mine, theirs = flow.levels or 0, images.levels or 0
    if theirs > mine > 0 and images.pixels.max() >= mine:  # only then is every pixel worth a look
        what = f"the flow takes values 0 to {mine - 1}, these reach {images.pixels.max()}"
        raise ConfigError(what, where, "build the flow with their levels")
    if flow.context_net is not None and images.labels is not None:
        require_context(flow, images)
    if isinstance(flow.context_net, torch.nn.Embedding) and images.labels is not None:
        classes, most = flow.context_net.num_embeddings, int(images.labels.max())
        if most >= classes or images.labels.min() < 0:
            wrong = most if most >= classes else int(images.labels.min())
            what = f"the flow has {classes} classes, a label is {wrong}"
            raise ConfigError(what, where, "build it with more classes, or label all images")


def as_images(
    images: Images | np.ndarray | Tensor, labels: np.ndarray | Tensor | None, name: str
) -> Images:
    """Return images, given as such or as a plain array, whose labels are then `labels`."""
    if isinstance(images, Images):
        if labels is not None:
            what = "labels beside an Images, which has its own"
            raise ConfigError(what, "labels", "leave them out, or make the Images with them")
        return images
    try:
        pixels = _plain_array(images)
        numbers = None if labels is None else _plain_array(labels)
    except (TypeError, ValueError) as error:
        raise DataError(f"no array of numbers ({error})", name, "give (N, C, H, W)") from None
    return make_images(pixels, numbers, dataset_id="array")


def _plain_array(given: object) -> np.ndarray:
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = given.float() if given.dtype == torch.bfloat16 else given
    return np.asarray(given)


def require_class_labels(flow: Flow, images: Images, name: str) -> None:
    """Raise a ConfigError for images without the labels that the flow's head learns from."""
    where = f"{name} of {images.dataset_id}"
    if images.labels is None or images.vector_length is not None:
        raise ConfigError("no class labels for the head to learn", where, "label them")
    classes = class_count(flow)
    if images.labels.max() >= classes:
        what = f"the head has {classes} classes, a label is {images.labels.max()}"
        raise ConfigError(what, where, f"give the head {images.labels.max() + 1} classes")


def require_labels(flow: Flow, images: Images, name: str) -> None:
    """Raise a ConfigError for images without the labels that a conditional flow reads."""
    if flow.context_net is not None and images.labels is None:
        what, remedy = "no labels for a conditional flow", "give labels, or an Images with labels"
        raise ConfigError(what, name, remedy)
