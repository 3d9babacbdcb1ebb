"""Large buffers that come back: fresh pages from the system cost a tenth of a training step."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

_spare: defaultdict[tuple[int, np.dtype], list[np.ndarray]] = defaultdict(list)


class _Reused(np.ndarray):
    """A view of a buffer; when the last tensor on it goes, the buffer is free for the next."""

    def __del__(self) -> None:
        if self.base is not None:
            _spare[self.base.size, self.base.dtype].append(self.base)


def empty_reused(numbers: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor ``(numbers,)`` whose memory is used again once nothing holds it.

    Buffers of other sizes are let go the first time that none of the right size is there: a batch
    size that is not used any more keeps no memory.
    """
    kind = np.dtype({torch.float32: np.float32, torch.float64: np.float64}[dtype])
    spare = _spare.get((numbers, kind))
    if not spare:
        release()
    buffer = spare.pop() if spare else np.empty(numbers, kind)
    return torch.from_numpy(buffer.view(_Reused))


def release() -> None:
    """Give spare buffers back to the system."""
    _spare.clear()
