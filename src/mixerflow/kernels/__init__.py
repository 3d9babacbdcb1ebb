"""Hand-written kernels for the row flows of a mixer: in C for the CPU, in Triton for GPUs.

They run where they apply and give the same results to rounding; everything else runs operator by
operator. `disabled` or ``MIXERFLOW_KERNELS=0`` switches them off.
"""

from mixerflow.compiled import BuildError
from mixerflow.kernels.cpu import Unsolved, release
from mixerflow.kernels.plan import Keep, Map, Net, Norm, Place, Plan, RowNorm, Step, Where
from mixerflow.kernels.switch import (
    disabled,
    interpreted,
    is_low,
    rows_forward,
    rows_inverse,
    unsupported_reason,
    where,
)
from mixerflow.kernels.update import Moments, Update, addresses

__all__ = [
    "BuildError", "Keep", "Map", "Moments", "Net", "Norm", "Place", "Plan", "RowNorm", "Step",
    "Unsolved", "Update", "Where", "addresses", "disabled", "interpreted", "is_low", "release",
    "rows_forward", "rows_inverse", "unsupported_reason", "where",
]  # fmt: skip
