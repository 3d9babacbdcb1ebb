"""Maps made of a contraction g and inverted by iteration: residual maps and monotone maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Transform, fixed_point, report
from mixerflow.precision import widen, without_autocast
from mixerflow.registry import register

Function = Callable[[Tensor], Tensor]


class _ContractionMap(Transform):
    """A map made of a net g with a Lipschitz constant below 1; iterations take `most` steps."""

    invertible = False

    def __init__(self, net: nn.Module, *, most: int) -> None:
        super().__init__()
        self.net, self.most = net, most

    def _prepared(self, context: Tensor | None) -> Function:
        """The net as a function of x; its `prepare` computes once the part without x."""
        if hasattr(self.net, "prepare"):
            return self.net.prepare(context)  # pyright: ignore
        return lambda x: self.net(x, context)

    def _solve(self, g: Function, target: Tensor, sign: float = 1.0) -> tuple[Tensor, Tensor]:
        """Solve ``u + sign g(u) = target`` by iteration; return u and g's Jacobians at u.

        One step of Newton's method, ``u - (I + sign J)^-1 (u + sign g(u) - target)`` with J kept
        fixed, ends the iteration: it polishes the root, and implicit derivatives flow through it.
        """
        tolerance = 32 * torch.finfo(target.dtype).eps  # the last move: some roundings
        with torch.no_grad():
            u, error = fixed_point(
                lambda u: target - sign * g(u), target.detach(), tolerance=tolerance, most=self.most
            )
        remedy = "give the net a smaller coefficient, or the transform more steps (most)"
        report(self, error, tolerance, remedy)
        value, jacobian = _differentiated(g, u)
        unit = torch.eye(jacobian.shape[-1], dtype=target.dtype, device=target.device)
        residual = (u + sign * value - target).flatten(1).unsqueeze(-1)
        step = torch.linalg.solve((unit + sign * jacobian).detach(), residual)
        u = u - step.reshape(u.shape)
        if torch.is_grad_enabled():  # the log-det's gradient goes through u too
            jacobian = _differentiated(g, u)[1]
        return u, jacobian


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

    ``x <- z - g(x)`` finds the inverse. Its log-det is minus forward's at the solution, always
    exact. The exact ``log|det dz/dx| = log det(I + J)`` takes n backward passes through g. The
    unbiased estimate is the power series

        sum_k (-1)^(k+1) / k  v^T J^k v  1[k <= K + N] / P(k <= K + N),   v uniform in {-1, 1}^n,

    with K terms in every draw and N geometric: one backward pass for each term, one draw of v and N
    for each row (N is the same for all rows where torch's generator draws it). Its gradient is that
    of Neumann's series, ``sum_k (-1)^k v^T J^k dJ v`` with the same weights, which keeps one
    backward pass where plain autograd keeps all of them; the value is the power series'.

    Uniform draws have 24 bits, so N is at most ``N_max = 24 log(2) / -log(1 - stop)``. The limit's
    error is at most ``n L^(k+1) / ((k + 1) (1 - L))`` for ``k = K + N_max``; L is g's Lipschitz
    constant. The estimate's variance stays small if ``L^2 < 1 - stop``, or if the terms after the
    first K are small, as in eval mode.

    Args:
        net: maps ``(B, *event)`` and the context to the same shape, with a Lipschitz constant
            below 1 in the 2-norm, as `LipschitzMLP` and `LipschitzDense`.
        log_det: "exact" or "unbiased".
        terms, eval_terms: K in training mode and in eval mode.
        stop: probability that N ends at each further term.
        most: largest number of steps of the inverse.

    References:
        Behrmann et al., Invertible residual networks (2019), eq. 1 and algorithm 1,
        arXiv:1811.00995.
        Chen et al., Residual flows (2019), eq. 6 and 8, arXiv:1906.02735.

    Departs from the papers:
        - signs instead of normal probes: less variance, none where n is 1;
        - the value given with Neumann's gradient is the likelihood's, not the surrogate's;
        - the end of the inverse is a step of Newton's method, through which gradients flow.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        log_det: Literal["exact", "unbiased"] = "exact",
        terms: int = 2,
        eval_terms: int = 20,
        stop: float = 0.5,
        most: int = 2000,
    ) -> None:
        super().__init__(net, most=most)
        if log_det not in ("exact", "unbiased"):
            raise ValueError(f"Residual: log_det is exact or unbiased; got {log_det!r}")
        if min(terms, eval_terms) < 1 or not 0 < stop < 1:
            given = f"terms {terms}, eval_terms {eval_terms}, stop {stop}"
            raise ValueError(f"Residual: at least 1 term, and stop between 0 and 1; got {given}")
        self.density = "exact" if log_det == "exact" else "estimate"
        self.draws = log_det == "unbiased"
        self.terms, self.eval_terms, self.stop = terms, eval_terms, stop

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(x):
            x, g = widen(x), self._prepared(context)  # half precision does not converge
            if self.density == "exact":
                value, jacobian = _differentiated(g, x)
                return x + value, _log_det(jacobian)
            value, log_det = self._estimate(g, x, noise)
            return x + value, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with without_autocast(z):
            x, jacobian = self._solve(self._prepared(context), widen(z))
            return x, -_log_det(jacobian)

    def become_exact(self) -> None:
        self.density, self.draws = "exact", False

    def _draw(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Random signs of x's shape, and N for each row."""
        like = torch.empty(len(x), math.prod(x.shape[1:]) + 1, dtype=x.dtype, device=x.device)
        if noise is None:
            uniform = torch.rand_like(like)
            last = torch.rand((), device=x.device).expand(len(x))
        else:
            uniform = noise.uniform(like, noise.probing(self.stream))
            last = uniform[:, -1]
        signs = torch.where(uniform[:, :-1] < 0.5, -1.0, 1.0).to(x.dtype).reshape(x.shape)
        last = last.double().clamp(max=1 - 2.0**-24)
        return signs, ((-last).log1p() / math.log1p(-self.stop)).floor()

    def _estimate(self, g: Function, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """``g(x)`` and the estimate, whose gradient is Neumann's."""
        exact = self.terms if self.training else self.eval_terms
        signs, further = self._draw(x, noise)
        value, pull = torch.func.vjp(g, x)  # pyright: ignore[reportAssignmentType, reportPrivateImportUsage]
        log_det, power, neumann = torch.zeros_like(x[:, :1].flatten(1).sum(1)), signs, signs
        for k in range(1, exact + math.floor(-24 * math.log(2) / math.log1p(-self.stop)) + 1):
            weight = torch.where(further >= k - exact, (1 - self.stop) ** -max(k - exact, 0), 0.0)
            if k > exact and not torch.compiler.is_compiling() and not weight.any():
                break
            weight = weight.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
            power = pull(power)[0].detach()
            trace = (weight * power * signs).flatten(1).sum(1)
            log_det = log_det - (-1) ** k / k * trace
            neumann = neumann + (-1) ** k * weight * power
        if torch.is_grad_enabled():
            surrogate = (pull(neumann)[0] * signs).flatten(1).sum(1)
            log_det = log_det + (surrogate - surrogate.detach())
        return value, log_det

    def extra_repr(self) -> str:
        return f"density={self.density!r}"


@register
class Monotone(_ContractionMap):
    """``z = (I + G)^-1 (2 x) - x``: ``x = (u + G(u)) / 2, z = (u - G(u)) / 2`` for one u.

    A contraction G makes a monotone z(x), whose slopes lie between ``(1 - L) / (1 + L)`` and its
    inverse, where a residual map's lie between ``1 - L`` and ``1 + L``. ``u <- 2 x - G(u)`` finds
    u; ``log|det dz/dx| = log det(I - J) - log det(I + J)`` with J the Jacobian of G at u, by n
    backward passes. The inverse is the same map with -G. The identity where G is 0.

    `net` and `most` are those of `Residual`; the iteration ends in a step of Newton's method, too.

    Reference: Ahn et al., Invertible monotone operators for normalizing flows (2022), section 4,
        arXiv:2210.08176.
    """

    def __init__(self, net: nn.Module, *, most: int = 2000) -> None:
        super().__init__(net, most=most)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._cayley(x, context, 1.0)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return self._cayley(z, context, -1.0)

    def _cayley(self, x: Tensor, context: Tensor | None, sign: float) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            x = widen(x)
            u, jacobian = self._solve(self._prepared(context), 2 * x, sign)
            return u - x, _log_det(jacobian, -sign) - _log_det(jacobian, sign)
