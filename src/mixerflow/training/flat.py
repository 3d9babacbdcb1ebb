"""Parameters that lie in one tensor, and Adam on it: a few kernels, however many they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

_ALIGNED = 64
"""Parameters begin at multiples of it: 256 bytes of float32, as memory of their own would."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Flat:
    """Parameters as parts of one tensor: what is done to all of them is one kernel.

    The parameters stay the modules' own, under their names; only where their numbers lie changes.
    Between them lie zeros, so that each begins at a multiple of 256 bytes.

    Args:
        parameters: float32, on one device; in this order they lie.

    Attributes:
        values: all their numbers, ``(size,)``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._starts = [0]
        for parameter in self.parameters:
            padded = -(-parameter.numel() // _ALIGNED) * _ALIGNED
            self._starts.append(self._starts[-1] + padded)
        self.values = self.zeros()
        for parameter, view in zip(self.parameters, self.views(self.values), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view

    def zeros(self) -> Tensor:
        """Another tensor ``(size,)``, to be laid out alike."""
        return torch.zeros(self._starts[-1], device=self.parameters[0].device)

    def views(self, whole: Tensor) -> list[Tensor]:
        """Each parameter's part, in its shape, of a tensor ``(size,)`` laid out alike."""
        pairs = zip(self._starts[:-1], self.parameters, strict=True)
        return [whole[start : start + p.numel()].view(p.shape) for start, p in pairs]

    def run(self, first: int, count: int) -> slice:
        """Where `count` parameters lie, from number `first`."""
        return slice(self._starts[first], self._starts[first + count])

    def gather(self, whole: Tensor) -> None:
        """Make the parameters' gradients parts of `whole`, ``(size,)``.

        They are copied there, many in a kernel: autograd's adding to what lies there already would
        take a kernel each. Parts of parameters without a gradient stay what they are.
        """
        triples = zip(self.parameters, self.views(whole), strict=True)
        found = [(p, view, p.grad) for p, view in triples if p.grad is not None]
        views, grads = [view for _, view, _ in found], [grad for *_, grad in found]
        torch._foreach_copy_(views, grads)  # pyright: ignore[reportPrivateImportUsage]
        for parameter, view, _ in found:
            parameter.grad = view

    def release(self) -> None:
        """Give each parameter memory of its own again."""
        for parameter in self.parameters:
            parameter.data = parameter.data.clone()


class FlatAdam:
    """The steps of a `torch.optim.Adam`, taken on flat tensors and decided on the device.

    It reads the other's settings, and its state goes over into the other's and back.

    Args:
        optimizer: Adam, or what was one; its groups' parameters follow each other in `flat`.
        flat: their numbers.

    Attributes:
        gradient: where the gradients are to be, ``(size,)``.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, flat: Flat) -> None:
        self.optimizer, self.flat = optimizer, flat
        self.gradient = flat.zeros()
        self._moments = (flat.zeros(), flat.zeros())
        self._runs: list[slice] = []
        first = 0
        for group in optimizer.param_groups:
            self._runs.append(flat.run(first, len(group["params"])))
            first += len(group["params"])
        self._counts = [flat.values.new_zeros(()) for _ in self._runs]
        self._rates = [flat.values.new_zeros(()) for _ in self._runs]

    def set_rates(self) -> None:
        """Let the device know the groups' learning rates."""
        for rate, group in zip(self._rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    @torch.no_grad()
    def step(self, divisor: Tensor, bad: Tensor) -> None:
        """Take a step, with gradients that are first divided; none at all where `bad`.

        Args:
            divisor: of the gradients, ``()``.
            bad: 1 where nothing may change, else 0, ``()`` float32.
        """
        every = (self._runs, self._counts, self._rates, self.optimizer.param_groups)
        for run, count, rate, group in zip(*every, strict=True):
            beta1, beta2 = group["betas"]
            first, second = self._moments
            adam(
                [self.flat.values[run]],
                [self.gradient[run]],
                [first[run]],
                [second[run]],
                [],
                [count],
                fused=True,
                capturable=True,
                grad_scale=divisor,
                found_inf=bad,
                amsgrad=group["amsgrad"],
                beta1=beta1,
                beta2=beta2,
                lr=rate,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )

    def tensors(self) -> list[Tensor]:
        """What a step changes, besides the weights."""
        return [self.gradient, *self._moments, *self._counts]

    def state(self) -> dict[int, dict[str, Tensor]]:
        """The ``state`` of the optimiser's `state_dict`, as if it had taken the steps."""
        slots = zip(*map(self.flat.views, self._moments), strict=True)
        return {
            # counts of their own: whoever goes on from them counts for each parameter
            i: {"step": self._counts[0].clone(), **dict(zip(_MOMENTS, slot, strict=True))}
            for i, slot in enumerate(slots)
        }

    @torch.no_grad()
    def take(self) -> None:
        """Take the optimiser's state over, and leave it none.

        Raises:
            ValueError: its parameters took different numbers of steps.
        """
        kept = self.optimizer.state
        steps = {float(values["step"]) for values in kept.values()} or {0.0}
        if len(steps) > 1:
            raise ValueError("parameters that took different numbers of steps")
        for count in self._counts:
            count.fill_(*steps)
        for whole, name in zip(self._moments, _MOMENTS, strict=True):
            whole.zero_()
            for parameter, view in zip(self.flat.parameters, self.flat.views(whole), strict=True):
                if parameter in kept:  # one that never had a gradient is not
                    view.copy_(kept[parameter][name])
        kept.clear()
