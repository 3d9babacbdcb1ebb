"""Autoregressive transforms: each feature is mapped by parameters that read the ones before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixerflow.core import Context, FixedShape, Mapped, Noise, total, uncounted
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise


@register
class Autoregressive(FixedShape):
    """``z_i = elementwise(x_i; net(x_<i, context))`` for vectors ``(n,)``.

    ``log|det dz/dx|`` is the sum of the map's log-derivatives: the Jacobian is triangular. With
    `Affine` it is a layer of MAF. The density takes one pass; the inverse finds the features one
    after another, each exactly: with `mixerflow.nets.MADE` in n short steps that compute every
    hidden unit once, with another net, and under autocast, in n passes.

    ``Inverse(Autoregressive(net, elementwise), (n,))`` is a layer of IAF: it samples in one
    pass, and its density takes n steps.

    Args:
        net: maps ``(rows, n)`` and the context to ``(rows, elementwise.params * n)``; parameter
            k of feature j is feature ``k * n + j`` and reads only features before j. Its ``n`` is
            the vectors' length; its ``order`` is the order of the features: a tensor, or None for
            0 to n - 1.
        elementwise: the map of each feature.

    References:
        Papamakarios et al., Masked autoregressive flow (2017), eq. 3 to 6, arXiv:1705.07057.
        Kingma et al., Improved variational inference with inverse autoregressive flow (2016), eq.
        10, arXiv:1606.04934.

    Departs from the paper:
        - MAF's ``(x - mu) exp(alpha)`` is here ``x exp(s) + t``: the same maps.
    """

    def __init__(self, net: nn.Module, elementwise: Elementwise) -> None:
        n = int(net.n)  # pyright: ignore[reportArgumentType]
        super().__init__(n)
        self.n, self.net, self.elementwise = n, net, elementwise

    def _raw(self, net: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
        """The raw parameters ``(params, rows, n)``."""
        raw = net(x, context).to(x.dtype)
        expected = self.elementwise.params * self.n
        if raw.shape[1:] != (expected,):
            wanted = f"{self.elementwise!r} takes {expected} parameters for {self.n} features"
            raise ValueError(f"Autoregressive: {wanted}; the net gives {tuple(raw.shape[1:])}")
        return raw.unflatten(1, (self.elementwise.params, self.n)).movedim(1, 0)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_data(x)
        z, log_slope = self.elementwise.forward(x, self._raw(self.net, x, context))
        return z, total(log_slope)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        order: Tensor | None = getattr(self.net, "order", None)
        given = z if order is None else z[:, order]
        found: list[Tensor] = []
        log_slopes: list[Tensor] = []

        def invert(i: int, raw: Tensor) -> Tensor:
            """The i-th feature in the order, by its raw parameters ``(rows, params)``."""
            x, log_slope = self.elementwise.inverse(given[:, i], raw.to(z.dtype).mT)
            found.append(x)
            log_slopes.append(log_slope)
            return x

        sequence = getattr(self.net, "sequence", None)
        # half-precision sums in another order would be other parameters than forward's
        if callable(sequence) and not torch.is_autocast_enabled(z.device.type):
            sequence(invert, z, context)
            x = torch.stack(found, 1)
            x = x if order is None else x[:, order.argsort()]
        else:
            x = torch.zeros_like(z)  # features not found yet stay 0: they may not overflow
            places = torch.arange(self.n, device=z.device) if order is None else order
            with uncounted(self.net) as net:
                for i in range(self.n):
                    place = places[i : i + 1]
                    raw = self._raw(net, x, context).index_select(2, place)[:, :, 0]
                    x = x.index_copy(1, place, invert(i, raw.mT)[:, None])
        return x, total(torch.stack(log_slopes, 1))

    def extra_repr(self) -> str:
        return f"{self.n}, elementwise={self.elementwise!r}"
