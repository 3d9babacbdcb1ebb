"""Batch norm over rows, which recomputation can leave as it is."""

from __future__ import annotations

from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """``gamma (h - mean) / sqrt(var + eps) + beta`` per feature of ``(rows, width)``.

    Mean and variance are the batch's in training mode, running averages in eval mode.

    Attributes:
        update: whether a forward pass in training mode moves the running averages. Whoever runs a
            batch a second time (recomputation in the backward pass) sets it to False meanwhile, so
            that each batch counts once.
    """

    update: bool = True

    def forward(self, input: Tensor) -> Tensor:
        """``(rows, width)`` to the same."""
        if self.training and not self.update:
            return nn.functional.batch_norm(
                input, None, None, self.weight, self.bias, training=True, eps=self.eps
            )
        return super().forward(input)

    def state(self) -> tuple[bool, bool, float | None, float] | None:
        """Training, update, momentum and eps; None where it keeps no statistics or no weights."""
        if not self.track_running_stats or not self.affine:
            return None
        return self.training, self.update, self.momentum, self.eps
