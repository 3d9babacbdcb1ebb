"""Linear probes: how well one linear layer tells classes by features that are not trained.

A probe is a softmax layer ``p(c | f) = softmax(W s(f) + b)``, where s standardises each feature by
its mean and deviation over the training images. Several weight decays are tried at once, and the
loss on held-out images chooses among them.

References:
    Alain, Bengio: Understanding intermediate layers using linear classifier probes (2016),
        arXiv:1610.01644.
    Loshchilov, Hutter: Decoupled weight decay regularization (2019), arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from mixerflow.means import mean_and_error

DECAYS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Weight decays that are tried unless others are given."""
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features of images, of any dtype, with their classes, or those of some of the images.

    Attributes:
        features: ``(N, F)``.
        labels: ``(N,)`` int64.
        rows: indices of the images that count, in their order; None for all. No part is copied.
    """

    features: Shaped[Tensor, "images features"]
    labels: Int[Tensor, " images"]
    rows: Int[Tensor, " part"] | None = None

    def __len__(self) -> int:
        return len(self.labels if self.rows is None else self.rows)

    def take(self, part: Tensor) -> Labelled:
        """Return the images at the indices `part` of these."""
        return replace(self, rows=part if self.rows is None else self.rows[part])

    def batch(self, part: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``(B, F)``, in float32, and classes of the images at `part`."""
        part = part if self.rows is None else self.rows[part]
        return self.features[part].float(), self.labels[part]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over `batch` of all images in their order, `size` at a time."""
        for part in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.batch(part)


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is trained: Adam, whose rate falls to 0 along a half cosine.

    Attributes:
        decays: weight decays that are tried. They are decoupled, as in AdamW: each step multiplies
            W by ``1 - rate * decay``, whatever the gradient; b has none.
        epochs: passes over the training images.
        batch: images of a step; the last step of an epoch has fewer.
        lr: the first step's rate.
    """

    decays: tuple[float, ...] = DECAYS
    epochs: int = 30
    batch: int = 512
    lr: float = 1e-3

    def steps(self, images: int) -> int:
        """Return the steps of training on so many images."""
        return self.epochs * math.ceil(images / self.batch)


@dataclass(frozen=True)
class ProbeFigure:
    """Figures of one probe on test images.

    Attributes:
        loss: mean of ``-log p(class)`` in nats.
        accuracy: share of the images whose likeliest class is their own, 0 to 1.
        decay: the chosen weight decay, of the lowest loss on the held-out images.
        held_out: loss on the held-out images for each weight decay tried, in their order.
        features: F.
    """

    loss: float
    accuracy: float
    decay: float
    held_out: tuple[float, ...]
    features: int

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ProbeSummary:
    """Figures of the probes of one kind of features, over seeds.

    Means, and standard errors over the seeds, None for a single one. `decays` are the chosen ones,
    a seed each.
    """

    loss: float
    loss_error: float | None
    accuracy: float
    accuracy_error: float | None
    decays: tuple[float, ...]
    features: int

    @classmethod
    def of(cls, figures: Sequence[ProbeFigure]) -> ProbeSummary:
        """Summarise the figures of at least one seed."""
        loss, loss_error = mean_and_error([each.loss for each in figures])
        accuracy, accuracy_error = mean_and_error([each.accuracy for each in figures])
        assert loss is not None and accuracy is not None
        decays = tuple(each.decay for each in figures)
        return cls(loss, loss_error, accuracy, accuracy_error, decays, figures[0].features)


class Standardised(nn.Module):
    """``(f - mean) / deviation`` of each feature, in float32; 0 for a feature that is constant.

    Mean and deviation are those of `data`. A feature counts as constant if its deviation is within
    float32's rounding of its largest value.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, data: Labelled) -> None:
        super().__init__()
        sums, largest = [], []
        for x, _ in data.batches(_CHUNK):
            sums.append(x.sum(0, dtype=torch.float64))
            largest.append(x.abs().amax(0).double())
        mean = torch.stack(sums).sum(0) / len(data)
        squares = [(x - mean).square().sum(0) for x, _ in data.batches(_CHUNK)]
        deviation = (torch.stack(squares).sum(0) / len(data)).sqrt()
        varies = deviation > torch.finfo(torch.float32).eps * torch.stack(largest).amax(0)
        self.register_buffer("mean", mean.float())
        self.register_buffer("scale", torch.where(varies, 1 / deviation, 0.0).float())

    def forward(self, features: Tensor) -> Tensor:
        """Standardise features ``(B, F)``."""
        return (features - self.mean) * self.scale


class Heads(nn.Module):
    """Several linear layers on the same inputs: ``(B, F)`` to logits ``(B, heads, classes)``."""

    def __init__(self, features: int, classes: int, heads: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(classes, features) for _ in range(heads))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, by one product of matrices."""
        logits = functional.linear(x, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return logits.unflatten(1, (len(self.weights), -1))


def fit_classifier(
    net: nn.Module,
    data: Labelled,
    groups: Iterable[dict[str, Any]],
    settings: ProbeSettings,
    *,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Train a net that makes logits ``(B, classes)`` or ``(B, heads, classes)``, by cross-entropy.

    The loss is the sum over the heads of the mean over the batch: heads that share no parameter
    train as each would alone.

    Args:
        net: the classifier of features ``(B, F)``, changed in place.
        data: the training images.
        groups: parameter groups for `torch.optim.AdamW`.
        settings: epochs, batch and rate.
        seed: draws the order of the images in each epoch.
        on_batch: called with the number of images after each step; an error that it raises stops.
    """
    optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps(len(data)))
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(data), generator=generator).to(data.labels.device)
        for part in order.split(settings.batch):
            features, labels = data.batch(part)
            optimizer.zero_grad()
            _losses(net(features), labels).mean(0).sum().backward()
            optimizer.step()
            schedule.step()
            if on_batch is not None:
                on_batch(len(part))
    net.eval()


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return ``-log p(class)`` of logits ``(B, ..., classes)``, ``(B, ...)``."""
    chosen = labels.view(-1, *[1] * (logits.dim() - 1)).expand(*logits.shape[:-1], 1)
    return -logits.log_softmax(-1).gather(-1, chosen)[..., 0]


@torch.no_grad()
def score_classifier(net: nn.Module, data: Labelled) -> tuple[Tensor, Tensor]:
    """Return the mean loss in nats and the accuracy on images; for heads of each, ``(heads,)``."""
    losses, right = [], []
    for features, labels in data.batches(_CHUNK):
        logits = net(features)
        losses.append(_losses(logits, labels).double())
        best = logits.argmax(-1)
        right.append((best == labels.view(-1, *[1] * (best.dim() - 1))).double())
    return torch.cat(losses).mean(0), torch.cat(right).mean(0)


def probe(
    train: Labelled,
    held_out: Labelled,
    test: Labelled,
    *,
    classes: int,
    settings: ProbeSettings | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> ProbeFigure:
    """Train probes of all weight decays side by side; return the figures of the chosen one.

    All start at 0. Standardisation uses the training images alone; it is done a batch at a time, so
    that no second copy of the features is made.

    Args:
        train: the training images.
        held_out: images whose loss chooses the weight decay.
        test: images that the figures are of.
        classes: number of classes; labels lie in ``0..classes - 1``.
        settings: see `ProbeSettings`.
        seed: of the order in which images come.
        on_batch: see `fit_classifier`.

    Raises:
        ValueError: no images, decays, epochs or batch; features that are not finite or of different
            lengths; labels outside the classes.
    """
    settings = settings or ProbeSettings()
    size = train.features.shape[1]
    _check((train, held_out, test), size, classes, settings)
    heads = Heads(size, classes, len(settings.decays)).to(train.features.device)
    net = nn.Sequential(Standardised(train), heads)
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": decay}
        for weight, decay in zip(heads.weights, settings.decays, strict=True)
    ]
    groups.append({"params": list(heads.biases), "weight_decay": 0.0})
    fit_classifier(net, train, groups, settings, seed=seed, on_batch=on_batch)
    chosen_by, _ = score_classifier(net, held_out)
    best = int(chosen_by.nan_to_num(math.inf).argmin())
    loss, accuracy = (each[best].item() for each in score_classifier(net, test))
    return ProbeFigure(loss, accuracy, settings.decays[best], tuple(chosen_by.tolist()), size)


def _check(parts: Sequence[Labelled], size: int, classes: int, settings: ProbeSettings) -> None:
    if not settings.decays or min(settings.epochs, settings.batch) < 1:
        raise ValueError(f"probe: no decays, epochs or batch in {settings}")
    for part in parts:
        if len(part) == 0 or part.features.shape != (len(part.labels), size):
            what = f"features {tuple(part.features.shape)}, labels {tuple(part.labels.shape)}"
            raise ValueError(f"probe: takes (N, F) and (N,), all of one F, N > 0; got {what}")
        for features, labels in part.batches(_CHUNK):
            if not bool(features.isfinite().all()):
                raise ValueError("probe: features are not all finite")
            if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                found = f"{int(labels.min())} to {int(labels.max())}"
                raise ValueError(f"probe: labels {found}, not in 0..{classes - 1}")
