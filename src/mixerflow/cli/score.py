"""``mixerflow score``: a row of scores for each of many images, shard by shard."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import tyro

from mixerflow import runs
from mixerflow.cli.evaluate import WeightsArguments
from mixerflow.cli.parse import parse
from mixerflow.cli.paths import check_path
from mixerflow.cli.reading import ReadingFlags, own_data, require_apart
from mixerflow.cli.score_watch import Watch, first_to_say
from mixerflow.cli.scores import (
    FEW,
    Summary,
    as_records,
    print_csv,
    print_table,
    require_own_csv,
    write_csv,
)
from mixerflow.errors import ConfigError, DataError, MixerFlowError, ResourceError
from mixerflow.processes import SINGLE, Processes, is_lost_process, joined
from mixerflow.runs.files import lock, require_writable, writing
from mixerflow.scoring import Scorer
from mixerflow.scoring.parts import (
    Totals,
    holds_parts,
    require_key,
    require_ours,
    totals_of,
    write_part,
)
from mixerflow.scoring.rows import Columns
from mixerflow.scoring.shards import SHARD_IMAGES, Found, find_shards
from mixerflow.scoring.tables import need_pyarrow
from mixerflow.scoring.work import Plan, Work, plan, write_parts
from mixerflow.signals import Stopped
from mixerflow.temporary import sweep
from mixerflow.terminal import tell


@dataclass(frozen=True, kw_only=True)
class _ScoreArguments(WeightsArguments, ReadingFlags):
    """Scores of images, one row an image: bits/dim, outlier scores, and the classes it tells."""

    run: tyro.conf.Positional[Path]
    """The run folder, or published weights."""
    data: str | None = None
    """Images: a parquet or Arrow file or a folder of them, a folder of images, a file or a set's
    name; by default the run's own."""
    out: Path | None = None
    """Folder with one parquet file for each shard; or FILE.parquet for one file of all."""
    csv: str | None = None
    """One CSV file of all rows instead, or - for stdout."""
    labels: bool = False
    """Give a class-conditional flow the images' labels: 1/K of the time, and no class
    probabilities."""
    column: str | None = None
    """Column of a table that holds the images: image or img, or the only one that can."""
    label_column: str | None = None
    """Column of the labels: label unless given."""
    id_column: str | None = None
    """Column of the rows' names: id where there is one; else the image's path, or a number."""
    shard_images: int | None = None
    """Images of a shard, where the images are in no tables; 10,000 unless given."""
    seed: int = 0
    """Seed of the noise."""
    batch: int = 128
    """Images at a time, in each process."""
    json: bool = False
    """Print the summary as JSON."""

    def check(self) -> None:
        """Refuse impossible settings with a ConfigError."""
        for flag, value in (("--batch", self.batch), ("--shard-images", self.shard_images)):
            if value is not None and value < 1:
                raise ConfigError(f"{value} images at a time", flag, "give at least 1")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"{self.seed}", "--seed", "give 0 or more, less than 2^63")
        if self.label_column is not None and not self.labels:
            raise ConfigError("no labels are read", "--label-column", "give --labels too")
        if self.out is not None and self.csv is not None:
            raise ConfigError("two outputs", "--csv", "give --csv or --out")
        if self.prints_csv and self.json:
            raise ConfigError("two things on stdout", "--json", "give --csv FILE")
        if self.out is not None and self.out.is_file() and not self.is_one_file:
            raise ConfigError("a file", f"--out {self.out}", "name a folder, or FILE.parquet")
        if self.out is not None:
            need_pyarrow()
            if self.is_one_file:
                require_ours(self.out)
        if self.csv is not None and not self.prints_csv:
            check_path(Path(self.csv), "--csv")
            require_own_csv(Path(self.csv))
            require_writable(Path(self.csv), named=True)

    @property
    def is_one_file(self) -> bool:
        """Whether `out` is one parquet file."""
        return self.out is not None and self.out.suffix == ".parquet" and not self.out.is_dir()

    @property
    def is_folder(self) -> bool:
        """Whether `out` is a folder of parts."""
        return self.out is not None and not self.is_one_file

    @property
    def prints_csv(self) -> bool:
        """Whether the CSV rows go to stdout."""
        return self.csv in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

    @property
    def columns(self) -> Columns:
        """The columns of tables that are named."""
        return Columns(self.column, self.label_column, self.id_column)


def main(arguments: list[str]) -> int:
    """Score images shard by shard, and print a summary.

    The exit code is 0, or 130 / 143 after a signal: parts that are written stay, and the same
    command goes on.
    """
    given = parse(_ScoreArguments, arguments, prog="mixerflow score")
    given.check()
    with joined() as processes:
        return _score(given, processes)


def _score(given: _ScoreArguments, processes: Processes) -> int:
    if processes.world > 1 and not given.is_folder:
        raise ConfigError("several processes and one output", "--out", "name a folder")
    work = _work(given, processes)
    if given.out is None and given.csv is None and work.images > FEW:
        what = f"{work.images:,} rows are too many for a terminal"
        raise ConfigError(what, "--out", "name a folder with --out, or a file with --csv")
    try:
        if given.is_folder:
            assert given.out is not None
            summary = _to_folder(given.out, work, processes, quiet=given.json)
        else:
            summary = _to_one(given, work)
    except Stopped as stopped:
        return stopped.exit_code
    except RuntimeError as error:
        if not is_lost_process(error) or first_to_say():
            raise
        return ResourceError.exit_code  # the process that is lost has said why
    except MixerFlowError as error:
        if first_to_say():
            raise
        return error.exit_code  # another process has said why all end
    except Exception:
        first_to_say()  # the others, which end with this one, say nothing
        raise
    if processes.main:
        summary.print(as_json=given.json, aside=given.prints_csv)
    return 0


def _work(given: _ScoreArguments, processes: Processes) -> Work:
    """Read the weights, find the shards, and say what was found."""
    metadata = runs.read_metadata(given.run)
    spec = own_data(metadata) if given.data is None else given.data
    require_apart(given.out, spec)
    scorer = Scorer(
        given.run,
        seed=given.seed,
        batch=given.batch,
        device=str(processes.place(runs.device_of(given.device))),
        labels=given.labels,
        which=given.checkpoint,
        average=not given.raw,
        reading=given.reading(metadata),
    )
    found = find_shards(
        spec,
        scorer.reading,
        columns=given.columns,
        size=given.shard_images or SHARD_IMAGES,
        labels=given.labels,
        classes=tuple(metadata["data"]["classes"]),
    )
    _require_used(given, found, spec)
    names = [(shard.name, shard.images) for shard in found.shards]
    if any(each != names for each in processes.collect(names)):
        remedy = "give all of them the same images"
        raise DataError("the processes see different shards", spec, remedy)
    work = Work(found.shards, scorer, given.columns)
    if processes.main:
        for line in found.others:
            tell(f"skipped {line}")
        plural = "" if work.images == 1 else "s"
        shards = f"{len(names):,} shard{'' if len(names) == 1 else 's'}"
        tell(f"{spec}: {work.images:,} image{plural} in {shards}")
        if scorer.note:
            left_out = "no outlier columns" if scorer.fitted is None else "left out"
            tell(f"{left_out}: {scorer.note}")
    return work


def _require_used(given: _ScoreArguments, found: Found, spec: str) -> None:
    """Refuse flags that say nothing of these images."""
    if found.tables and given.shard_images is not None:
        what = f"{spec} holds tables, of which each is a shard"
        raise ConfigError(what, "--shard-images", "leave it out")
    flags = ("--column", "--label-column", "--id-column")
    for flag, value in zip(flags, given.columns, strict=True):
        if value is not None and not found.tables:
            raise ConfigError(f"{spec} has no columns, it is no table", flag, "leave it out")


def _to_folder(folder: Path, work: Work, processes: Processes, *, quiet: bool) -> Summary:
    """Write the parts that a folder lacks, with all processes."""
    with contextlib.ExitStack() as stack:

        def begin() -> Plan:
            known = holds_parts(folder)  # before there is a lock of this command
            stack.enter_context(lock(folder))  # of all, and held until all have ended
            return plan(work, folder, known=known)

        planned = processes.from_main(processes.on_main(begin))
        assert planned is not None
        if processes.main:
            for name in planned.damaged:
                tell(f"{folder / name}: damaged, it is done again")
        with Watch(work, planned, processes, quiet=quiet) as watch:
            totals, watched = Totals(), watch.over(work)
            for each in write_parts(watched, folder, planned.left, watch.take):
                totals += each
                watch.finished()
            every = processes.collect(totals)
            return watch.summary(sum(every, planned.done), folder)


def _to_one(given: _ScoreArguments, work: Work) -> Summary:
    """Write one file of all rows, or print them."""
    with Watch(work, None, SINGLE, quiet=given.json) as watch:
        totals, watched, path = Totals(), watch.over(work), given.out
        rows = watched.all_rows(totals)
        if path is not None:
            key = work.whole_key()
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                sweep(path.parent)
            there = require_key(path, key, work.scorer.columns)
            before = totals_of(path, work.images) if there else None
            if before is not None:
                return watch.summary(before, path, nothing_done=True)
            write_part(path, key, work.scorer.columns, rows, named=True)
            return watch.summary(totals, path)
        if given.csv is not None:
            if given.prints_csv:
                print_csv(work.scorer, rows)
                return watch.summary(totals)
            write_csv(Path(given.csv), work.scorer, rows)
            return watch.summary(totals, Path(given.csv))
        few = [*rows]
        if given.json:
            return watch.summary(totals, rows=as_records(few))
    print_table(few)
    return watch.summary(totals)
