"""What the compiler makes of the GPU's kernels; needs no GPU.

A training step's launches are recorded as they would be made, and each kernel is compiled for a GPU
and read: registers a thread, bytes that spill into local memory, shared memory a program, and the
instructions in the loop over tiles. A quarter of a multiprocessor issues one instruction a cycle,
so that loop's length, times warps over 4, times the tiles that a multiprocessor gets, is a floor:
cycles without any waiting. The step's floor is the sum of its launches'.

    python -m benchmarks.compiled --recipe mixerflow-cifar10 --batch 512 --out compiled.json
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.common import emit, facts
from mixerflow.errors import ConfigError
from mixerflow.kernels import switch
from mixerflow.kernels.gpu import launch, weights
from mixerflow.models import Model
from mixerflow.recipes import recipe
from mixerflow.registry import evolve, settings_of

SHARED = 232_448
"""Bytes of shared memory that a program can have on compute capability 9.0."""
_TARGET = GPUTarget("cuda", 90, 32)
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Call:
    """A launch, without its tensors: what a kernel is compiled for, and how much it has to do."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    """Arguments that are multiples of 16, addresses among them."""
    rows: int
    """0 for a kernel that does not walk over rows."""

    def build(self) -> tuple[Any, dict[str, Any]]:
        """What identifies the compiled kernel, and its launch options."""
        options = {k: v for k, v in self.constants if k in ("num_warps", "num_stages")}
        key = (self.kernel, self.signature, self.constants, self.aligned)
        return key, options


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a kernel."""

    kernel: str
    within: int
    """Rows an image."""
    columns: int
    """Of a row, with padding."""
    tail: bool
    """Whether an ActNorm follows."""
    block: int
    warps: int
    registers: int
    spilled: int
    """Bytes of local memory a thread."""
    shared: int
    """Bytes a program."""
    loop: int
    """Instructions in the loop over tiles; 0 where there is none."""
    matrix: int
    """Of them, for the matrix units."""
    local: int
    """Of them, that read or write local memory."""
    launches: int
    """A training step."""
    floor_us: float
    """Of all launches together, by the instructions of the loop."""

    @property
    def fits(self) -> bool:
        """Whether it can be launched at all."""
        return self.shared <= SHARED


def calls(
    model: Model, shape: tuple[int, ...], *, low: bool, keep: str, job: str = "train"
) -> list[Call]:
    """The launches of a training step with one image, in their order; or of a sample."""
    found: list[Call] = []

    def record(kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:  # noqa: ANN401
        found.append(_call(kernel, given, constants))

    flow = model.build(shape)
    for module in flow.modules():
        if hasattr(module, "keep"):
            module.keep = keep  # pyright: ignore[reportArgumentType]
    before = launch.launch, weights.launch
    launch.launch, weights.launch = record, record
    interpreted = switch._interpreted.set(True)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            if job == "train":
                flow(torch.zeros(1, *shape, dtype=torch.uint8)).log_prob.sum().backward()
            else:
                flow.sample(1)
    finally:
        switch._interpreted.reset(interpreted)
        launch.launch, weights.launch = before
    return found


def _call(kernel: Any, given: tuple[Any, ...], constants: dict[str, Any]) -> Call:  # noqa: ANN401
    signature, aligned, fixed = [], [], dict(constants)
    for name, value in zip(kernel.arg_names, given, strict=False):
        if value is None:
            fixed[name] = None
            continue
        if isinstance(value, Tensor):
            signature.append((name, _TYPES[value.dtype]))
            aligned += [name] if value.data_ptr() % 16 == 0 else []
        else:
            signature.append((name, "i32" if isinstance(value, int) else "fp32"))
    rows = dict(zip(kernel.arg_names, given, strict=False)).get("rows", 0)
    return Call(kernel, tuple(signature), tuple(sorted(fixed.items())), tuple(aligned), rows)


def read(call: Call) -> tuple[int, int, int, str]:
    """Registers, spilled bytes, shared bytes and machine code of the compiled kernel."""
    _, options = call.build()
    constants = {k: v for k, v in call.constants if k in call.kernel.arg_names}
    types = dict(call.signature) | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in call.kernel.arg_names}
    at = {name: (i,) for i, name in enumerate(call.kernel.arg_names)}
    attributes = {at[name]: [["tt.divisibility", 16]] for name in call.aligned}
    source = ASTSource(call.kernel, signature, {at[k]: v for k, v in constants.items()}, attributes)
    made = triton.compile(source, target=_TARGET, options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # pyright: ignore
    return registers, stack, made.metadata.shared, code


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run(
        [_TOOLS / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def loop(code: str) -> collections.Counter[str]:
    """Instructions by name in the longest loop of some machine code."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    longest: list[str] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?);", line):
            instructions.append(instruction[1])
            back = re.match(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if back and back[1] in labels and len(instructions) - labels[back[1]] > len(longest):
                longest = instructions[labels[back[1]] :]
    return collections.Counter(re.split(r"[.\s]", text)[0] for text in longest)


def table(
    found: list[Call], *, batch: int, sms: int, gigahertz: float, brief: bool = False
) -> list[Compiled]:
    """Each kernel once, with how often a training step launches it, and its floor.

    Briefly: one of each name alone.
    """
    groups: dict[Any, list[Call]] = {}
    for call in found:
        key = call.kernel.__name__ if brief else call.build()[0]
        groups.setdefault(key, []).append(call)
    made = []
    for alike in groups.values():
        first, constants = alike[0], dict(alike[0].constants)
        registers, spilled, shared, code = read(first)
        counts, warps = loop(code), constants.get("num_warps", 4)
        block, cycles = constants.get("BLOCK", 0), 0.0
        if block:
            tiles = [-(-call.rows * batch // (block * sms)) for call in alike]
            cycles = sum(tiles) * counts.total() * warps / 4
        made.append(
            Compiled(
                first.kernel.__name__,
                constants.get("WITHIN", 0),
                2 * constants.get("P", 0),
                constants.get("TAIL", False),
                block,
                warps,
                registers,
                spilled,
                shared,
                counts.total(),
                counts["HGMMA"] + counts["HMMA"],
                counts["LDL"] + counts["STL"],
                len(alike),
                cycles / gigahertz / 1000,
            )
        )
    return made


def main() -> None:
    """Print the table and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", default="mixerflow-cifar10")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--norm", choices=["rms", "layer", "none"], default="rms")
    parser.add_argument("--layers", type=int, help="instead of the recipe's")
    parser.add_argument("--hidden", type=int, help="width of the nets, instead of the recipe's")
    parser.add_argument("--job", choices=["train", "sample"], default="train")
    parser.add_argument("--brief", action="store_true", help="one of each kernel")
    parser.add_argument("--keep", choices=["inputs", "output"], default="inputs")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors of the GPU")
    parser.add_argument("--gigahertz", type=float, default=1.755, help="their clock")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if launch.INTERPRETED:
        parser.error("unset TRITON_INTERPRET: what is interpreted is not compiled")
    sizes = (options.batch, options.sms, options.layers, options.hidden)
    if min(s for s in sizes if s is not None) < 1:
        parser.error("sizes must be at least 1")
    changes = {"flow.net.norm": options.norm, "layers": options.layers}
    changes["flow.net.width"] = options.hidden
    try:
        named = recipe(options.recipe)
        model = evolve(named.model, {path: new for path, new in changes.items() if new is not None})
    except ConfigError as error:
        parser.error(str(error))
    low = options.precision == "bfloat16"
    found = calls(model, named.shape, low=low, keep=options.keep, job=options.job)
    if not found:
        parser.error("the kernels take none of this model's row flows: see `mixerflow info`")
    made = table(
        found,
        batch=options.batch,
        sms=options.sms,
        gigahertz=options.gigahertz,
        brief=options.brief,
    )
    floor, settings = sum(each.floor_us for each in made), settings_of(model)
    result = {
        "run": facts(0, ["triton"]),
        "recipe": options.recipe,
        "job": options.job,
        "layers": settings["layers"],
        "hidden": settings["flow.net.width"],
        "norm": options.norm,
        "precision": options.precision,
        "keep": options.keep,
        "batch": options.batch,
        "multiprocessors": options.sms,
        "gigahertz": options.gigahertz,
        "shared_limit": SHARED,
        "kernels": [dataclasses.asdict(each) | {"fits": each.fits} for each in made],
        "launches": sum(each.launches for each in made),
        "floor_ms": floor / 1000,
        "floor_images_per_second": options.batch / floor * 1e6,
    }
    emit(result, options.out)


if __name__ == "__main__":
    main()
