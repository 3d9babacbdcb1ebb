"""A row flow by the kernels of whatever its rows lie on."""

from __future__ import annotations

from torch import Tensor

from mixerflow.kernels import rows
from mixerflow.kernels.plan import Keep, Place, Plan
from mixerflow.kernels.switch import is_low, where


def rows_forward(
    plan: Plan, x: Tensor, *, keep: Keep = "inputs", place: Place | None = None
) -> tuple[Tensor, Tensor]:
    """Rows ``(R, n)`` to z ``(R, n)`` and ``log|det dz/dx|`` ``(R,)``, differentiable once.

    Args:
        plan: the flow.
        x: float32 (or float64, on the CPU). On a GPU the nets compute in bfloat16 under autocast.
        keep: what the GPU's backward pass is left; the CPU's keeps hidden activations too.
        place: where the rows lie in x, of any shape, and then in z; on a GPU only. Log-dets are
            then those of images.
    """
    if where(x) == "cpu":
        return rows.rows_forward(plan, x)
    from mixerflow.kernels.gpu import flow  # there may be no Triton

    return flow.rows_forward(plan, x, low=is_low(x), keep=keep, place=place)


def rows_inverse(plan: Plan, z: Tensor, *, place: Place | None = None) -> tuple[Tensor, Tensor]:
    """The inverse of `rows_forward`, without gradients; of the same rows in training mode."""
    if where(z) == "cpu":
        return rows.rows_inverse(plan, z)
    from mixerflow.kernels.gpu import flow

    return flow.rows_inverse(plan, z, low=is_low(z), place=place)
