"""What `benchmarks.count` is given and what it finds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_LANES = 128
"""Float32 operations of a multiprocessor in a cycle."""


@dataclass(frozen=True)
class Arguments:
    """What to count, and the machine's rates."""

    recipe: str = "mixerflow-cifar10"
    batch: int = 512
    matrix_tflops: float = 780.0
    """Of dense bfloat16 products."""
    memory_tbs: float = 4.3
    """TB/s of device memory."""
    l2_tbs: float = 5.5
    """TB/s of the L2 cache."""
    sms: int = 132
    """Multiprocessors."""
    clock_ghz: float = 1.755
    gelu: int = 16
    """Float32 lane operations of a GELU, or of its slope."""
    forward_kernels: int = 1
    """Of a row-flow step."""
    backward_kernels: int = 2
    small_kernels: int = 20
    """Of a training step besides: dequantisation, colour map, density, clipping, Adam, average."""
    out: Path | None = None
    """Where to write JSON."""

    @property
    def lanes(self) -> float:
        """Float32 lane operations a second."""
        return _LANES * self.sms * self.clock_ghz * 1e9


@dataclass(frozen=True)
class Traffic:
    """What operators read and write, and how often each runs."""

    bytes: dict[str, int]
    calls: dict[str, int]


@dataclass(frozen=True)
class Kernel:
    """What a kernel does at the batch, and its floors."""

    name: str
    flop: float
    memory_bytes: float
    l2_bytes: float
    lane_operations: float
    us: dict[str, float]
    """Of matrix units, device memory, L2 and lanes; "overlap", their largest, and "serial"."""
    bound: str
    """Which is the largest."""


@dataclass(frozen=True)
class Kind:
    """Row-flow steps alike; each figure of a step is their mean."""

    name: str
    rows: int
    """Of an image."""
    length: int
    halves: tuple[int, int]
    hidden: int
    flows: int
    steps: int
    """In the whole model, as `flows` is."""
    multiply_adds: float
    """Of a row, forward."""
    padded: float
    parameters: float
    gelus: float
    """Of a row, forward."""
    norms: int
    """Batch norms of a step."""
    assembly_flop: int
    """Of W, once a batch."""
    layered: dict[str, Traffic]
    """Of one row flow at the batch, forward and backward."""
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Total:
    """A training step's floor."""

    how: str
    forward_ms: float
    backward_ms: float
    optimiser_ms: float
    step_ms: float
    images_per_second: float
    hours: float | None
    """For the recipe's steps and batch; None where it has no number of steps."""


@dataclass(frozen=True)
class Launches:
    """Of a training step."""

    operators_today: int | None
    """That torch dispatches, views and the optimiser's among them."""
    row_flow_kernels_today: int
    """Operators in row flows, forward and backward, that are no views."""
    kernels_fused: int
    barriers_for_batch_norm: int
    """In the fused kernels: one a norm and pass."""


@dataclass(frozen=True)
class Count:
    """All of it."""

    parameters: int
    gflop_per_image: float
    """Of the row flows, forward."""
    kinds: tuple[Kind, ...]
    optimiser: tuple[Kernel, ...]
    totals: tuple[Total, ...]
    launches: Launches
