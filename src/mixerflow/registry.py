"""Classes by name, which files and flags may build, and objects to JSON and back.

A registered class is either a *value*, a frozen dataclass whose fields are its settings, or a
module, whose constructor's arguments are recorded. `describe` turns an object that consists of such
classes into JSON, ``{"type": "MLP", "width": 128, ...}``; `construct` builds it again. A file can
name registered classes only: it cannot make the program import or run anything else.

Nothing here imports torch before modules are described.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import operator
import re
import sys
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from mixerflow.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

_CLASSES: dict[str, type] = {}
"""Registered classes by their own names, which files use."""
_WORDS: dict[type, str] = {}
"""The command line's words for registered classes."""
ARGUMENTS = "_made_with"
"""Attribute that keeps the constructor arguments of a module."""


class Unregistered(TypeError):
    """An object that `describe` cannot turn into JSON; the message names it and the remedy."""


@overload
def register(kind: type[T], /) -> type[T]: ...
@overload
def register(word: str, /) -> Callable[[type[T]], type[T]]: ...
def register(kind: type | str, /) -> Any:
    """Let files and flags name a class: a decorator, with a word for flags or without.

    A module's constructor is wrapped, so that objects made from now on record their arguments. A
    name that another class has is a ValueError.
    """
    if isinstance(kind, str):
        return lambda made: _register(made, kind)
    return _register(kind, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower())


def _register(kind: type[T], word: str) -> type[T]:
    name = kind.__name__
    other = _CLASSES.get(name, kind)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ValueError(f"register: {other.__module__}.{name} has that name: choose another")
    _CLASSES[name], _WORDS[kind] = kind, word
    if "__init__" in kind.__dict__:
        init: Callable[..., None] = kind.__init__
        is_module = not dataclasses.is_dataclass(kind)
        signature = inspect.signature(init)

        @functools.wraps(init)
        def wrapped(self: Any, *args: Any, **settings: Any) -> None:  # noqa: ANN401
            args, settings = plain(args), {name: plain(value) for name, value in settings.items()}
            if is_module:
                self.__dict__.setdefault(ARGUMENTS, (args, settings))  # the outermost class's
            elif type(self) is kind:
                _check_numbers(kind, signature.bind(self, *args, **settings).arguments)
            init(self, *args, **settings)

        kind.__init__ = wrapped
    return kind


def plain(value: Any) -> Any:  # noqa: ANN401
    """Return `value` with Python's own numbers for numpy's, and for arrays without axes.

    Tuples and lists are searched; what has nothing to replace is returned itself.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    torch: Any = sys.modules.get("torch")
    given: Any = value
    if torch is not None and type(given) is torch.Tensor and given.dim() == 0:
        return given.item() if given.device.type != "meta" else given
    if type(value) in (tuple, list):
        made = [plain(each) for each in value]
        return value if all(map(operator.is_, made, value)) else type(value)(made)
    return value


_NUMBERS = {
    "int": (int, "an integer"),
    "float": ((int, float), "a number"),
    "bool": (bool, "True or False"),
}


def _check_numbers(made: type, settings: dict[str, Any]) -> None:
    """Raise a ConfigError for a setting of a number's type that is something else."""
    for field in dataclasses.fields(made):
        kinds = str(getattr(field.type, "__name__", field.type)).split(" | ")
        if kinds[0] not in _NUMBERS or set(kinds[1:]) - {"None"} or field.name not in settings:
            continue
        given = settings[field.name]
        if given is None and "None" in kinds:
            continue
        kind, wanted = _NUMBERS[kinds[0]]
        if not isinstance(given, kind) or (kinds[0] != "bool" and isinstance(given, bool)):
            what = f"{made.__name__}: {field.name} cannot be {given!r}"
            raise ConfigError(what, field.name, f"give {wanted}")


def register_foreign(kind: type) -> None:
    """Let files name a module of another package that `describe` knows the settings of."""
    _CLASSES[kind.__name__] = kind


def forget_arguments(module: nn.Module) -> None:
    """Delete the recorded arguments of a copy, and with them the parts that it was made of."""
    for part in module.modules():
        part.__dict__.pop(ARGUMENTS, None)


def word_of(kind: type) -> str:
    """Return the command line's word for the class of a value."""
    return _WORDS[kind]


def setting_names() -> list[str]:
    """Return the names of the settings of all registered values."""
    values = filter(dataclasses.is_dataclass, _WORDS)
    return sorted({field.name for kind in values for field in dataclasses.fields(kind)})


def choices(kind: type) -> dict[str, type]:
    """Return the registered dataclasses that derive from `kind`, by their words."""
    return {
        word: each
        for each, word in _WORDS.items()
        if issubclass(each, kind) and dataclasses.is_dataclass(each)
    }


def is_value(thing: object) -> bool:
    """Whether `thing` is an object of a registered dataclass."""
    return dataclasses.is_dataclass(thing) and type(thing) in _WORDS


def describe(thing: object) -> Any:  # noqa: ANN401
    """Turn an object into the JSON from which `construct` builds it.

    A part that is of no registered class and is no setting raises Unregistered, which names it.
    """
    thing = plain(thing)
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (tuple, list, range)):
        return [describe(each) for each in thing]
    named = getattr(thing, "__name__", None)
    if named is not None and _CLASSES.get(named) is thing:  # a class, or a function
        return {"name": named}
    name = type(thing).__name__
    if _CLASSES.get(name) is not type(thing):
        raise Unregistered(f"{name} is not registered: call mixerflow.register({name})")
    if dataclasses.is_dataclass(thing):
        settings = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
    elif name == "Embedding":
        settings = {k: getattr(thing, k) for k in ("num_embeddings", "embedding_dim")}
    else:
        settings = _arguments(thing)
    return {"type": name} | {key: describe(value) for key, value in settings.items()}


def _arguments(module: object) -> dict[str, Any]:
    """Return a module's constructor arguments by name; generators cannot be reused."""
    import torch
    from torch import nn

    if ARGUMENTS not in module.__dict__ and type(module).__init__ is not nn.Module.__init__:
        name = type(module).__name__
        raise Unregistered(f"this {name} was made before {name} was registered: make it after")
    args, settings = module.__dict__.get(ARGUMENTS, ((), {}))
    bound = inspect.signature(type(module)).bind(*args, **settings)
    return {k: v for k, v in bound.arguments.items() if not isinstance(v, torch.Generator)}


def construct(spec: Any, where: object = "run.json", *, values: bool = False) -> Any:  # noqa: ANN401
    """Build the object that `describe` turned into JSON; lists become tuples.

    A class that is not registered or does not take its settings is a CheckpointError. So is a
    module with `values` or among a value's settings, before it takes memory.
    """
    if isinstance(spec, list):
        return tuple(construct(each, where, values=values) for each in spec)
    if not isinstance(spec, dict):
        return spec
    name = spec.get("type", spec.get("name"))
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        remedy = "use the mixerflow that wrote it, or mixerflow.register your own class first"
        raise CheckpointError(f"unknown type {name!r}", where, f"{_nearest(name)}{remedy}")
    if "type" not in spec:
        return kind
    if values and not dataclasses.is_dataclass(kind):
        remedy = "restore the file from a copy"
        raise CheckpointError(f"{name} in the place of a setting", where, remedy)
    values = dataclasses.is_dataclass(kind)
    given = {key: each for key, each in spec.items() if key != "type"}
    settings = {key: construct(each, where, values=values) for key, each in given.items()}
    known = inspect.signature(kind).parameters
    for key in settings.keys() - known.keys():
        what = f"{name} has no setting {key!r}: written by another version"
        raise CheckpointError(what, where, f"{_nearest(key, known)}use the mixerflow that wrote it")
    _check_kinds(kind, settings, where)
    listed = [k for k, p in known.items() if p.kind is p.VAR_POSITIONAL]
    args = [each for key in listed for each in settings.pop(key, ())]
    try:
        return kind(*args, **settings)
    except (TypeError, ValueError, ConfigError) as error:
        what = f"settings that {name} does not take ({error})"
        raise CheckpointError(what, where, "use the mixerflow that wrote it") from error


def _check_kinds(kind: type, settings: dict[str, Any], where: object) -> None:
    """Raise a CheckpointError if a part of a value does not fit the type of its field."""
    hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    for key, hint in hints.items():
        value = settings.get(key)
        for each in value if isinstance(value, tuple) else (value,):
            if is_value(each) and not isinstance(each, parts_in(hint)):
                what = f"{kind.__name__}.{key} cannot be a {type(each).__name__}"
                raise CheckpointError(what, where, "restore the file from a copy")


def parts_in(hint: Any) -> tuple[type, ...]:  # noqa: ANN401
    """Return the dataclasses, and base classes of dataclasses, in a field's type."""
    if isinstance(hint, type):
        torch = sys.modules.get("torch")
        basic = hint.__module__ == "builtins"
        basic |= torch is not None and issubclass(hint, (torch.nn.Module, torch.Tensor))
        return () if basic else (hint,)
    return tuple(kind for each in typing.get_args(hint) for kind in parts_in(each))


def _nearest(word: object, known: Iterable[str] = _CLASSES) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.7)
    return f"is it {near[0]}? " if near else ""


def restore(kind: type[T], stored: dict[str, Any]) -> T:
    """Build a value of the class `kind` as `construct` does, from JSON that may lack its type."""
    return construct(stored | {"type": kind.__name__})


def evolve(value: T, changes: dict[str, Any]) -> T:
    """Change settings of a value and of its parts: ``{"flow.net.width": 64}``.

    A class given for a part replaces it and keeps the settings that both have, as `swap` does. A
    setting that does not exist is a ConfigError, which names the nearest.
    """
    for path, new in changes.items():
        name, _, rest = path.partition(".")
        known = [f.name for f in dataclasses.fields(value)]  # pyright: ignore[reportArgumentType]
        if name not in known:
            near = _nearest(name, known)
            kind = type(value).__name__
            raise ConfigError(f"{kind} has no setting", path, f"{near}it has {', '.join(known)}")
        old = getattr(value, name)
        if rest:
            new = evolve(old, {rest: new})
        elif isinstance(new, type):
            new = swap(old, new)
        value = dataclasses.replace(value, **{name: new})  # pyright: ignore[reportArgumentType, reportCallIssue]
    return value


def swap(old: object, kind: type[T]) -> T:
    """Make a value of another kind, with the settings of the old one that both have.

    A part that does not fit in the new value is swapped for the new value's own kind of part.
    """
    if type(old) is kind:
        return old
    new = kind()
    if not is_value(old):
        return new
    hints = typing.get_type_hints(kind)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        if not hasattr(old, field.name):
            continue
        kept, default = getattr(old, field.name), getattr(new, field.name)
        if is_value(kept) and not isinstance(kept, parts_in(hints[field.name])):
            kept = swap(kept, type(default)) if is_value(default) else default
        changes[field.name] = kept
    return dataclasses.replace(new, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


def settings_of(value: object, prefix: str = "") -> dict[str, Any]:
    """List every setting of a value by its path; a part's own path has the word of its class."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # pyright: ignore[reportArgumentType]
        path, inner = f"{prefix}{field.name}", getattr(value, field.name)
        if is_value(inner):
            found[path] = word_of(type(inner))
            found |= settings_of(inner, f"{path}.")
        else:
            found[path] = inner
    return found
