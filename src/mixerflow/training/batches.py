"""The images of each step's batch: a pure function of the seed and the step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixerflow.augmentation import Augmentation
from mixerflow.core import Noise, as_tensor
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.processes import SINGLE, Processes

_ON_DEVICE_BYTES = 2 << 30
_UNCHANGED = Augmentation()


class Batches:
    """Shuffled passes over a set of images, cut into batches; a batch may span two passes.

    Args:
        images: the training images.
        batch: number of images in a batch.
        seed: seed of the orders and of the augmentation.
        device: device of the batches; it holds all images where they fit.
        conditional: whether the flow needs labels.
        parts: number of parts in which a batch goes through the model.
        processes: processes that share each part evenly; a batch is this process's share.
        augmentation: random changes of the images of each step.
        labels_per_class: images of each class that have a label, drawn with the seed; the others
            get the label -1, which stands for none. None for all.
        labelled: share of images with a label in each batch, where some have none; 1 leaves the
            others out. None for an objective without labels: all images alike.

    Raises:
        ConfigError: no labels, a batch that cannot be shared evenly, or a shift beyond the images.
    """

    def __init__(
        self,
        images: Images,
        batch: int,
        *,
        seed: int,
        device: torch.device,
        conditional: bool,
        parts: int = 1,
        processes: Processes = SINGLE,
        augmentation: Augmentation = _UNCHANGED,
        labels_per_class: int | None = None,
        labelled: float | None = None,
    ) -> None:
        self.images, self.batch, self.seed, self.device = images, batch, seed, device
        self.conditional, self.parts, self.processes = conditional, parts, processes
        self.augmentation = augmentation
        augmentation.check(images.shape, images.levels)
        if batch % (parts * processes.world):
            what = f"a batch of {batch} in {parts} x {processes.world} equal parts"
            remedy = "make it a multiple of --train.accumulate times the number of processes"
            raise ConfigError(what, "--train.batch", remedy)
        if conditional and images.labels is None:
            where = images.dataset_id
            remedy = "give labels, or use --model.classes none and --model.vectors none"
            raise ConfigError("no labels for a conditional flow", where, remedy)
        known = images.labels
        if labels_per_class is not None:
            known = _few_labels(images, labels_per_class, seed)
        self.labels = None if known is None else torch.from_numpy(known)
        everything = np.arange(len(images))
        self._passes = [(_Passes(everything, seed), batch)]
        if labelled is not None and known is not None and known.min() < 0:
            with_label = np.flatnonzero(known >= 0)
            if not len(with_label):
                raise ConfigError("no image has a label", images.dataset_id, "label some images")
            count = max(1, round(labelled * batch))
            self._passes = [(_Passes(with_label, seed, 1), count)]
            if count < batch:
                self._passes.append((_Passes(everything, seed), batch - count))
        shares = [(np.arange(count) + 0.5) / count for _, count in self._passes]
        self._places = np.argsort(np.concatenate(shares), kind="stable")
        """The order of a batch: its shares are spread evenly over processes and parts."""
        self._whole: Tensor | None = None
        if device.type != "cpu" and images.pixels.nbytes <= _ON_DEVICE_BYTES:
            self._whole = as_tensor(images.pixels).to(device)

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return this process's images ``(share, C, H, W)`` of a step, and labels or None."""
        chosen = np.concatenate([each.at(step, count) for each, count in self._passes])
        x, labels = self.take(chosen[self._places][self._own()])
        if self.augmentation != _UNCHANGED:
            noise = Noise(self.seed, self.index(step))
            x = self.augmentation.augmented(x, noise, self.images.levels)
        return x, labels

    def index(self, step: int) -> Tensor:
        """Return a number for each image of `at`, unique in the run: the key of its draws."""
        return torch.from_numpy(step * self.batch + self._own()).to(self.device)

    def _own(self) -> np.ndarray:
        """Return this process's places in a batch, part by part."""
        places = np.arange(self.batch).reshape(self.parts, self.processes.world, -1)
        return places[:, self.processes.rank].ravel()

    def take(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return the images at `indices`, and their labels or None."""
        if self._whole is not None:
            x = self._whole[torch.from_numpy(indices).to(self.device)]
        else:
            x = as_tensor(self.images.pixels[indices]).to(self.device)
        labels = None if self.labels is None else self.labels[torch.from_numpy(indices)]
        return x, labels

    def first(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return at most `n` images for initialisation, and the flow's context."""
        passes, _ = self._passes[-1]
        x, labels = self.take(passes.order(0)[: min(n, len(self.images))])
        return x, labels if self.conditional else None


class _Passes:
    """Shuffled passes over images, given by their numbers."""

    def __init__(self, numbers: np.ndarray, seed: int, *stream: int) -> None:
        self.numbers, self.seed = numbers, (seed, *stream)
        self._orders: dict[int, np.ndarray] = {}

    def at(self, step: int, count: int) -> np.ndarray:
        """Return the numbers of a step's images, `count` in each step."""
        chosen = []
        while len(chosen) < count:
            epoch, position = divmod(step * count + len(chosen), len(self.numbers))
            chosen.extend(self.order(epoch)[position : position + count - len(chosen)])
        return np.asarray(chosen, dtype=np.int64)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers in the order of a pass."""
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            generator = np.random.default_rng((*self.seed, epoch))
            self._orders[epoch] = self.numbers[generator.permutation(len(self.numbers))]
        return self._orders[epoch]


def _few_labels(images: Images, count: int, seed: int) -> np.ndarray:
    """Return the labels, with -1 in place of all but `count` of each class.

    Raises:
        ConfigError: no labels, or a class of fewer images.
    """
    if images.labels is None:
        remedy = "leave out --train.labels-per-class"
        raise ConfigError("no labels", images.dataset_id, remedy)
    kept, order = np.full_like(images.labels, -1), np.random.default_rng(seed).permutation
    for label in np.unique(images.labels[images.labels >= 0]):
        mine = np.flatnonzero(images.labels == label)
        if count > len(mine):
            what = f"{count} labels of class {label}, which has {len(mine)} training images"
            raise ConfigError(what, "--train.labels-per-class", f"give at most {len(mine)}")
        kept[mine[order(len(mine))[:count]]] = label
    return kept
