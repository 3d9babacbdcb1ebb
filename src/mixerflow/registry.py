"""Classes by name: what files and flags may build, and objects to JSON and back.

A registered class is either a *value*, a frozen dataclass whose fields are its settings, or a
module, whose constructor's arguments are remembered. `describe` writes an object that consists of
such down as JSON can keep it, ``{"type": "MLP", "width": 128, ...}``; `construct` builds it again.
A file names registered classes only: nothing is imported or run because a file says so.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

import torch
from torch import nn

from mixerflow.errors import CheckpointError, ConfigError

T = TypeVar("T")

_CLASSES: dict[str, type] = {}
"""Registered classes by their own names, as files have them."""
_WORDS: dict[type, str] = {}
"""What the command line calls a value's class."""
_GIVEN = "_made_with"
"""Attribute that keeps the arguments which a module was made with."""


class Unregistered(TypeError):
    """An object that `describe` cannot write down; says which, and the remedy."""


@overload
def register(kind: type[T], /) -> type[T]: ...
@overload
def register(word: str, /) -> Callable[[type[T]], type[T]]: ...
def register(kind: type | str, /) -> Any:
    """Let files and flags name a class: a decorator, with a word for flags or without.

    A module's constructor is wrapped, so that objects made from now on remember their arguments.

    Raises:
        ValueError: another class has that name.
    """
    if isinstance(kind, str):
        return lambda made: _register(made, kind)
    return _register(kind, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower())


def _register(kind: type[T], word: str) -> type[T]:
    name = kind.__name__
    other = _CLASSES.get(name)
    if other is not None and (other.__module__, other.__qualname__) != (
        kind.__module__,
        kind.__qualname__,
    ):
        raise ValueError(f"register: {other.__module__}.{name} has that name: choose another")
    _CLASSES[name], _WORDS[kind] = kind, word
    if not dataclasses.is_dataclass(kind) and "__init__" in kind.__dict__:
        _remember_arguments(kind)
    return kind


def _remember_arguments(kind: type) -> None:
    init = kind.__init__

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **settings: Any) -> None:  # noqa: ANN401
        self.__dict__.setdefault(_GIVEN, (args, settings))  # the outermost class's come first
        init(self, *args, **settings)

    kind.__init__ = wrapped


def forget_arguments(module: nn.Module) -> None:
    """For copies that are taken apart: let go of the parts that modules were made of."""
    for part in module.modules():
        part.__dict__.pop(_GIVEN, None)


def word_of(kind: type) -> str:
    """What the command line calls the class of a value."""
    return _WORDS[kind]


def choices(kind: type) -> dict[str, type]:
    """The registered values that are a `kind`, by their words."""
    return {
        word: each
        for each, word in _WORDS.items()
        if issubclass(each, kind) and dataclasses.is_dataclass(each)
    }


def is_value(thing: object) -> bool:
    """Whether that is an object of a registered dataclass."""
    return dataclasses.is_dataclass(thing) and type(thing) in _WORDS


def describe(thing: object) -> Any:  # noqa: ANN401
    """What `construct` builds `thing` from, for JSON.

    Raises:
        Unregistered: it has a part that is of no registered class, or is no setting; names it.
    """
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
    elif isinstance(thing, nn.Embedding):
        settings = {
            "num_embeddings": thing.num_embeddings,
            "embedding_dim": thing.embedding_dim,
        }
    else:
        settings = _arguments(thing)
    return {"type": name} | {key: describe(value) for key, value in settings.items()}


def _arguments(module: object) -> dict[str, Any]:
    """What a module's constructor was given, by name; generators, which are spent, left out."""
    if _GIVEN not in module.__dict__ and type(module).__init__ is not nn.Module.__init__:
        name = type(module).__name__
        raise Unregistered(f"this {name} was made before {name} was registered: make it after")
    args, settings = module.__dict__.get(_GIVEN, ((), {}))
    bound = inspect.signature(type(module)).bind(*args, **settings)
    return {k: v for k, v in bound.arguments.items() if not isinstance(v, torch.Generator)}


def construct(spec: Any, where: object = "run.json") -> Any:  # noqa: ANN401
    """What `describe` wrote, built; lists become tuples.

    Raises:
        CheckpointError: a class that is not registered, or settings that it does not take.
    """
    if isinstance(spec, list):
        return tuple(construct(each, where) for each in spec)
    if not isinstance(spec, dict):
        return spec
    name = spec.get("type", spec.get("name"))
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        remedy = "use the mixerflow that wrote it, or mixerflow.register your own class first"
        raise CheckpointError(f"unknown type {name!r}", where, f"{_nearest(name)}{remedy}")
    if "type" not in spec:
        return kind
    settings = {key: construct(each, where) for key, each in spec.items() if key != "type"}
    known = inspect.signature(kind).parameters
    for key in settings.keys() - known.keys():
        what = f"{name} has no setting {key!r}: written by another version"
        raise CheckpointError(what, where, f"{_nearest(key, known)}use the mixerflow that wrote it")
    _check_kinds(kind, settings, where)
    listed = [k for k, p in known.items() if p.kind is p.VAR_POSITIONAL]
    args = [each for key in listed for each in settings.pop(key, ())]
    try:
        return kind(*args, **settings)
    except (TypeError, ValueError) as error:
        what = f"settings that {name} does not take ({error})"
        raise CheckpointError(what, where, "use the mixerflow that wrote it") from error


def _check_kinds(kind: type, settings: dict[str, Any], where: object) -> None:
    """Raise a CheckpointError where a part of a value is of another kind than its field."""
    if not dataclasses.is_dataclass(kind):
        return
    hints = typing.get_type_hints(kind)
    for key, value in settings.items():
        kinds = parts_in(hints[key])
        for each in value if isinstance(value, tuple) else (value,):
            if is_value(each) and not isinstance(each, kinds):
                what = f"{kind.__name__}.{key} cannot be a {type(each).__name__}"
                raise CheckpointError(what, where, "restore the file from a copy")


def parts_in(hint: Any) -> tuple[type, ...]:  # noqa: ANN401
    """The dataclasses, and bases of such, that a field's type names."""
    if isinstance(hint, type):
        basic = hint.__module__ == "builtins" or issubclass(hint, (nn.Module, torch.Tensor))
        return () if basic else (hint,)
    return tuple(kind for each in typing.get_args(hint) for kind in parts_in(each))


def _nearest(word: object, known: Iterable[str] = _CLASSES) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.7)
    return f"is it {near[0]}? " if near else ""


def restore(kind: type[T], stored: dict[str, Any]) -> T:
    """An instance of the dataclass `kind` from its fields as JSON keeps them (lists for tuples).

    Raises:
        CheckpointError: fields that this version does not know.
    """
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
    try:
        return kind(**fields)
    except TypeError as error:
        what = f"settings of another version ({error})"
        raise CheckpointError(what, "run.json", "use the mixerflow that wrote it") from error


def evolve(value: T, changes: dict[str, Any]) -> T:
    """A value with some of its settings changed, of its parts too: ``{"flow.net.width": 64}``.

    A class in a part's place takes over the settings that both have, as `swap` does.

    Raises:
        ConfigError: a setting that is not there; names the nearest.
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
    """A value of another kind, with the settings of the old one that it has too.

    Of a part that does not fit there, those settings that the part in its place has.
    """
    new = kind()
    if not is_value(old) or isinstance(old, kind):
        return new if not isinstance(old, kind) else old
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
    """Every setting of a value by its path; of a part, under its own path, the class's word."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # pyright: ignore[reportArgumentType]
        path, inner = f"{prefix}{field.name}", getattr(value, field.name)
        if is_value(inner):
            found[path] = word_of(type(inner))
            found |= settings_of(inner, f"{path}.")
        else:
            found[path] = inner
    return found


_CLASSES["Embedding"] = nn.Embedding
