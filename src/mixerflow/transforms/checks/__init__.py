"""The laws that transforms obey, and `check`, which tests a transform against them.

    from mixerflow.transforms.checks import check
    check(MyTransform(6), (6,))

runs every law of the transform's kind on a perturbed copy of it and raises one AssertionError that
names the laws broken, with their figures. `KINDS` has the kinds' tolerances, `LAWS` the laws.
"""

from __future__ import annotations

from collections.abc import Iterable

from mixerflow.core import Shape, Transform
from mixerflow.transforms.checks import conduct, exact, forgetting  # noqa: F401  (their laws)
from mixerflow.transforms.checks.subject import (
    KINDS,
    LAWS,
    Inputs,
    Kind,
    KindName,
    Subject,
    normal,
    perturb,
    unit,
)

__all__ = ["KINDS", "LAWS", "Kind", "KindName", "Subject", "check", "normal", "perturb", "unit"]


def check(
    transform: Transform,
    shape: Shape,
    *,
    kind: KindName = "algebraic",
    context: Shape | None = None,
    inputs: Inputs = normal,
    laws: Iterable[str] | None = None,
    seed: int = 0,
    size: float = 0.3,
) -> None:
    """Check that a transform obeys the laws of its kind.

    Args:
        transform: left as it is; the laws run on perturbed copies.
        shape: an event shape that it takes; Jacobians have the square of its size.
        kind: sets the tolerances and waives the laws that cannot hold, see `KINDS`.
        context: event shape of contexts, ``(K,)`` or ``(K, *spatial)``; None for none.
        inputs: draws data events, where standard normal events do not fit.
        laws: names of the laws to check; None for all of `LAWS`.
        seed: seed of the perturbation, the inputs and the noise.
        size: size of the perturbation, see `perturb`. Deep chains need a smaller one: their
            rounding errors grow with the Jacobian's condition number, which every failure states.

    Raises:
        AssertionError: laws are broken; names each, the transform and the figure.
        ValueError: a name in `laws` is unknown.
    """
    chosen = set(LAWS if laws is None else laws)
    if unknown := chosen - set(LAWS):
        raise ValueError(f"no such laws: {sorted(unknown)}; there are: {', '.join(LAWS)}")
    subject = Subject(
        transform, shape, kind=kind, context=context, inputs=inputs, seed=seed, size=size
    )
    broken = []
    for name, law in LAWS.items():
        if name in chosen and KINDS[kind].obeys(name):
            try:
                law(subject)
            except AssertionError as error:
                broken.append(str(error))
    assert not broken, f"{len(broken)} laws broken\n" + "\n".join(broken)
