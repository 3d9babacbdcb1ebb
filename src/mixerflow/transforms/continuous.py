"""A continuous flow: events move along an ordinary differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Transform, report
from mixerflow.errors import ConfigError
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register

Trace = Literal["exact", "hutchinson"]
State = tuple[Tensor, Tensor]
Motion = Callable[[Tensor | float, State], State]


@runtime_checkable
class Divergent(Protocol):
    """A velocity net with a closed form of its Jacobian's trace, as `mixerflow.nets.Velocity`."""

    def divergence(self, t: Tensor | float, x: Tensor, context: Context = None) -> State:
        """Velocity ``(B, *event)`` and trace ``(B,)``."""
        ...


@register
class Continuous(Transform):
    """``dx/dt = f(t, x, context)`` from data at t = 0 to latents at t = 1.

    ``log|det dz/dx|`` is the integral of ``tr(df/dx)`` along the way.

    In training an adaptive solver (torchdiffeq's dopri5, from the extra ``ode``) takes the steps
    that the whole batch needs; gradients are by backpropagation through these steps. The adjoint
    method would solve a second time for gradients with an error of their own;
    `mixerflow.core.memory` saves the memory exactly.

    Evaluation and the inverse take equal steps of the classical Runge-Kutta method of order 4,
    twice: the second time half as long. Rows whose two results differ by more than `tolerance` go
    on to steps half as long again. So a row's result depends on that row alone. Where steps are
    short, its error is a 15th of the difference; the whole difference is compared with `tolerance`
    because long steps can agree by chance; the difference is no bound. Rows that are not within
    tolerance after `most` halvings are reported.

    Args:
        net: ``net(t, x, context)`` gives the velocity, of x's shape, each row by itself. A net with
            a method ``divergence`` (see `Divergent`) gives the exact trace; for any other net the
            exact trace takes a backward pass for each of the event's numbers, all in one call.
        trace: "exact", or "hutchinson", an estimate ``e^T (df/dx) e`` with random signs e that stay
            the same through a solve; the density is then an estimate too. The inverse, which has no
            noise, is exact in any case.
        steps: the first number of steps.
        tolerance: largest ``|difference| / (1 + |value|)`` of a row's latents and log-det; None is
            1e-5 in float32 and 1e-8 in float64.
        most: largest number of halvings.
        train_tolerance: the adaptive solver's tolerance, absolute and relative; its norm is over
            the batch, so that rows depend on each other in training. None trains with equal steps,
            too, and does not need torchdiffeq.

    References:
        Chen et al., Neural ordinary differential equations (2018), eq. 8, arXiv:1806.07366.
        Grathwohl et al., FFJORD (2019), eq. 4 to 7, arXiv:1810.01367.

    Departs from the papers: gradients by backpropagation, not by the adjoint method, and equal
    steps in evaluation, not the batch's.
    """

    invertible = False  # to tolerance, not to rounding

    def __init__(
        self,
        net: nn.Module,
        *,
        trace: Trace = "exact",
        steps: int = 4,
        tolerance: float | None = None,
        most: int = 8,
        train_tolerance: float | None = 1e-5,
    ) -> None:
        super().__init__()
        if trace not in ("exact", "hutchinson"):
            raise ValueError(f'Continuous: trace is "exact" or "hutchinson"; got {trace!r}')
        if steps < 1 or most < 1:
            raise ValueError(f"Continuous: steps={steps} and most={most} must be at least 1")
        for value in (tolerance, train_tolerance):
            if value is not None and not value > 0:
                raise ValueError(f"Continuous: tolerances must be more than 0; got {value}")
        self.net = net
        self.trace: Trace = trace
        self.density = "exact" if trace == "exact" else "estimate"
        self.draws = trace == "hutchinson"
        self.steps, self.tolerance, self.most = steps, tolerance, most
        self.train_tolerance = train_tolerance

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(x):
            x, context = widen(x), None if context is None else widen(context)
            signs = None
            if self.trace == "hutchinson":
                drawn = _draw(x, noise, self.stream)
                signs = torch.where(drawn < 0.5, -1.0, 1.0).to(x.dtype)
            motion = _motion(self.net, context, signs)
            start = (x, x.new_zeros(len(x)))
            if self.training and self.train_tolerance is not None and len(x):
                return _adaptive(motion, start, self.train_tolerance)
            return self._to_tolerance(motion, start, 0.0, 1.0)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(z):
            z, context = widen(z), None if context is None else widen(context)
            motion = _motion(self.net, context, None)
            return self._to_tolerance(motion, (z, z.new_zeros(len(z))), 1.0, 0.0)

    def become_exact(self) -> None:
        self.trace, self.density, self.draws = "exact", "exact", False

    def _to_tolerance(self, motion: Motion, start: State, t0: float, t1: float) -> State:
        """Solve by equal steps, halved until each row is within tolerance."""
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-8 if start[0].dtype == torch.float64 else 1e-5
        number, error = self.steps, torch.full_like(start[1], torch.inf)
        state = coarse = _equal_steps(motion, start, t0, t1, number)
        for _ in range(self.most):
            moving = ~(error <= tolerance)
            if not moving.any():
                break
            number *= 2
            fine = _equal_steps(motion, start, t0, t1, number)
            with torch.no_grad():
                differences = (_difference(a, b) for a, b in zip(fine, coarse, strict=True))
                error = torch.where(moving, torch.maximum(*differences), error)
            of_row = moving.view(-1, *[1] * (fine[0].dim() - 1))
            z, log_det = state
            state = torch.where(of_row, fine[0], z), torch.where(moving, fine[1], log_det)
            coarse = fine
        report(self, error, tolerance, "more halvings (most), or a smoother velocity")
        return state

    def extra_repr(self) -> str:
        return f"trace={self.trace}, steps={self.steps}"


def _draw(x: Tensor, noise: Noise | None, stream: int) -> Tensor:
    return torch.rand_like(x) if noise is None else noise.uniform(x, noise.probing(stream))


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """Each row's largest relative difference ``(B,)``."""
    relative = (new - old).abs() / (1 + new.abs())
    return relative if relative.dim() == 1 else relative.flatten(1).amax(1)


def _motion(net: nn.Module, context: Tensor | None, signs: Tensor | None) -> Motion:
    """The time derivative of the pair of x and log-det."""

    def motion(t: Tensor | float, state: State) -> State:
        x = state[0]
        if signs is None and isinstance(net, Divergent):
            velocity, trace = net.divergence(t, x, context)
            _check_shape(velocity, x)
            return velocity, trace
        return _differentiated(lambda x: net(t, x, context), x, signs)

    return motion


def _check_shape(velocity: Tensor, x: Tensor) -> None:
    if velocity.shape != x.shape:
        given, events = tuple(velocity.shape[1:]), tuple(x.shape[1:])
        what = f"the net gives {given} for events {events}; a velocity has the events' shape"
        raise ValueError(f"Continuous: {what}")


def _differentiated(field: Callable[[Tensor], Tensor], x: Tensor, signs: Tensor | None) -> State:
    """Velocity and trace of its Jacobian J (or ``signs^T J signs``), by automatic differentiation.

    The exact trace takes one backward pass for each of an event's numbers, all in one call.
    """
    live = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if live and x.requires_grad else x.detach().requires_grad_()
        velocity = field(x)
        _check_shape(velocity, x)
        if signs is not None:
            (row,) = torch.autograd.grad(velocity, x, signs, create_graph=live)
            trace = (row * signs).flatten(1).sum(1)
        elif len(x):
            size = math.prod(x.shape[1:])
            unit = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[1:])
            (rows,) = torch.autograd.grad(
                velocity, x, unit.expand(-1, *x.shape), create_graph=live, is_grads_batched=True
            )
            trace = rows.flatten(2).diagonal(dim1=0, dim2=2).sum(1)
        else:
            trace = x.new_zeros(0)
    return (velocity, trace) if live else (velocity.detach(), trace.detach())


def _equal_steps(motion: Motion, state: State, t0: float, t1: float, number: int) -> State:
    """Solve by `number` steps of the classical Runge-Kutta method of order 4."""
    h = (t1 - t0) / number

    def advance(by: float, slope: State) -> State:
        return state[0] + by * slope[0], state[1] + by * slope[1]

    for k in range(number):
        t = t0 + k * h
        a = motion(t, state)
        b = motion(t + h / 2, advance(h / 2, a))
        c = motion(t + h / 2, advance(h / 2, b))
        d = motion(t + h, advance(h, c))
        slope = tuple(p + 2 * (q + r) + s for p, q, r, s in zip(a, b, c, d, strict=True))
        state = advance(h / 6, cast(State, slope))
    return state


def _adaptive(motion: Motion, start: State, tolerance: float) -> State:
    """Solve by Dormand and Prince's method, with steps adapted to the whole batch."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        what = "training a continuous flow needs torchdiffeq"
        remedy = "pip install 'mixerflow[ode]', or train_tolerance=None"
        raise ConfigError(what, "Continuous", remedy) from None
    times = torch.tensor([0.0, 1.0], dtype=start[0].dtype, device=start[0].device)
    solution = odeint(motion, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
    z, log_det = cast(State, solution)
    return z[-1], log_det[-1]
