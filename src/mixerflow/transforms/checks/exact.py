"""Laws of exactness: the directions undo each other, and each log-det is its Jacobian's."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mixerflow.transforms.checks.subject import Batch, Direction, Subject, law, normal


@law("right inverse", first="inverse", then="forward")
@law("left inverse", first="forward", then="inverse")
def round_trip(subject: Subject, *, first: Direction, then: Direction) -> None:
    """``inverse(forward(x)) == x``, or ``forward(inverse(z)) == z``, in float64 and float32."""
    kind = subject.kind
    for s, limit in ((subject, kind.round_trip), (subject.single, kind.round_trip_single)):
        start = s.batch(first, 8)
        end = s.run(then, start._replace(values=s.run(first, start)[0]))[0]
        s.check_close(f"{then} after {first} in {s.dtype}", end, start.values, limit)


@law("inverse log-det", direction="inverse")
@law("forward log-det", direction="forward")
def log_det(subject: Subject, *, direction: Direction) -> None:
    """A direction's log-det is that of its own Jacobian: errors in both cannot cancel."""
    check_log_det(subject, direction, subject.batch(direction, 2))


def check_log_det(subject: Subject, direction: Direction, batch: Batch) -> None:
    """Assert that a direction's log-dets of a batch are those of its Jacobians, row by row."""
    got = subject.run(direction, batch)[1]
    for i in range(len(got)):
        jacobian = subject.jacobian(direction, batch.rows(slice(i, i + 1)))
        wanted = torch.linalg.slogdet(jacobian)[1].item()
        error = abs(got[i].item() - wanted)
        assert error <= subject.kind.log_det, (
            f"{got[i].item():.10g}, but the Jacobian's is {wanted:.10g}, {error:.1e} apart; "
            f"its condition number is {torch.linalg.cond(jacobian).item():.1e}"
        )


def _many_draws(
    subject: Subject, draws: int, direction: Direction = "forward"
) -> tuple[Batch, Tensor, Tensor]:
    """One event, and values and log-dets of many draws of a direction for it."""
    event = subject.batch(direction, 1)
    many = event.rows(torch.zeros(draws, dtype=torch.int64))._replace(number=torch.arange(draws))
    return event, *subject.run(direction, many)


@law("estimated inverse log-det", direction="inverse")
@law("estimated log-det", direction="forward")
def estimated_log_det(
    subject: Subject, *, direction: Direction = "forward", draws: int = 10_000
) -> None:
    """The mean of many draws is the Jacobian's log-det within some standard errors."""
    event, _, got = _many_draws(subject, draws, direction)
    wanted = torch.linalg.slogdet(subject.jacobian(direction, event))[1]
    error = (got.mean() - wanted).abs() / (got.std() * draws**-0.5).clamp(min=1e-9)
    assert error <= subject.kind.log_det, (
        f"mean {got.mean().item():.6g} of {draws} draws, but the Jacobian's is "
        f"{wanted.item():.6g}: {error.item():.1f} standard errors"
    )


@law("zero log-det")
def zero_log_det(subject: Subject) -> None:
    """The inverse of rounding has log-det 0 by definition."""
    log_det = subject.run("inverse", subject.batch("inverse", 4))[1]
    assert not log_det.any(), f"inverse log-det {log_det.abs().max().item():g}, not 0"


@law("integral")
def integral(subject: Subject, draws: int = 50_000) -> None:
    """``E h(z) exp(log-det) / p(x)`` is 1 for a density h: what z adds to x is integrated out.

    Over x ~ p = N(0, I) and the noise of `forward`. With ``log-det = log|det| - log q(n | x)`` the
    mean is the integral of h(z) over x and n, and so over z, which is 1.
    """
    data = subject.data(draws)
    assert subject.inputs is normal, "the law takes normal events"
    z, log_det = subject.run("forward", data)
    scale = 0.4  # a narrow h has no large weights
    normals = (data.values, 1.0, -1), (z, scale, 1)
    log_weight = log_det + sum(
        sign * (-0.5 * (t / s).square() - math.log(s * math.sqrt(2 * math.pi))).flatten(1).sum(1)
        for t, s, sign in normals
    )
    weight = log_weight.exp()
    error = ((weight.mean() - 1).abs() / (weight.std() * draws**-0.5)).item()
    assert error <= 4, f"mean of {draws} draws is {error:.1f} standard errors from 1"
    assert weight.std() * draws**-0.5 < 0.05, "the mean is too uncertain for a verdict"


@law("cube")
def cube(subject: Subject, draws: int = 10_000) -> None:
    """``E b(u) / q(u | x)`` is 1 for a density b on the unit cube: a narrow normal one."""
    event, z, log_det = _many_draws(subject, draws)
    u = z - event.values.to(z.dtype)
    # b lies where q has its mass: elsewhere 1 / q has heavy tails
    scale, mean = 0.4 * u.std(0), u.mean(0)
    log_b = -0.5 * ((u - mean) / scale).square() - (scale * math.sqrt(2 * math.pi)).log()
    weight = (log_b.flatten(1).sum(1) + log_det).exp()
    error = ((weight.mean() - 1).abs() / (weight.std() * draws**-0.5)).item()
    assert error <= 4, f"mean of {draws} draws is {error:.1f} standard errors from 1"


@law("expectation")
def expectation(subject: Subject, draws: int = 4096) -> None:
    """``E f(x + u) / q(u | x)`` is the integral of f over the unit cube of x, by quadrature."""
    event, z, log_det = _many_draws(subject, draws)
    low = event.values.to(z.dtype)

    def smooth(t: Tensor) -> Tensor:
        return torch.exp(-0.5 * (t - low + 1).square())

    nodes, weights = np.polynomial.legendre.leggauss(20)
    wanted = sum(
        w / 2 * smooth(low + (n + 1) / 2).mean() for n, w in zip(nodes, weights, strict=True)
    )
    got = smooth(z).flatten(1).mean(1) * log_det.exp()
    error = ((got.mean() - wanted).abs() / (got.std() * draws**-0.5)).item()
    assert error <= 4, f"mean of {draws} draws is {error:.1f} standard errors from the integral"
