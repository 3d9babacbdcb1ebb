"""Parts of `benchmarks.gpu` that score and sample, and the other libraries' flows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

from benchmarks.count import count
from benchmarks.count_parts import Arguments
from benchmarks.gpu_flow import Way, flow_of, images_of, let_go, model_of, paths_of
from benchmarks.gpu_process import Row, attempted
from benchmarks.gpu_timing import figures, forget_peak, here, least, paced, peak, replayed
from benchmarks.rivals import Glow, base, installed


def inference(given: dict[str, Any]) -> Iterator[Row]:
    """Log-probabilities and samples of a flow in eval mode, live and folded, on one way."""
    way, batch = Way(**given["way"]), given["batches"][0]
    live = flow_of(given).eval()
    x = torch.from_numpy(images_of(live.shape, batch).pixels).to(live.device)
    with way.holds(), way.autocast(), torch.no_grad():
        for name, flow in (("live", live), ("fused", live.fused())):
            paths = paths_of(flow)
            jobs: dict[str, Callable[[], object]] = {
                "log_prob": lambda flow=flow: flow.log_prob(x),
                "sample": lambda flow=flow: flow.sample(batch),
            }
            for job, run in jobs.items():
                about = {"flow": name, "job": job, "batch": batch, "graph": False}
                yield attempted(about, lambda run=run: _timed(given, run, batch))
            about |= {"job": "log_prob", "graph": True}
            run = jobs["log_prob"]
            made = attempted(about, lambda run=run: _timed(given, run, batch, graph=True))
            yield made | {"paths": paths}


def _timed(
    given: dict[str, Any], run: Callable[[], object], batch: int, *, graph: bool = False
) -> Row:
    device = here()
    run()
    forget_peak(device)
    again = replayed([run], device) if graph else run
    taken = figures(paced(again, device, seconds=given["seconds"] / 2, least=least(given)))
    speed = float(f"{1e3 * batch / taken['median']:.4g}")
    return {"images_per_second": speed, "ms": taken, **peak(device)}


def rivals(given: dict[str, Any]) -> Iterator[Row]:
    """Glow of as many operations in another library, as it comes and by torch.compile."""
    library, batch = given["library"], given["batches"][0]
    if not installed(library):
        yield {"model": f"Glow, {library}", "error": f"{library} is not installed"}
        return
    glow = _equal(given, batch)
    torch.set_default_device(here())
    for low in (False, True):
        precision: Literal["float32", "bfloat16"] = "bfloat16" if low else "float32"
        way = Way(kernels=False, precision=precision, tf32=True)
        for job in ("train", "compiled train", "log_prob", "sample"):
            about = {"model": glow.name, "job": job, "batch": batch}
            about |= {"precision": precision if low else "tf32"}
            with way.holds(), way.autocast():
                yield attempted(about, lambda job=job: _rival(given, glow, job))
            let_go()


def _equal(given: dict[str, Any], batch: int) -> Glow:
    """The library's Glow of as many operations."""
    library = given["library"]
    if given["tiny"]:
        return Glow(library, (1, 8, 8), levels=1, steps=1, hidden=8)
    model, shape = model_of(given)
    assert len(shape) == 3
    with torch.device("meta"):
        flow = model.build(shape)
    operations = 1e9 * count(flow, Arguments(batch=batch)).gflop_per_image
    return base(library, (shape[0], shape[1], shape[2])).like(operations, by="flop")


def _rival(given: dict[str, Any], glow: Glow, job: str) -> Row:
    work = glow.work(given["batches"][0])
    model: Any = work.model
    if job.startswith("compiled"):
        model.log_prob = torch.compile(model.log_prob, dynamic=False)
    return _timed(given, getattr(work, job.rpartition(" ")[2]), given["batches"][0])
