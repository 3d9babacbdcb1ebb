"""Added dimensions: noise beside the data, and its conditioning across the units of a block.

A flow keeps the number of dimensions; noise that is appended to the data lets it be wider. The
density becomes a lower bound: ``log p(x) >= E [log p(x, n) - log q(n | x)]`` for noise n ~ q.

References:
    Grcić et al., Densely connected normalizing flows (2021), sections 2 and 3.1, arXiv:2106.04627.
    Huang et al., Augmented normalizing flows (2020), eq. 3, arXiv:2002.07101.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixerflow.core import (
    Chain,
    Context,
    FixedShape,
    Mapped,
    Noise,
    Runner,
    Shape,
    Transform,
    constant,
    expect,
    total,
)
from mixerflow.registry import register
from mixerflow.transforms.elementwise import Affine, Elementwise


def draw_normal(like: Tensor, noise: Noise | None, stream: int) -> Mapped:
    """Draw ``e ~ N(0, I)`` of the shape of `like`; return e and ``-log N(e; 0, I)`` ``(B,)``."""
    e = torch.randn_like(like) if noise is None else noise.normal(like, stream)
    return e, total(0.5 * e.square() + 0.5 * math.log(2 * math.pi))


def require_exact(module: nn.Module, transform: Transform) -> None:
    """Raise a ValueError unless the noise that `transform` makes of normal noise has a density."""
    if transform.density != "exact" or transform.inverse_draws:
        name = type(module).__name__
        raise ValueError(f"{name}: the flow of the noise must have an exact density")


@register
class Augment(FixedShape):
    """``z = [x, n]`` with noise n of `channels` more channels, drawn from q(n | given).

    ``n = f(e; net(given)), e ~ N(0, I)``, and the log-det is ``-log q(n | given)``, the term of the
    lower bound: ``sum log f'(e) - log N(e; 0, I)``; for an affine f, ``n = sigma e + mu``, the sum
    of ``log sigma``. The inverse drops the noise; its log-det is 0 by definition.

    Args:
        shape: of the data, ``(C, *spatial)``.
        channels: how many channels n has.
        net: maps what is given, and the context, to the raw parameters of `elementwise`: parameter
            k of channel j is output channel ``k * channels + j``. None for ``n = e``.
        elementwise: the map f.
    """

    density = "bound"
    draws = True

    def __init__(
        self,
        shape: Shape,
        channels: int,
        net: nn.Module | None = None,
        elementwise: Elementwise | None = None,
    ) -> None:
        if channels < 1:
            raise ValueError(f"Augment: channels must be at least 1; got {channels}")
        super().__init__(shape, (shape[0] + channels, *shape[1:]))
        self.channels, self.net = channels, net
        self.elementwise = Affine(2.0) if elementwise is None else elementwise

    def forward(
        self,
        x: Tensor,
        context: Context = None,
        noise: Noise | None = None,
        *,
        given: Tensor | None = None,
    ) -> Mapped:
        """Append noise to x; `given` is what the net reads, x itself by default."""
        self.check_data(x)
        like = x.new_empty(len(x), self.channels, *self.shape[1:])
        e, normal_term = draw_normal(like, noise, self.stream)
        n, log_det = self.shaped(e, x if given is None else given, context)
        return torch.cat([x, n], 1), normal_term + log_det

    def shaped(self, e: Tensor, given: Tensor, context: Context) -> Mapped:
        """Return the noise n of normal e, and ``log|det dn/de|``."""
        if self.net is None:
            return e, constant(0.0, e)
        raw = self.net(given, context).to(e.dtype)
        raw = raw.unflatten(1, (self.elementwise.params, self.channels)).movedim(1, 0)
        n, log_slope = self.elementwise.forward(e, raw)
        return n, total(log_slope)

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return z[:, : self.shape[0]], constant(0.0, z)

    def extra_repr(self) -> str:
        return f"{self.shape}, channels={self.channels}, elementwise={self.elementwise!r}"


@register
class AugmentByFlow(Augment):
    """`Augment` whose noise is that of a flow: ``n = t(e; net(given)), e ~ N(0, I)``.

    Args:
        shape: of the data, ``(C, *spatial)``.
        channels: how many channels n has.
        net: maps what is given to the context of `transform`.
        transform: invertible, with an exact density; it keeps events ``(channels, *spatial)``.

    Reference: Chen et al., VFlow (2020), section 3.3, arXiv:2002.09741.
    """

    def __init__(self, shape: Shape, channels: int, net: nn.Module, transform: Transform) -> None:
        super().__init__(shape, channels, net)
        noise_shape = (channels, *self.shape[1:])
        expect(self, transform.out_shape(noise_shape), noise_shape)
        require_exact(self, transform)
        self.transform = transform

    def shaped(self, e: Tensor, given: Tensor, context: Context) -> Mapped:
        assert self.net is not None
        return self.transform(e, self.net(given))

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> Tensor:
        """Initialise the noise's flow, where it has norms that start from data."""
        assert self.net is not None
        e, _ = draw_normal(x.new_empty(len(x), self.channels, *self.shape[1:]), None, self.stream)
        self.transform.initialize(e, self.net(x))
        return self(x, context)[0]

    def extra_repr(self) -> str:
        return f"{self.shape}, channels={self.channels}"


@register
class CrossUnits(FixedShape, Chain):
    """Units one after another, with noise between them that all earlier units condition.

    ``h_{i+1} = [y_i, n_i]``, ``y_i = unit_i(h_i)``, where ``n_i ~ q(n | x, y_0, ..., y_{i-1})``
    reads the block's input x and the outputs of all units before unit i, never ``y_i``, to which it
    is appended. Units run layer by layer, as memory modes tell; what the noise's nets compute is
    always stored.

    Args:
        shape: of the block's input x, ``(C, *spatial)``.
        units: the units; they keep the spatial axes.
        augments: the noise after each unit but the last. The net of augment i reads the channels of
            x and of i outputs, in that order.

    Raises:
        ValueError: not one augment between each two units, or shapes that do not fit.
    """

    def __init__(
        self, shape: Shape, units: Sequence[Transform], augments: Sequence[Augment]
    ) -> None:
        super().__init__(shape)
        if len(augments) != len(units) - 1:
            what = f"{len(units)} units of events {self.shape} and {len(augments)} augments"
            raise ValueError(f"CrossUnits: {what}; one goes between each two units")
        pairs = itertools.zip_longest(units, augments)
        self.steps.extend(step for pair in pairs for step in pair if step is not None)
        for step in self:
            self.latent_shape = tuple(step.out_shape(self.latent_shape))
            if self.latent_shape[1:] != self.shape[1:]:
                what = f"events {self.shape} become {self.latent_shape}"
                raise ValueError(f"CrossUnits: {what}; units must keep the spatial axes")

    folded = Transform.folded  # a chain around this one must not unroll it

    @property
    def units(self) -> list[Transform]:
        """The units."""
        return list(self)[0::2]

    @property
    def augments(self) -> list[Augment]:
        """The noise between them."""
        return list(self)[1::2]  # pyright: ignore[reportReturnType]

    def compose(self, run: Runner, x: Tensor, context: Context, noise: Noise | None) -> Mapped:
        self.check_data(x)
        log_det, given = constant(0.0, x), [x]
        for step in self:
            if isinstance(step, Augment):
                y = x
                x, step_log_det = step(y, context, noise, given=torch.cat(given, 1))
                given.append(y)
            else:
                x, step_log_det = run(step, x, context, noise)
            log_det = log_det + step_log_det
        return x, log_det

    def inverse(self, z: Tensor, context: Context = None, noise: Noise | None = None) -> Mapped:
        self.check_latent(z)
        return super().inverse(z, context, noise)
