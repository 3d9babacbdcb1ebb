"""What one does with a flow besides training it: score, embed, decode and draw images."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mixerflow.core.bases import Base
from mixerflow.core.class_bases import ClassGaussians
from mixerflow.core.context import for_all
from mixerflow.core.features import features_after
from mixerflow.core.inputs import as_tensor, count_of, latents_of, require_wide
from mixerflow.core.noise import Centre, Noise
from mixerflow.core.outputs import Encoded, Inverted, Samples, joined, samples_of
from mixerflow.core.transform import Context, MixesPlaces, PlacedLayer, Shape, Transform
from mixerflow.core.views import evaluating


class Uses(nn.Module):
    """The methods of a `Flow` that use its density; the flow has the density itself."""

    transform: Transform
    base: Base
    context_net: nn.Module | None
    levels: int | None
    shape: Shape
    latent_shape: Shape

    @property
    def dims(self) -> int:
        """D, the number of values in an image, by which bits per dimension are divided."""
        return math.prod(self.shape)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        raise NotImplementedError

    def layer_shapes(self) -> list[PlacedLayer]:
        """The layers, each with the event shapes that it takes and gives."""
        return self.transform.layer_shapes(self.shape)

    def forward(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Encoded:
        raise NotImplementedError

    def _images(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _embed(self, context: Context, batch: int) -> Context:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Context, noise: Noise | None = None) -> Tensor:
        """Images of latents; what an inverse draws without `noise` is a function of the latents."""
        raise NotImplementedError

    def _latents(self, like: Tensor, generator: Generator | None, context: Context) -> Tensor:
        """Draw latents from the base; sharded parameters are gathered for a call of its own."""
        return self.base.sample(like, generator, context)

    def log_prob(self, x: Tensor, context: Context = None, noise: Noise | None = None) -> Tensor:
        """Return log-probabilities ``(B,)`` in nats, of integer images if the flow has levels."""
        return self(x, context, noise).log_prob

    def log_prob_by_place(
        self, x: Tensor, context: Context = None, noise: Noise | None = None
    ) -> Float[Tensor, "batch *spatial"]:
        """Return the log-probability of each place's vector, ``(B, *spatial)``, in nats.

        In a flow that maps each place of an image ``(C, *spatial)`` by itself, and whose latents
        are alike, the places are independent: ``log p(x) = sum_places log p(x_place | place)``.
        Arguments and errors are those of `log_prob`.

        Raises:
            MixesPlaces: another flow, or one in training mode whose nets normalise by the batch.
        """
        if not self.base.alike:
            raise MixesPlaces(f"{type(self.base).__name__} is no density of each place by itself")
        x = self._images(x)
        spatial = x.shape[2:]
        z, log_dets = self.transform.by_place(x, self._embed(context, x.shape[0]), noise)
        rows = z.flatten(2).movedim(1, -1)
        log_prob = self.base.log_prob(rows.flatten(0, 1)).unflatten(0, (-1, spatial.numel()))
        return (log_prob + log_dets).reshape(-1, *spatial)

    @torch.no_grad()
    def bits_per_dim(
        self,
        x: Tensor | np.ndarray,
        context: Tensor | np.ndarray | None = None,
        noise: Noise | None = None,
        *,
        batch: int = 256,
    ) -> Float[Tensor, " batch"]:
        """Return ``-log2 p(x) / D`` of each image ``(B,)``, in eval mode, `batch` images at a time.

        Batch norm in the conditioners uses its running statistics, never the batch's. Without
        `noise` an image gets the noise of its own pixels, ``Noise.of(0, x)``: equal images have
        equal scores, whatever other images are scored with them.
        """
        if not batch >= 1:
            raise ValueError(f"bits_per_dim: batch must be at least 1; got {batch}")
        images, context = as_tensor(x), None if context is None else as_tensor(context)
        if context is not None and (context.dim() == 0 or len(context) != len(images)):
            raise ValueError(f"context {tuple(context.shape)} for {len(images)} images")
        log_probs = []
        with evaluating(self) as flow:
            for start in range(0, max(len(images), 1), batch):
                part = slice(start, start + batch)
                given = None if context is None else context[part]
                drawn = Noise.of(0, images[part]) if noise is None else noise[part]
                log_probs.append(flow.log_prob(images[part].to(self.device), given, drawn))
        return -torch.cat(log_probs) / (self.dims * math.log(2))

    @torch.no_grad()
    def encode(self, x: Tensor, context: Context = None) -> Float[Tensor, "batch dim"]:
        """Return latents ``(B, D)`` of images, with noise at its centre.

        Uniform noise is 1/2, the centre of a pixel's bin; learned and added noise is what its
        transform makes of 0.
        """
        with evaluating(self) as flow:
            return flow(x, context, Centre()).z

    def features(self, x: Tensor, context: Context = None, *, layer: int = -1) -> Tensor:
        """Return what the first `layer` layers make of images, ``(B, F)``, as an embedding.

        Layer 0 is the images themselves, as real numbers; k is the output of the first k layers of
        `layer_shapes`; -1 is the latent, which equals `encode`, and -2 the layer before it. F is D
        at every layer, in a flow of several scales too, unless the flow adds dimensions or forgets
        some. Noise is at its centre, and batch norm in eval mode.

        Raises:
            ValueError: no such layer, or what `forward` refuses.
        """
        return self.features_by_layer(x, context, layers=[layer])[layer]

    @torch.no_grad()
    def features_by_layer(
        self, x: Tensor, context: Context = None, *, layers: Iterable[int] | None = None
    ) -> dict[int, Tensor]:
        """Return `features` of several layers, by layer, in one forward pass; None is all."""
        with evaluating(self) as flow:
            x, context = flow._images(x), flow._embed(context, len(x))
            return features_after(flow.transform, flow.layer_shapes(), x, context, layers)

    def invert(self, z: Tensor, context: Context = None) -> Inverted:
        """Return what latents ``(B, D)`` are the latents of, and ``log p_base(z)`` in nats.

        Unlike those of `decode`, the images ``(B, *shape)`` are not clamped, the flow stays in its
        mode, and autograd records both results where the transforms' inverses can be
        differentiated. What the latents leave open is drawn as `decode` draws it.
        """
        z = latents_of(z, self.latent_shape)
        context = self._embed(context, z.shape[0])
        x = self._inverse(z, context)
        return Inverted(x, self.base.log_prob(z.to(self.device, self.dtype), context))

    def decode(self, z: Tensor, context: Context = None) -> Tensor:
        """Return images ``(B, *shape)`` of latents ``(B, D)``, clamped into the levels.

        In a flow with surjections, whose latents leave a part of an image open, that part is drawn
        with ``Noise.of(0, z)``: equal latents have equal images, but the latents of an image do not
        give that image back. A `NonFiniteWarning` says which images have values that are not
        finite.
        """
        return self.decode_samples(z, context).warned()

    @torch.no_grad()
    def decode_samples(self, z: Tensor, context: Context = None) -> Samples:
        """Decode as `decode` does; return what was clamped, and what is not finite, too."""
        with evaluating(self) as flow:
            z = latents_of(z, self.latent_shape)
            return samples_of(flow._inverse(z, flow._embed(context, z.shape[0])), self.levels)

    def sample(
        self,
        n: int,
        context: Tensor | int | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `n` images ``(n, *shape)``.

        `context` is as in `forward`, or one entry for all images; for an unconditional flow whose
        base has a Gaussian for each class, it is the number of a class, or one an image.
        `temperature` scales the latents; below 1 it gives likelier, less varied images. `generator`
        is that of the base's draws; in a flow whose latents leave a part of an image open, a seed
        for that part is drawn after them, and temperature does not change that part. A
        `NonFiniteWarning` says which images have values that are not finite.
        """
        return self.draw(n, context, temperature=temperature, generator=generator).warned()

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
        """Draw images as `sample` does, `batch` at a time; say what was clamped or not finite."""
        n = count_of(n, "draw")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"draw: temperature={temperature} must be 0 or more, finite")
        require_wide(self.dtype)
        like = torch.empty(n, math.prod(self.latent_shape), dtype=self.dtype, device=self.device)
        if context is not None:
            context = for_all(self.context_net, as_tensor(context), n)
        drawn = []
        classes, of_base = None, self.context_net is None and isinstance(self.base, ClassGaussians)
        if of_base and context is not None:
            classes, context = context.long(), None
        with evaluating(self) as flow:
            given = flow._embed(context, n)
            z = flow._latents(like, generator, given if classes is None else classes) * temperature
            noise = _noise_for(like, generator) if self.transform.inverse_draws else None
            for start in range(0, max(n, 1), batch):
                part = slice(start, start + batch)
                own = None if noise is None else noise[part]
                x = flow._inverse(z[part], None if given is None else given[part], own)
                drawn.append(samples_of(x, self.levels))
        return joined(drawn)


def _noise_for(like: Tensor, generator: Generator | None) -> Noise:
    """Return noise for as many samples as `like` has rows, with a seed from `generator`."""
    seed = torch.randint(2**63 - 1, (), device=like.device, generator=generator)
    return Noise(int(seed), torch.arange(len(like), device=like.device))
