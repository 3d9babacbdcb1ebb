"""Scores a folder of parquet shards with Ray Data, on one machine or on a cluster.

    python examples/score_with_ray.py runs/clothes shards scores --id id

The shards hold images as the Hugging Face hub does, in a column ``struct{bytes, path}``, and a
column whose values differ in all rows. ``scores/scores`` gets parquet files of that column and the
columns of `mixerflow.Scorer`. Killed at any time, the same words go on: rows of finished files are
not scored again, and at the end each row is there once. See docs/scoring.md.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # tell nobody

import ray
from pyarrow.dataset import dataset
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

import mixerflow


def main() -> None:
    """Score all rows that have no scores yet."""
    given = arguments()
    # CPUs are a count to Ray: two more than there are, for files and the filter of finished rows
    here = {"num_cpus": (os.cpu_count() or 1) + 2, "include_dashboard": False}
    ray.init(given.address, log_to_driver=False, **(here if given.address == "local" else {}))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = CheckpointConfig(
        id_column=given.id,
        checkpoint_path=str(given.out.resolve() / "done"),
        delete_checkpoint_on_success=False,  # or the same words would score all rows once more
    )
    shards = ray.data.read_parquet(str(given.shards.resolve()))
    shards = shards.select_columns([given.id, given.column])
    blocks = shards.repartition(target_num_rows_per_block=given.rows)  # a block is what is kept
    scored = blocks.map_batches(
        mixerflow.Scorer,  # built once in each actor
        fn_constructor_args=[str(given.run.resolve())],
        fn_constructor_kwargs={"column": given.column, "threads": 1},
        batch_size=given.rows,
        num_cpus=given.cpus,
        compute=ActorPoolStrategy(size=given.actors),
    )
    scored.write_parquet(str(given.out.resolve() / "scores"))
    print(f"{dataset(given.out / 'scores').count_rows():,} rows in {given.out / 'scores'}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder or published weights")
    parser.add_argument("shards", type=Path, help="a folder of parquet files")
    parser.add_argument("out", type=Path, help="the folder of the scores")
    parser.add_argument("--id", default="id", help="a column whose values differ in all rows")
    parser.add_argument("--column", default="image", help="the column with the images")
    parser.add_argument("--rows", type=int, default=1024, help="rows of a block, and of a file")
    parser.add_argument("--actors", type=int, default=2, help="processes that score")
    parser.add_argument("--cpus", type=float, default=0.5, help="CPUs that an actor reserves")
    parser.add_argument("--address", default="local", help="of a running cluster, or `local`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
