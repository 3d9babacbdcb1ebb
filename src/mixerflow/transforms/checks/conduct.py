"""Laws besides exactness: precision, independent rows, purity, shapes, gradients, compilation."""

from __future__ import annotations

import copy
import re

import safetensors.torch
import torch
from torch import Tensor

from mixerflow.core import Shape, Transform
from mixerflow.transforms.checks.exact import check_log_det
from mixerflow.transforms.checks.subject import DIRECTIONS, Batch, Direction, Subject, law, perturb


@law("width")
def width(subject: Subject) -> None:
    """Log-dets are ``(B,)`` in float32 or wider, under autocast too."""
    for s, direction, batch in subject.cases(3):
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                log_det = s.run(direction, batch)[1]
            got = f"{direction} log-det {tuple(log_det.shape)} {log_det.dtype}"
            note = " under autocast" if autocast else ""
            assert log_det.shape == (3,), f"{got}{note}, for a batch of 3"
            assert log_det.dtype in (torch.float32, torch.float64), f"{got}{note}"


@law("autocast")
def autocast(subject: Subject) -> None:
    """Under autocast only conditioners compute in bfloat16, not the transform's own arithmetic.

    Here the conditioners run without autocast: then autocast may change the last bits only.
    """
    s = subject.single
    full = copy.deepcopy(s.transform)
    for module in full.modules():
        if not any(isinstance(part, Transform) for part in module.modules()):
            module.forward = torch.autocast("cpu", enabled=False)(module.forward)
    for direction in DIRECTIONS:
        batch = s.batch(direction, 8)
        wanted = s.run(direction, batch)
        with torch.autocast("cpu", torch.bfloat16):
            got = s.run(direction, batch, transform=full)
        s.check_same(f"{direction} under autocast", got, wanted, 1e-5)


@law("rows")
def rows(subject: Subject) -> None:
    """Replacing the other rows of a batch leaves a row's results bit-equal."""
    for s, direction, one in subject.cases(6):
        two = s.batch(direction, 6, salt=1)
        mixed = copy.deepcopy(two)
        for a, b in zip(one, mixed, strict=True):
            if a is not None and b is not None:
                b[2] = a[2]
        wanted, got = s.run(direction, one), s.run(direction, mixed)
        for name, a, b in zip(("values", "log-det"), got, wanted, strict=True):
            change = f"a row's {name} change by {(a[2] - b[2]).abs().max().item():.1e}"
            assert torch.equal(a[2], b[2]), f"{direction}: {change} with the other rows"


@law("batch size")
def batch_size(subject: Subject) -> None:
    """A row alone and in a batch of 64 gives the same, to 1e-12 (float64) or 1e-5 (float32)."""
    for s, direction, batch in subject.cases(64):
        z, log_det = s.run(direction, batch)
        limit = 1e-12 if s.dtype == torch.float64 else 1e-5
        for row in (slice(0, 1), slice(40, 41)):
            alone = s.run(direction, batch.rows(row))
            s.check_same(f"{direction}, alone or in 64", alone, (z[row], log_det[row]), limit)


@law("purity")
def purity(subject: Subject) -> None:
    """In eval nothing changes: no parameter, no buffer, no argument."""
    transform = subject.transform

    def state() -> dict[str, Tensor]:
        kept = [*transform.named_parameters(), *transform.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in kept}

    for direction in DIRECTIONS:
        before, batch = state(), subject.batch(direction, 4)
        given = [t for t in batch if isinstance(t, Tensor)]
        copies, versions = [t.clone() for t in given], [t._version for t in given]
        subject.run(direction, batch)
        after = state()
        both = before.keys() & after.keys()
        changed = before.keys() ^ after.keys()
        changed |= {name for name in both if not torch.equal(before[name], after[name])}
        assert not changed, f"{direction} changes {', '.join(sorted(changed))}"
        untouched = all(map(torch.equal, given, copies))
        written = versions != [t._version for t in given]
        assert untouched and not written, f"{direction} writes into its arguments"


@law("batches")
def batches(subject: Subject) -> None:
    """Batches of 0 and 1 work, and memory layout does not matter."""
    for direction in DIRECTIONS:
        batch = subject.batch(direction, 3)
        z, log_det = subject.run(direction, batch)
        for n in (0, 1):
            got = subject.run(direction, batch.rows(slice(n)))
            subject.check_same(f"{direction}, batch of {n}", got, (z[:n], log_det[:n]), 1e-12)
        forms = {"non-contiguous": batch.values.movedim(0, -1).contiguous().movedim(-1, 0)}
        if batch.values.dim() == 4:
            forms["channels_last"] = batch.values.to(memory_format=torch.channels_last)
        for name, values in forms.items():
            got = subject.run(direction, batch._replace(values=values))
            subject.check_same(f"{direction}, {name}", got, (z, log_det), 1e-12)


@law("copies")
def copies(subject: Subject) -> None:
    """A deep copy and one through safetensors bytes are the same transform."""
    other = copy.deepcopy(subject.transform)
    stored = safetensors.torch.save(subject.transform.state_dict())
    loaded = copy.deepcopy(subject.transform)
    perturb(loaded, seed=1 + subject.seed)
    loaded.load_state_dict(safetensors.torch.load(stored))
    mine = {t.data_ptr() for t in subject.transform.state_dict().values() if t.numel()}
    shared = mine & {t.data_ptr() for t in other.state_dict().values() if t.numel()}
    assert not shared, "deepcopy shares memory with the original"
    for direction in DIRECTIONS:
        batch = subject.batch(direction, 3)
        wanted = subject.run(direction, batch)
        for name, transform in (("deepcopy", other), ("safetensors copy", loaded)):
            got = subject.run(direction, batch, transform=transform)
            assert all(map(torch.equal, got, wanted)), f"{direction} of the {name} differs"


@law("draws")
def draws(subject: Subject) -> None:
    """A transform that draws noise has a part with ``draws``: flows number those parts' streams."""
    parts = (part for part in subject.transform.modules() if isinstance(part, Transform))
    declared = any(part.draws for part in parts)  # of inverses, see the laws of surjections
    assert declared or not subject.kind.noisy, "it draws noise, but no part of it has `draws` True"


@law("shapes")
def shapes(subject: Subject) -> None:
    """`out_shape` is right, on the meta device too; a wrong shape is a ValueError that names it."""
    latent = tuple(subject.transform.out_shape(subject.shape))
    meta = copy.deepcopy(subject.transform).to("meta")
    assert tuple(meta.out_shape(subject.shape)) == latent, "out_shape differs on the meta device"
    for direction in DIRECTIONS:
        batch = subject.batch(direction, 2)
        wanted = latent if direction == "forward" else subject.shape
        got = tuple(subject.run(direction, batch)[0].shape)
        assert got == (2, *wanted), f"{direction} gives {got}; out_shape says events {wanted}"
        x = batch.values
        others = [torch.cat([x, x.narrow(axis, 0, 1)], axis) for axis in range(1, x.dim())]
        for values in (*others, torch.stack([x, x], 1)):
            _check_other_shape(subject, direction, batch._replace(values=values))


def _check_other_shape(subject: Subject, direction: Direction, batch: Batch) -> None:
    """Assert that the events are refused, or that `out_shape` and the log-det fit them."""
    shape: Shape = tuple(batch.values.shape[1:])
    try:
        result = tuple(subject.run(direction, batch)[0].shape[1:])
    except ValueError as error:
        numbers = re.findall(r"\d+", str(error))
        assert len(numbers) >= 2, f"{direction} refuses events {shape} without naming both: {error}"
        return
    data, latent = (shape, result) if direction == "forward" else (result, shape)
    stated = tuple(subject.transform.out_shape(data))
    assert stated == latent, f"{direction} of events {shape} contradicts out_shape {stated}"
    if subject.kind.obeys(f"{direction} log-det"):
        check_log_det(subject, direction, batch)


@law("gradients")
def gradients(subject: Subject) -> None:
    """Each parameter gets a gradient that is finite and not all 0, in both directions.

    An inverse that forgets noise has none for the noise's parameters.
    """
    for s, direction, batch in subject.cases(8):
        parameters = dict(s.transform.named_parameters())
        if not parameters or not subject.kind.obeys(f"{direction} gradients"):
            continue
        z, log_det = getattr(s.transform, direction)(*s.arguments(direction, batch))
        weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z)
        loss = (z * weight).sum() + log_det.sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            assert gradient is not None, f"{direction}: {name} gets no gradient"
            assert gradient.isfinite().all(), f"{direction}: {name}'s gradient is not finite"
            assert gradient.any(), f"{direction}: {name}'s gradient is all 0"


@law("compile inverse", direction="inverse")
@law("compile forward", direction="forward")
def compiled(subject: Subject, *, direction: Direction) -> None:
    """A direction compiles into one graph and gives the results of eager mode."""
    torch.compiler.reset()
    batch = subject.batch(direction, 3)
    eager = getattr(subject.transform, direction)
    function = torch.compile(eager, fullgraph=True, backend="aot_eager")
    wanted = subject.run(direction, batch)
    z, log_det = function(*subject.arguments(direction, batch))
    subject.check_same(f"compiled {direction}", (z.detach(), log_det.detach()), wanted, 1e-12)


@law("export")
def export(subject: Subject) -> None:
    """Exported forward gives the results of eager mode, with noise by torch's generator."""
    batch = subject.data(3)
    arguments = (batch.values,) if batch.context is None else (batch.values, batch.context)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        program = torch.export.export(subject.transform, arguments).module()
        torch.manual_seed(subject.seed)
        wanted = subject.transform(*arguments)
        torch.manual_seed(subject.seed)
        got = program(*arguments)
    subject.check_same("exported forward", got, wanted, 1e-12)
