"""A flow as two functions of tensors, for `torch.export` and ONNX.

    density = mixerflow.export.density(flow)    # images, uniform noise -> log-probabilities
    decoder = mixerflow.export.decoder(flow)    # latents -> images
    program = mixerflow.export.program(density) # torch.export, any batch size
    mixerflow.export.onnx(decoder, "decoder.onnx")

Both use the flow's inference copy. Noise is an input, so that nothing in them is random.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixerflow.core import Flow, Noise, Transform, example_context
from mixerflow.core.shared import put_in_place, share
from mixerflow.errors import ConfigError
from mixerflow.terminal import tell

_MANY = 32
"""Steps of a flow beyond which an export says that it takes long."""
_OTHER_NOISE = "export: takes flows that draw one uniform number a pixel; this draws others"


class _InputNoise(Noise):
    """Noise given as an input: the one draw that a dequantization makes."""

    def __init__(self, uniform: Tensor) -> None:
        super().__init__(0, torch.zeros(0, dtype=torch.int64))
        self._uniform: Tensor | None = uniform

    def uniform(self, like: Tensor, stream: int) -> Tensor:
        noise, self._uniform = self._uniform, None
        if noise is None or noise.shape != like.shape:
            raise ValueError(_OTHER_NOISE)
        return noise.to(like.dtype)

    def normal(self, like: Tensor, stream: int) -> Tensor:
        raise ValueError(_OTHER_NOISE)


class Exported(nn.Module):
    """A function of tensors that an inference copy of a flow computes."""

    outputs: tuple[str, ...]
    """Names of what `forward` returns, in an ONNX model."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        """Return inputs by name; all but those of `defaults` have a batch axis."""
        raise NotImplementedError

    def defaults(self) -> dict[str, Tensor]:
        """Return inputs that an ONNX model has values of, which a caller may replace."""
        return {}

    def _labels(self, batch: int) -> dict[str, Tensor]:
        net = self.flow.context_net
        if net is None:
            return {}
        context = example_context(net, batch)
        if context is None:
            remedy = "call torch.export with your own context"
            raise ConfigError("only classes and vectors have an example", "export", remedy)
        return {"context": context}


class Density(Exported):
    """Images to log-probabilities in nats: see `density`."""

    outputs = ("log_prob",)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Map images ``(B, *shape)``, as the flow's levels say, to log-probabilities ``(B,)``.

        `noise` has the images' shape and is uniform on ``[0, 1)``; None for float data.
        `context` has labels ``(B,)``, vectors ``(B, K)``, or other input of ``context_net``.
        """
        return self.flow(images, context, None if noise is None else _InputNoise(noise)).log_prob

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        """Return inputs that this flow's density takes, by name."""
        shape, levels = (batch, *self.flow.shape), self.flow.levels
        images = torch.zeros(shape, dtype=self.flow.dtype)
        if levels is None:
            return {"images": images, **self._labels(batch)}
        integers = images.to(torch.uint8 if levels <= 256 else torch.int32)
        return {"images": integers, "noise": images + 0.5, **self._labels(batch)}


class Decoder(Exported):
    """Latents to images: see `decoder`."""

    outputs = ("images",)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Map latents ``(B, D)`` to images ``(B, *shape)``, as `Flow.decode` does."""
        return self.flow.decode(z, context)

    def example(self, batch: int = 2) -> dict[str, Tensor]:
        """Return inputs that this flow's decoder takes, by name."""
        z = torch.zeros(batch, math.prod(self.flow.latent_shape), dtype=self.flow.dtype)
        return {"z": z, **self._labels(batch)}


def density(flow: Flow) -> Density:
    """Return the density of a flow's inference copy as a function of images and noise.

    Raises:
        ConfigError: the flow draws other noise than one uniform number a pixel.
    """
    drawing = [part for part in flow.modules() if isinstance(part, Transform) and part.draws]
    others = [part for part in drawing if part.dequantization != "uniform"]
    if others:
        names = ", ".join(dict.fromkeys(type(part).__name__ for part in others))
        remedy = "export its decoder, or score with mixerflow.bits"
        raise ConfigError(f"the density draws other noise than uniform ({names})", "export", remedy)
    return Density(share(flow.fused()))


def decoder(flow: Flow) -> Decoder:
    """Return the map from latents to images of a flow's inference copy.

    Raises:
        ConfigError: the latents leave a part of an image open, which the inverse draws.
    """
    if flow.transform.inverse_draws:
        what, remedy = "latents leave a part of an image open", "decode with Flow.decode"
        raise ConfigError(f"{what}: the inverse draws it", "export.decoder", remedy)
    return Decoder(share(flow.fused()))


def program(module: Exported) -> torch.export.ExportedProgram:
    """Export a module with `torch.export`, for batches of any size from 1 up."""
    traced = _traced(module)
    put_in_place(traced.graph_module)
    return traced


def _traced(module: Exported) -> torch.export.ExportedProgram:
    """Trace a module; transforms that occur often are calls of functions."""
    steps = len(module.flow.layers())
    if steps > _MANY:
        tell(f"export: tracing a flow of {steps} steps takes a while")
    example = module.example()
    batch = torch.export.Dim("batch", min=1)
    fixed = module.defaults()
    shapes: dict[str, Any] = {name: None if name in fixed else {0: batch} for name in example}
    with torch.no_grad():
        return torch.export.export(module, (), kwargs=example, dynamic_shapes=shapes)


def onnx(module: Exported, path: str | Path) -> None:
    """Write a density, a decoder or a scorer as an ONNX model, for batches of any size from 1 up.

    Its inputs have the names that `example` gives, and its outputs those of ``outputs``:
    ``log_prob``, or ``images``. Inputs of ``defaults`` may be left out.
    Without the extra ``onnx`` it raises a ConfigError, and for a model with an operator that ONNX
    has not, such as the normal quantile of `NormalScores`.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        what, remedy = "ONNX needs onnx and onnxscript", "pip install 'mixerflow[onnx]'"
        raise ConfigError(what, "export.onnx", remedy) from None
    try:
        _write(_without_decompositions(_traced(module)), module, path)
    except (_NotFunctional, torch.onnx.errors.OnnxExporterError):
        try:
            _write(_traced(module), module, path)
        except torch.onnx.errors.OnnxExporterError as error:
            what, remedy = "an operator of this model is not in ONNX", "use export.program instead"
            raise ConfigError(what, "export.onnx", remedy) from error


def _write(traced: torch.export.ExportedProgram, module: Exported, path: str | Path) -> None:
    """Convert a program to ONNX, without optimisation: runtimes optimise when they load a model."""
    torch.onnx.export(
        traced,
        (),
        path,
        kwargs=module.example(),
        output_names=[*module.outputs],
        dynamo=True,
        external_data=False,
        verbose=False,
        optimize=False,
    )
    if defaults := module.defaults():
        _give_defaults(path, defaults)


def _give_defaults(path: str | Path, values: dict[str, Tensor]) -> None:
    """Give inputs of a written model values, which count where a caller gives none."""
    import onnx as format

    model = format.load(path)
    model.graph.initializer.extend(
        format.numpy_helper.from_array(value.numpy(), name) for name, value in values.items()
    )
    format.save(model, path)


class _NotFunctional(Exception):
    """A program changes a tensor that something else may read."""


def _without_decompositions(traced: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Prepare a program for ONNX, so that torch need not trace it once more, which takes longest.

    `torch.onnx` knows the operators of a flow, but for those that `_plain` replaces.

    Raises:
        _NotFunctional: the program needs torch's decompositions.
    """
    for part in traced.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in list(part.graph.nodes):
                if isinstance(node.target, torch._ops.OpOverload):
                    _plain(node)
            part.graph.eliminate_dead_code()
            part.recompile()
    ready: Any = traced
    ready.run_decompositions = lambda *_: traced
    return ready


def _plain(node: Any) -> None:  # noqa: ANN401  (nodes of fx are typed too widely)
    """Replace an operator that ONNX has under another name, or without effect on its input."""
    arguments: tuple[Any, ...] = node.args or (None,)
    aten, (x, *rest) = torch.ops.aten, arguments
    if node.target in (aten.to.dtype, aten.to.device):
        if x.meta["val"].dtype == node.meta["val"].dtype:
            node.replace_all_uses_with(x)
        else:
            node.target, node.args = aten._to_copy.default, (x,)
            node.kwargs = {"dtype": node.meta["val"].dtype}
    elif node.target is aten.movedim.int:
        axes = list(range(node.meta["val"].dim()))
        axes.insert(rest[1] % len(axes), axes.pop(rest[0] % len(axes)))
        node.target, node.args = aten.permute.default, (x, axes)
    elif node.target is aten.rsub.Scalar and len(rest) == 1:
        node.target, node.args = aten.sub.Tensor, (rest[0], x)
    elif node.target is aten.flatten.using_ints and x.meta["val"].dim() == node.meta["val"].dim():
        node.replace_all_uses_with(x)
    elif node.target is aten.sum.dim_IntList and x.meta["val"].dtype == node.meta["val"].dtype:
        node.kwargs = {}  # or ONNX casts
    elif node.target is aten.addcmul.default and not node.kwargs:
        with node.graph.inserting_before(node):
            product = node.graph.call_function(aten.mul.Tensor, tuple(rest))
        product.meta = dict(node.meta)
        node.target, node.args = aten.add.Tensor, (x, product)
    elif node.target is aten.relu_.default and _owned(x):
        node.target = aten.relu.default
    elif node.target._schema.is_mutable:
        raise _NotFunctional


def _owned(node: Any) -> bool:  # noqa: ANN401
    """Whether a node's result is a tensor of its own, which one node reads."""
    made = isinstance(node.target, torch._ops.OpOverload) and len(node.users) == 1
    return made and all(result.alias_info is None for result in node.target._schema.returns)
