"""The bases of parts: what makes objects, and what counts."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar


class Part:
    """A value that makes an object of the class `makes`, with its own fields as settings."""

    makes: ClassVar[type[Any]]

    def make(self, *sizes: int, **settings: object) -> Any:  # noqa: ANN401
        """Return an object of the class `makes`, from `sizes`, `settings` and the other fields."""
        return self.makes(*sizes, **(vars(self) | settings))


class PositiveCounts:
    """A value whose counts, fields of type int, must be at least `least`, else ValueError.

    A count may be None where its field says so.
    """

    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            count = getattr(self, field.name)
            if count is None or field.type not in (int, "int", "int | None"):
                continue
            if count < self.least:
                what = f"{field.name} must be at least {self.least}; got {count}"
                raise ValueError(f"{type(self).__name__}: {what}")
