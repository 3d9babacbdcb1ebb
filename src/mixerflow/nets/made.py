"""Masked nets: the parameters of feature i read the features before it, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of, squash
from mixerflow.registry import register

_Apply = Callable[[int, Tensor], Tensor]


class Masked(nn.Linear):
    """``y = (W * mask) x + b``; an output that may read nothing is its bias.

    Args:
        given: the inputs' degrees.
        out: the outputs' degrees.
        strict: output o reads inputs of lower degree only, not of its own.
    """

    mask: Tensor | None

    def __init__(self, given: Sequence[int], out: Sequence[int], *, strict: bool = False) -> None:
        super().__init__(len(given), len(out))
        reads, written = torch.tensor(tuple(given)), torch.tensor(tuple(out))[:, None]
        mask = written > reads if strict else written >= reads
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """``(rows, inputs)`` to ``(rows, outputs)``."""
        return linear(
            input, self.weight if self.mask is None else self.weight * self.mask, self.bias
        )

    def folded(self) -> Masked:
        """With the mask multiplied in."""
        if self.mask is not None:
            self.weight *= self.mask
            self.mask = None
        return self


@register
class MADE(nn.Module):
    """``h = A s(x) + C c;  h = h + W2 gelu(norm(W1 gelu(norm(h))));  out = B h``, each map masked.

    The i-th feature in `order` has degree i, from 1; a hidden unit of degree d reads features of
    degree up to d, and what feature i gets out comes from units of degree below i. So parameter k
    of feature j, which is feature ``k n + j`` of the output, is a function of the features that
    come before j (and of the context). The last map starts as zero. It has as many weights as the
    unmasked net, the masked ones included.

    Hidden degrees are spread evenly over what can be of use, in ascending order, also where the
    width is no multiple of their number: 1 to n - 1, and with a context from 0, or the first
    feature could not read it.

    Args:
        n: length of the vectors.
        params: numbers to give out for each feature.
        width: hidden width.
        norm: "batch" or "none", before each GELU. Layer norm would tell each unit of all others.
        squash: read ``s(x) = sign(x) log(1 + |x|)``, see `mixerflow.nets.squash`.
        context: length K of the context vectors, 0 for none.
        blocks: number of residual blocks.
        order: the features in the order in which they come; None for 0 to n - 1. A given one is in
            the state dict, so that a loaded net is the same net.

    Raises:
        ValueError: lengths below 1, layer norm, or an order that is not one of n features.

    References:
        Germain, Gregor, Murray, Larochelle: MADE: masked autoencoder for distribution estimation
        (2015), eq. 12 and 13. https://arxiv.org/abs/1502.03509
        Papamakarios, Pavlakou, Murray: Masked autoregressive flow for density estimation (2017),
        section 2.2. https://arxiv.org/abs/1705.07057
    """

    order: Tensor | None

    def __init__(
        self,
        n: int,
        params: int,
        *,
        width: int,
        norm: Norm = "none",
        squash: bool = True,
        context: int = 0,
        blocks: int = 1,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if norm in ("layer", "rms"):
            raise ValueError(
                f'{type(self).__name__}: norm "{norm}" makes each unit a function of all features, '
                'and nothing is autoregressive then: use "batch" or "none"'
            )
        self._build(n, params, width, 2 * blocks, squash, context, order)
        self.norms = nn.ModuleList(norm_of(norm, width) for _ in range(2 * blocks))

    def _build(
        self,
        n: int,
        params: int,
        width: int,
        linears: int,
        squash: bool,
        context: int,
        order: Sequence[int] | None,
    ) -> None:
        """The linear maps. Masks follow from the sizes alone: x is put in order first."""
        if min(n, params, width) < 1 or linears < 0:
            raise ValueError(f"{type(self).__name__}: no net of sizes {n}, {params}, {width}")
        if order is not None and sorted(order) != list(range(n)):
            raise ValueError(f"{type(self).__name__}: order must be of 0..{n - 1}; got {order}")
        self.n, self.params, self.squash = n, params, squash
        features = list(range(1, n + 1))
        hidden = _spread(width, 0 if context or n == 1 else 1, n - 1)
        counts = [hidden.count(degree) for degree in range(n)]
        self._ends = list(accumulate(counts, initial=0))
        """Where the hidden units of each degree begin, and end."""
        self.register_buffer("order", None if order is None else torch.tensor(list(order)))
        # of one feature no unit may read anything: a weight there would never be trained
        self.enter = Masked(features, hidden) if n > 1 else _Given(width)
        self.context = nn.Linear(context, width, bias=False) if context else None
        self.linears = nn.ModuleList(Masked(hidden, hidden) for _ in range(linears))
        self.leave = Masked(hidden, features * params, strict=True)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self, x: Float[Tensor, "rows n"], context: Float[Tensor, "rows k"] | None = None
    ) -> Float[Tensor, "rows out"]:
        """``(rows, n)`` and ``(rows, K)`` to ``(rows, params * n)``."""
        if x.dim() != 2 or x.shape[1] != self.n:
            name = type(self).__name__
            raise ValueError(f"{name}: reads events {(self.n,)}; got {tuple(x.shape[1:])}")
        x = x if self.order is None else x[:, self.order]
        h = self.enter(squash(x) if self.squash else x)
        h = h if self.context is None else h + self.context(self._given(context))
        out = self.leave(self._hidden(h, lambda i, a: self.linears[i](a), self._normalise))
        if self.order is None:
            return out
        back = self.order.argsort()
        return out.unflatten(1, (self.params, self.n))[:, :, back].flatten(1)

    def sequence(
        self,
        choose: Callable[[int, Tensor], Tensor],
        like: Float[Tensor, "rows n"],
        context: Float[Tensor, "rows k"] | None = None,
    ) -> None:
        """Choose the features one by one, each from what the net makes of those before it.

        Every unit is computed once, when the last feature that it reads is known: all n features
        cost as much as one forward pass, not n of them. Batch norm in training mode takes each
        unit's statistics from the batch and moves no running average.

        Args:
            choose: takes i and the parameters ``(rows, params)`` of the i-th feature in `order`;
                returns its value ``(rows,)``.
            like: rows, dtype and device of the features.
            context: as in `forward`.
        """
        start = torch.zeros_like(like[:, :1])
        if self.context is not None:
            start = self.context(self._given(context))
        # the outputs with a feature's parameters side by side
        leave = self.leave.weight.unflatten(0, (self.params, self.n)).transpose(0, 1).flatten(0, 1)
        bias = self.leave.bias.unflatten(0, (self.params, self.n)).mT.flatten()
        enter = _Sums(start + self.enter.bias, self.enter.weight)
        inner = [_Sums(start.new_zeros(len(start), 1) + m.bias, m.weight) for m in self.linears]  # pyright: ignore
        out = _Sums(start.new_zeros(len(start), 1) + bias, leave)
        for i, (begin, end) in enumerate(pairwise(self._ends)):
            units = slice(begin, end)  # of degree i
            if end > begin:

                def apply(number: int, a: Tensor, units: slice = units) -> Tensor:
                    inner[number].add(a, units)
                    return inner[number].take(a.shape[1])

                def normalise(number: int, h: Tensor, units: slice = units) -> Tensor:
                    norm = self.norms[number]
                    return (
                        norm.part(h, units)
                        if isinstance(norm, (SyncedBatchNorm, Scale))
                        else norm(h)
                    )

                out.add(self._hidden(enter.take(end - begin), apply, normalise), units)
            value = choose(i, out.take(self.params))[:, None]
            if i + 1 < self.n:
                enter.add(squash(value) if self.squash else value, slice(i, i + 1))

    def _hidden(self, h: Tensor, apply: _Apply, normalise: _Apply) -> Tensor:
        """The last hidden units from the first ones: all of them, or all of one degree.

        Args:
            h: ``(rows, units)``.
            apply: the i-th hidden linear map.
            normalise: the i-th norm.
        """
        for i in range(0, len(self.linears), 2):
            inner = apply(i, gelu(normalise(i, h)))
            h = h + apply(i + 1, gelu(normalise(i + 1, inner)))
        return h

    def _normalise(self, number: int, h: Tensor) -> Tensor:
        return self.norms[number](h)

    def _given(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError(f"{type(self).__name__}: built for a context, and got none")
        return context


@register
class MaskedMLP(MADE):
    """``h = relu(A s(x) + C c);  h = relu(W h), layers - 1 times;  out = B h``, masked as `MADE`.

    The plain net of the MADE and MAF papers, for whole images.

    Args:
        n: length of the vectors.
        params: numbers to give out for each feature.
        width: of the hidden layers.
        layers: how many there are.
        squash: as for `MADE`.
        context: as for `MADE`.
        order: as for `MADE`.

    Raises:
        ValueError: lengths below 1, or an order that is not one of n features.
    """

    def __init__(
        self,
        n: int,
        params: int,
        *,
        width: int,
        layers: int = 1,
        squash: bool = False,
        context: int = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self._build(n, params, width, layers - 1, squash, context, order)

    def _hidden(self, h: Tensor, apply: _Apply, normalise: _Apply) -> Tensor:
        h = relu(h)
        for i in range(len(self.linears)):
            h = relu(apply(i, h))
        return h


class _Given(nn.Module):
    """Hidden units that read no feature."""

    weight: None = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), -1)


class _Sums:
    """Outputs of a masked linear map, of which those are taken whose inputs are complete.

    Args:
        start: the bias, ``(rows, outputs)``.
        weight: ``(outputs, inputs)``, outputs by degree.
    """

    def __init__(self, start: Tensor, weight: Tensor | None) -> None:
        self.left, self.weight, self.taken = start, weight, 0

    def add(self, values: Tensor, inputs: slice) -> None:
        """Take in some inputs, which all the outputs that are left may read: no mask is needed."""
        assert self.weight is not None
        weight = self.weight[self.taken :, inputs].mT
        self.left = torch.addmm(self.left, values, weight)

    def take(self, count: int) -> Tensor:
        """The next outputs."""
        self.taken += count
        first, self.left = self.left[:, :count], self.left[:, count:]
        return first


def _spread(width: int, low: int, high: int) -> list[int]:
    """`width` degrees from `low` to `high`, ascending, each about equally often."""
    levels = max(high - low + 1, 1)
    if width >= levels:
        return [low + i * levels // width for i in range(width)]
    return [low + (i * (levels - 1)) // max(width - 1, 1) for i in range(width)]
