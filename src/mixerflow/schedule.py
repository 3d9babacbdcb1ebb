"""The learning rate after the warm-up, as a value: a cosine, a constant, an exponential decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mixerflow.registry import register


class Schedule:
    """Learning rates of the steps after the warm-up."""

    def rate(self, lr: float, step: float, steps: int, warmup: int) -> float:
        """Return the learning rate of a step after the warm-up.

        Args:
            lr: the rate at the end of the warm-up.
            step: the step, from 0; at least `warmup`; may lie between two steps.
            steps: the steps of the whole schedule.
            warmup: the steps of the warm-up among them.
        """
        raise NotImplementedError


@register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """``lr (1 + cos(pi t)) / 2``, with t from 0 to 1 over the steps after the warm-up."""

    def rate(self, lr: float, step: float, steps: int, warmup: int) -> float:
        part = (step - warmup) / max(1, steps - warmup)
        return lr * 0.5 * (1 + math.cos(math.pi * part))


@register("constant")
@dataclass(frozen=True)
class Constant(Schedule):
    """``lr``, and the smaller of `cooldown_lr` and ``lr`` in the last steps.

    Raises:
        ValueError: impossible settings.
    """

    cooldown: float = 0.0
    """Share of the whole schedule, at its end, that has the rate `cooldown_lr`; 0 for none."""
    cooldown_lr: float = 2e-5
    """Learning rate of the cool-down."""

    def __post_init__(self) -> None:
        if not 0 <= self.cooldown < 1:
            raise ValueError(f"Constant: cooldown must be in [0, 1); got {self.cooldown}")
        if not 0 < self.cooldown_lr < math.inf:
            raise ValueError(f"Constant: cooldown_lr must be positive; got {self.cooldown_lr}")

    def rate(self, lr: float, step: float, steps: int, warmup: int) -> float:
        cool = step >= steps - round(self.cooldown * steps)
        return min(lr, self.cooldown_lr) if cool else lr


@register("exponential")
@dataclass(frozen=True)
class Exponential(Schedule):
    """``lr`` up to step `hold`, then ``lr decay^(step - hold)``, but not below `least`.

    Raises:
        ValueError: impossible settings.
    """

    hold: int = 50_000
    """Step from which on the rate falls."""
    decay: float = 0.99999
    """Ratio of the rates of two steps."""
    least: float = 3e-4
    """Least rate, or `lr` where that is smaller."""

    def __post_init__(self) -> None:
        if self.hold < 0:
            raise ValueError(f"Exponential: hold must be at least 0; got {self.hold}")
        for name in ("decay", "least"):
            if not 0 < getattr(self, name) <= 1:
                what = f"{name} must be in (0, 1]; got {getattr(self, name)}"
                raise ValueError(f"Exponential: {what}")

    def rate(self, lr: float, step: float, steps: int, warmup: int) -> float:
        return max(min(lr, self.least), lr * self.decay ** max(0.0, step - self.hold))
