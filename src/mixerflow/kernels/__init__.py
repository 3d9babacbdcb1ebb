"""Hand-written kernels for the row flows of a mixer, on the CPU.

They are chosen where they apply and give the same figures to rounding; everything else runs
operator by operator. `disabled` or ``MIXERFLOW_KERNELS=0`` keeps to the latter.
"""

from mixerflow.kernels.lease import release
from mixerflow.kernels.library import BuildError
from mixerflow.kernels.plan import Net, Norm, Plan, Step
from mixerflow.kernels.rows import rows_forward, rows_inverse
from mixerflow.kernels.switch import disabled, why_not

__all__ = [
    "BuildError",
    "Net",
    "Norm",
    "Plan",
    "Step",
    "disabled",
    "release",
    "rows_forward",
    "rows_inverse",
    "why_not",
]
