"""Proof that the codec gives the same bytes from every compiler, and takes damaged input.

    python -m benchmarks.codec_builds weights/clothes fashion-mini --out results/compression
    python -m benchmarks.codec_builds RUN DATA --rounds 10000 --out results/compression

Compiles ``tests/native/codec_tool.c``, the codec without Python, by each compiler that the machine
has, at several levels of optimisation and for several processors, 64-bit ARM under qemu among them.
Each build codes the same images by the program of the same weights, and decodes what the first one
has coded. ``builds.json`` has the digest of each build's block and its fingerprint; callers with
another rounding mode, or with subnormal numbers flushed; and blocks of `Engine` in one thread and
in two. With ``--rounds``, ``sanitizers.json`` counts what the sanitised tool answered to damaged
blocks and to programs that lie.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import emit, facts
from mixerflow.compression.library import SOURCE
from mixerflow.compression.program import Program

TOOL = Path(__file__).resolve().parents[1] / "tests" / "native" / "codec_tool.c"
K = 16
ENVIRONMENTS = ("u", "d", "z", "f", "uf")
"""Rounding up, down, to zero; subnormal numbers flushed; both."""

_DAMAGED = 4
_ARM = ("aarch64-linux-gnu-gcc", "-static")
_SANITIZED = (
    "-O1",
    "-g",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
)


@dataclass(frozen=True)
class Build:
    """A way to compile the codec, and to run what was compiled.

    Attributes:
        name: as tables call it.
        compiler: the command, with the flags that a user's ``$CC`` may have.
        flags: behind the codec's own.
        runner: the command that runs a program of another machine.
    """

    name: str
    compiler: tuple[str, ...]
    flags: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """The first tool of the build that this machine lacks."""
        tools = (self.compiler[0], *self.runner[:1])
        return next((tool for tool in tools if not shutil.which(tool)), None)

    def compile(self, folder: Path) -> Tool:
        """Compile the tool into a folder."""
        to = folder / "".join(each if each.isalnum() else "-" for each in self.name)
        own = [flag for flag in SOURCE.flags if flag not in ("-shared", "-fPIC")]
        command = [*self.compiler, *own, *self.flags, str(TOOL), "-lm", "-o", str(to)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return Tool((*self.runner, str(to)))


BUILDS = (
    Build("gcc -O3 native", ("gcc",), ("-march=native",)),
    Build("gcc -O0 x86-64", ("gcc",), ("-O0", "-march=x86-64")),
    Build("gcc -O2 x86-64", ("gcc",), ("-O2", "-march=x86-64")),
    Build("gcc -O3 x86-64", ("gcc",), ("-march=x86-64",)),
    Build("gcc -O3 x86-64-v3", ("gcc",), ("-march=x86-64-v3",)),
    Build("gcc -Ofast native", ("gcc", "-Ofast", "-ffast-math"), ("-march=native",)),
    Build("clang -O0 x86-64", ("clang",), ("-O0", "-march=x86-64")),
    Build("clang -O3 x86-64", ("clang",), ("-march=x86-64",)),
    Build("clang -O3 x86-64-v3", ("clang",), ("-march=x86-64-v3",)),
    Build("clang -O3 native", ("clang",), ("-march=native",)),
    Build("clang -Ofast native", ("clang", "-Ofast", "-ffast-math"), ("-march=native",)),
    Build("gcc -O0 aarch64", _ARM, ("-O0",), ("qemu-aarch64",)),
    Build("gcc -O3 aarch64", _ARM, (), ("qemu-aarch64",)),
)
"""The first is the reference."""

SANITIZED = (
    Build("gcc, address and undefined", ("gcc",), _SANITIZED),
    Build("clang, address and undefined", ("clang",), _SANITIZED),
    Build("clang, memory", ("clang",), (*_SANITIZED[:2], "-fsanitize=memory", _SANITIZED[3])),
)


class Failed(RuntimeError):
    """The tool ended with another code than 0, which is `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"code {code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Tool:
    """A compiled tool, by the command that runs it."""

    command: tuple[str, ...]

    def run(self, *words: object) -> list[str]:
        """Run it; return its lines."""
        command = [*self.command, *map(str, words)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise Failed(result.returncode, (result.stderr or result.stdout).strip()[-2000:])
        return result.stdout.splitlines()


@dataclass(frozen=True)
class Sample:
    """A program and images for it, as the tool's files in a folder."""

    name: str
    folder: Path
    pixels: np.ndarray
    classes: np.ndarray | None
    program: Program

    @classmethod
    def write(
        cls,
        name: str,
        folder: Path,
        program: Program,
        pixels: np.ndarray,
        classes: np.ndarray | None = None,
    ) -> Sample:
        """Write a program, images ``(N, *shape)`` and their classes to a new folder."""
        folder.mkdir()
        counts = np.array([len(program.words), len(program.numbers)], np.int64)
        parts = (counts, program.words.astype(np.int32), program.numbers.astype(np.float64))
        (folder / "program").write_bytes(b"".join(part.tobytes() for part in parts))
        (folder / "images").write_bytes(pixels.astype(np.uint16).tobytes())
        if classes is not None:
            (folder / "classes").write_bytes(classes.astype(np.int32).tobytes())
        return cls(name, folder, pixels, classes, program)

    @property
    def _classes(self) -> object:
        return "-" if self.classes is None else self.folder / "classes"

    def encode(self, tool: Tool, block: str, environment: str = "") -> dict[str, Any]:
        """Code the images to a file of the folder; return what the tool says of it."""
        given = (self.folder / "program", K, self.folder / "images", self._classes)
        fingerprint, counts = tool.run("encode", *given, self.folder / block, environment)
        initial, plain = map(int, counts.split())
        return {"fingerprint": fingerprint, "initial": initial, "plain": plain}

    def decode(self, tool: Tool, block: str, environment: str = "") -> bool:
        """Whether the images come back from a file of the folder."""
        back = self.folder / "back"
        given = (self.folder / "program", K, self.folder / block, self._classes)
        try:
            tool.run("decode", *given, back, environment)
        except Failed as failed:
            if failed.code != _DAMAGED:
                raise
            return False
        return back.read_bytes() == (self.folder / "images").read_bytes()

    def fuzz(self, tool: Tool, rounds: int, seed: int) -> dict[str, dict[str, Any]]:
        """Damage blocks and programs; return the codec's answers to each, by its codes."""
        given = (self.folder / "program", K, self.folder / "images", self._classes)
        tallies = {}
        for line in tool.run("fuzz", *given, rounds, seed)[1:]:
            name, *counts, longest = line.split()
            tallies[name] = {"answers": list(map(int, counts)), "longest_seconds": float(longest)}
        return tallies

    def payload(self, block: str) -> bytes:
        """The coder's words in a file of the folder."""
        return (self.folder / block).read_bytes()[16:]


def compare(samples: Sequence[Sample], tools: dict[str, Tool]) -> Iterator[dict[str, Any]]:
    """Code and decode samples by each tool, against the first of them."""
    reference = next(iter(tools))
    for sample in samples:
        expected = sample.encode(tools[reference], "reference")
        for name, tool in tools.items():
            begun = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            said = sample.encode(tool, "block")
            yield {
                "model": sample.name,
                "build": name,
                "images": len(sample.pixels),
                **said,
                "same_fingerprint": said["fingerprint"] == expected["fingerprint"],
                "sha256": hashlib.sha256(sample.payload("block")).hexdigest(),
                "same_bytes": sample.payload("block") == sample.payload("reference"),
                "decodes_reference": sample.decode(tool, "reference"),
                "decoded_by_reference": sample.decode(tools[reference], "block"),
                "cpu_seconds": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - begun,
            }


def callers(sample: Sample, tools: dict[str, Tool]) -> Iterator[dict[str, Any]]:
    """Code and decode in threads with other rounding modes; the tool tells one that was changed."""
    for name, tool in tools.items():
        expected = sample.encode(tool, "reference")
        for letters in ENVIRONMENTS:
            same = sample.encode(tool, "block", letters) == expected
            same &= sample.payload("block") == sample.payload("reference")
            back = sample.decode(tool, "block", letters)
            yield {"build": name, "environment": letters, "same_bytes": same, "decodes": back}


def threads(sample: Sample, tool: Tool, counts: Sequence[int] = (1, 2)) -> Iterator[dict[str, Any]]:
    """Code and decode by one `Engine` in several threads at once, against the tool."""
    from mixerflow.compression.engine import Engine

    sample.encode(tool, "reference")
    engine, images = Engine(sample.program, K), len(sample.pixels)

    def both(_: int) -> bool:
        block = engine.encode(sample.pixels, sample.classes)
        back = engine.decode(block.payload, images, block.initial, sample.classes)
        return block.payload == sample.payload("reference") and np.array_equal(back, sample.pixels)

    for count in counts:
        with ThreadPoolExecutor(count) as pool:
            yield {"threads": count, "same_bytes": all(pool.map(both, range(2 * count)))}


def compiled(builds: Sequence[Build], folder: Path) -> dict[str, Tool]:
    """Compile what the machine has the tools for."""
    return {each.name: each.compile(folder) for each in builds if not each.missing()}


def main() -> None:
    """Prove it with published weights and write both tables."""
    import mixerflow
    from mixerflow.compression.lowering import program_of
    from mixerflow.data import load

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pairs", nargs="+", help="weights, then images for them")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=0, help="of damage, by sanitised builds")
    parser.add_argument("--out", type=Path, default=None, help="a folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, samples = Path(name), []
        for weights, data in zip(given.pairs[::2], given.pairs[1::2], strict=True):
            program = program_of(mixerflow.load(weights))
            _, height, width = program.shape
            images = load(data, resize=f"{width}x{height}").test
            classes = images.labels[: given.images] if program.classes else None
            place = folder / f"sample-{len(samples)}"
            pixels = images.pixels[: given.images]
            samples.append(Sample.write(weights, place, program, pixels, classes))
        name, proof = _damage(samples, given.rounds) if given.rounds else _compare(samples)
        emit({"facts": facts(0), **proof}, given.out and given.out / name)


def _compare(samples: Sequence[Sample]) -> tuple[str, dict[str, Any]]:
    tools = compiled(BUILDS, samples[0].folder)
    return "builds.json", {
        "compilers": {each.name: _version(each) for each in BUILDS if each.name in tools},
        "builds": list(compare(samples, tools)),
        "callers": list(callers(samples[0], tools)),
        "threads": list(threads(samples[0], tools[BUILDS[0].name])),
    }


def _damage(samples: Sequence[Sample], rounds: int) -> tuple[str, dict[str, Any]]:
    rows = [
        {"build": build, "model": sample.name, "rounds": rounds, **sample.fuzz(tool, rounds, seed)}
        for build, tool in compiled(SANITIZED, samples[0].folder).items()
        for seed, sample in enumerate(samples)
    ]
    answers = "decoded memory program full damaged stopped pixels wrong".split()
    return "sanitizers.json", {"answers": answers, "rows": rows}


def _version(build: Build) -> str:
    command = [build.compiler[0], "--version"]
    environment = os.environ | {"LC_ALL": "C"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return text.stdout.splitlines()[0]


if __name__ == "__main__":
    main()
