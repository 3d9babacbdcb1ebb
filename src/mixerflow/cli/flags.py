"""Flags for parts: a flag chooses a part's class, further flags set the settings of that class.

``--model.flow maf --model.flow.net.width 64``: a chosen part takes over the settings of the part
that it replaces. The word ``none`` removes an optional part.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from typing import Annotated, Any, Literal, TypeVar

import tyro

from mixerflow.errors import ConfigError, nearest
from mixerflow.registry import choices, evolve, is_value, parts_in, word_of

T = TypeVar("T")


def choose_parts(default: T, arguments: list[str]) -> tuple[T, list[str]]:
    """Change the parts that `arguments` choose; return the new value and the other arguments.

    A word that is no part of that kind is a ConfigError, which names the nearest part.
    """
    rest, chosen, index = [], {}, 0
    while index < len(arguments):
        flag, equals, word = arguments[index].partition("=")
        path = flag.removeprefix("--").replace("-", "_")
        index += 1
        if not flag.startswith("--") or not _may_be_part(default, path):
            rest.append(arguments[index - 1])
            continue
        if not equals:
            if index == len(arguments) or arguments[index].startswith("--"):
                raise ConfigError("no value", flag, "name the part to use")
            word, index = arguments[index], index + 1
        chosen[path] = (flag, word)
    for path in sorted(chosen, key=lambda path: path.count(".")):  # outer parts first
        flag, word = chosen[path]
        parent, _, name = path.rpartition(".")
        hint = _hints(_part_at(default, parent)).get(name)
        if hint is not None and not _classes(hint):  # a setting of the class chosen now
            rest += [flag, word]
            continue
        default = evolve(default, {path: _class_of(default, path, flag, word)})
    return _add_optional_parts(default, rest), rest


def _may_be_part(default: object, path: str) -> bool:
    """Whether a path is a part's, now or once another part is chosen for one of its parents."""
    name, _, rest = path.partition(".")
    hint = _hints(default).get(name)
    if hint is None or not rest:
        return bool(_classes(hint))
    parts = [getattr(default, name, None), *(kind() for kind in _classes(hint).values())]
    return any(_may_be_part(part, rest) for part in parts)


def first_choice(default: object, path: str) -> str:
    """Return the remedy for a setting that another choice of a part has; empty without one."""
    names = path.split(".")
    for depth in range(len(names) - 1, 0, -1):
        part, rest = ".".join(names[:depth]), names[depth:]
        classes = _classes(_hints(_part_at(default, part.rpartition(".")[0])).get(names[depth - 1]))
        words = [word for word, kind in classes.items() if _has(kind, rest)]
        if words:
            flag = f"--{part}".replace("_", "-")
            return f"choose {' or '.join(f'{flag} {word}' for word in words)} first"
    return ""


def _has(kind: type, names: list[str]) -> bool:
    """Whether a class of parts has a setting, itself or in a part of its own."""
    if not dataclasses.is_dataclass(kind) or names[0] not in _hints(kind):
        return False
    inner = _classes(_hints(kind)[names[0]]).values()
    return len(names) == 1 or any(_has(each, names[1:]) for each in inner)


def _class_of(default: object, path: str, flag: str, word: str) -> type | None:
    """Return the class that a word chooses for the part at a path; None for `none`."""
    parent, _, name = path.rpartition(".")
    holder = _part_at(default, parent)
    hint = _hints(holder).get(name)
    if hint is None:
        what = f"{word_of(type(holder))} has no part of that name"
        raise ConfigError(what, flag, f"choose another for --{parent.replace('_', '-')} first")
    known: dict[str, type | None] = dict(_classes(hint))
    if type(None) in typing.get_args(hint):
        known.setdefault("none", None)
    for each, kind in known.items():
        if _normalized(each) == _normalized(word):
            return kind
    raise ConfigError(f"no such part {word!r}", flag, nearest(word.lower(), known, cutoff=0.5))


def _add_optional_parts(default: T, arguments: list[str]) -> T:
    """Add each absent part that `arguments` set something of, where it has one possible class."""
    for argument in arguments:
        path = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        names = path.split(".") if argument.startswith("--") else []
        for depth in range(1, len(names)):
            path, name = ".".join(names[:depth]), names[depth - 1]
            holder = _part_at(default, ".".join(names[: depth - 1]))
            classes = _classes(_hints(holder).get(name))
            if not classes or getattr(holder, name) is not None:
                continue
            if len(classes) > 1:
                what = "no part there to set anything of"
                remedy = f"choose one of {', '.join(classes)} with it first"
                raise ConfigError(what, f"--{path}".replace("_", "-"), remedy)
            default = evolve(default, {path: next(iter(classes.values()))})
    return default


def _part_at(value: object, path: str) -> object:
    for name in filter(None, path.split(".")):
        value = getattr(value, name, None)
    return value


def _hints(value: object) -> dict[str, Any]:
    kind = value if isinstance(value, type) else type(value)
    return typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}


def _classes(hint: Any) -> dict[str, type]:  # noqa: ANN401
    """Return the classes of parts that a field may hold, by their words."""
    return {word: each for kind in parts_in(hint) for word, each in choices(kind).items()}


def _normalized(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def for_tyro(value: Any) -> tuple[type, Any]:  # noqa: ANN401
    """Make a dataclass that tyro makes flags of, and its instance with the settings of `value`.

    Each part is a nested dataclass of its own class, and has a field beside it whose help lists the
    words of the part; `from_tyro` is the inverse.
    """
    kind, hints = type(value), typing.get_type_hints(type(value), include_extras=True)
    annotations: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        name, hint, given = field.name, hints[field.name], getattr(value, field.name)
        words, optional = [*_classes(hint)], type(None) in typing.get_args(hint)
        if len(words) > 1 or (words and optional):
            word = "none" if given is None else word_of(type(given))
            listed = dict.fromkeys([*words, *(["none"] if optional else []), word])
            one: Any = Literal[tuple(listed)]  # pyright: ignore[reportInvalidTypeForm]
            flag = tyro.conf.arg(name=name, help=_docstring(kind, name))
            annotations[f"{name}_"], settings[f"{name}_"] = Annotated[one, flag], word
        if words and given is None:
            hint = tyro.conf.Suppress[None]
        elif is_value(given):
            hint, given = for_tyro(given)
        else:
            hint, given = _flat_hint(hint, given)
        annotations[name], settings[name] = hint, given
    body = {name: dataclasses.field(kw_only=True) for name in annotations} | {
        "__annotations__": annotations,
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__post_init__": lambda self: None,  # `from_tyro` checks the settings
    }
    made: Any = dataclasses.dataclass(frozen=True)(type(kind.__name__, (kind,), body))
    return made, made(**settings)


def _docstring(kind: type, name: str) -> str:
    """Return the docstring below a field."""
    for each in kind.__mro__:
        if name not in inspect.get_annotations(each):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in itertools.pairwise(body.body):
            is_field = isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name
            if is_field and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
    return ""


def _flat_hint(hint: Any, given: object) -> tuple[Any, object]:  # noqa: ANN401
    """Return type and value for tyro: a tuple in place of a union, `2x4` for a tuple in it."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        tuples = [each for each in typing.get_args(hint) if typing.get_origin(each) is tuple]
        hint = tuples[0] if tuples else hint
    inner = typing.get_args(hint)[:1] if typing.get_origin(hint) is tuple else ()
    members = [member for each in inner for member in typing.get_args(each) or (each,)]
    if not any(typing.get_origin(member) is tuple for member in members):
        return hint, given
    assert isinstance(given, tuple)
    sides = [each if isinstance(each, tuple) else (each,) for each in given]
    return tuple[str, ...], tuple("x".join(map(str, axes)) for axes in sides)


def from_tyro(parsed: Any, value: T, prefix: str = "--") -> T:  # noqa: ANN401
    """Turn an instance of the class of `for_tyro` into one of the class of `value`.

    Impossible settings are a ConfigError, which names their flags.
    """
    settings: dict[str, Any] = {}
    fields = dataclasses.fields(value)  # pyright: ignore[reportArgumentType]
    for field in fields:
        given, old = getattr(parsed, field.name), getattr(value, field.name)
        path = f"{prefix}{field.name.replace('_', '-')}"
        if is_value(old):
            given = from_tyro(given, old, f"{path}.")
        elif isinstance(old, tuple) and isinstance(given, tuple) and given:
            if isinstance(given[0], str) and not isinstance(old[0], str):
                given = tuple(_sides(word, path) for word in given)
        settings[field.name] = given
    try:
        return type(value)(**settings)
    except ValueError as error:
        names = [field.name for field in fields if field.name in str(error).split()]
        where = f"{prefix}{names[0].replace('_', '-')}" if names else prefix.rstrip(".-")
        raise ConfigError(str(error), where or "flags", "choose another value") from error


def _sides(word: str, flag: str) -> int | tuple[int, ...]:
    try:
        sides = tuple(map(int, word.split("x")))
    except ValueError:
        raise ConfigError(f"{word!r} is no side", flag, "give 4, or 2x4 for each axis") from None
    return sides[0] if len(sides) == 1 else sides
