"""``mixerflow evaluate --fid``: samples beside images, by features of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table

from mixerflow.caches import user_cache
from mixerflow.core import Flow
from mixerflow.data import Images
from mixerflow.errors import ConfigError
from mixerflow.evaluate import FileFeatures, FrechetFigure, compare, load_features
from mixerflow.evaluate.comparison import SAMPLES
from mixerflow.processes import Processes
from mixerflow.progress import ProgressBar
from mixerflow.signals import Interrupt, Stopped
from mixerflow.terminal import say, show, tell


@dataclass(frozen=True, kw_only=True)
class FrechetFlags:
    """Whether samples are compared with the images, and by which features."""

    fid: bool = False
    """Draw samples too, and compare them with the images: FID, precision and recall."""
    features: Path | None = None
    """Weights of FID's Inception net, or another net as a .pt2 file of torch.export; a path, or
    hub:OWNER/NAME/FILE."""
    trust: bool = False
    """Run the program that a .pt2 file of --features is: only if you trust who wrote it."""
    fid_samples: int | None = None
    """Number of samples; by default that of the images, at most 10,000."""

    def load_features(self, device: torch.device, processes: Processes) -> FileFeatures | None:
        """Load the net, before any long work; None without ``--fid``.

        Raises:
            ConfigError: no net is given, flags that need ``--fid``, or several processes.
            CheckpointError: the file is no net.
        """
        if not self.fid:
            given = {
                "--fid-samples": self.fid_samples is not None,
                "--features": self.features is not None,
                "--trust": self.trust,
            }
            if any(given.values()):
                flag = next(flag for flag, is_given in given.items() if is_given)
                raise ConfigError("nothing is compared", flag, "give --fid too")
            return None
        if processes.world > 1:
            what = f"{processes.world} processes"
            raise ConfigError(what, "--fid", "samples are compared by one process")
        return load_features(self.features, device, trust=self.trust)


def frechet(
    flow: Flow,
    images: Images,
    features: FileFeatures,
    *,
    samples: int | None,
    seed: int,
    split: str,
    batch: int,
    quiet: bool,
) -> FrechetFigure:
    """Compare samples with images, with a bar; features of the images are kept in the cache.

    Raises:
        Stopped: after a signal; the samples are lost.
    """
    count = min(SAMPLES, len(images)) if samples is None else samples
    total = len(images) + count
    with ProgressBar("image", total, quiet=quiet) as bar, Interrupt() as interrupt:

        def on_batch(done: int) -> None:
            bar.done += done
            bar.update(bar.done, f"{bar.rate:.3g} images/s")
            if interrupt.requested:
                line = f"stopped after {bar.done:,} of {total:,} images and samples"
                tell(f"{line}: the figure is kept, and the same command draws the samples anew")
                raise Stopped(interrupt.requested)

        return compare(
            flow,
            images,
            features,
            samples=count,
            seed=seed,
            split=split,
            batch=batch,
            cache=user_cache() / "features",
            on_batch=on_batch,
        )


def print_frechet(figure: FrechetFigure) -> None:
    """Print the figures, and what decides which other figures are comparable."""
    of = f"{figure.samples:,} samples (seed {figure.seed}, temperature {figure.temperature:g})"
    say(f"{of} beside {figure.images:,} images: {figure.dataset_id}, {figure.split}")
    table = Table(figure.name, "precision", "recall", box=SIMPLE)
    table.add_row(f"{figure.distance:.4g}", f"{figure.precision:.3f}", f"{figure.recall:.3f}")
    show(table)
    digest = (figure.features_sha256 or "unknown")[:16]
    say(f"features: {figure.features}, SHA-256 {digest}...")
    say(f"precision and recall: {figure.compared:,} of each, {figure.neighbors} neighbours")
    say("compare only with figures of this split and of as many images and samples")
    if min(figure.images, figure.samples) <= figure.dimensions:
        few = f"not more images and samples than the {figure.dimensions:,} features"
        say(f"{few}: this only shows that everything runs")
    if figure.nonfinite:
        say(f"{figure.nonfinite:,} samples have values that are not finite, magenta there")
    say("")
