"""Features of images, by which sets of images are compared: their protocol, and those of files."""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol, runtime_checkable
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor, nn

from mixerflow import hub
from mixerflow.errors import CheckpointError, ConfigError, DataError, first_line
from mixerflow.evaluate.inception import InceptionV3

INCEPTION = "Inception v3, 2015-12-05"
"""Name of the features whose Frechet distance is FID."""
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
_INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_LARGEST = 4 << 30
"""Bytes of a file that is fetched from the hub."""


@runtime_checkable
class Features(Protocol):
    """A callable with a name, from images ``(n, 3, H, W)``, uint8, to features ``(n, d)``.

    It is given images on the flow's device. A module must be in eval mode. An attribute `sha256`,
    where there is one, is the digest of its weights; that of a module is known without.
    """

    @property
    def name(self) -> str:
        """Name of the features, which stands in the name of every figure."""
        ...

    def __call__(self, images: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class FileFeatures:
    """Features of a net from a file.

    Attributes:
        name: name of the features.
        sha256: SHA-256 of the file.
        net: the net, images ``(n, 3, H, W)`` to features ``(n, d)``.
        published: whether the file has the published Inception net, whose distance alone is FID.
    """

    name: str
    sha256: str
    net: Callable[[Tensor], Tensor]
    published: bool = False

    def __call__(self, images: Tensor, /) -> Tensor:
        return self.net(images)


def load_features(
    path: Path | str | None, device: torch.device | str = "cpu", *, trust: bool = False
) -> FileFeatures:
    """Load the net of a file.

    A state dict is read without running anything in it. A ``.pt2`` file **is a program**:
    ``torch.export.load`` unpickles parts of it, which can run any code (CVE-2026-4538).

    Args:
        path: the state dict of the Inception net, as at `INCEPTION_URL`; or a program that
            ``torch.export.save`` wrote, ``.pt2``, from uint8 images ``(n, 3, H, W)`` to features
            ``(n, d)`` for any n, whose name is that of the file. ``hub:OWNER/NAME/FILE`` is a file
            of a repository of the Hugging Face hub (extra `hub`).
        device: the net's device.
        trust: whether you trust who wrote a ``.pt2`` file, and let its program run.

    Raises:
        ConfigError: no path, a program that is not trusted, no such file of the hub, or the extra
            is missing.
        CheckpointError: no such file, or one that is neither.
        ResourceError: the hub cannot be reached, or its file is too large.
    """
    if path is None:
        remedy = f"get {INCEPTION_URL} and give its path"
        raise ConfigError("no weights of the Inception net", "--features", remedy)
    path = _from_hub(str(path)) if str(path).startswith("hub:") else Path(path)
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device may not end
            raise OSError(errno.EINVAL, "it is no file")
        data = path.read_bytes()
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise CheckpointError(what, path, f"get {INCEPTION_URL}") from error
    digest = hashlib.sha256(data).hexdigest()
    published = digest == _INCEPTION_SHA256
    is_program = path.suffix == ".pt2" and is_zipfile(BytesIO(data))
    if is_program and not trust:
        what, remedy = "a .pt2 file is a program, which runs when it is loaded", "give --trust"
        raise ConfigError(what, path, f"if you trust who wrote it {remedy}")
    try:
        if is_program:
            net, name = _program(data).to(device), path.stem
        else:
            net = _inception(data).to(device)
            name = INCEPTION if published else f"Inception v3, other weights, {path.stem}"
    except Exception as error:  # their parsers raise a dozen kinds
        what = f"no features net ({' '.join(str(error).split())[:120]})"
        remedy = f"for --features get {INCEPTION_URL}, or give a .pt2 file of torch.export"
        raise CheckpointError(what, path, remedy) from error
    return FileFeatures(name, digest, net.requires_grad_(False), published and name == INCEPTION)


def _from_hub(spec: str) -> Path:
    """Fetch ``hub:OWNER/NAME/FILE``, or find it among what was fetched before."""
    owner, _, rest = spec.removeprefix("hub:").partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise ConfigError(spec, "--features", "give hub:OWNER/NAME/FILE")
    return hub.fetch_file(f"{owner}/{name}", file, most=_LARGEST)


def _program(data: bytes) -> nn.Module:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)  # of a damaged file it logs a traceback, and raises another error
    try:
        return torch.export.load(BytesIO(data)).module()
    finally:
        log.setLevel(level)


def _inception(data: bytes) -> InceptionV3:
    with torch.device("meta"):  # no weights are drawn that the file's replace
        net = InceptionV3()
    state = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    # torch checks the memory that dense tensors refer to, not always that of others
    if any(t.layout != torch.strided or t.is_quantized or t.is_meta for t in state.values()):
        raise ValueError("weights that are not dense")
    net.load_state_dict(state, assign=True)
    return net.eval()


def digest_of(features: Features) -> str | None:
    """Return the SHA-256 of the features' weights; None where it is not known."""
    if isinstance(features, nn.Module) and not hasattr(features, "sha256"):
        digest = hashlib.sha256(type(features).__qualname__.encode())
        for name, tensor in features.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
    return getattr(features, "sha256", None)


@torch.no_grad()
def features_of(features: Features, pixels: np.ndarray, device: torch.device) -> Tensor:
    """Return the features ``(n, d)``, float32 or wider, on the CPU, of pixels ``(n, C, H, W)``.

    Of 16-bit pixels the upper 8 bits count, as in grids of samples; grey becomes three
    channels.

    Raises:
        DataError: images with another number of axes or channels.
        ConfigError: a module in training mode, or features of another shape or not finite.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        remedy = "features take images of two axes with 1 or 3 channels"
        raise DataError(f"images are {pixels.shape[1:]}", "features", remedy)
    if isinstance(features, nn.Module) and features.training:
        raise ConfigError("the features' net is in training mode", features.name, "call .eval()")
    pixels = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    images = torch.from_numpy(np.ascontiguousarray(pixels)).expand(-1, 3, -1, -1)
    try:
        found = features(images.contiguous().to(device)).cpu()
    except Exception as error:  # nets of others raise what they like
        what = f"the features' net fails on {len(pixels)} images ({first_line(error)})"
        remedy = "--features takes a net of any number of images (n, 3, H, W), uint8"
        raise ConfigError(what, features.name, remedy) from error
    if found.dim() != 2 or len(found) != len(pixels) or not found.shape[1]:
        what = f"features are {tuple(found.shape)} for {len(pixels)} images"
        raise ConfigError(what, features.name, "return (n, d)")
    if not found.isfinite().all():
        raise ConfigError("features are not all finite", features.name, "use another net")
    return found
