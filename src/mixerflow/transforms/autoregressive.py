"""Autoregressive transforms: each feature is mapped by parameters that read the ones before it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mixerflow.core import Context, Mapped, Noise, Shape, Transform, expect, total, uncounted
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Elementwise


@runtime_checkable
class _Sequential(Protocol):
    """A net that can work out its outputs feature by feature, see `mixerflow.nets.MADE`."""

    def sequence(self, choose: object, like: Tensor, context: Tensor | None = None) -> None: ...


@register
class Autoregressive(Transform):
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
            the vectors' length; its ``order`` says in which order they come: a tensor, or None for
            0 to n - 1.
        elementwise: what happens to each feature.

    References:
        Papamakarios, Pavlakou, Murray: Masked autoregressive flow for density estimation (2017),
        eq. 3 to 6. https://arxiv.org/abs/1705.07057
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: Improved variational inference with
        inverse autoregressive flow (2016), eq. 10. https://arxiv.org/abs/1606.04934

    Departs from the paper:
        - MAF's ``(x - mu) exp(alpha)`` is here ``x exp(s) + t``: the same maps.
    """

    def __init__(self, net: nn.Module, elementwise: Elementwise) -> None:
        super().__init__()
        self.net = net
        self.elementwise = elementwise

    @property
    def n(self) -> int:
        """Length of the vectors."""
        return int(self.net.n)  # pyright: ignore[reportArgumentType]

    @property
    def order(self) -> Tensor | None:
        """The features in the order in which they come; None for 0 to n - 1."""
        order = getattr(self.net, "order", None)
        assert order is None or isinstance(order, Tensor)
        return order

    def _raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The parameters ``(params, rows, n)``."""
        raw = self.net(x, context).to(x.dtype)
        expected = self.elementwise.params * self.n
        if raw.shape[1:] != (expected,):
            raise ValueError(
                f"Autoregressive: {self.elementwise!r} takes {expected} parameters for {self.n} "
                f"features; the net gives {tuple(raw.shape[1:])}"
            )
        return raw.unflatten(1, (self.elementwise.params, self.n)).movedim(1, 0)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(x.shape[1:]), (self.n,))
        z, log_det = self.elementwise.forward(x, self._raw(x, context))
        return z, total(log_det)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        expect(self, tuple(z.shape[1:]), (self.n,))
        order = self.order
        given = z if order is None else z[:, order]
        found: list[Tensor] = []
        log_dets: list[Tensor] = []

        def choose(i: int, raw: Tensor) -> Tensor:
            x, log_det = self.elementwise.inverse(given[:, i], raw.to(z.dtype).mT)
            found.append(x)
            log_dets.append(log_det)
            return x

        # half-precision sums in another order would be other parameters than forward's
        if isinstance(self.net, _Sequential) and not torch.is_autocast_enabled(z.device.type):
            self.net.sequence(choose, z, context)
            x = torch.stack(found, 1)
            x = x if order is None else x[:, order.argsort()]
        else:
            x = torch.zeros_like(z)  # what is not known yet stays 0: it may not overflow
            places = torch.arange(self.n, device=z.device) if order is None else order
            with uncounted(self.net):
                for i in range(self.n):
                    place = places[i : i + 1]
                    raw = self._raw(x, context).index_select(2, place)[:, :, 0]
                    x = x.index_copy(1, place, choose(i, raw.mT)[:, None])
        return x, total(torch.stack(log_dets, 1))

    def out_shape(self, shape: Shape) -> Shape:
        expect(self, shape, (self.n,))
        return shape

    def extra_repr(self) -> str:
        """The length and the elementwise, in ``print(flow)``."""
        return f"{self.n}, elementwise={self.elementwise!r}"
