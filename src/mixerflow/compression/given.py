"""What is given to be coded: images, and what is kept with them; all of it checked before work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from mixerflow.compression.layout import LARGEST_BLOCK
from mixerflow.compression.side import encoded
from mixerflow.core import Flow
from mixerflow.errors import DataError
from mixerflow.runs.fitting import renumbered

_WHERE = "the images"
_LABELS = {("i", 1), ("u", 1), ("f", 2)}
_LARGEST_LABEL = 2**63 - 1
Values = Any
"""An array, a tensor, or what numpy makes an array of."""


@dataclass(frozen=True, eq=False)
class Given:
    """Images to code, and what is kept with them.

    Attributes:
        pixels: ``(N, *shape)``, perhaps a memory map.
        labels: ``(N,)`` integers or ``(N, K)`` float32; None without.
        names: N paths; empty without.
        classes: names of the labels 0, 1, ...
        context: classes ``(N,)`` that the flow is given, -1 for unknown ones; None for none known.
    """

    pixels: np.ndarray
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    context: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        pixels: Values,
        labels: Values = None,
        names: Iterable[str] = (),
        classes: Iterable[str] = (),
        context: Values = None,
    ) -> Given:
        """Return what a caller gives; a DataError for what is no images, labels or names."""
        return cls(
            _array(pixels, "images"),
            None if labels is None else _as_labels(_array(labels, "labels")),
            _texts(names, "names"),
            _texts(classes, "classes"),
            None if context is None else _array(context, "context"),
        )

    def check(self, flow: Flow) -> None:
        """Raise a DataError for what a flow does not take, or what does not fit together."""
        pixels = self.pixels
        if pixels.ndim < 1 or tuple(pixels.shape[1:]) != tuple(flow.shape) or not len(pixels):
            what = f"images {tuple(pixels.shape)}, the flow's are {tuple(flow.shape)}"
            raise DataError(what, _WHERE, "give at least one image of that shape")
        count = len(pixels)
        if pixels.dtype.kind not in "iu":
            raise DataError(f"images of {pixels.dtype}", _WHERE, "give uint8 or uint16")
        if self.names and len(self.names) != count:
            what = f"{len(self.names):,} names for {count:,} images"
            raise DataError(what, _WHERE, "give one for each")
        labels = self.labels
        if labels is not None and labels.shape[:1] != (count,):
            what = f"labels are {labels.dtype} {labels.shape} for {count:,} images"
            raise DataError(what, _WHERE, "give integers (N,) or floats (N, K)")
        for name in self.names:
            encoded(name)
        if self.most(flow) < 1:
            raise DataError("images too large for a block", _WHERE, "cut them")
        if self.context is not None:
            self._check_context(flow, self.context)

    def most(self, flow: Flow) -> int:
        """Return the images that a block may have: their pixels, names and vectors must fit in."""
        largest = self.pixels[0].size * (1 if (flow.levels or 0) <= 256 else 2)
        if self.names:
            largest = max(largest, 1 + max(len(encoded(name)) for name in self.names))
        if self.labels is not None and self.labels.ndim == 2:
            largest = max(largest, 4 * self.labels.shape[1])
        return LARGEST_BLOCK // largest

    def _check_context(self, flow: Flow, context: np.ndarray) -> None:
        net, shape = flow.context_net, self.pixels.shape[:1]
        if not isinstance(net, nn.Embedding):
            raise DataError("classes for a flow that takes none", _WHERE, "leave the context out")
        if context.dtype.kind not in "iu" or context.shape != shape:
            what = f"classes are {context.dtype} {context.shape}"
        elif context.max() >= net.num_embeddings:
            what = f"classes up to {context.max()}"
        else:
            return
        remedy = f"give (N,) of 0 to {net.num_embeddings - 1}, or -1 for unknown ones"
        raise DataError(what, _WHERE, remedy)


def context_of(
    flow: Flow, known: Sequence[str], labels: np.ndarray | None, classes: Sequence[str]
) -> tuple[np.ndarray | None, str]:
    """Return the classes ``(N,)`` that labels are for a flow, and a line that says so.

    Names of classes are looked up among those of the flow's run. Labels without names are its
    classes if all of them are, or -1 for unknown ones. Without classes the result is None, and for
    a flow that takes none it is None without a line.

    Args:
        flow: the flow.
        known: names of its classes; empty where they have none.
        labels: ``(N,)`` integers, or others, which are no classes; None without.
        classes: names of the labels 0, 1, ...; empty where there are none.
    """
    net = flow.context_net
    if not isinstance(net, nn.Embedding):
        return None, ""
    likeliest = "the likeliest is chosen for each"
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        return None, f"images without classes: {likeliest}"
    count = net.num_embeddings
    if known and classes:
        numbers = renumbered(labels, classes, known)
        if numbers is not None:
            return np.where(numbers < count, numbers, -1), ""
    elif -1 <= labels.min() and 0 <= labels.max() < count:
        words = f"labels without names are the run's classes, 0 to {count - 1}"
        return labels.astype(np.int64), words if known else ""
    return None, f"the images' classes are not the run's: {likeliest}"


def _array(values: Values, what: str) -> np.ndarray:
    try:
        values = values.detach().cpu() if isinstance(values, Tensor) else values
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} that are no array ({error})"[:200], _WHERE, "give one") from error


def _as_labels(labels: np.ndarray) -> np.ndarray:
    """Return labels as they are kept; vectors are kept in float32."""
    remedy = "give integers (N,) or floats (N, K)"
    if (labels.dtype.kind, labels.ndim) not in _LABELS or 0 in labels.shape[1:]:
        raise DataError(f"labels are {labels.dtype} {labels.shape}", _WHERE, remedy)
    if labels.dtype.kind != "f":
        if labels.size and labels.max() > _LARGEST_LABEL:
            what = f"a label of {labels.max()}"
            raise DataError(what, _WHERE, "give labels less than 2^63")
        return labels
    if labels.shape[1] > 1 << 16:
        what = f"labels are vectors of {labels.shape[1]:,} numbers"
        raise DataError(what, _WHERE, f"give at most {1 << 16:,}")
    with np.errstate(over="ignore"):
        kept = labels.astype(np.float32)
    if not np.array_equal(np.isinf(kept), np.isinf(labels)):
        raise DataError("labels beyond float32, in which they are kept", _WHERE, "scale them")
    return kept


def _texts(values: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(values, (str, bytes)):
        raise DataError(f"{what} that are one text", _WHERE, "give a list of texts")
    try:
        texts = tuple(values)
    except TypeError as error:
        raise DataError(f"{what} are {type(values).__name__}", _WHERE, "give texts") from error
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            found = f"number {number:,} of the {what} is {type(text).__name__}"
            raise DataError(found, _WHERE, "give texts")
    return tuple(map(str, texts))
