"""What the subfolders of a folder are, by their names: splits, classes, or not a person's images.

A name holds a word for a split (`train`, `test`, `dev`, ...) and perhaps more: `train2017`,
`training_set`, `seg_test`, `trainA`. Where names speak of held-out images but do not say which
belong to which, nothing is guessed: it is an error that asks.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from mixerflow.errors import DataError

_PART = r"(sets?|data|split|images?|imgs?)?"
_ROLES: dict[str, re.Pattern[str]] = {
    "train": re.compile(rf"(train(ing|val)?|trn){_PART}"),
    "test": re.compile(
        r"(tests?|testing|tst|eval(uation)?|holdout|unseen|withheld|gallery|query|probe"
        rf"|submissions?){_PART}"
    ),
    "validation": re.compile(rf"((mini)?val(id(ation)?)?|vld|dev(el(opment)?)?){_PART}"),
}
# Words that say nothing after a split's word: `test_images` is a test, `test_tube` is a tube.
_PLAIN = re.compile(
    r"\d+|[a-z]|sets?|data(set)?|split|part|fold|batch|raw|full|small|large|new|final|orig(inal)?"
    r"|images?|imgs?|im|pictures?|pics?|photos?|jpe?gs?|pngs?|files?|hr|lr|rgb|gr[ae]y|public"
    r"|private|clean|other|std|mix"
)
_SHORT: dict[str, str] = {"tr": "train", "ts": "test", "te": "test", "va": "validation"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_HELD_OUT = re.compile(r"(held|hold)[-_ .]?out", re.IGNORECASE)

_ANNOTATIONS = re.compile(r"ground[-_ ]?truths?|gt|masks?|annotations?", re.IGNORECASE)
_FOREIGN = re.compile(
    r"@eadir|@tmp|@recycle|@sharebin|@recently-snapshot|[@#]snapshot|#recycle|\$recycle\.bin"
    r"|recycler|system volume information|lost\+found|found\.\d+|__macosx|__pycache__|thumbs\.db"
    r"|icon\r|_gsdata_",
    re.IGNORECASE,
)


class Layout(NamedTuple):
    """The folders of the splits; `notes` has a line for each folder that is not read."""

    train: Path
    test: Path | None = None
    validation: Path | None = None
    notes: tuple[str, ...] = ()


def foreign_folders(root: Path) -> list[Path]:
    """List the folders that systems and programs put among a person's images."""
    found, seen = [], set()
    for name, subfolders, _ in os.walk(root, followlinks=True):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:  # a link leads back
            subfolders.clear()
        seen.add((status.st_dev, status.st_ino))
        foreign = [each for each in subfolders if _FOREIGN.fullmatch(each)]
        found += [Path(name, each) for each in foreign]
        subfolders[:] = [s for s in subfolders if s not in foreign and not s.startswith(".")]
    return sorted(found)


def find_layout(root: Path, files: Sequence[Path]) -> Layout:
    """Say which folder below `root` has which split; without splits `root` is the training set.

    Args:
        root: the folder.
        files: all image files below it.

    Raises:
        DataError: names of held-out images that cannot be told from classes or from each other, or
            images beside the splits.
    """
    tops = {path.relative_to(root).parts[0] for path in files if path.parent != root}
    if any(_is_train(each) for each in tops):  # a split without images is an error, not passed over
        tops |= {path.name for path in root.iterdir() if path.is_dir() and _role(path.name)}
    names = sorted(tops)
    splits = _splits(names, root)
    if not splits:
        _refuse_deeper_splits(root, files)
        return Layout(root)
    unused = [each for each in names if _ANNOTATIONS.fullmatch(each)]
    known = {*splits.values(), *unused}
    for path in files:
        if path.relative_to(root).parts[0] not in known:
            what = f"an image outside {_listed(splits.values())}"
            raise DataError(what, path, "move it into one of them, or away")
    notes = tuple(f"{root / each}: not used, annotations rather than images" for each in unused)
    return Layout(**{role: root / name for role, name in splits.items()}, notes=notes)


def _is_train(name: str) -> bool:
    found = _role(name)
    return found is not None and found[0] == "train"


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(_HELD_OUT.sub("holdout", name))]


def _role(name: str) -> tuple[str, bool, str] | None:
    """Return the split that a folder's name speaks of, if any.

    With it: whether that is what the folder is, as in `seg_test` or `test_images` rather than
    `test_tube`; and the other words of the name, which the splits of one set share.
    """
    words = _words(name)
    roles: list[tuple[str, int]] = [
        (role, place)
        for place, word in enumerate(words)
        for role, pattern in _ROLES.items()
        if pattern.fullmatch(word)
    ]
    for place, (word, after) in enumerate(itertools.pairwise(words)):
        if after in _SHORT and _PLAIN.fullmatch(word):  # imagesTr, imagesTs
            roles.append((_SHORT[after], place + 1))
    if not roles:
        return None
    kinds, places = {role for role, _ in roles}, {place for _, place in roles}
    role = roles[0][0]
    if len(kinds) > 1:  # `train_val` trains, `test-dev` tests, `train_test` may be anything
        kinds.discard("validation")
        role = kinds.pop() if len(kinds) == 1 else "unclear"
    surely = all(_PLAIN.fullmatch(word) for word in words[max(places) + 1 :])
    rest = " ".join(word for place, word in enumerate(words) if place not in places)
    return role, surely, rest


def _splits(names: Sequence[str], root: Path) -> dict[str, str]:
    """Return the folder of each split by its role; empty where all are classes."""
    roles = {name: found for name in names if (found := _role(name))}
    shared: dict[str, set[str]] = {}
    for role, _, rest in roles.values():
        shared.setdefault(rest, set()).add(role)
    named = {n: r for n, (r, surely, rest) in roles.items() if surely or len(shared[rest]) > 1}
    held_out = {name for name, (role, _, _) in roles.items() if role != "train"}
    if held_out - named.keys() and len(roles) == len(names):  # all are splits, or none
        raise _unclear(names, root)
    trains = [name for name, role in named.items() if role == "train"]
    if not held_out & named.keys():
        if len(trains) == len(names) > 1:
            raise _unclear(names, root)
        return {"train": trains[0]} if trains and len(names) == 1 else {}
    by_role = {role: name for role in _ROLES for name, each in named.items() if each == role}
    if len(trains) != 1 or len(by_role) < len(named):
        raise _unclear(named, root)
    if "validation" in by_role and "test" not in by_role:  # the only held-out images are the test
        by_role["test"] = by_role.pop("validation")
    return by_role


def _unclear(named: Iterable[str], root: Path) -> DataError:
    first, *more = sorted(named, key=lambda name: ("train" not in name.lower(), name))
    what = f"named like splits, and not clear which is what: {_listed([first, *more])}"
    remedy = f"name the folder of the images itself, such as {root / first}, leave one train and"
    return DataError(what, root, f"{remedy} one test folder here, or rename classes")


def _refuse_deeper_splits(root: Path, files: Iterable[Path]) -> None:
    """Refuse folders of held-out images below the first level."""
    seen: set[Path] = set()
    for path in files:
        parent = path.parent
        while parent not in seen and parent != root and parent.parent != root:
            seen.add(parent)
            found = _role(parent.name)
            if found and found[0] != "train" and found[1]:
                what = "a folder named like held-out images, below what would be trained on"
                remedy = f"name the folder of the images itself, such as {parent.parent}"
                raise DataError(what, parent, f"{remedy}, or rename it")
            parent = parent.parent


def _listed(names: Iterable[str]) -> str:
    *first, last = [f"{name}/" for name in names]
    return f"{', '.join(first)} and {last}" if first else last
