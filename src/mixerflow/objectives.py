"""Objectives of training, as values: the likelihood, a hybrid of it and a classifier's, a head's.

An objective is a callable ``(flow, images, labels) -> (loss, figures)``, see docs/objectives.md.
Labels of -1 stand for images without a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixerflow.core import Encoded, Flow, evaluating
from mixerflow.errors import ConfigError
from mixerflow.registry import register

Objective: TypeAlias = Callable[[Flow, Tensor, Tensor | None], tuple[Tensor, dict[str, Tensor]]]
"""``(flow, images, labels) -> (loss, figures)``.

Images are ``(B, *shape)`` as stored, labels ``(B,)`` int64, or vectors ``(B, K)`` float32, or None
where there are none. The loss is ``(B,)``, in nats, one an image; figures have names and shape
``(B,)`` or ``()``. The parameters of an `nn.Module` train with the flow's.
"""

OF_LABELS = ("label_loss", "accuracy")
"""Figures that are means over the images with a label."""
_FLAG = "--objective"
_LARGEST = 1e9


def likelihood(
    flow: Flow, images: Tensor, labels: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The default objective, ``-log p(x)``, or ``-log p(x | y)`` of a conditional flow."""
    return -flow(images, context_of(flow, labels)).log_prob, {}


def context_of(flow: Flow, labels: Tensor | None) -> Tensor | None:
    """Return the labels as the flow's context; None for a flow that takes none."""
    return None if flow.context_net is None else labels


class ObjectiveChoice:
    """An objective as a value, a setting of `TrainConfig`."""

    classifies = False
    """Whether it trains a head, and therefore needs labels."""

    def build(self) -> Objective:
        """Return the objective."""
        raise NotImplementedError

    def check(self, flow: Flow) -> None:
        """Raise a ConfigError for a flow that the objective cannot train whole."""

    @contextmanager
    def on(self, flow: Flow) -> Iterator[None]:
        """In a ``with``, let only those parameters take gradients that the objective trains."""
        yield


@register("likelihood")
@dataclass(frozen=True)
class Likelihood(ObjectiveChoice):
    """``log p(x)``, or ``log p(x | y)`` of a conditional flow."""

    def build(self) -> Objective:
        return likelihood

    def check(self, flow: Flow) -> None:
        if flow.head is not None:
            what = "the likelihood does not train the model's head"
            remedy = "give --objective hybrid, or --model.head none"
            raise ConfigError(what, _FLAG, remedy)


class Classifying(ObjectiveChoice):
    """An objective that trains a head, and is evaluated on validation images too."""

    classifies = True

    def build(self) -> Objective:
        return self

    def __call__(
        self, flow: Flow, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def check(self, flow: Flow) -> None:
        if flow.context_net is not None:
            what = "a conditional flow is told the labels that a head should tell"
            raise ConfigError(what, _FLAG, "give --model.classes none")
        if not flow.classifies:
            raise ConfigError("the model has no head", _FLAG, "give --model.head linear")


@register("hybrid")
@dataclass(frozen=True)
class Hybrid(Classifying):
    """``log p(y | x) + lambda log p(x)``, where lambda is `weight` over D.

    The loss of an image is ``-(D log p(y | x) + weight log p(x)) / (1 + weight)``: the objective
    times a constant, so that the gradient keeps its size for every lambda. Divided by ``D ln 2`` it
    is the mean of the bits of the label and the bits/dim of the image, with weights 1 to `weight`.
    An image without a label adds ``log p(x)`` alone.

    With the head `GaussiansHead` and `weight` D, the sum is ``log p(x, y)``: FlowGMM's objective
    without consistency.

    References:
        Nalisnick et al., Hybrid models with deep and invertible features (2019), arXiv:1902.02767.
    """

    weight: float = 1.0
    """lambda D: how much the bits/dim of an image count against one label's bits; 0 trains a
    classifier alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= _LARGEST:
            raise ValueError(f"Hybrid: weight must lie in [0, {_LARGEST:g}]; got {self.weight}")

    def __call__(
        self, flow: Flow, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        encoded: Encoded = flow(images)
        nats, figures = label_nats(flow.logits(encoded.z), labels)
        loss = (flow.dims * nats - self.weight * encoded.log_prob) / (1 + self.weight)
        bits = -encoded.log_prob / (flow.dims * math.log(2))
        return loss, {**figures, "image_bits_per_dim": bits}


@register("frozen")
@dataclass(frozen=True)
class Frozen(Classifying):
    """``log p(y | x)`` of a head on a flow that stays as it is: begin from trained weights.

    The loss of an image is ``-D log p(y | x)``: divided by ``D ln 2``, the bits of its label.
    """

    def check(self, flow: Flow) -> None:
        super().check(flow)
        if flow.head is None:
            what = "the Gaussians of the classes are a part of the flow, which stays as it is"
            raise ConfigError(what, _FLAG, "give --objective hybrid, or --model.head linear")

    @contextmanager
    def on(self, flow: Flow) -> Iterator[None]:
        assert flow.head is not None
        own = {id(parameter) for parameter in flow.head.parameters()}
        still = [p for p in flow.parameters() if p.requires_grad and id(p) not in own]
        for parameter in still:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in still:
                parameter.requires_grad_(True)

    def __call__(
        self, flow: Flow, images: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad(), evaluating(flow) as still:
            z = still(images).z
        nats, figures = label_nats(flow.logits(z), labels)
        return flow.dims * nats, figures


def label_nats(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Return ``-log p(y | x)`` of each image ``(B,)``, 0 without a label, and means over the rest.

    The figures are "label_loss", in nats, and "accuracy".
    """
    labels = torch.full_like(logits[:, 0], -1, dtype=torch.int64) if labels is None else labels
    known = labels >= 0
    nats = cross_entropy(logits.float(), labels, ignore_index=-1, reduction="none")
    count = known.sum().clamp_min(1)
    hits = (logits.argmax(1) == labels).float()
    return nats, {"label_loss": nats.sum() / count, "accuracy": hits.sum() / count}
