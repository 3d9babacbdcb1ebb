"""Exported programs and ONNX models give what the flow gives, for every batch size."""

import io
import sys

import pytest
import torch

from mixerflow import export
from mixerflow.core import Centre, Chain, Flow, shared
from mixerflow.core.shared import put_in_place
from mixerflow.errors import ConfigError
from mixerflow.recipes import build
from mixerflow.transforms import Dequantize, NormalScores
from mixerflow.transforms.checks import perturb
from mixers import mixer

SHAPE = (2, 4, 6)
PER_LAYER = 12
"""Operators of a layer in a program, at most."""
SETTINGS = {
    "paper": {},
    "conditional": {"classes": 3, "class_width": 4, "norm": "layer", "cut": "dilated"},
    "float data": {"levels": None, "linear": "none", "actnorm": "activation"},
    "deep": {"layers": 8},
    "16 bits": {"levels": 2**16, "norm": "none", "cut": "bands"},
}
ALL = [(name, kind) for name in SETTINGS for kind in ("density", "decoder")]
QUICK = [("paper", "density"), ("conditional", "decoder")]
SLOW = [pytest.param(*each, marks=pytest.mark.slow) for each in ALL if each not in QUICK]


def made(name: str) -> Flow:
    small = {"layers": 2, "shift_every": 2, "flow_layers": 1, "patch": 2, "hidden": 4}
    flow = build(mixer(**{**small, **SETTINGS[name]}), SHAPE)
    perturb(flow, size=0.15)
    return flow.eval()


def inputs(flow: Flow, kind: str, batch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random inputs by name, and what the flow itself gives for them."""
    given = getattr(export, kind)(flow).example(batch)
    context = None
    if "context" in given:
        context = given["context"] = torch.arange(batch) % 3
    if kind == "decoder":
        given["z"] = torch.randn_like(given["z"])
        return given, flow.decode(given["z"], context)
    if flow.levels is None:
        given["images"] = torch.randn_like(given["images"])
    else:
        given["images"] = torch.randint(flow.levels, (batch, *SHAPE)).to(given["images"].dtype)
    with torch.no_grad():  # the example's noise is 1/2 throughout, as is Centre's
        return given, flow.log_prob(given["images"], context, Centre())


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype
    if got.is_floating_point():
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    else:  # a value on the border of two levels may round either way
        assert (got.long() - wanted.long()).abs().max() <= 1
        assert (got != wanted).double().mean() < 0.01


@pytest.mark.parametrize(("name", "kind"), [*QUICK, *SLOW])
def test_the_exported_program_gives_what_the_flow_gives(name, kind):
    flow = made(name)
    program = export.program(getattr(export, kind)(flow)).module()
    for batch in (1, 2, 7):
        given, wanted = inputs(flow, kind, batch)
        close(program(**given), wanted)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize(("name", "kind"), [*QUICK[:1], *SLOW])
def test_the_onnx_model_gives_what_the_flow_gives(name, kind, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    flow = made(name)
    export.onnx(getattr(export, kind)(flow), tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert [o.name for o in session.get_outputs()] == [
        "log_prob" if kind == "density" else "images"
    ]
    for batch in (1, 2, 7):
        given, wanted = inputs(flow, kind, batch)
        assert sorted(given) == sorted(i.name for i in session.get_inputs())
        got = session.run(None, {name: value.numpy() for name, value in given.items()})[0]
        close(torch.from_numpy(got), wanted)


@pytest.mark.slow
def test_layers_are_calls_of_few_functions():
    """An export of 30 layers takes minutes if operators are traced again for each layer."""
    flow, file = made("deep"), io.BytesIO()
    traced = export._traced(export.density(flow))
    operators = [node for node in traced.graph.nodes if node.op == "call_function"]
    assert len(operators) <= 8 * PER_LAYER + 30
    put_in_place(traced.graph_module)  # as `export.program` does
    assert len(list(traced.graph_module.modules())) == 1
    torch.export.save(traced, file)
    file.seek(0)
    given, wanted = inputs(flow, "density", 3)
    close(torch.export.load(file).module()(**given), wanted)


def test_without_torchs_own_functions_all_is_traced(monkeypatch):
    monkeypatch.setattr(shared, "invoke_subgraph", None)
    monkeypatch.setattr(shared, "inline_invoke_subgraph", None)
    density = export.density(made("deep"))
    assert not any(isinstance(part, shared._Shared) for part in density.modules())
    shared.put_in_place(torch.fx.GraphModule(density, torch.fx.Graph()))


def test_noise_is_an_input():
    flow, x = made("paper"), torch.randint(256, (3, *SHAPE), dtype=torch.uint8)
    density = export.density(flow)
    first, second = (density(x, torch.rand(3, *SHAPE)) for _ in range(2))
    assert (first != second).all()
    with pytest.raises(ValueError, match="one uniform number a pixel"):
        density(x, torch.rand(3, *SHAPE[:2]))


def test_a_flow_that_draws_twice_is_refused():
    flow = Flow(Chain(Dequantize(), Dequantize()), SHAPE, levels=256)
    x = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    with pytest.raises(ValueError, match="one uniform number a pixel"):
        export.density(flow)(x, torch.zeros(1, *SHAPE))


def scored() -> Flow:
    flow = Flow(Chain(Dequantize(8), NormalScores(SHAPE, 8)), SHAPE, levels=8)
    flow.initialize(torch.randint(0, 3, (50, *SHAPE)))
    return flow.eval()


@pytest.mark.parametrize("kind", ["density", "decoder"])
def test_normal_scores_are_exported_for_every_batch(kind):
    flow = scored()
    program = export.program(getattr(export, kind)(flow)).module()
    for batch in (1, 5):
        given, expected = inputs(flow, kind, batch)
        assert torch.allclose(program(**given), expected, atol=1e-4)


def test_what_onnx_has_not_is_one_line(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(ConfigError, match=r"is not in ONNX: export\.onnx: use"):
        export.onnx(export.density(scored()), tmp_path / "a.onnx")


def test_without_onnx_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"pip install 'mixerflow\[onnx\]'"):
        export.onnx(export.decoder(made("paper")), tmp_path / "model.onnx")
