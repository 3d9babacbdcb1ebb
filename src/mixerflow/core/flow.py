"""A transform and a base distribution make a density over images."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mixerflow.core.bases import Base, StandardNormal
from mixerflow.core.class_bases import ClassGaussians
from mixerflow.core.context import VectorNet, checked_context
from mixerflow.core.inputs import as_tensor, require_wide
from mixerflow.core.memory import Memory, refuse_sharded, through
from mixerflow.core.noise import Noise
from mixerflow.core.outputs import Encoded
from mixerflow.core.reals import without_dequantizer
from mixerflow.core.solve import values_alone
from mixerflow.core.transform import (
    Context,
    Density,
    Dequantization,
    Shape,
    Transform,
    floating,
    is_estimated,
    number_streams,
)
from mixerflow.core.uses import Uses
from mixerflow.core.views import view
from mixerflow.registry import register
from mixerflow.waits import adapt_waits

_drawn: ContextVar[dict[int, Noise | None] | None] = ContextVar("drawn_noise", default=None)
"""Noise of a `forward` that is given none, by the id of a flow's buffer; see `Flow.drawing`."""


@register
class Flow(Uses):
    """An exact (or bounded, or estimated) density over images: ``x = transform^-1(z), z ~ base``.

    ``log p(x) = log p_base(transform(x)) + log|det dz/dx|``

    `forward` is the density, so that DDP, sharding and compilation see one call, which `log_prob`,
    `encode` and `bits_per_dim` make.

    Args:
        transform: data to latent.
        shape: the images' event shape ``(C, *spatial)``.
        base: the latents' distribution; it sees the same context as the transforms.
        context_net: maps the ``context`` that users pass to the ``(B, K)`` that the transforms see:
            class labels ``(B,)`` with an `nn.Embedding`, vectors ``(B, L)`` with a `VectorNet`, and
            tensors ``(B, ...)`` that it takes with a net of your own. Without it the flow takes no
            context.
        head: maps latents ``(B, D)`` to a score of each class ``(B, K)``, see `logits`.
        levels: number of values a pixel can have, for integer images; None for float data.

    Attributes:
        memory: what training stores for the backward pass, see `mixerflow.core.memory`.
        spec: description from which `mixerflow.build` made the flow; None for your own code's.
        inference: whether this is a copy that `fused` made.

    Raises:
        ValueError: the transform cannot take events of `shape`.
    """

    initialized: Tensor
    spec: dict[str, Any] | None = None
    memory: Memory = "store"
    inference: bool = False

    def __init__(
        self,
        transform: Transform,
        shape: Shape,
        base: Base | None = None,
        *,
        context_net: nn.Module | None = None,
        head: nn.Module | None = None,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.shape = tuple(shape)
        self.latent_shape = tuple(transform.out_shape(self.shape))
        self.base = StandardNormal() if base is None else base
        self.context_net = context_net
        self.head = head
        self.levels = levels
        self.register_buffer("initialized", torch.tensor(False))
        number_streams(self)

    @property
    def density(self) -> Density:
        """Kind of `log_prob`: exact, a lower bound, or an estimate of one of the two."""
        return self.transform.density

    def layers(self) -> list[Transform]:
        """The layers, data to latent: the units of memory modes, sharding and learning rates."""
        return [placed.layer for placed in self.layer_shapes()]

    @property
    def dequantization(self) -> Dequantization:
        """The noise that makes real numbers of integer images; "none" if no transform adds any."""
        for module in self.modules():
            if isinstance(module, Transform) and module.dequantization != "none":
                return module.dequantization
        return "none"

    @property
    def classifies(self) -> bool:
        """Whether the flow has a head, or a base with a part for each class: see `logits`."""
        return self.head is not None or isinstance(self.base, ClassGaussians)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.initialized.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return floating(self).dtype

    def fused(self) -> Flow:
        """Return a copy for inference: the same density and samples to rounding, in less time.

        It stays in eval mode. ``docs/inference.md`` tells what folds and what cannot.
        """
        flow = copy.deepcopy(self, {id(self.transform): self.transform.fused()})
        flow.base = flow.base.folded()
        flow.inference = True
        return flow.eval().requires_grad_(False)

    def continuous(self) -> Flow:
        """Return the density over real numbers that this flow has behind its dequantiser.

        For pixels ``x = 0..levels - 1`` the dequantiser makes ``y = x + u`` in ``[0, levels)``, and
        the rest of the flow is a density p(y), which is differentiable in y. The flow returned is
        that density: it takes floats ``(B, *shape)``, a pixel's value k at ``[k, k + 1)``, and has
        no levels. It has this flow's tensors and mode. Beyond the levels it may be infinite (a
        logit is). A flow of float data is its own density, and is returned itself.

        Raises:
            ConfigError: a flow that takes integers without a dequantiser at its start.
        """
        if self.levels is None:
            return self
        flow = view(self, lambda part: None)
        flow.transform = without_dequantizer(flow.transform)
        flow.levels, flow.spec = None, None
        return flow

    def exact(self) -> Flow:
        """Return this flow with exact log-dets in place of estimates, of its own tensors and mode.

        It is for small images: a residual or a continuous transform of n numbers takes n passes
        backward and matrices ``(B, n, n)``. A flow whose density is no estimate is returned itself.
        """
        if not is_estimated(self.density):
            return self

        def change(part: nn.Module) -> None:
            if isinstance(part, Transform):
                part.become_exact()

        return view(self, change)

    def train(self, mode: bool = True) -> Flow:
        """Set training or eval mode; raise a RuntimeError for training an inference copy."""
        if mode and self.inference:
            raise RuntimeError("this flow is an inference copy: train the one that it was made of")
        return super().train(mode)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Encoded:
        """Return latents and log-probability of images ``(B, *shape)``.

        Images are integers for a flow with levels, else floats; `context` is the input of
        ``context_net``, one entry an image. A `Noise` makes the result a pure function; None draws
        from the noise that `drawing` set, else from torch's generator.

        Raises:
            ValueError: images of another shape or range, context missing or not wanted, labels
                that are no classes, vectors of another length or that are not finite.
            TypeError: what is no array of real numbers; a flow of half precision.
            ConfigError: a `memory` other than "store" with sharded parameters (FSDP2).
        """
        adapt_waits()
        x = self._images(x)
        context = self._embed(context, x.shape[0])
        noise = (_drawn.get() or {}).get(id(self.initialized)) if noise is None else noise
        if self.memory == "store":
            z, log_det = self.transform(x, context, noise)
        else:
            refuse_sharded(self, self.memory)
            z, log_det = through(self.transform, x, context, noise, memory=self.memory)
        z = z.flatten(1)
        return Encoded(z, self.base.log_prob(z, context) + log_det, log_det)

    @contextmanager
    def drawing(self, noise: Noise | None) -> Iterator[None]:
        """In a ``with``, let `forward` draw from `noise` if a caller (an objective) gives none.

        It is for this thread only, and for views of this flow too.
        """
        before = _drawn.set({**(_drawn.get() or {}), id(self.initialized): noise})
        try:
            yield
        finally:
            _drawn.reset(before)

    def logits(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Return a score of each class ``(B, K)``, whose softmax is ``p(y | x)``, of latents.

        Raises:
            ValueError: a flow without a head, whose base has no classes.
        """
        if self.head is not None:
            return self.head(z)
        if not isinstance(self.base, ClassGaussians):
            raise ValueError("this flow has no head to classify with")
        return self.base.scores(z)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Context = None) -> None:
        """Set data-dependent parameters (ActNorm's, and the scale of vectors) from a batch, once.

        Call it before training, compilation, DDP and sharding; until then ActNorm is the identity.
        A second call, and one of an inference copy, is a RuntimeError.
        """
        if self.inference:
            raise RuntimeError("this flow is an inference copy: initialise before `fused`")
        if self.initialized:
            raise RuntimeError("this flow is initialised already: it would lose what it learned")
        x = self._images(x)
        self._embed(context, len(x))  # refuses what does not fit before anything changes
        if isinstance(self.context_net, VectorNet):
            self.context_net.initialize(as_tensor(context).to(self.device))
        self.transform.initialize(x, self._embed(context, len(x)))
        self.initialized.fill_(True)

    def _images(self, x: Tensor) -> Tensor:
        """Images ``(B, *shape)`` on the flow's device, floats in its dtype; checks the shape."""
        plain = type(x) is Tensor and x.layout == torch.strided and not x.is_quantized
        x = x if plain else as_tensor(x)
        require_wide(self.dtype)
        if tuple(x.shape[1:]) != self.shape or x.is_complex():
            wanted = ", ".join(map(str, self.shape))
            got = f"{x.dtype} {tuple(x.shape)}" if x.is_complex() else tuple(x.shape)
            raise ValueError(f"this flow takes images (B, {wanted}); got {got}")
        wide = self.levels is None or x.is_floating_point()
        return x.to(self.device, self.dtype if wide else x.dtype)

    def _embed(self, context: Context, batch: int) -> Context:
        """Context ``(B, K)`` for the transforms of the context that the user gave."""
        if self.context_net is None:
            if context is not None:
                raise ValueError("this flow was built without context, and got some")
            return None
        if context is None:
            raise ValueError("this flow is conditional: pass a context (class labels, vectors)")
        context = context if type(context) is Tensor else as_tensor(context)
        if context.dim() == 0 or context.shape[0] != batch:
            given = len(context) if context.dim() else "one entry"
            raise ValueError(f"context for {given} images, a batch of {batch}")
        return self.context_net(checked_context(self.context_net, context).to(self.device))

    def _inverse(self, z: Tensor, context: Context, noise: Noise | None = None) -> Tensor:
        adapt_waits()
        require_wide(self.dtype)
        z = z.to(self.device, self.dtype)
        if noise is None and self.transform.inverse_draws:
            noise = Noise.of(0, z)
        with values_alone():
            return self.transform.inverse(z.unflatten(1, self.latent_shape), context, noise)[0]
