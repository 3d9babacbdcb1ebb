"""Kinds of transforms: their tolerances, and the laws that do not apply to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

KindName = Literal[
    "algebraic",
    "spline",
    "iterative",
    "residual",
    "implicit",
    "estimate",
    "ode",
    "ode estimate",
    "stochastic",
    "surjection",
]

_JACOBIAN = frozenset({"forward log-det", "inverse log-det"})
_COMPILE = frozenset({"compile forward", "compile inverse"})
# laws that apply only to the kinds that name them
_SPECIAL = frozenset({"estimated log-det", "zero log-det", "expectation"})


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
    also: frozenset[str] = field(default_factory=frozenset)
    """Special laws that apply."""

    @property
    def noisy(self) -> bool:
        """Whether `forward` draws noise."""
        return bool(self.also & _SPECIAL)

    def obeys(self, law: str) -> bool:
        """Whether `law` applies to this kind."""
        return law in self.also if law in _SPECIAL else law not in self.waived


KINDS: dict[KindName, Kind] = {
    "algebraic": Kind(1e-10, 1e-4, 1e-8),
    "spline": Kind(1e-10, 1e-3, 1e-8),
    # logistic mixtures, residual maps, autoregressive convolutions: a loop until convergence
    "iterative": Kind(1e-8, 1e-3, 1e-8, waived=frozenset({"compile inverse"})),
    # iterative inverses whose forward takes derivatives of a net, unsupported by torch.export
    "residual": Kind(1e-8, 1e-3, 1e-8, waived=frozenset({"compile inverse", "export"})),
    # a loop until convergence in both directions
    "implicit": Kind(1e-8, 1e-3, 1e-8, waived=_COMPILE | {"export"}),
    "estimate": Kind(
        1e-8,
        1e-3,
        3.0,
        waived=_JACOBIAN | {"compile inverse", "export"},
        also=frozenset({"estimated log-det"}),
    ),
    # at a solver tolerance of 1e-8 in float64, 1e-5 in float32, with the exact trace
    "ode": Kind(1e-7, 1e-4, 1e-5, waived=_COMPILE | {"export"}),
    # the estimate is a gradient inside of forward, which does not compile
    "ode estimate": Kind(
        1e-7,
        1e-4,
        3.0,
        waived=_JACOBIAN | _COMPILE | {"export"},
        also=frozenset({"estimated log-det"}),
    ),
    "stochastic": Kind(
        0.0,
        0.0,
        0.0,
        waived=_JACOBIAN | {"right inverse"},
        also=frozenset({"zero log-det", "expectation"}),
    ),
    # its log-det is a closed form that the transform's own test states
    "surjection": Kind(1e-10, 1e-4, 0.0, waived=_JACOBIAN | {"left inverse"}),
}
