"""The optimiser as a value: Adam, Adamax, AdamW or Muon, with the settings that are its own.

The decay rates of all of them are `TrainConfig.betas`; their learning rate, `TrainConfig.lr`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mixerflow.errors import ConfigError
from mixerflow.registry import choices, register, word_of

Matrices = Literal["hidden", "all"]
"""Matrices of conditioners: weights of linear maps and convolutions; hidden ones are neither the
first, the last, nor the context's."""


class Optimizer:
    """How a step turns gradients into changes of the parameters."""

    @property
    def apart(self) -> Matrices | None:
        """The matrices of conditioners that are in groups of their own; None for none."""
        return None

    @property
    def moments(self) -> str:
        """The name of its state: a run continues with the moments of one of the same name."""
        return word_of(type(self))

    def share(self, lr: float) -> float:
        """Return the learning rate of the matrices over `lr`, that of the other parameters."""
        return 1.0


@register("adam")
@dataclass(frozen=True)
class Adam(Optimizer):
    """Steps along the mean of gradients over the root of their mean square."""


@register("adamax")
@dataclass(frozen=True)
class Adamax(Optimizer):
    """Adam with the largest recent gradient in place of the root of the mean square."""


@register("adamw")
@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay: each step also multiplies by ``1 - lr decay``.

    All matrices of conditioners decay; biases, norms and the flow's own maps do not.

    Raises:
        ValueError: a decay that is not positive.

    References:
        Loshchilov, Hutter: Decoupled weight decay regularization (2019), arXiv:1711.05101.
    """

    decay: float = 0.01
    """Decay of the conditioners' matrices, in units of the learning rate."""

    def __post_init__(self) -> None:
        if not 0 < self.decay < math.inf:
            raise ValueError(f"AdamW: decay must be positive; got {self.decay}")

    @property
    def apart(self) -> Matrices | None:
        return "all"

    @property
    def moments(self) -> str:
        return "adam"


@register("muon")
@dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonal steps of the conditioners' matrices; Adam for all other parameters.

    A matrix W ``(rows, columns)`` with gradient G has the momentum ``M <- m M + (1 - m) G``, and

    ``W <- (1 - lr decay) W - lr sqrt(max(1, rows / columns)) orth((1 - m) G + m M)``,

    where ``orth`` brings all singular values near 1, by a few steps of a quintic iteration of
    Newton and Schulz. A convolution is the matrix ``(out, in * places)``.

    Raises:
        ValueError: impossible settings.

    References:
        Jordan et al.: Muon: an optimizer for hidden layers in neural networks (2024).
        https://kellerjordan.github.io/posts/muon/
    """

    lr: float = 0.02
    """Learning rate of the matrices at the end of the warm-up; `schedule` holds for it too."""
    momentum: float = 0.95
    """The momentum m."""
    decay: float = 0.0
    """Decay of the matrices, in units of their learning rate."""
    iterations: int = 5
    """Steps of the iteration that makes a step orthogonal."""
    matrices: Matrices = "hidden"
    """Matrices of conditioners whose steps are orthogonal: the hidden ones, or all of them."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise ValueError(f"Muon: lr must be positive; got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Muon: momentum must be in [0, 1); got {self.momentum}")
        if not 0 <= self.decay < math.inf:
            raise ValueError(f"Muon: decay must not be negative; got {self.decay}")
        if not 1 <= self.iterations < 100:
            raise ValueError(f"Muon: iterations must be from 1 to 99; got {self.iterations}")
        if self.matrices not in ("hidden", "all"):
            raise ValueError(f"Muon: matrices must be hidden or all; got {self.matrices}")

    @property
    def apart(self) -> Matrices | None:
        return self.matrices

    @property
    def moments(self) -> str:
        return f"muon of {self.matrices} matrices"

    def share(self, lr: float) -> float:
        return self.lr / lr


def optimizer_of(word: str) -> Optimizer:
    """Return an optimiser with its default settings by its word, as older runs have it.

    Raises:
        ConfigError: no such optimiser.
    """
    known = choices(Optimizer)
    if word not in known:
        remedy = f"it must be one of {', '.join(known)}"
        raise ConfigError(f"{word} cannot be", "--train.optimizer", remedy)
    return known[word]()
