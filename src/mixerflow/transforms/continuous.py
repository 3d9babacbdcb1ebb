"""A continuous flow: events move along an ordinary differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Transform, log_det_wanted, report
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.transforms.ode import (
    Field,
    Given,
    State,
    adapted_steps,
    counted,
    to_tolerance,
)

Trace = Literal["exact", "hutchinson"]
Time = Tensor | float


@runtime_checkable
class Divergent(Protocol):
    """A velocity net with a closed form of its Jacobian's trace, as `mixerflow.nets.Velocity`."""

    def divergence(self, t: Time, x: Tensor, context: Context = None) -> State:
        """Velocity ``(B, *event)`` and trace ``(B,)``."""
        ...


@runtime_checkable
class Directional(Protocol):
    """A velocity net with a closed form of its derivative along a direction.

    As `mixerflow.nets.ConvVelocity`.
    """

    def along(
        self, t: Time, x: Tensor, direction: Tensor, context: Context = None
    ) -> tuple[Tensor, Tensor]:
        """Velocity ``(B, *event)``, and its Jacobian times `direction` ``(B, *event)``."""
        ...


@register
class Continuous(Transform):
    """``dx/ds = T f(T s, x, context)`` from data at s = 0 to latents at s = 1.

    ``log|det dz/dx|`` is the integral of ``T tr(df/dx)`` along the way. The end time T is 1, or
    learned: the square of a number that starts at 1.

    In training each row takes the steps that it needs by Dormand and Prince's method, see
    `mixerflow.transforms.ode.adapted_steps`; gradients are by backpropagation through these steps.
    The adjoint method would solve a second time for gradients with an error of their own;
    `mixerflow.core.memory` saves the memory exactly.

    Evaluation and the inverse take equal steps of the classical Runge-Kutta method of order 4,
    twice: the second time half as long. Rows whose two results differ by more than `tolerance` go
    on to steps half as long again. So a row's result depends on that row alone. Where steps are
    short, its error is a 15th of the difference; the whole difference is compared with `tolerance`
    because long steps can agree by chance; the difference is no bound. Rows that are not within
    tolerance after `most` halvings are reported. `mixerflow.core.counting` tells how
    often a solve evaluates the net.

    With "hutchinson" the log-det is an estimate, in the inverse too: minus the estimate at the
    solution, with signs that its noise, or torch's generator, draws. Where values alone are wanted
    (`mixerflow.core.values_alone`), as in sampling, the inverse computes no trace and returns 0.

    Args:
        net: ``net(t, x, context)`` gives the velocity, of x's shape, each row by itself; t is a
            number, or one for each row as ``(B, 1, ...)``, which broadcasts over x. A net with
            a method ``divergence`` (see `Divergent`) gives the exact trace; for any other net the
            exact trace takes a backward pass for each of the event's numbers, all in one call. The
            estimate takes one, or the method ``along`` of the net (see `Directional`).
        trace: "exact", or "hutchinson", an estimate ``e^T (df/dx) e`` with random signs e that stay
            the same through a solve; the density is then an estimate too.
        learned_end: whether T is learned.
        steps: the first number of steps.
        tolerance: largest ``|difference| / (1 + |value|)`` of a row's latents, and of its log-det,
            both divided by the event's length; None is 1e-5 in float32 and 1e-8 in float64.
        most: largest number of halvings.
        train_tolerance: largest error of a step in training, on the same scale; None trains with
            equal steps, too.

    References:
        Chen et al., Neural ordinary differential equations (2018), eq. 8, arXiv:1806.07366.
        Grathwohl et al., FFJORD (2019), eq. 4 to 7, arXiv:1810.01367.

    Departs from the papers: gradients by backpropagation, not by the adjoint method; steps of each
    row, not of the batch; equal steps in evaluation.
    """

    invertible = False  # to tolerance, not to rounding

    def __init__(
        self,
        net: nn.Module,
        *,
        trace: Trace = "exact",
        learned_end: bool = False,
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
        self.root_end = nn.Parameter(torch.ones(())) if learned_end else None
        self.steps, self.tolerance, self.most = steps, tolerance, most
        self.train_tolerance = train_tolerance

    def end(self) -> Tensor | float:
        """Return the end time T."""
        return 1.0 if self.root_end is None else self.root_end.square()

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(x):
            x, context = widen(x), None if context is None else widen(context)
            given = (context, self._signs(x, noise))
            field = counted(self._field(), "forward", len(x))
            start = (x, x.new_zeros(len(x)))
            if self.training and self.train_tolerance is not None:
                state, error = adapted_steps(field, start, given, tolerance=self.train_tolerance)
                report(self, error, self.train_tolerance, "a smoother velocity")
                return state
            return self._to_tolerance(field, start, given, (0.0, 1.0))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(z):
            z, context = widen(z), None if context is None else widen(context)
            wanted = log_det_wanted()
            given = (context, self._signs(z, noise) if wanted else None)
            field = counted(self._field(trace=wanted), "inverse", len(z))
            return self._to_tolerance(field, (z, z.new_zeros(len(z))), given, (1.0, 0.0))

    def become_exact(self) -> None:
        self.trace, self.density, self.draws = "exact", "exact", False

    def _to_tolerance(
        self, field: Field, start: State, given: Given, times: tuple[float, float]
    ) -> State:
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 1e-8 if start[0].dtype == torch.float64 else 1e-5
        state, error = to_tolerance(
            field, start, given, times, steps=self.steps, most=self.most, tolerance=tolerance
        )
        report(self, error, tolerance, "more halvings (most), or a smoother velocity")
        return state

    def _signs(self, x: Tensor, noise: Noise | None) -> Tensor | None:
        """The random signs of the estimate; None for the exact trace."""
        if self.trace == "exact":
            return None
        if noise is None:
            drawn = torch.rand_like(x)
        else:
            drawn = noise.uniform(x, noise.probing(self.stream))
        return torch.where(drawn < 0.5, -1.0, 1.0).to(x.dtype)

    def _field(self, *, trace: bool = True) -> Field:
        """The rates of x and log-det over s, given context and signs; without `trace` 0 for it."""
        net, end = self.net, self.end()

        def field(s: Time, x: Tensor, given: Given) -> State:
            context, signs = given
            t = end * s
            if not trace:
                velocity, rate = _checked(net(t, x, context), x), x.new_zeros(len(x))
            elif signs is not None and isinstance(net, Directional):
                velocity, slope = net.along(t, x, signs, context)
                rate = (_checked(slope, x) * signs).flatten(1).sum(1)
            elif signs is None and isinstance(net, Divergent):
                velocity, rate = net.divergence(t, x, context)
            else:
                velocity, rate = _differentiated(lambda x: net(t, x, context), x, signs)
            return end * _checked(velocity, x), end * rate

        return field

    def extra_repr(self) -> str:
        return f"trace={self.trace}, steps={self.steps}"


def _checked(velocity: Tensor, x: Tensor) -> Tensor:
    if velocity.shape != x.shape:
        given, events = tuple(velocity.shape[1:]), tuple(x.shape[1:])
        what = f"the net gives {given} for events {events}; a velocity has the events' shape"
        raise ValueError(f"Continuous: {what}")
    return velocity


def _differentiated(field: Callable[[Tensor], Tensor], x: Tensor, signs: Tensor | None) -> State:
    """Velocity and trace of its Jacobian J (or ``signs^T J signs``), by automatic differentiation.

    The exact trace takes one backward pass for each of an event's numbers, all in one call.
    """
    live = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if live and x.requires_grad else x.detach().requires_grad_()
        velocity = _checked(field(x), x)
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
