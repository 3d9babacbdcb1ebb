"""The residual multi-layer perceptron that the paper's couplings use."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of, squash
from mixerflow.registry import register


@register
class ResidualMLP(nn.Module):
    """``h = A s(x) + C c;  h = h + W2 gelu(norm(W1 gelu(norm(h))));  out = B h``.

    One pre-activation residual block of two ``width x width`` linears, between a linear map in and
    a zero-initialised one out: whatever map reads the output starts as the identity.

    Args:
        in_features: length of the conditioning vectors.
        out_features: numbers to give out.
        width: hidden width h.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        norm: see `mixerflow.nets.norm_of`, before each GELU. Batch norm couples the rows of a
            training batch: figures computed in training mode are then no likelihoods.
        context: length K of the context vectors, 0 for none.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int,
        norm: Norm = "none",
        squash: bool = True,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.squash = squash
        self.enter = nn.Linear(in_features, width)
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.norm1, self.norm2 = norm_of(norm, width), norm_of(norm, width)
        self.linear1, self.linear2 = nn.Linear(width, width), nn.Linear(width, width)
        self.leave = nn.Linear(width, out_features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x: Float[Tensor, "rows in"], context: Float[Tensor, "rows k"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """``(rows, in_features)`` and ``(rows, K)`` to ``(rows, out_features)``."""
        if x.dim() != 2 or x.shape[1] != self.enter.in_features:
            wanted = (self.enter.in_features,)
            raise ValueError(f"ResidualMLP: reads events {wanted}; got {tuple(x.shape[1:])}")
        h = self.enter(squash(x) if self.squash else x)
        if self.context is not None:
            if context is None:
                raise ValueError("ResidualMLP: built for a context, and got none")
            h = h + self.context(context)
        inner = self.linear1(nn.functional.gelu(self.norm1(h)))
        h = h + self.linear2(nn.functional.gelu(self.norm2(inner)))
        return self.leave(h)

    def folded(self) -> ResidualMLP:
        """With batch norm as a scale, the second one inside the linear map before it.

        The first one stays: what it reads is also what the block adds to.
        """
        for name, norm in (("norm1", self.norm1), ("norm2", self.norm2)):
            setattr(self, name, norm.folded() if isinstance(norm, SyncedBatchNorm) else norm)
        if isinstance(self.norm2, Scale) and type(self.linear1) is nn.Linear:
            self.linear1.weight *= self.norm2.weight[:, None]
            self.linear1.bias.copy_(self.norm2(self.linear1.bias))
            self.norm2 = nn.Identity()
        return self
