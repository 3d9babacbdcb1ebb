"""Flags for parts: a flag chooses a part's class, further ones set what that class has.

``--model.flow maf --model.flow.net.width 64``: what is chosen keeps the settings that the part in
its place had too. An optional part is chosen away with ``none``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import tyro

from mixerflow.errors import ConfigError, nearest
from mixerflow.registry import choices, evolve, is_value, parts_in, word_of

T = TypeVar("T")


def choose(default: T, arguments: list[str]) -> tuple[T, list[str]]:
    """Defaults with the parts that `arguments` choose, and the arguments that are left.

    Raises:
        ConfigError: a word that is no part of that kind; names the nearest.
    """
    rest, chosen, index = [], {}, 0
    while index < len(arguments):
        flag, equals, word = arguments[index].partition("=")
        path = flag.removeprefix("--").replace("-", "_")
        index += 1
        if not flag.startswith("--") or not _may_choose(default, path):
            rest.append(arguments[index - 1])
            continue
        if not equals:
            if index == len(arguments) or arguments[index].startswith("--"):
                raise ConfigError("no value", flag, "name the part to use")
            word, index = arguments[index], index + 1
        chosen[path] = (flag, word)
    for path in sorted(chosen, key=lambda path: path.count(".")):  # a part before what it holds
        flag, word = chosen[path]
        above, _, name = path.rpartition(".")
        hint = _hints(_at(default, above)).get(name)
        if hint is not None and not _words(hint):  # a setting here, a part of another class's
            rest += [flag, word]
            continue
        default = evolve(default, {path: _class_of(default, path, flag, word)})
    return _switched_on(default, rest), rest


def _may_choose(default: object, path: str) -> bool:
    """Whether a path is that of a part, now or once another is chosen above it."""
    name, _, rest = path.partition(".")
    hint = _hints(default).get(name)
    if hint is None:
        return False
    if not rest:
        return bool(_words(hint))
    inner = getattr(default, name, None)
    held = [inner] if inner is not None else []
    held += [kind() for kind in _words(hint).values()]
    return any(_may_choose(each, rest) for each in held if dataclasses.is_dataclass(each))


def _class_of(default: object, path: str, flag: str, word: str) -> type | None:
    above, _, name = path.rpartition(".")
    holder = _at(default, above)
    hint = _hints(holder).get(name)
    if hint is None:
        what = f"{word_of(type(holder))} has no part of that name"
        raise ConfigError(what, flag, f"choose another for --{above.replace('_', '-')} first")
    known: dict[str, type | None] = dict(_words(hint))
    if type(None) in typing.get_args(hint):
        known.setdefault("none", None)
    asked = _plain(word)
    for each, kind in known.items():
        if _plain(each) == asked:
            return kind
    raise ConfigError(f"no such part {word!r}", flag, nearest(word.lower(), known, cutoff=0.5))


def _switched_on(default: T, arguments: list[str]) -> T:
    """With those optional parts there of which a setting is given, where there is just one kind."""
    for argument in arguments:
        path = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        names = path.split(".") if argument.startswith("--") else []
        for depth in range(1, len(names)):
            above, name = ".".join(names[: depth - 1]), names[depth - 1]
            holder = _at(default, above)
            hint = _hints(holder).get(name) if holder is not None else None
            if hint is None or getattr(holder, name) is not None or not _words(hint):
                continue
            kinds = _words(hint)
            if len(kinds) > 1:
                flag = f"--{'.'.join(names[:depth])}".replace("_", "-")
                what = "no part there to set anything of"
                raise ConfigError(what, flag, f"choose one of {', '.join(kinds)} with it first")
            default = evolve(default, {".".join(names[:depth]): next(iter(kinds.values()))})
    return default


def _at(value: object, path: str) -> object:
    for name in filter(None, path.split(".")):
        value = getattr(value, name, None)
    return value


def _hints(value: object) -> dict[str, Any]:
    return typing.get_type_hints(type(value)) if dataclasses.is_dataclass(value) else {}


def _words(hint: Any) -> dict[str, type]:  # noqa: ANN401
    """The parts that a field may hold, by their words."""
    return {word: each for kind in parts_in(hint) for word, each in choices(kind).items()}


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")


def concrete(value: Any) -> tuple[type, Any]:  # noqa: ANN401
    """A dataclass that tyro can make flags of, for a value with the parts it has; and that value.

    Each part is a nested dataclass of its own class, and a field beside it, of which the help tells
    the words; `real` undoes this.
    """
    kind, hints = type(value), typing.get_type_hints(type(value), include_extras=True)
    annotations: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        hint, given = hints[field.name], getattr(value, field.name)
        words = _words(hint)
        if len(words) > 1 or (words and type(None) in typing.get_args(hint)):
            annotations[f"{field.name}_"], settings[f"{field.name}_"] = _choice(
                kind, field.name, hint, given
            )
        if words and given is None:
            hint, shown = tyro.conf.Suppress[None], None
        elif is_value(given):
            hint, shown = concrete(given)
        else:
            hint, shown = _flat(hint, given)
        annotations[field.name], settings[field.name] = hint, shown
    fields = {name: dataclasses.field(kw_only=True) for name in annotations}
    body = {"__annotations__": annotations, "__doc__": kind.__doc__, "__post_init__": _nothing}
    made: Any = dataclasses.dataclass(frozen=True)(
        type(kind.__name__, (kind,), {**body, **fields, "__module__": kind.__module__})
    )
    return made, made(**settings)


def _nothing(self: object) -> None:
    """What is wrong with settings is said when the real value is made."""


def _choice(kind: type, name: str, hint: Any, given: object) -> tuple[Any, str]:  # noqa: ANN401
    """The field that tells of a part's words, and the word of the one that is there."""
    words = [*_words(hint), *(["none"] if type(None) in typing.get_args(hint) else [])]
    word = "none" if given is None else word_of(type(given))
    one: Any = Literal[tuple(dict.fromkeys([*words, word]))]  # pyright: ignore[reportInvalidTypeForm]
    return Annotated[one, tyro.conf.arg(name=name, help=_said_of(kind, name))], word


def _said_of(kind: type, name: str) -> str:
    """The docstring below a field."""
    for each in kind.__mro__:
        if name not in inspect.get_annotations(each):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in itertools.pairwise(body.body):
            named = isinstance(field, ast.AnnAssign) and ast.unparse(field.target) == name
            if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
    return ""


def _flat(hint: Any, given: object) -> tuple[Any, object]:  # noqa: ANN401
    """A hint as tyro takes it: of one or several, several; of sides for each axis, words as 2x4."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        several = [each for each in typing.get_args(hint) if typing.get_origin(each) is tuple]
        if several:
            hint = several[0]
    inner = typing.get_args(hint)[:1]
    if typing.get_origin(hint) is tuple and inner and tuple in map(_origin, _members(inner[0])):
        assert isinstance(given, tuple)
        return tuple[str, ...], tuple("x".join(map(str, _tuple(each))) for each in given)
    return hint, given


def _members(hint: Any) -> Iterator[Any]:  # noqa: ANN401
    yield from typing.get_args(hint) or (hint,)


def _origin(hint: Any) -> Any:  # noqa: ANN401
    return typing.get_origin(hint)


def _tuple(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)


def real(parsed: Any, value: T, prefix: str = "--") -> T:  # noqa: ANN401
    """What tyro made of `concrete`, as a value of the class that `value` has.

    Raises:
        ConfigError: settings that cannot be; names the flags' part.
    """
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(value):  # pyright: ignore[reportArgumentType]
        given, old = getattr(parsed, field.name), getattr(value, field.name)
        path = f"{prefix}{field.name.replace('_', '-')}"
        if is_value(old):
            given = real(given, old, f"{path}.")
        elif isinstance(old, tuple) and isinstance(given, tuple) and given:
            if isinstance(given[0], str) and not isinstance(old[0], str):
                given = tuple(_sides(word, path) for word in given)
        settings[field.name] = given
    try:
        return type(value)(**settings)
    except ValueError as error:
        names = [f.name for f in dataclasses.fields(value) if f.name in str(error).split()]  # pyright: ignore[reportArgumentType]
        where = f"{prefix}{names[0].replace('_', '-')}" if names else prefix.rstrip(".-")
        raise ConfigError(str(error), where or "flags", "choose another value") from error


def _sides(word: str, flag: str) -> int | tuple[int, ...]:
    try:
        sides = tuple(map(int, word.split("x")))
    except ValueError:
        raise ConfigError(f"{word!r} is no side", flag, "give 4, or 2x4 for each axis") from None
    return sides[0] if len(sides) == 1 else sides
