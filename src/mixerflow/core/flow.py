"""A transform and a base distribution make a density over images."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core.bases import Base, StandardNormal
from mixerflow.core.memory import Memory, refuse_sharded, through
from mixerflow.core.noise import Centre, Noise
from mixerflow.core.transform import (
    Density,
    Dequantization,
    Foldable,
    PlacedLayer,
    Shape,
    Transform,
    floating,
    inside,
)
from mixerflow.registry import register

_FIRST_STREAM = 3
"""Any would do; it is the one that pixels were always dequantised with."""


class Encoded(NamedTuple):
    """What a flow makes of a batch: latents ``(B, D)``; log-probability and log-det ``(B,)``."""

    z: Tensor
    log_prob: Tensor
    log_det: Tensor


def as_tensor(array: np.ndarray | Tensor) -> Tensor:
    """An array as a tensor of its own; uint16 as int32, which torch can compute with."""
    if isinstance(array, Tensor):
        return array
    array = np.asarray(array)
    kind = np.int32 if array.dtype.newbyteorder("=") == np.uint16 else array.dtype.newbyteorder("=")
    return torch.from_numpy(array.astype(kind))


class Samples(NamedTuple):
    """Drawn images ``(n, *shape)`` and how many of their values lay outside the levels."""

    images: Tensor
    clamped: int


@register
class Flow(nn.Module):
    """An exact (or bounded, or estimated) density over images: ``x = transform^-1(z), z ~ base``.

    ``log p(x) = log p_base(transform(x)) + log|det dz/dx|``

    `forward` is the density, so that DDP, sharding and compilation see one call; `log_prob`,
    `encode` and `bits_per_dim` are views of it.

    Args:
        transform: data to latent.
        shape: the images' event shape ``(C, *spatial)``.
        base: the latents' distribution; it sees the same context as the transforms.
        context_net: maps what users pass as ``context`` (class labels ``(B,)``, say) to the
            ``(B, K)`` that the transforms see. Without it the flow takes no context.
        levels: number of values a pixel can have, for integer images; None for float data.

    Attributes:
        memory: what training keeps for the backward pass, see `mixerflow.core.memory`.

    Raises:
        ValueError: the transform cannot take events of `shape`.
    """

    initialized: Tensor
    spec: dict[str, Any] | None = None
    """What `mixerflow.build` made it from, so that a run folder can; None for your own code's."""
    memory: Memory = "store"
    inference: bool = False
    """Whether this is a copy that `fused` made."""
    _drawn: Noise | None = None
    """What `forward` draws from where it is given no noise; see `drawing`."""

    def __init__(
        self,
        transform: Transform,
        shape: Shape,
        base: Base | None = None,
        *,
        context_net: nn.Module | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.shape = tuple(shape)
        self.latent_shape = tuple(transform.out_shape(self.shape))
        self.base = StandardNormal() if base is None else base
        self.context_net = context_net
        self.levels = levels
        self.register_buffer("initialized", torch.tensor(False))
        drawing = (m for m in self.modules() if isinstance(m, Transform) and m.draws)
        for stream, module in enumerate(drawing, _FIRST_STREAM):
            module.stream = stream

    @property
    def density(self) -> Density:
        """Whether `log_prob` is exact, a lower bound or an estimate."""
        return self.transform.density

    def layers(self) -> list[Transform]:
        """What counts as one layer each, data to latent: for memory, sharding, rates and growth.

        It looks through `Chain`, `MultiScale` and any other `Composite`; every other transform, and
        a `Layer`, is one.
        """
        return [placed.layer for placed in self.layer_shapes()]

    def layer_shapes(self) -> list[PlacedLayer]:
        """The layers, each with the event shapes that it takes and gives."""
        return self.transform.layer_shapes(self.shape)

    @property
    def dequantization(self) -> Dequantization:
        """What noise makes real numbers of integer images; "none" where no transform does."""
        for module in self.modules():
            if isinstance(module, Transform) and module.dequantization != "none":
                return module.dequantization
        return "none"

    @property
    def dims(self) -> int:
        """D, the numbers in an image: what bits per dimension are divided by."""
        return math.prod(self.shape)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.initialized.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return floating(self).dtype

    def fused(self) -> Flow:
        """A copy for inference: the same density and samples to rounding, in less time.

        Its transform is `Transform.fused`, it stays in eval mode, and no parameter wants a
        gradient. What folds and what cannot is told in ``docs/inference.md``.
        """
        flow = copy.deepcopy(self, {id(self.transform): self.transform.fused()})
        if isinstance(flow.base, Foldable):
            folded = flow.base.folded()
            assert isinstance(folded, Base)
            flow.base = folded
        flow.inference = True
        return flow.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As for any module.

        Raises:
            RuntimeError: this is an inference copy.
        """
        if mode and self.inference:
            raise RuntimeError("this flow is an inference copy: train the one that it was made of")
        return super().train(mode)

    def forward(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> Encoded:
        """Latents and log-probability of images ``(B, *shape)``.

        Args:
            x: integer images for a flow with levels, else floats.
            context: what ``context_net`` takes, one entry an image.
            noise: None draws from torch's generator, or what `drawing` names; a `Noise` makes the
                result a pure function.

        Raises:
            ValueError: images of another shape or range, context missing or not wanted.
            ConfigError: a `memory` other than "store" with sharded parameters (FSDP2).
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"this flow takes a tensor of images; got {type(x).__name__}")
        if x.dim() != len(self.shape) + 1 or tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"this flow takes images (B, {wanted}); got {tuple(x.shape)}")
        if self.levels is None or x.is_floating_point():
            x = x.to(self.dtype)
        if self.memory != "store":
            refuse_sharded(self, self.memory)
        context = self._context(context, x.shape[0])
        noise = self._drawn if noise is None else noise
        z, log_det = through(self.transform, x, context, noise, memory=self.memory)
        z = z.flatten(1)
        return Encoded(z, self.base.log_prob(z, context) + log_det, log_det)

    @contextmanager
    def drawing(self, noise: Noise | None) -> Iterator[None]:
        """For the time of a ``with``, `forward` draws from `noise` where it is given none itself.

        For code between that knows of no noise, such as a training objective.
        """
        before, self._drawn = self._drawn, noise
        try:
            yield
        finally:
            self._drawn = before

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, noise: Noise | None = None
    ) -> Float[Tensor, " batch"]:
        """Log-probability in nats ``(B,)``: of the integer image where the flow has levels."""
        return self(x, context, noise).log_prob

    @torch.no_grad()
    def bits_per_dim(
        self,
        x: Tensor | np.ndarray,
        context: Tensor | np.ndarray | None = None,
        noise: Noise | None = None,
        *,
        batch: int = 256,
    ) -> Float[Tensor, " batch"]:
        """``-log2 p(x) / D`` of each image ``(B,)``, scored `batch` images at a time, in eval mode.

        Batch norm in the conditioners counts with its running statistics, never with the batch's.
        Without `noise` an image gets that of its own pixels, ``Noise.of(0, x)``: equal images have
        equal figures, in whatever company.
        """
        if batch < 1:
            raise ValueError(f"bits_per_dim: batch must be at least 1; got {batch}")
        images, context = as_tensor(x), None if context is None else as_tensor(context)
        results = []
        with _evaluating(self):
            for start in range(0, max(len(images), 1), batch):
                part = images[start : start + batch]
                given = None if context is None else context[start : start + batch]
                drawn = Noise.of(0, part) if noise is None else noise[start : start + batch]
                results.append(self.log_prob(part.to(self.device), given, drawn))
        return -torch.cat(results) / (self.dims * math.log(2))

    @torch.no_grad()
    def encode(self, x: Tensor, context: Tensor | None = None) -> Float[Tensor, "batch dim"]:
        """Latents ``(B, D)`` of images, without noise: the centres of their bins."""
        with _evaluating(self):
            return self(x, context, Centre()).z

    @torch.no_grad()
    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Images ``(B, *shape)`` of latents ``(B, D)``; values outside the levels are clamped."""
        with _evaluating(self):
            return self._to_images(self._inverse(z, context))

    def sample(
        self,
        n: int,
        context: Tensor | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `n` images ``(n, *shape)``.

        Args:
            n: how many.
            context: as in `forward`, or one entry for all of them.
            temperature: scales the latents; below 1 gives likelier, less varied images.
            generator: of the base's draws; None is torch's own.
        """
        return self.draw(n, context, temperature=temperature, generator=generator).images

    @torch.no_grad()
    def draw(
        self,
        n: int,
        context: Tensor | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        batch: int = 256,
    ) -> Samples:
        """`sample`, with the count of values that had to be clamped into the levels."""
        if n < 0 or not 0 <= temperature < math.inf:
            raise ValueError(f"draw: n={n} and temperature={temperature} must be 0 or more, finite")
        like = torch.empty(n, math.prod(self.latent_shape), dtype=self.dtype, device=self.device)
        if context is not None:
            context = torch.as_tensor(context, device=self.device)
            context = context.expand(n) if context.dim() == 0 else context
        parts = [slice(start, start + batch) for start in range(0, max(n, 1), batch)]
        images, clamped = [], 0
        with _evaluating(self):
            each = [
                self._context(None if context is None else context[part], len(like[part]))
                for part in parts
            ]
            seen = [part for part in each if part is not None]
            z = self.base.sample(like, generator, torch.cat(seen) if seen else None) * temperature
            for part, given in zip(parts, each, strict=True):
                x = self._to_data(z[part], given)
                if self.levels is not None:
                    clamped += int((~((x >= 0) & (x < self.levels))).sum())
                images.append(self._to_images(x))
        return Samples(torch.cat(images), clamped)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set data-dependent parameters (ActNorm's) from a batch of images, once.

        Call it before training, compilation, DDP and sharding; until then ActNorm is the identity.

        Raises:
            RuntimeError: the flow was initialised before, or is an inference copy.
        """
        if self.inference:
            raise RuntimeError("this flow is an inference copy: initialise before `fused`")
        if self.initialized:
            raise RuntimeError("this flow is initialised already: it would lose what it learned")
        if self.levels is None or x.is_floating_point():
            x = x.to(self.dtype)
        self.transform.initialize(x, self._context(context, len(x)))
        self.initialized.fill_(True)

    def _context(self, context: Tensor | None, batch: int) -> Tensor | None:
        if self.context_net is None:
            if context is not None:
                raise ValueError("this flow was built without context, and got some")
            return None
        if context is None:
            raise ValueError("this flow is conditional: pass a context (class labels, say)")
        if context.shape[0] != batch:
            raise ValueError(f"context for {len(context)} images, a batch of {batch}")
        if isinstance(self.context_net, nn.Embedding):
            context = context.long()
            classes = self.context_net.num_embeddings
            looked_at = batch and not torch.compiler.is_compiling()
            if looked_at and not (0 <= int(context.min()) and int(context.max()) < classes):
                raise ValueError(f"labels must lie in 0..{classes - 1}; got {context.tolist()[:8]}")
        return self.context_net(context.to(self.device))

    def _inverse(self, z: Tensor, context: Tensor | None) -> Tensor:
        wanted = math.prod(self.latent_shape)
        if z.dim() != 2 or z.shape[1] != wanted:
            raise ValueError(f"this flow takes latents (B, {wanted}); got {tuple(z.shape)}")
        return self._to_data(z, self._context(context, z.shape[0]))

    def _to_data(self, z: Tensor, context: Tensor | None) -> Tensor:
        z = z.to(self.dtype).reshape(-1, *self.latent_shape)
        return self.transform.inverse(z, context)[0]

    def _to_images(self, x: Tensor) -> Tensor:
        if self.levels is None:
            return x
        dtype = torch.uint8 if self.levels <= 256 else torch.int32
        return x.nan_to_num(0.0).clamp(0, self.levels - 1).to(dtype)


class _evaluating:
    """Eval mode for the time of a ``with``, each module's own mode restored after it."""

    def __init__(self, module: nn.Module) -> None:
        self.training = [m for m in inside(module) if m.training]

    def __enter__(self) -> None:
        for module in self.training:
            module.__dict__["training"] = False  # thousands of modules: `__setattr__` is slow

    def __exit__(self, *error: object) -> None:
        for module in self.training:
            module.__dict__["training"] = True
