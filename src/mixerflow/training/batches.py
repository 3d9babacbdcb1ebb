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
    ) -> None:
        self.images, self.batch, self.seed, self.device = images, batch, seed, device
        self.conditional, self.parts, self.processes = conditional, parts, processes
        self.augmentation = augmentation
        augmentation.check(images.shape)
        if batch % (parts * processes.world):
            what = f"a batch of {batch} in {parts} x {processes.world} equal parts"
            remedy = "make it a multiple of --train.accumulate times the number of processes"
            raise ConfigError(what, "--train.batch", remedy)
        if conditional and images.labels is None:
            where = images.dataset_id
            remedy = "give labels, or use --model.classes none and --model.vectors none"
            raise ConfigError("no labels for a conditional flow", where, remedy)
        self.labels = None if images.labels is None else torch.from_numpy(images.labels)
        self._orders: dict[int, np.ndarray] = {}
        self._whole: Tensor | None = None
        if device.type != "cpu" and images.pixels.nbytes <= _ON_DEVICE_BYTES:
            self._whole = as_tensor(images.pixels).to(device)

    def at(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Return this process's images ``(share, C, H, W)`` of a step, and labels or None."""
        first = step * self.batch
        chosen, n = [], len(self.images)
        while len(chosen) < self.batch:
            epoch, position = divmod(first + len(chosen), n)
            chosen.extend(self._order(epoch)[position : position + self.batch - len(chosen)])
        x, labels = self.take(np.asarray(chosen)[self._own()])
        if self.augmentation != _UNCHANGED:
            x = self.augmentation.augmented(x, Noise(self.seed, self.index(step)))
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
        x, labels = self.take(self._order(0)[: min(n, len(self.images))])
        return x, labels if self.conditional else None

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}
            generator = np.random.default_rng((self.seed, epoch))
            self._orders[epoch] = generator.permutation(len(self.images))
        return self._orders[epoch]
