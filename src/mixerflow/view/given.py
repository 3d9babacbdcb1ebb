"""What a page asks for, as JSON: each value is checked for its kind and range."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from mixerflow.errors import ConfigError
from mixerflow.runs.reading import parse_json

Given = Mapping[str, Any]


def parsed(body: bytes) -> Given:
    """Return the JSON object of a request's body.

    Raises:
        ConfigError: no JSON, no object, or numbers and levels that `parse_json` refuses.
    """
    try:
        value = parse_json(body)
    except ValueError as error:
        raise ConfigError(f"no JSON ({str(error)[:80]})", "the request", "send an object") from None
    if not isinstance(value, dict):
        raise ConfigError("no object of JSON", "the request", "send an object")
    return value


def whole(given: Given, name: str, low: int, high: int) -> int:
    """Return a whole number in ``low, ..., high``; anything else is a ConfigError."""
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, value, f"give a whole number from {low} to {high}")
    return value


def real(given: Given, name: str, low: float, high: float) -> float:
    """Return a number in ``[low, high]``; anything else is a ConfigError."""
    value = given.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(name, value, f"give a number from {low:g} to {high:g}")
    if not (math.isfinite(value) and low <= value <= high):
        raise _wrong(name, value, f"give a number from {low:g} to {high:g}")
    return float(value)


def word(given: Given, name: str, known: list[str]) -> str:
    """Return one of the words that are known; anything else is a ConfigError."""
    value = given.get(name)
    if not isinstance(value, str) or value not in known:
        raise _wrong(name, value, f"give one of {', '.join(known)}")
    return value


def content(given: Given, name: str) -> bytes:
    """Return the bytes of a file that a text holds in base64; anything else is a ConfigError."""
    value = given.get(name)
    if not isinstance(value, str):
        raise _wrong(name, value, "give a file in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(name, value, "give a file in base64") from None


def _wrong(name: str, value: object, remedy: str) -> ConfigError:
    shown = "nothing" if value is None else str(value)[:40]
    return ConfigError(f"{shown} is no {name}", "the request", remedy)
