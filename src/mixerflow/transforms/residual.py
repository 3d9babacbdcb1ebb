"""Maps made of a contraction g and inverted by iteration: residual maps and monotone maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixerflow.core import Context, Mapped, Noise, Transform, fixed_point, log_det_wanted, report
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register
from mixerflow.transforms.series import GeometricTail, Tail, estimate

Function = Callable[[Tensor], Tensor]
LogDet = Literal["exact", "unbiased", "truncated"]
_TAIL = GeometricTail()


class _ContractionMap(Transform):
    """A map made of a net g with a Lipschitz constant below 1; iterations take `most` steps.

    Its log-det is exact, or an estimate of a power series (see `mixerflow.transforms.series`).
    """

    invertible = False

    def __init__(
        self,
        net: nn.Module,
        *,
        log_det: LogDet = "exact",
        terms: int = 2,
        eval_terms: int = 20,
        tail: Tail = _TAIL,
        most: int = 2000,
        unused: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if log_det not in ("exact", "unbiased", "truncated"):
            what = f"log_det is exact, unbiased or truncated; got {log_det!r}"
            raise ValueError(f"{name}: {what}")
        if min(terms, eval_terms) < 1:
            given = f"terms {terms}, eval_terms {eval_terms}"
            raise ValueError(f"{name}: at least 1 term; got {given}")
        self.net, self.most, self.log_det = net, most, log_det
        self.density = "exact" if log_det == "exact" else "estimate"
        self.draws = log_det != "exact"
        self.terms, self.eval_terms, self.tail = terms, eval_terms, tail
        if unused:
            self.unused = nn.Parameter(torch.zeros(unused), requires_grad=False)

    def become_exact(self) -> None:
        self.log_det, self.density, self.draws = "exact", "exact", False

    def _prepared(self, context: Tensor | None) -> Function:
        """The net as a function of x; its `prepare` computes once the part without x."""
        if hasattr(self.net, "prepare"):
            return self.net.prepare(context)  # pyright: ignore
        return lambda x: self.net(x, context)

    def _solve(self, g: Function, target: Tensor, sign: float = 1.0) -> Tensor:
        """Solve ``u + sign g(u) = target`` by iteration.

        Implicit derivatives flow through u, by an iteration of the backward pass.
        """
        tolerance = 32 * torch.finfo(target.dtype).eps  # the last move: some roundings
        with torch.no_grad():
            u, error = fixed_point(
                lambda u: target - sign * g(u), target.detach(), tolerance=tolerance, most=self.most
            )
        remedy = "give the net a smaller coefficient, or the transform more steps (most)"
        report(self, error, tolerance, remedy)
        if not torch.is_grad_enabled():
            return u
        _, pull = torch.func.vjp(g, u)  # pyright: ignore[reportAssignmentType, reportPrivateImportUsage]
        return _Implicit.apply(target - sign * g(u), u, pull, sign, tolerance, self.most)  # pyright: ignore

    def _polished(self, g: Function, target: Tensor, sign: float = 1.0) -> tuple[Tensor, Tensor]:
        """Solve ``u + sign g(u) = target``; return u and g's Jacobians at u.

        One step of Newton's method, ``u - (I + sign J)^-1 (u + sign g(u) - target)`` with J kept
        fixed, ends the iteration: it polishes the root, and implicit derivatives flow through it.
        """
        with torch.no_grad():
            u = self._solve(g, target.detach(), sign)
        value, jacobian = _differentiated(g, u)
        unit = torch.eye(jacobian.shape[-1], dtype=target.dtype, device=target.device)
        residual = (u + sign * value - target).flatten(1).unsqueeze(-1)
        step = torch.linalg.solve((unit + sign * jacobian).detach(), residual)
        u = u - step.reshape(u.shape)
        if torch.is_grad_enabled():  # the log-det's gradient goes through u too
            jacobian = _differentiated(g, u)[1]
        return u, jacobian

    def _estimate(
        self, product: Function, x: Tensor, noise: Noise | None, coefficient: Callable[[int], float]
    ) -> Tensor:
        """The estimate of the series with these coefficients of the Jacobian at x."""
        like = torch.empty(len(x), math.prod(x.shape[1:]) + 1, dtype=x.dtype, device=x.device)
        if noise is None:
            uniform = torch.rand_like(like)
            last = torch.rand((), device=x.device)
        else:
            uniform = noise.uniform(like, noise.probing(self.stream))
            last = uniform[:, -1]
        signs = torch.where(uniform[:, :-1] < 0.5, -1.0, 1.0).to(x.dtype).reshape(x.shape)
        terms = self.terms if self.training else self.eval_terms
        if self.log_det == "truncated" and self.training:
            return estimate(product, signs, coefficient, terms=terms)
        further = self.tail.further(last)
        return estimate(product, signs, coefficient, terms=terms, tail=self.tail, further=further)

    def extra_repr(self) -> str:
        return f"log_det={self.log_det!r}"


class _Implicit(torch.autograd.Function):
    """The solution u of ``u + sign g(u) = target``, given as a fixed point's last step.

    With w the gradient of u, that of the step is ``(I + sign J^T)^-1 w``, a fixed point too.
    """

    @staticmethod
    def forward(ctx: Any, step: Tensor, u: Tensor, *iteration: Any) -> Tensor:  # noqa: ANN401
        ctx.iteration = iteration
        return u.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401  # pyright: ignore
        pull, sign, tolerance, most = ctx.iteration
        solved, _ = fixed_point(lambda v: w - sign * pull(v)[0], w, tolerance=tolerance, most=most)
        return solved, None, None, None, None, None


def _linearised(g: Function, x: Tensor) -> tuple[Tensor, Function]:
    """``g(x)`` and products with its Jacobian at x, or with the transpose: traces are the same."""
    if hasattr(g, "linearise"):
        return g.linearise(x)  # pyright: ignore
    value, pull = torch.func.vjp(g, x)  # pyright: ignore[reportAssignmentType, reportPrivateImportUsage]
    return value, lambda v: pull(v)[0]


def _differentiated(g: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """``g(x)`` and its Jacobians ``(B, n, n)``, by n backward passes; differentiable."""
    value, pull = torch.func.vjp(g, x)  # pyright: ignore[reportAssignmentType, reportPrivateImportUsage]
    n = math.prod(x.shape[1:])
    unit = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, 1, *x.shape[1:])
    rows = torch.vmap(lambda v: pull(v)[0])(unit.expand(n, *x.shape))
    return value, rows.reshape(n, len(x), n).movedim(0, 1)


def _log_det(jacobian: Tensor, sign: float = 1.0) -> Tensor:
    """``log det(I + sign J)`` ``(B,)``, float32 or wider, for matrices J of norm below 1."""
    n = jacobian.shape[-1]
    unit = torch.eye(n, dtype=jacobian.dtype, device=jacobian.device)
    return torch.linalg.slogdet(unit + sign * jacobian)[1]


@register
class Residual(_ContractionMap):
    """``z = x + g(x)`` with ``|g(a) - g(b)| < |a - b|``; the identity where g is 0.

    ``x <- z - g(x)`` finds the inverse. The exact ``log|det dz/dx| = log det(I + J)`` takes n
    backward passes through g. The unbiased estimate is that of the power series with coefficients
    ``(-1)^(k+1) / k``, one pass through g for each term, with one draw of v and N for each row (N
    is the same for all rows where torch's generator draws it); see `mixerflow.transforms.series`
    for its gradient. The log-det of the inverse is minus forward's at the solution: exact, or an
    estimate; `mixerflow.core.values_alone` saves it.

    The tail's end N_max leaves an error of at most ``n L^(k+1) / ((k + 1) (1 - L))`` for
    ``k = K + N_max``; L is g's Lipschitz constant. The estimate's variance stays small if L^2 is
    less than the probability that N goes on, or if the terms after the first K are small, as in
    eval mode.

    Args:
        net: maps ``(B, *event)`` and the context to the same shape, with a Lipschitz constant
            below 1 in the 2-norm, as `LipschitzMLP` and `LipschitzConvNet`.
        log_det: "exact"; "unbiased"; or "truncated", which trains with the first K terms alone, a
            biased estimate, and evaluates without bias.
        terms, eval_terms: K in training mode and in eval mode.
        tail: distribution of N.
        most: largest number of steps of the inverse.
        unused: parameters that nothing reads or trains, as published code has them.

    References:
        Behrmann et al., Invertible residual networks (2019), eq. 1 and algorithm 1,
        arXiv:1811.00995.
        Chen et al., Residual flows (2019), eq. 6 and 8, arXiv:1906.02735.

    Departs from the papers, besides `mixerflow.transforms.series`: gradients flow through the
    inverse, as implicit derivatives, and of the exact transform its end is a step of Newton's
    method.
    """

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(x):
            x, g = widen(x), self._prepared(context)  # half precision does not converge
            if self.log_det == "exact":
                value, jacobian = _differentiated(g, x)
                return x + value, _log_det(jacobian)
            value, product = _linearised(g, x)
            return x + value, self._estimate(product, x, noise, _alternating)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(z):
            z, g = widen(z), self._prepared(context)
            if self.log_det == "exact" and log_det_wanted():
                x, jacobian = self._polished(g, z)
                return x, -_log_det(jacobian)
            x = self._solve(g, z)
            if not log_det_wanted():
                return x, z.new_zeros(len(z))
            return x, -self._estimate(_linearised(g, x)[1], x, noise, _alternating)


def _alternating(k: int) -> float:
    """The coefficients of ``log(1 + t)``."""
    return (-1) ** (k + 1) / k


def _odd(k: int) -> float:
    """The coefficients of ``log(1 - t) - log(1 + t)``."""
    return -2 / k if k % 2 else 0.0


@register
class Monotone(_ContractionMap):
    """``z = (I + G)^-1 (2 x) - x``: ``x = (u + G(u)) / 2, z = (u - G(u)) / 2`` for one u.

    A contraction G makes a monotone z(x), whose slopes lie between ``(1 - L) / (1 + L)`` and its
    inverse, where a residual map's lie between ``1 - L`` and ``1 + L``. ``u <- 2 x - G(u)`` finds
    u; ``log|det dz/dx| = log det(I - J) - log det(I + J)`` with J the Jacobian of G at u: by n
    backward passes, or an estimate of ``-2 sum_k tr(J^k) / k`` over odd k. The inverse is the same
    map with -G. The identity where G is 0.

    Arguments are those of `Residual`.

    Reference: Ahn et al., Invertible monotone operators for normalizing flows (2022), section 4,
        arXiv:2210.08176.
    """

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._cayley(x, context, noise, 1.0)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._cayley(z, context, noise, -1.0)

    def _cayley(
        self, x: Tensor, context: Tensor | None, noise: Noise | None, sign: float
    ) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            x, g = widen(x), self._prepared(context)
            if not log_det_wanted():
                return self._solve(g, 2 * x, sign) - x, x.new_zeros(len(x))
            if self.log_det == "exact":
                u, jacobian = self._polished(g, 2 * x, sign)
                return u - x, _log_det(jacobian, -sign) - _log_det(jacobian, sign)
            u = self._solve(g, 2 * x, sign)
            product = _linearised(g, u)[1]
            return u - x, sign * self._estimate(product, u, noise, _odd)
