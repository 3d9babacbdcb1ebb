"""Masked nets: the parameters of a feature depend on the features before it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from mixerflow.moments import ALL, Entries
from mixerflow.nets.base import (
    Conditioner,
    RowContext,
    RowsIn,
    RowsOut,
    context_map,
    squash,
    zeroed,
)
from mixerflow.nets.norm import Norm, Scale, SyncedBatchNorm, norm_of
from mixerflow.registry import register

_Apply = Callable[[int, Tensor], Tensor]


class MaskedLinear(nn.Linear):
    """``y = (W * mask) x + b``, given the degrees of the inputs and of the outputs.

    A `strict` output reads inputs of lower degree only, not those of its own degree. An output that
    reads no input is its bias.
    """

    mask: Tensor | None

    def __init__(self, given: Sequence[int], out: Sequence[int], *, strict: bool = False) -> None:
        super().__init__(len(given), len(out))
        reads, written = torch.tensor(tuple(given)), torch.tensor(tuple(out))[:, None]
        mask = written > reads if strict else written >= reads
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight if self.mask is None else self.weight * self.mask
        return linear(input, weight, self.bias)

    def folded(self) -> MaskedLinear:
        """Multiply the weight by the mask, and drop the mask."""
        if self.mask is not None:
            self.weight *= self.mask
            self.mask = None
        return self


class _MaskedNet(Conditioner):
    """Base of `MADE` and `MaskedMLP`: the masked maps, one pass for all features or one by one.

    Masks follow from the sizes alone, because x is put in order first.
    """

    order: Tensor | None

    def __init__(
        self,
        n: int,
        params: int,
        width: int,
        linears: int,
        squash: bool,
        context: int,
        order: Sequence[int] | None,
    ) -> None:
        super().__init__()
        if min(n, params, width) < 1 or linears < 0:
            raise ValueError(f"{type(self).__name__}: no net of sizes {n}, {params}, {width}")
        if order is not None and sorted(order) != list(range(n)):
            raise ValueError(f"{type(self).__name__}: order must be of 0..{n - 1}; got {order}")
        self.n, self.params, self.squash = n, params, squash
        features = list(range(1, n + 1))
        hidden = _degrees(width, 0 if context or n == 1 else 1, n - 1)
        counts = [hidden.count(degree) for degree in range(n)]
        # where the hidden units of each degree begin, and where the last ones end
        self._boundaries = list(accumulate(counts, initial=0))
        self.register_buffer("order", None if order is None else torch.tensor(list(order)))
        # no unit may read a single feature: its weights would never be trained
        self.enter = MaskedLinear(features, hidden) if n > 1 else _BiasOnly(width)
        self.context = context_map(context, width)
        self.linears = nn.ModuleList(MaskedLinear(hidden, hidden) for _ in range(linears))
        self.leave = zeroed(MaskedLinear(hidden, features * params, strict=True))

    def forward(self, x: RowsIn, context: RowContext = None) -> RowsOut:
        self.require_vectors(x, self.n)
        x = x if self.order is None else x[:, self.order]
        h = self.add_context(self.enter(squash(x) if self.squash else x), context)
        out = self.leave(self._hidden(h, lambda i, a: self.linears[i](a)))
        if self.order is None:
            return out
        back = self.order.argsort()
        return out.unflatten(1, (self.params, self.n))[:, :, back].flatten(1)

    def sequence(
        self, choose: _Apply, like: Float[Tensor, "rows n"], context: RowContext = None
    ) -> None:
        """Choose the features one by one, each by its parameters given the features before it.

        Every unit is computed once, when the last feature that it reads is known: all n features
        cost as much as one forward pass, not n passes. Batch norm in training mode takes each
        unit's statistics from the batch and moves no running average.

        `choose` takes i and the parameters ``(rows, params)`` of the i-th feature in `order`, and
        returns the feature's value ``(rows,)``. `like` has the number of rows, dtype and device of
        the features.
        """
        start = self.add_context(torch.zeros_like(like[:, :1]), context)
        # the outputs in another order: all parameters of a feature, then those of the next
        leave = self.leave.weight.unflatten(0, (self.params, self.n)).transpose(0, 1).flatten(0, 1)
        bias = self.leave.bias.unflatten(0, (self.params, self.n)).mT.flatten()
        enter = _PartialSums(start + self.enter.bias, self.enter.weight)
        zeros = start.new_zeros(len(start), 1)
        inner = [_PartialSums(zeros + m.bias, m.weight) for m in self.linears]  # pyright: ignore
        out = _PartialSums(zeros + bias, leave)
        for i, (begin, end) in enumerate(pairwise(self._boundaries)):
            units = slice(begin, end)  # those of degree i
            if end > begin:

                def apply(number: int, a: Tensor, units: slice = units) -> Tensor:
                    inner[number].add(a, units)
                    return inner[number].release(a.shape[1])

                out.add(self._hidden(enter.release(end - begin), apply, units), units)
            value = choose(i, out.release(self.params))[:, None]
            if i + 1 < self.n:
                enter.add(squash(value) if self.squash else value, slice(i, i + 1))

    def _hidden(self, h: Tensor, apply: _Apply, units: slice | None = None) -> Tensor:
        """Return the last hidden units of the first ones, which are `units` of each layer, or all.

        `apply` takes i and the inputs of the i-th hidden linear map, and returns the outputs.
        """
        raise NotImplementedError


@register
class MADE(_MaskedNet):
    """``h = A s(x) + C c;  h = h + W2 gelu(norm(W1 gelu(norm(h))));  out = B h``, each map masked.

    The i-th feature in `order` has degree i, from 1. A hidden unit of degree d reads features of
    degree up to d, and the outputs of feature i read units of degree below i. So parameter k of
    feature j, which is number ``k n + j`` of the output, is a function of the features before j in
    `order` (and of the context). B starts at 0. The net has as many weights as an unmasked one,
    masked weights included.

    Hidden degrees are spread evenly over the useful ones, in ascending order, also where the width
    is no multiple of their number: from 1 to n - 1, and with a context from 0, because otherwise
    the parameters of the first feature could not depend on the context.

    Args, besides those of `Conditioner`:
        norm: "batch" or "none", before each GELU. With layer norm each unit would read all others.
        blocks: number of residual blocks.
        order: order of the features; None for 0 to n - 1. A given order is in the state dict, so
            that a loaded net is the same net.

    Raises:
        ValueError: lengths below 1, layer norm, or an order that is no permutation of n features.

    References:
        Germain et al., MADE (2015), eq. 12 and 13, arXiv:1502.03509.
        Papamakarios et al., Masked autoregressive flow (2017), section 2.2, arXiv:1705.07057.
    """

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
        if norm in ("layer", "rms"):
            raise ValueError(
                f'MADE: norm "{norm}" makes each unit a function of all features, and nothing is '
                'autoregressive then: use "batch" or "none"'
            )
        linears = 2 * blocks
        super().__init__(n, params, width, linears, squash, context, order)
        self.norms = nn.ModuleList(norm_of(norm, width) for _ in range(linears))

    def _hidden(self, h: Tensor, apply: _Apply, units: slice | None = None) -> Tensor:
        def normalise(number: int, h: Tensor) -> Tensor:
            norm = self.norms[number]
            if units is not None and isinstance(norm, (SyncedBatchNorm, Scale)):
                return norm.forward_units(h, units)
            return norm(h)

        for i in range(0, len(self.linears), 2):
            inner = apply(i, gelu(normalise(i, h)))
            h = h + apply(i + 1, gelu(normalise(i + 1, inner)))
        return h

    def idle(self) -> Iterator[Entries]:
        for inner, norm in zip(self.linears[::2], self.norms[1::2], strict=True):
            if isinstance(norm, SyncedBatchNorm):
                yield inner.bias, ALL  # pyright: ignore[reportReturnType]


@register
class MaskedMLP(_MaskedNet):
    """``h = relu(A s(x) + C c);  h = relu(W h), layers - 1 times;  out = B h``, masked as `MADE`.

    The plain net of the MADE and MAF papers, for whole images.
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
        super().__init__(n, params, width, layers - 1, squash, context, order)

    def _hidden(self, h: Tensor, apply: _Apply, units: slice | None = None) -> Tensor:
        h = relu(h)
        for i in range(len(self.linears)):
            h = relu(apply(i, h))
        return h


class _BiasOnly(nn.Module):
    """Hidden units that read no feature."""

    weight: None = None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), -1)


class _PartialSums:
    """Outputs of a masked linear map, released in order as soon as their inputs are complete.

    The sums start as the bias ``(rows, outputs)``; the weight is ``(outputs, inputs)``, with the
    outputs by degree.
    """

    def __init__(self, start: Tensor, weight: Tensor | None) -> None:
        self.sums, self.weight, self.released = start, weight, 0

    def add(self, values: Tensor, inputs: slice) -> None:
        """Add the terms of some inputs. No mask is needed: all outputs that are left read them."""
        assert self.weight is not None
        self.sums = torch.addmm(self.sums, values, self.weight[self.released :, inputs].mT)

    def release(self, count: int) -> Tensor:
        """Return the next outputs, and forget them."""
        self.released += count
        outputs, self.sums = self.sums[:, :count], self.sums[:, count:]
        return outputs


def _degrees(width: int, low: int, high: int) -> list[int]:
    """`width` degrees from `low` to `high`, ascending, each about equally often."""
    levels = max(high - low + 1, 1)
    if width >= levels:
        return [low + i * levels // width for i in range(width)]
    return [low + (i * (levels - 1)) // max(width - 1, 1) for i in range(width)]
