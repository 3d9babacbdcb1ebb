"""Parts of `benchmarks.gpu` that ask whether the kernels are right on the machine at hand."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu_flow import Way, flow_of, images_of, kinds_of, paths_of, shallow
from benchmarks.gpu_process import Row, attempted
from benchmarks.gpu_timing import here
from mixerflow import kernels
from mixerflow.core import Flow, Noise
from mixerflow.transforms import KernelChain, kernel_check

_IMAGES = 64


def poison() -> None:
    """From now on memory that nobody writes holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)


def excess_of(chain: KernelChain, way: Way) -> float:
    """What `mixerflow.transforms.kernel_check.worst_error` finds on a way."""
    forward = functools.partial(kernels.rows_forward, keep=way.keep)
    with patch.object(kernels, "rows_forward", forward):
        return kernel_check.worst_error(chain, here(), low=way.precision == "bfloat16")


def proofs(given: dict[str, Any]) -> Iterator[Row]:
    """The largest error for each kind of row flow, over what is allowed: below 1 is right."""
    way, seen = Way(**given["way"]), set()
    poison()
    for name, place in kinds_of(shallow(given)).items():
        length = place.shape[place.along.dim]
        if length in seen:  # rows of a shift layer are others' likes
            continue
        seen.add(length)

        def measure(chain: KernelChain = place.rows) -> Row:
            found = excess_of(chain, way)
            return {"worst_error": found if math.isfinite(found) else None, "right": found < 1}

        about = {"kind": name, "length": length, "precision": way.precision, "keep": way.keep}
        with way.holds():
            yield attempted(about, measure)


def whole(given: dict[str, Any]) -> Iterator[Row]:
    """A whole flow by kernels and by operators, beside operators in float32; gradients twice."""
    way, count = Way(**given["way"]), 4 if given["tiny"] else _IMAGES
    poison()
    flow = flow_of(given)
    x = torch.from_numpy(images_of(flow.shape, count).pixels).to(flow.device)
    about = {"precision": way.precision, "images": count}
    with way.holds():
        yield attempted({"what": "bits/dim", **about}, lambda: _bits(flow, x, way))
        yield attempted({"what": "gradients", **about}, lambda: _gradients(flow, x, way))


def _bits(flow: Flow, x: Tensor, way: Way) -> Row:
    with way.autocast():
        paths, mine = paths_of(flow), flow.bits_per_dim(x)
    with kernels.disabled():
        exact = flow.bits_per_dim(x)
        with way.autocast():
            theirs = flow.bits_per_dim(x)
    found = {"kernels": mine.mean(), "operators": theirs.mean(), "float32": exact.mean()}
    found |= {"most": (mine - exact).abs().max(), "operators_most": (theirs - exact).abs().max()}
    return {name: float(value) for name, value in found.items()} | {"paths": paths}


def _gradients(flow: Flow, x: Tensor, way: Way) -> Row:
    with way.autocast():
        first, second = _gradient(flow, x), _gradient(flow, x)
    with kernels.disabled():
        exact = _gradient(flow, x).double()
        with way.autocast():
            theirs = _gradient(flow, x)
    errors = {"relative_error": first, "operators_error": theirs}
    relative = {k: float((v.double() - exact).norm() / exact.norm()) for k, v in errors.items()}
    return relative | {"twice_the_same": torch.equal(first, second)}


def _gradient(flow: Flow, x: Tensor) -> Tensor:
    """All gradients as one vector, of the same noise each time."""
    flow.train().zero_grad()
    noise = Noise(0, torch.arange(len(x), device=x.device))
    (-flow(x, None, noise).log_prob.mean() / flow.dims).backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])
