"""A transform under check, with seeded inputs; kinds of transforms and their tolerances; laws."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from mixerflow.core import Mapped, Noise, Shape, Transform, number_streams

_Algebraic = Literal["algebraic", "spline", "iterative", "residual", "implicit"]
KindName = (
    _Algebraic
    | Literal[
        "estimate",
        "implicit estimate",
        "ode",
        "ode estimate",
        "stochastic",
        "variational",
        "augmenting",
    ]
    | Literal["surjection", "rounding", "surjection turned round"]
)

_JACOBIAN = frozenset({"forward log-det", "inverse log-det"})
_COMPILE = frozenset({"compile forward", "compile inverse"})
# laws that apply only to the kinds that name them
_ESTIMATED = frozenset({"estimated log-det", "estimated inverse log-det"})
_ROUNDED = frozenset({"zero log-det", "expectation"})
_LEARNED = frozenset({"zero log-det", "cube"})
_WIDENED = frozenset({"integral"})
_NOISY = _ESTIMATED | _ROUNDED | _LEARNED | _WIDENED | {"turned draws"}
_FORGETTING = frozenset({"deterministic", "opposite log-dets", "inverse draws", "exchange"})
_SPECIAL = _NOISY | _FORGETTING | {"mass"}


@dataclass(frozen=True)
class Kind:
    """Tolerances of one kind of transforms, and its exceptions from the common laws."""

    round_trip: float
    """Largest ``|error| / (1 + |value|)`` of a round trip in float64."""
    round_trip_single: float
    """The same in float32."""
    log_det: float
    """Largest error in nats against the Jacobian, float64; of estimates, in standard errors."""
    waived: frozenset[str] = frozenset()
    """Common laws that do not apply."""
    also: frozenset[str] = frozenset()
    """Special laws that apply."""

    @property
    def noisy(self) -> bool:
        """Whether `forward` draws noise."""
        return bool(self.also & _NOISY)

    @property
    def forgets(self) -> bool:
        """Whether `inverse` draws noise."""
        return bool(self.also & _FORGETTING)

    def obeys(self, law: str) -> bool:
        """Whether `law` applies to this kind."""
        return law in self.also if law in _SPECIAL else law not in self.waived


KINDS: dict[KindName, Kind] = {
    "algebraic": Kind(1e-10, 1e-4, 1e-8),
    "spline": Kind(1e-10, 1e-3, 1e-8),
    # logistic mixtures, residual maps, autoregressive convolutions: a loop until convergence
    "iterative": Kind(1e-8, 1e-3, 1e-8, frozenset({"compile inverse"})),
    # iterative inverses whose forward takes derivatives of a net, unsupported by torch.export
    "residual": Kind(1e-8, 1e-3, 1e-8, frozenset({"compile inverse", "export"})),
    # a loop until convergence in both directions
    "implicit": Kind(1e-8, 1e-3, 1e-8, _COMPILE | {"export"}),
    "estimate": Kind(1e-8, 1e-3, 3.0, _JACOBIAN | {"compile inverse", "export"}, _ESTIMATED),
    "implicit estimate": Kind(1e-8, 1e-3, 3.0, _JACOBIAN | _COMPILE | {"export"}, _ESTIMATED),
    # at a solver tolerance of 1e-8 in float64, 1e-5 in float32, with the exact trace
    "ode": Kind(1e-7, 1e-4, 1e-5, _COMPILE | {"export"}),
    # the estimate is a gradient inside of forward, which does not compile
    "ode estimate": Kind(1e-7, 1e-4, 3.0, _JACOBIAN | _COMPILE | {"export"}, _ESTIMATED),
    # dequantisation: the inverse is the floor, and forgets the noise
    "stochastic": Kind(0.0, 0.0, 0.0, _JACOBIAN | {"right inverse"}, _ROUNDED),
    # the same with learned noise, whose parameters the inverse does not use
    "variational": Kind(
        0.0, 0.0, 0.0, _JACOBIAN | {"right inverse", "inverse gradients"}, _LEARNED
    ),
    # noise beside the data, which the inverse drops
    "augmenting": Kind(
        1e-10, 1e-4, 0.0, _JACOBIAN | {"right inverse", "inverse gradients"}, _WIDENED
    ),
    # the inverse draws what the latent leaves open
    "surjection": Kind(1e-10, 1e-4, 1e-8, _JACOBIAN | {"left inverse"}, _FORGETTING | {"mass"}),
    # the same of latents that are no real numbers
    "rounding": Kind(0.0, 0.0, 0.0, _JACOBIAN | {"left inverse"}, _FORGETTING),
    # the same backwards: data within the values that the surjection gives
    "surjection turned round": Kind(
        1e-10, 1e-4, 1e-8, _JACOBIAN | {"right inverse"}, frozenset({"turned draws"})
    ),
}

Direction = Literal["forward", "inverse"]
DIRECTIONS: tuple[Direction, Direction] = ("forward", "inverse")
Inputs = Callable[[int, Shape, torch.Generator], Tensor]


def normal(batch: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Standard normal events ``(batch, *shape)`` in float64."""
    return torch.randn(batch, *shape, dtype=torch.float64, generator=generator)


def unit(batch: int, shape: Shape, generator: torch.Generator) -> Tensor:
    """Events ``(batch, *shape)`` uniform on the unit interval, in float64."""
    return torch.rand(batch, *shape, dtype=torch.float64, generator=generator)


@torch.no_grad()
def perturb(module: nn.Module, *, seed: int = 0, size: float = 0.3) -> None:
    """Add ``N(0, (size / sqrt(fan_in))^2)`` to every weight, and perturb batch-norm statistics.

    A flow that starts as the identity obeys nearly every law until its weights change.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=torch.float64, generator=generator).to(like)

    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter += draw(parameter) * size * fan_in**-0.5
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            assert part.running_var is not None
            part.running_mean += draw(part.running_mean) * size
            part.running_var *= (draw(part.running_var) * size).exp()


class Batch(NamedTuple):
    """Events ``(B, *event)``, their contexts, and their numbers, which determine their noise."""

    values: Tensor
    context: Tensor | None
    number: Tensor

    def rows(self, which: slice | Tensor) -> Batch:
        context = None if self.context is None else self.context[which]
        return Batch(self.values[which], context, self.number[which])


class Subject:
    """A perturbed copy of a transform in eval mode, and its seeded inputs; arguments of `check`.

    Latent events are the transform's images of data events.
    """

    def __init__(
        self,
        transform: Transform,
        shape: Shape,
        *,
        kind: KindName = "algebraic",
        context: Shape | None = None,
        inputs: Inputs = normal,
        seed: int = 0,
        size: float = 0.3,
    ) -> None:
        self.shape, self.kind, self.inputs, self.seed = tuple(shape), KINDS[kind], inputs, seed
        self.context = context
        self.dtype = torch.float64
        self.transform = copy.deepcopy(transform).double().eval()
        number_streams(self.transform)
        perturb(self.transform, seed=seed, size=size)
        self._latents: dict[tuple[int, int], Tensor] = {}

    def __str__(self) -> str:
        name, dtype = type(self.transform).__name__, str(self.dtype).removeprefix("torch.")
        return f"{name} of events {self.shape} in {dtype}"

    @functools.cached_property
    def single(self) -> Subject:
        """The same transform in float32, one copy for all laws: none changes it."""
        other = copy.copy(self)
        other.transform = copy.deepcopy(self.transform).float()
        other.dtype, other._latents = torch.float32, {}
        return other

    def data(self, batch: int, *, salt: int = 0) -> Batch:
        """Seeded data events with their contexts."""
        generator = torch.Generator().manual_seed(1000 * self.seed + salt)
        values = self.inputs(batch, self.shape, generator)
        values = values.to(self.dtype) if values.is_floating_point() else values
        context = None
        if self.context is not None:
            context = normal(batch, self.context, generator).to(self.dtype)
        return Batch(values, context, torch.arange(batch) + 1000 * salt)

    def batch(self, direction: Direction, batch: int, *, salt: int = 0) -> Batch:
        """Seeded events: data, or latents for the inverse."""
        data = self.data(batch, salt=salt)
        if direction == "forward":
            return data
        if (batch, salt) not in self._latents:  # many laws begin with them
            self._latents[batch, salt] = self.run("forward", data)[0]
        return data._replace(values=self._latents[batch, salt].clone())

    def cases(self, batch: int) -> Iterator[tuple[Subject, Direction, Batch]]:
        """Both precisions and both directions, each with seeded events."""
        for subject in (self, self.single):
            for direction in DIRECTIONS:
                yield subject, direction, subject.batch(direction, batch)

    def arguments(self, direction: Direction, batch: Batch) -> tuple[Any, ...]:
        """The arguments of `transform.forward` or `transform.inverse`."""
        estimated = bool(self.kind.also & _ESTIMATED)
        forgets = self.kind.forgets
        if direction == "inverse" and not (estimated or forgets):
            return batch.values, batch.context
        draws = forgets if direction == "inverse" and not estimated else self.kind.noisy
        return batch.values, batch.context, Noise(self.seed, batch.number) if draws else None

    def run(
        self, direction: Direction, batch: Batch, *, transform: Transform | None = None
    ) -> Mapped:
        """One direction of the transform (or of a copy of it), without gradients."""
        with torch.no_grad():
            chosen = self.transform if transform is None else transform
            return getattr(chosen, direction)(*self.arguments(direction, batch))

    def jacobian(self, direction: Direction, batch: Batch) -> Tensor:
        """The Jacobian ``(D, D)`` at a batch of one event."""

        def function(values: Tensor) -> Tensor:
            arguments = self.arguments(direction, batch._replace(values=values))
            return getattr(self.transform, direction)(*arguments)[0]

        # the backward pass of an implicit function is a loop until convergence
        rows = not self.kind.also & _ESTIMATED
        jacobian = torch.autograd.functional.jacobian(function, batch.values, vectorize=rows)
        assert isinstance(jacobian, Tensor)
        return jacobian.reshape(-1, batch.values.numel())

    def condition(self) -> str:
        """The condition number of the Jacobian of one event, for messages."""
        if not self.data(1).values.is_floating_point():
            return "not differentiable"
        number = torch.linalg.cond(self.jacobian("forward", self.data(1)))
        return f"condition number of the Jacobian {number.item():.1e}"

    def check_close(self, name: str, got: Tensor, wanted: Tensor, tolerance: float) -> None:
        """Assert ``|got - wanted| <= tolerance (1 + |wanted|)``; NaN is never close."""
        assert got.shape == wanted.shape, f"{name}: {tuple(got.shape)}, not {tuple(wanted.shape)}"
        wanted = wanted.double()
        error = ((got.double() - wanted).abs() / (1 + wanted.abs())).flatten()
        worst = error.amax().item() if len(error) else 0.0
        if not worst <= tolerance:
            off = f"off by {worst:.2e}, more than {tolerance:.0e}"
            raise AssertionError(f"{name}: {off}; {self.condition()}")

    def check_same(self, name: str, got: Mapped, wanted: Mapped, tolerance: float) -> None:
        """`check_close` of values and log-dets."""
        self.check_close(f"{name}: values", got[0], wanted[0], tolerance)
        self.check_close(f"{name}: log-det", got[1], wanted[1], tolerance)


LAWS: dict[str, Callable[[Subject], None]] = {}
_F = TypeVar("_F", bound=Callable[..., None])


def law(name: str, **settings: str) -> Callable[[_F], _F]:
    """Register ``function(subject, **settings)`` as a law; all its errors are AssertionErrors."""

    def register(function: _F) -> _F:
        @functools.wraps(function)
        def named(subject: Subject) -> None:
            try:
                function(subject, **settings)
            except AssertionError as error:
                raise AssertionError(f"{name}: {subject}: {error}") from None
            except Exception as error:
                kind = type(error).__name__
                raise AssertionError(f"{name}: {subject}: {kind}: {error}") from error

        LAWS[name] = named
        return function

    return register
