"""Residual maps ``z = x + g(x)`` of contractions g, undone by iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Transform, fixed_point, report
from mixerflow.registry import register

Function = Callable[[Tensor], Tensor]

REMEDY = "give the net a smaller coefficient, or the transform more steps (most)"


@runtime_checkable
class Preparable(Protocol):
    """A net that can compute once what does not depend on x."""

    def prepare(self, context: Tensor | None = None) -> Function:
        """The net as a function of x alone."""
        ...


def prepared(net: nn.Module, context: Tensor | None) -> Function:
    """`net` as a function of x, for a loop."""
    if isinstance(net, Preparable):
        return net.prepare(context)
    return lambda x: net(x, context)


def differentiated(g: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """``g(x)`` and its Jacobians ``(B, n, n)``, by one backward pass a number; differentiable."""
    value, pull = torch.func.vjp(g, x)  # pyright: ignore[reportAssignmentType, reportPrivateImportUsage]
    n = math.prod(x.shape[1:])
    unit = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, 1, *x.shape[1:])
    rows = torch.vmap(lambda v: pull(v)[0])(unit.expand(n, *x.shape))
    return value, rows.reshape(n, len(x), n).movedim(0, 1)


def log_det_of(jacobian: Tensor, sign: float = 1.0) -> Tensor:
    """``log det(I + sign J)`` ``(B,)``, float32 or wider, for matrices J of norm below 1."""
    n = jacobian.shape[-1]
    unit = torch.eye(n, dtype=jacobian.dtype, device=jacobian.device)
    return torch.linalg.slogdet(unit + sign * jacobian)[1]


def newton(x: Tensor, missed: Tensor, jacobian: Tensor) -> Tensor:
    """``x - J^-1 missed``: one step that polishes a root and carries its implicit derivatives.

    Args:
        x: the root found, without gradient.
        missed: the equation's left-hand side there, 0 but for rounding, with its gradient in
            whatever else it depends on.
        jacobian: ``(B, n, n)``, the equation's, with respect to x.
    """
    step = torch.linalg.solve(jacobian.detach(), missed.flatten(1).unsqueeze(-1))
    return x - step.reshape(x.shape)


def tolerance_of(x: Tensor) -> float:
    """The last move of an iteration that ended: some roundings."""
    return 32 * torch.finfo(x.dtype).eps


def wide(x: Tensor) -> Tensor:
    """In float32 or wider: iterations do not converge in less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@register
class Residual(Transform):
    """``z = x + g(x)`` with ``|g(a) - g(b)| < |a - b|``; the identity where g is 0.

    ``x <- z - g(x)`` finds the inverse. Its log-det is minus forward's at the solution, always
    exact. The exact ``log|det dz/dx| = log det(I + J)`` takes n backward passes through g. The
    unbiased one is the power series

        sum_k (-1)^(k+1) / k  v^T J^k v  1[k <= K + N] / P(k <= K + N),   v uniform in {-1, 1}^n,

    with K terms always there and N geometric: one backward pass a term, one draw of v and N a row
    (N is the same for all rows where torch's generator draws it). Its gradient is that of Neumann's
    series, ``sum_k (-1)^k v^T J^k dJ v`` with the same weights, which keeps one backward pass where
    plain autograd keeps all of them; the value is the series' own.

    Uniform draws have 24 bits, so N is at most ``N_max = 24 log(2) / -log(1 - stop)``. What is cut
    off is at most ``n L^(k+1) / ((k + 1) (1 - L))`` for ``k = K + N_max``; L is g's constant. The
    estimate's variance stays small if ``L^2 < 1 - stop``, or if K terms leave little, as in eval.

    Args:
        net: maps ``(B, *event)`` and the context to the same shape, with a Lipschitz constant
            below 1 in the 2-norm, as `LipschitzMLP` and `LipschitzDense`.
        log_det: "exact" or "unbiased".
        terms: K in training mode.
        eval_terms: K in eval mode.
        stop: probability that N ends at each further term.
        most: steps of the inverse.

    References:
        Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen: Invertible residual networks (2019), eq. 1
        and algorithm 1. https://arxiv.org/abs/1811.00995
        Chen, Behrmann, Duvenaud, Jacobsen: Residual flows for invertible generative modeling
        (2019), eq. 6 and 8. https://arxiv.org/abs/1906.02735
    Departs from the papers:
        - signs instead of normal probes: less variance, none where n is 1;
        - the value reported with Neumann's gradient is the likelihood's, not the surrogate's;
        - the end of the inverse is a step of Newton's method, through which gradients flow.
    """

    invertible = False

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
        super().__init__()
        if log_det not in ("exact", "unbiased"):
            raise ValueError(f"Residual: log_det is exact or unbiased; got {log_det!r}")
        if min(terms, eval_terms) < 1 or not 0 < stop < 1:
            what = f"terms {terms}, eval_terms {eval_terms}, stop {stop}"
            raise ValueError(f"Residual: at least 1 term, and stop between 0 and 1; got {what}")
        self.net = net
        self.density = "exact" if log_det == "exact" else "estimate"
        self.draws = log_det == "unbiased"
        self.terms, self.eval_terms, self.stop, self.most = terms, eval_terms, stop, most

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with torch.autocast(x.device.type, enabled=False):
            x = wide(x)
            g = prepared(self.net, context)
            if self.density == "exact":
                value, jacobian = differentiated(g, x)
                return x + value, log_det_of(jacobian)
            value, log_det = self._estimated(g, x, noise)
            return x + value, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        with torch.autocast(z.device.type, enabled=False):
            z = wide(z)
            g = prepared(self.net, context)
            tolerance = tolerance_of(z)
            with torch.no_grad():
                x, error = fixed_point(
                    lambda x: z - g(x), z.detach(), tolerance=tolerance, most=self.most
                )
            report(self, error, tolerance, REMEDY)
            value, jacobian = differentiated(g, x)
            unit = torch.eye(jacobian.shape[-1], dtype=x.dtype, device=x.device)
            x = newton(x, x + value - z, unit + jacobian)
            if torch.is_grad_enabled():  # the log-det's gradient goes through x too
                jacobian = differentiated(g, x)[1]
            return x, -log_det_of(jacobian)

    def _draw(self, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Signs of x's shape and, for each row, how many further terms there are."""
        like = torch.empty(len(x), math.prod(x.shape[1:]) + 1, dtype=x.dtype, device=x.device)
        if noise is None:
            uniform = torch.rand_like(like)
            last = torch.rand((), device=x.device).expand(len(x))
        else:
            uniform = noise.uniform(like, self.stream)
            last = uniform[:, -1]
        signs = torch.where(uniform[:, :-1] < 0.5, -1.0, 1.0).to(x.dtype).reshape(x.shape)
        last = last.double().clamp(max=1 - 2.0**-24)
        return signs, ((-last).log1p() / math.log1p(-self.stop)).floor()

    def _estimated(self, g: Function, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor]:
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
        """The kind of log-det, in ``print(flow)``."""
        return f"density={self.density!r}"
