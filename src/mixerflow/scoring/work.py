"""Shards to parts: what is done already, what is left, and the doing of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mixerflow.errors import ConfigError
from mixerflow.scoring.parts import Totals, require_key, settings_of, totals_of, write_part
from mixerflow.scoring.rows import Columns, Scored, Shard, score_rows
from mixerflow.scoring.scorer import Scorer


@dataclass(frozen=True)
class Work:
    """Shards that are scored.

    Attributes:
        shards: the shards.
        scorer: scores them.
        columns: the tables' columns, as asked for.
        on_rows: called with the number of rows after each block; what it raises stops.
    """

    shards: Sequence[Shard]
    scorer: Scorer
    columns: Columns = field(default_factory=Columns)
    on_rows: Callable[[int], None] = lambda _: None

    @property
    def images(self) -> int:
        """The number of all rows."""
        return sum(shard.images for shard in self.shards)

    def rows(self, shard: Shard, totals: Totals) -> Iterator[Scored]:
        """Yield a shard's scored rows, block by block, and add them to `totals`."""
        for scored in score_rows(shard, self.scorer):
            totals.add_scored(scored)
            yield scored
            self.on_rows(len(scored))

    def all_rows(self, totals: Totals) -> Iterator[Scored]:
        """Yield the scored rows of all shards in their order."""
        for shard in self.shards:
            yield from self.rows(shard, totals)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the keys of all parts have in common."""
        return settings_of(self.scorer, self.columns)

    def key(self, shard: Shard) -> dict[str, Any]:
        """Return the key of a shard's part."""
        told = {"name": shard.name, "images": shard.images, "digest": shard.digest}
        return {**self.settings, "shard": told}

    def whole_key(self) -> dict[str, Any]:
        """Return the key of one file of all shards."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.name} {shard.images} {shard.digest}\n".encode())
        told = {"name": "all", "images": self.images, "digest": digest.hexdigest()}
        return {**self.settings, "shard": told}


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        left: numbers of the shards without a part.
        done: sums over the parts that are there.
        damaged: names of files that are done again.
    """

    left: list[int]
    done: Totals
    damaged: list[str]


def plan(work: Work, folder: Path, *, known: bool = False) -> Plan:
    """Look at the parts that a folder has; every key is compared before any part is read.

    Args:
        work: the shards.
        folder: of the parts.
        known: whether it is known to hold parts: see `holds_parts`.

    Raises:
        ConfigError: a part with another key, or one of no shard, or a file that is not ours.
    """
    paths = [part_path(folder, shard) for shard in work.shards]
    if strange := sorted(set(folder.glob("part-*.parquet")) - set(paths)):
        remedy = "give another --out, or delete it"
        raise ConfigError("a part of no shard of these images", strange[0], remedy)
    there = [path.exists() for path in paths]
    whole = [
        here and require_key(path, work.key(shard), work.scorer.columns, known=known)
        for here, path, shard in zip(there, paths, work.shards, strict=True)
    ]
    left, done, damaged = [], Totals(), []
    for number, (path, shard) in enumerate(zip(paths, work.shards, strict=True)):
        totals = totals_of(path, shard.images) if whole[number] else None
        if totals is None:
            left.append(number)
            damaged += [path.name] if there[number] else []
        else:
            done += totals
    return Plan(left, done, damaged)


def part_path(folder: Path, shard: Shard) -> Path:
    """Return the file of a shard's part."""
    return folder / f"part-{shard.name}.parquet"


def write_parts(
    work: Work, folder: Path, left: Sequence[int], take: Callable[[], int]
) -> Iterator[Totals]:
    """Score the shards that are `left`, one part each; yield the sums over each when it is written.

    Args:
        work: the shards.
        folder: of the parts.
        left: numbers of shards.
        take: returns the next place in `left`, 0, 1, 2, ..., which nobody else takes; the work ends
            with the first beyond it.

    Raises:
        DataError: an image that cannot be read, see `score_rows`.
        ResourceError: a part cannot be written.
    """
    while (place := take()) < len(left):
        shard, totals = work.shards[left[place]], Totals()
        path = part_path(folder, shard)
        write_part(path, work.key(shard), work.scorer.columns, work.rows(shard, totals))
        yield totals
