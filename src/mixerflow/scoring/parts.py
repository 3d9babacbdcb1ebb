"""Parts: parquet files of scored rows, each with a key that says all that its figures depend on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixerflow.core import Flow
from mixerflow.errors import ConfigError, ResourceError
from mixerflow.evaluate import kind_of
from mixerflow.registry import describe
from mixerflow.runs.files import replacing, sealed, unsealed, writing
from mixerflow.scoring.rows import Columns, Scored
from mixerflow.scoring.scorer import Scorer
from mixerflow.scoring.tables import need_pyarrow
from mixerflow.version import __version__

KEY = "mixerflow"
"""The entry of a part's schema metadata that holds its key, as JSON."""
FORMAT = 1
_ROWS, _VALUES = 1 << 14, 1 << 20  # the most of a row group, which the writer has in memory
_REMEDY = "give another --out, or delete what is there"


@dataclass
class Totals:
    """Sums over rows.

    Attributes:
        images: rows.
        errors: those whose image could not be read.
        not_finite: those whose bits/dim is not finite.
        bits: the sum of the finite bits/dim.
        outliers: rows beyond each score's threshold.
    """

    images: int = 0
    errors: int = 0
    not_finite: int = 0
    bits: float = 0.0
    outliers: dict[str, int] = field(default_factory=dict)

    def add(self, bits: np.ndarray, bad: np.ndarray, flags: dict[str, np.ndarray]) -> None:
        """Add rows: bits/dim, whether there is an error, and the columns `outlier_...`."""
        finite = np.isfinite(bits) & ~bad
        self.images += len(bits)
        self.errors += int(bad.sum())
        self.not_finite += int((~finite & ~bad).sum())
        self.bits += float(bits[finite].sum())
        for name, each in flags.items():
            self.outliers[name] = self.outliers.get(name, 0) + int((each & ~bad).sum())

    def add_scored(self, scored: Scored) -> None:
        """Add scored rows."""
        columns = scored.columns
        self.add(columns["bits_per_dim"], scored.bad, flags_of(columns))

    def __add__(self, other: Totals) -> Totals:
        names = dict.fromkeys((*self.outliers, *other.outliers))
        outliers = {n: self.outliers.get(n, 0) + other.outliers.get(n, 0) for n in names}
        numbers = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("images", "errors", "not_finite", "bits")
        }
        return Totals(**numbers, outliers=outliers)

    @property
    def bits_per_dim(self) -> float | None:
        """The mean of the finite bits/dim; None where there is none."""
        count = self.images - self.errors - self.not_finite
        return self.bits / count if count else None


def flags_of(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns `outlier_NAME` by the scores' names."""
    start = "outlier_"
    return {k.removeprefix(start): v for k, v in columns.items() if k.startswith(start)}


def figures_of(flow: Flow) -> str:
    """Return the kind of a flow's bits/dim in words, such as "exact density, ..."."""
    return kind_of({"density": flow.density, "dequantization": flow.dequantization})


def settings_of(scorer: Scorer, columns: Columns) -> dict[str, Any]:
    """Return all that figures depend on but the images, and the rounding of the machine, as JSON.

    Args:
        scorer: the weights and how they score.
        columns: the names of the tables' columns, as asked for.
    """
    fitted = scorer.fitted
    thresholds = {} if fitted is None else {s.name: fitted.threshold(s.name) for s in fitted.scores}
    settings = {
        "format": FORMAT,
        "version": __version__,
        "weights_sha256": scorer.weights.sha256,
        "figures": figures_of(scorer.flow),
        "seed": scorer.seed,
        "batch": scorer.batch,
        "device": scorer.flow.device.type,
        "labels": scorer.labels,
        "reading": {k: v for k, v in describe(scorer.reading).items() if k != "type"},
        "columns": columns._asdict(),
        "classes": list(scorer.classes),
        "thresholds": {name: asdict(each) for name, each in thresholds.items()},
    }
    return unsealed(json.loads(sealed(settings)))  # as it is read back


def write_part(
    path: Path,
    key: dict[str, Any],
    names: Iterable[str],
    rows: Iterable[Scored],
    *,
    named: bool = False,
) -> None:
    """Write a part, whole or not at all: a file beside it, which takes its name when it is whole.

    Args:
        path: of the part.
        key: all that its figures depend on, as JSON: `settings_of`, and the shard.
        names: those of the columns, `Scorer.columns`.
        rows: what is scored, a few thousand rows of which are in memory.
        named: whether a person named the file: see `replacing`.

    Raises:
        ResourceError: it cannot be written.
    """
    pa = need_pyarrow()
    schema = _schema(pa, names, key)
    with writing(path.parent), replacing(path, named=named) as file:
        writer = pa.parquet.ParquetWriter(file, schema, write_page_checksum=True)
        with _closed(writer):
            for group in _grouped(rows, min(_ROWS, _VALUES // len(schema))):
                table = _table(pa, schema, group)
                writer.write_table(table, row_group_size=len(table))
            writer.close()


@contextlib.contextmanager
def _closed(writer: Any) -> Iterator[None]:  # noqa: ANN401
    """Close a parquet writer after an error too: else it would write when it is collected."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        writer.is_open = False


def _schema(pa: Any, names: Iterable[str], key: dict[str, Any]) -> Any:  # noqa: ANN401
    fields = [pa.field("id", pa.string(), nullable=False)]
    for name in names:
        fields.append(pa.field(name, pa.bool_() if name.startswith("outlier_") else pa.float64()))
    if key["reading"]["on_bad_image"] == "skip":
        fields.append(pa.field("error", pa.string()))
    return pa.schema(fields, {KEY: sealed(key, indent=None)})


def _grouped(rows: Iterable[Scored], most: int) -> Iterator[list[Scored]]:
    """Yield blocks of rows, together at most so many, or one block."""
    group, count = [], 0
    for each in rows:
        if group and count + len(each) > most:
            yield group
            group, count = [], 0
        group.append(each)
        count += len(each)
    if group:
        yield group


def _table(pa: Any, schema: Any, group: list[Scored]) -> Any:  # noqa: ANN401
    bad = np.concatenate([each.bad for each in group])
    arrays = []
    for name in schema.names:
        if name == "id":
            values = [row for each in group for row in each.ids]
            arrays.append(pa.array(values, pa.string()))
        elif name == "error":
            values = [row for each in group for row in each.errors]
            arrays.append(pa.array(values, pa.string()))
        else:
            values = np.concatenate([each.columns[name] for each in group])
            arrays.append(pa.array(values, schema.field(name).type, mask=bad))
    return pa.table(arrays, schema=schema)


def require_ours(path: Path, *, known: bool = False) -> Any | None:  # noqa: ANN401
    """Return the schema of a part; None where there is none, or a damaged one of ours.

    Args:
        path: of the part.
        known: whether the folder is known to hold parts, so that parquet cut short is one of them.

    Raises:
        ConfigError: a file that `mixerflow score` did not write, or may not have written.
        ResourceError: it cannot be read.
    """
    pa = need_pyarrow()
    if path.exists() and not path.is_file():
        raise ConfigError("no plain file", path, _REMEDY)  # a pipe would be waited for
    try:
        with path.open("rb") as file:
            if not (head := file.read(4)):
                return None
            schema = pa.parquet.read_schema(file) if head == b"PAR1" else None
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's; pyarrow's own have none
            remedy = "make it readable, or give another --out"
            raise ResourceError(f"cannot read ({error})", path, remedy) from error
        if known:
            return None  # cut short
        what = "damaged, or not written by `mixerflow score`"
        raise ConfigError(what, path, _REMEDY) from error
    if schema is None or KEY.encode() not in (schema.metadata or {}):
        raise ConfigError("not written by `mixerflow score`", path, _REMEDY)
    return schema


def holds_parts(folder: Path) -> bool:
    """Whether a folder is one that `mixerflow score` writes: it has a lock, or a part of ours.

    Raises:
        ConfigError: it has files named as parts are, of which none is known to be ours.
        ResourceError: one of them cannot be read.
    """
    if any((folder / name).exists() for name in (".lock", ".lock-exclusive")):
        return True
    refused: ConfigError | None = None
    for path in sorted(folder.glob("part-*.parquet")):
        try:
            if require_ours(path) is not None:
                return True
        except ConfigError as error:
            refused = refused or error
    if refused is not None:
        raise refused
    return False


def require_key(
    path: Path, key: dict[str, Any], names: Iterable[str], *, known: bool = False
) -> bool:
    """Whether a part is there with this key and these columns; False for none, or a damaged one.

    Raises:
        ConfigError: its key differs; names the first difference. Or it is not ours: see
            `require_ours`.
    """
    schema = require_ours(path, known=known)
    if schema is None:
        return False
    try:
        found = unsealed(json.loads(schema.metadata[KEY.encode()]))
    except ValueError:
        return False  # a key that is damaged
    mine, theirs = (dict(_flat(each)) for each in (key, found))
    for name in dict.fromkeys((*mine, *theirs)):
        if mine.get(name) != theirs.get(name):
            what = f"scored with another {name}: {_shown(theirs.get(name))}"
            raise ConfigError(f"{what} there, {_shown(mine.get(name))} now", path, _REMEDY)
    return schema.equals(_schema(need_pyarrow(), names, key))  # a name of a column may be damaged


def totals_of(path: Path, images: int) -> Totals | None:
    """Return the sums over a part, of which every page is verified; None for a damaged one."""
    pa, totals = need_pyarrow(), Totals()
    try:
        with path.open("rb") as opened:  # pyarrow opens no name that is not UTF-8
            file = pa.parquet.ParquetFile(opened, page_checksum_verification=True)
            for batch in file.iter_batches(_ROWS, use_threads=False):
                bits = batch.column("bits_per_dim")
                flags = {
                    name: np.asarray(batch.column(name).fill_null(False))
                    for name in batch.schema.names
                    if name.startswith("outlier_")
                }
                bad = np.asarray(bits.is_null())
                totals.add(np.asarray(bits.fill_null(np.nan)), bad, flags_of(flags))
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return None
    return totals if totals.images == images else None


def _flat(key: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in key.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
