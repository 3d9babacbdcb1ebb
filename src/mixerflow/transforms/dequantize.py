"""From integer pixels to real numbers: dequantisation and scaling inside the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixerflow.core import Context, Mapped, Noise, Transform, constant, total
from mixerflow.precision import wide
from mixerflow.registry import register


@register
class Dequantize(Transform):
    """``z = x + u``, u uniform on ``[0, 1)``: integer pixels become real numbers.

    The density of z integrates over each unit cube to a probability of x, and ``E_u log p(x + u)``
    bounds ``log P(x)`` from below; as in the literature, the figure with one u is the model's
    bits/dim (uniform dequantisation, one sample). The inverse is the floor: its log-det is 0 by
    definition, and values outside the levels stay outside: `Flow.draw` counts them.

    Reference: Theis et al., A note on the evaluation of generative models (2016), arXiv:1511.01844.
    """

    draws = True
    dequantization = "uniform"
    invertible = False
    unit: Tensor

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        if not 2 <= levels <= 2**16:
            raise ValueError(f"Dequantize: levels must be 2 to 65536; got {levels}")
        self.levels = levels
        # u keeps so few bits that x + u is exact in float32 and never rounds into the next level
        self.steps = 2.0 ** min(12, 24 - math.ceil(math.log2(levels)))
        self.register_buffer("unit", torch.ones(()), persistent=False)  # follows .double(), .to()

    def integers(self, x: Tensor) -> Tensor:
        """Return the pixels in the model's dtype; check the range where the dtype allows others."""
        guaranteed = x.dtype == torch.uint8 and self.levels >= 256
        if x.dtype == torch.bool and self.levels > 2:
            what = f"integers 0..{self.levels - 1}; got bool"
            raise ValueError(
                f"Dequantize: pixels must be {what} (for masks multiply by the highest level)"
            )
        values = x.to(self.unit.dtype)
        if not guaranteed and not torch.compiler.is_compiling() and values.numel():
            low, high = values.aminmax()
            if not (low >= 0 and high < self.levels):
                got = f"{low.item():g} to {high.item():g}"
                raise ValueError(f"Dequantize: pixels must lie in 0..{self.levels - 1}; got {got}")
            if x.is_floating_point() and not bool((values == values.floor()).all()):
                advice = "for images in [0, 1] multiply by the highest level and round"
                what = f"integers 0..{self.levels - 1}; got {x.dtype} with fractions ({advice})"
                raise ValueError(f"Dequantize: pixels must be {what}")
        return values

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        values = self.integers(x)
        u = torch.rand_like(values) if noise is None else noise.uniform(values, self.stream)
        u = (u * self.steps).floor() / self.steps
        return values + u, constant(0.0, values)

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_det = self(x, context, noise)
        return z, log_det[:, None].expand(-1, math.prod(x.shape[2:]))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return z.floor(), constant(0.0, z)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


@register
class Rescale(Transform):
    """``z = x * scale + shift`` with fixed numbers; log-det ``D log|scale|``."""

    affine = True

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        if scale == 0:
            raise ValueError("Rescale: scale must not be 0")
        self.scale, self.shift = scale, shift

    def _log_det(self, x: Tensor) -> float:
        return math.prod(x.shape[1:]) * math.log(abs(self.scale))

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return x * self.scale + self.shift, constant(self._log_det(x), x)

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        each = constant(x.shape[1] * math.log(abs(self.scale)), x)
        return self(x)[0], each[:, None].expand(-1, math.prod(x.shape[2:]))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        return (z - self.shift) / self.scale, constant(-self._log_det(z), z)

    def extra_repr(self) -> str:
        return f"{self.scale:g}, {self.shift:g}"


_LEAST_MARGIN = 2.0**-24


@register
class Logit(Transform):
    """``z = logit(alpha + (1 - 2 alpha) x)`` for x in the unit interval.

    ``log dz/dx = log(1 - 2 alpha) - log p - log(1 - p)`` with ``p = alpha + (1 - 2 alpha) x``; the
    margin alpha, in ``[2^-24, 1/2)``, keeps z finite at the ends of the interval. A smaller one
    does not: in float32, p would be 1 at the upper end, and is 0 at the lower end if alpha is 0.
    `inside` says that x never reaches an end; alpha may then be 0.

    Reference: Dinh et al., Real NVP (2017), section 4.1, arXiv:1605.08803.
    """

    def __init__(self, alpha: float = 0.05, *, inside: bool = False) -> None:
        super().__init__()
        if not (0 if inside else _LEAST_MARGIN) <= alpha < 0.5:
            least = "0" if inside else "2^-24"
            raise ValueError(f"Logit: alpha must lie in [{least}, 1/2); got {alpha}")
        self.alpha = alpha

    def _slopes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and ``log dz/dx`` of each number."""
        p = self.alpha + (1 - 2 * self.alpha) * x
        log_p, log_q = p.log(), torch.log1p(-p)
        return log_p - log_q, math.log(1 - 2 * self.alpha) - log_p - log_q

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_slopes = self._slopes(x)
        return z, total(log_slopes)

    def by_place(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        z, log_slopes = self._slopes(x)
        return z, log_slopes.flatten(2).sum(1, dtype=wide(x.dtype))

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        log_p, log_q = logsigmoid(z), logsigmoid(-z)
        x = (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)
        return x, total(log_p + log_q - math.log(1 - 2 * self.alpha))

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
