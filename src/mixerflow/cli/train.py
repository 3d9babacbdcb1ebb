"""``mixerflow train RECIPE``: train on images, or resume a run."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from mixerflow import recipes
from mixerflow.cli import pages
from mixerflow.cli.copies import keeping
from mixerflow.cli.early import value_of
from mixerflow.cli.fitted import with_data
from mixerflow.cli.parse import ComputingArguments, parse
from mixerflow.cli.paths import check_run_name, require_run
from mixerflow.cli.reading import ReadingFlags, announce
from mixerflow.cli.report import images_of
from mixerflow.data import Images, Splits
from mixerflow.data import load as load_data
from mixerflow.errors import ConfigError
from mixerflow.evaluate.codecs import coded_in_seconds
from mixerflow.models import from_spec
from mixerflow.named import is_name
from mixerflow.parts import Model
from mixerflow.processes import Processes, joined
from mixerflow.registry import restore
from mixerflow.runs import RunFolder, device_of, is_published
from mixerflow.runs.bounded import flow_within_reason
from mixerflow.runs.files import require_writable
from mixerflow.terminal import quoted, say
from mixerflow.training import TrainConfig, Trained, train
from mixerflow.training.validation import told

_USAGE = """usage: mixerflow train RECIPE [flags]     train; the same command again resumes
       mixerflow train RUN [flags]        resume the run in that folder

The flags below show the values of RECIPE ({name}); `mixerflow info` lists the recipes.
"""

_LONG = {
    "shuffle": "model.shuffle",
    "shuffle-seed": "model.shuffle.seed",
    "objective": "train.objective",
    "lambda": "train.objective.weight",
}
_SHORT = re.compile(r"^--(shuffle(?:[-_]seed)?|objective|lambda)(?=$|=)")


@dataclass(frozen=True)
class Arguments(ComputingArguments, ReadingFlags):
    """Train a recipe, or resume a run."""

    data: str
    """Images: a folder, an .npz, idx or CIFAR file, or a set's name."""
    model: Model
    train: TrainConfig
    out: Path | None = None
    """The run folder; runs/RECIPE unless given."""
    steps: int | None = None
    """Budget in optimiser steps, in place of the recipe's."""
    epochs: float | None = None
    """Budget in passes over the training images, in place of the recipe's."""
    minutes: float | None = None
    """Budget in time on this machine, in place of the recipe's."""
    shuffle: Literal["none", "local", "global"] | None = None
    """Short for --model.shuffle: the order of pixels in which the model sees images, one for all:
    of patches, and of the pixels in each ("local"), or of all pixels ("global")."""
    shuffle_seed: int | None = None
    """Short for --model.shuffle.seed: draws that order."""
    objective: Literal["likelihood", "hybrid", "frozen"] | None = None
    """Short for --train.objective: log p(x); log p(y | x) + lambda log p(x), with a head that tells
    the class y from the latents; or the head alone, on a flow that stays as it is."""
    weight: Annotated[float | None, tyro.conf.arg(name="lambda")] = None
    """Short for --train.objective.weight: lambda in units of 1/D."""
    weights: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Begin from published weights (also weights/NAME that ships, hf://OWNER/NAME) or a run folder:
    averaged weights of the same model, or a run of fewer layers, whose schedule and moments of the
    optimiser continue."""
    from_step: int | None = None
    """Resume from the checkpoint of this step rather than the last."""
    device: str = "auto"
    """Device: auto, cpu or cuda (experimental)."""
    cache: Path | None = None
    """Folder that keeps large image folders decoded; by default the user's cache folder."""


def main(arguments: list[str]) -> int:
    """Train; the exit code is 0, or 130 / 143 after a signal."""
    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"} & set(arguments):
            remedy = "name one; `mixerflow info` lists them"
            raise ConfigError("no recipe", "mixerflow train RECIPE", remedy)
        arguments = ["mixerflow-tiny", *arguments]
    name, *rest = arguments
    rest = [_SHORT.sub(lambda found: f"--{_LONG[found[1].replace('_', '-')]}", w) for w in rest]
    if {"-h", "--help"} & set(rest):
        say(*_USAGE.format(name=name).splitlines())
    check_run_name(name)
    pages.keep([*recipes.RECIPES], "recipes")
    if (Path(name) / "run.json").exists():
        recipe, given = _resumed(Path(name), rest)
    else:
        recipe, given = name, of_recipe(name, rest)
    with joined() as processes:
        return _train(recipe, given, arguments, processes)


def of_recipe(name: str, rest: list[str]) -> Arguments:
    """Return the arguments of a recipe, with the flags given."""
    if is_name(name) or is_published(Path(name)):
        remedy = f"mixerflow train RECIPE --from {quoted(name)}"
        raise ConfigError("weights, not a recipe", name, remedy)
    weight, objective = (value_of(f"--{_LONG[w]}", rest) for w in ("lambda", "objective"))
    if weight and objective != "hybrid":
        remedy = "give --objective hybrid"
        raise ConfigError("no lambda without a hybrid objective", "--lambda", remedy)
    named = recipes.recipe(name)
    default = Arguments(data=named.data, model=named.model, train=named.train)
    given = parse(Arguments, rest, prog=f"mixerflow train {name}", default=default)
    if given.out is None:
        given = replace(given, out=Path("runs") / name)
    return given


def _resumed(run: Path, rest: list[str]) -> tuple[str | None, Arguments]:
    """Return a run's recipe and arguments, with the flags given now."""
    metadata = RunFolder(run).read_started()
    source, origin = metadata.get("source"), metadata.get("origin")
    if source is None:
        raise ConfigError("not started on the command line", run, "call mixerflow.train again")
    model, _ = from_spec(metadata["model"], run / "run.json")
    flow_within_reason(metadata["model"], run / "run.json")
    default = Arguments(
        data=source["data"],
        model=model,
        train=restore(TrainConfig, metadata["train"]),
        out=run,
        **asdict(ReadingFlags().reading(metadata)),
        weights=Path(origin["path"]) if origin else None,
    )
    given = parse(Arguments, rest, prog=f"mixerflow train {run}", default=default)
    if given.out != run:
        raise ConfigError("a run resumes in its own folder", "--out", "leave it out")
    return metadata.get("recipe"), given


def _train(recipe: str | None, given: Arguments, command: list[str], processes: Processes) -> int:
    assert given.out is not None
    data, out = Path(given.data).resolve(), given.out.resolve()
    if given.data and data.is_dir() and (out == data or data in out.parents):
        raise ConfigError("the run would lie among its images", "--out", "name another folder")
    if is_published(out):
        raise ConfigError("published weights lie there", "--out", "name a folder of its own")
    if given.weights and not (out / "run.json").exists():  # of a run that resumes they may be gone
        require_run(given.weights, "--from")
    reading = given.reading({})
    splits = load_data(given.data, reading=reading, cache=given.cache)
    validation, words = _validation(given.train, splits)
    if given.train.objective.classifies and value_of("--model.head", command) == "none":
        raise ConfigError("no head for the objective to train", "--model.head", "leave it out")
    model = with_data(given.model, splits, head=given.train.objective.classifies)
    torch.manual_seed(given.train.seed)
    flow = model.build(splits.train.shape).to(processes.place(device_of(given.device)))
    config = _with_budget(given)
    announce(splits, words)
    result = train(
        flow,
        splits.train,
        validation=validation,
        out=given.out,
        config=config,
        begin=given.weights,
        from_step=given.from_step,
        metadata={
            "recipe": recipe,
            "command": quoted("mixerflow", "train", *command),
            "source": {"data": given.data, **asdict(reading)},
        },
    )
    if processes.main:
        _print_result(result, given.out, splits, minutes=config.minutes)
    return result.exit_code


def _with_budget(given: Arguments) -> TrainConfig:
    """Return the training settings with the budget that the flags give, if any."""
    budget = {name: getattr(given, name) for name in ("steps", "epochs", "minutes")}
    return replace(given.train, **budget) if set(budget.values()) != {None} else given.train


def _print_result(
    result: Trained, out: Path, splits: Splits, *, minutes: float | None = None
) -> None:
    if result.validation is None:
        resume = quoted("mixerflow", "train", out)
        say(f"stopped at step {result.step}; resume with: {resume}")
        return
    words = told(result.figures, result.validation.images) if result.figures else []
    figures = ", ".join([str(result.validation), *words])
    say(f"{result.step} steps, validation {figures}")
    with keeping("the report"):
        require_writable(out / "report.html")
        from mixerflow.report import (  # matplotlib takes a second that --help need not
            SCORED,
            make_report,
        )

        images, parts = images_of(RunFolder(out).read_started(), splits)
        few = result.validation.images if minutes is not None else SCORED
        few = min(few, SCORED)  # what the budget did not have time for, the page has not
        report = make_report(out, images, parts, most=few, code=coded_in_seconds)
        say(f"see {report.write(out / 'report.html')}")


def _validation(config: TrainConfig, splits: Splits) -> tuple[Images | None, str]:
    """Return the images to validate on, None for a part held out, and words for them."""
    own, test = splits.validation, splits.test
    if config.validation == "test":
        if test is None:
            where = splits.train.dataset_id
            raise ConfigError("no test images", where, "use --train.validation auto")
        return test, f"the test images{', not on their own' if own else ''}"
    if config.validation == "auto" and own is not None:
        return own, "their own validation images"
    return None, f"4 % of the training images, held out{', not on their own' if own else ''}"
