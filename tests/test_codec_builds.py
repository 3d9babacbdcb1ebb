"""The codec's bytes are the same from every compiler, level, processor, thread and environment."""

import subprocess

import numpy as np
import pytest
from benchmarks.codec_builds import (
    BUILDS,
    ENVIRONMENTS,
    SANITIZED,
    Build,
    Failed,
    Sample,
    callers,
    compare,
    threads,
)

from lowered import MODELS, MORE, flow_of
from mixerflow.compression.lowering import program_of

NAMES = (
    "fast classes", "rms mixture batch", "rlu layer floored", "student", "16 bit",
    "convolution floored", "deep convolutions", "splines of scores", "spline convolutions",
)  # fmt: skip
"""Models that together use every operation, map, norm and base."""


def sample(name, folder, count=24):
    model, shape = {**MODELS, **MORE}[name]
    program, dice = program_of(flow_of(model, shape)), np.random.default_rng(0)
    walk = np.cumsum(dice.normal(0, 0.06, (count, np.prod(shape))), 1)
    bright = np.clip(walk + dice.uniform(0.2, 0.8, (count, 1)), 0, 0.999)
    pixels = (bright * program.levels).astype(np.uint16).reshape(count, *shape)
    pixels[3] = dice.integers(0, program.levels, shape)
    classes = dice.integers(0, program.classes, count) if program.classes else None
    place = folder / name.replace(" ", "-")
    return Sample.write(name, place, program, pixels, classes)


def compiled(build, folder):
    if lacks := build.missing():
        pytest.skip(f"there is no {lacks} on this machine")
    try:
        return build.compile(folder)
    except subprocess.CalledProcessError as error:
        if "march" in error.stderr:
            pytest.skip(f"{build.compiler[0]} does not compile for {build.flags[-1]} here")
        raise AssertionError(error.stderr) from error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("builds")


@pytest.fixture(scope="module")
def samples(folder):
    return [sample(name, folder) for name in NAMES]


@pytest.fixture(scope="module")
def reference(folder):
    return compiled(Build("reference", ("cc",), ("-O0",)), folder)


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.name)
def test_another_build_writes_and_reads_the_same_bytes(build, folder, samples, reference):
    tools = {"reference": reference, build.name: compiled(build, folder)}
    for row in compare(samples, tools):
        assert row["same_fingerprint"] and row["same_bytes"], row
        assert row["decodes_reference"] and row["decoded_by_reference"], row
        assert row["images"] - row["initial"] - row["plain"] > 8, row  # the flow's


@pytest.mark.slow
@pytest.mark.parametrize("build", [BUILDS[0], BUILDS[-1]], ids=lambda build: build.name)
def test_the_callers_rounding_is_neither_seen_nor_changed(build, folder, samples, reference):
    tools = {"reference": reference, build.name: compiled(build, folder)}
    rows = list(callers(samples[0], tools))
    assert len(rows) == 2 * len(ENVIRONMENTS)
    assert all(row["same_bytes"] and row["decodes"] for row in rows), rows


@pytest.mark.slow
def test_threads_write_and_read_the_same_bytes(samples, reference):
    for each in samples:
        assert all(row["same_bytes"] for row in threads(each, reference))


@pytest.mark.slow
@pytest.mark.parametrize("build", SANITIZED, ids=lambda build: build.name)
def test_damage_is_refused_by_code_and_no_sanitiser_speaks(build, folder, samples):
    tool = compiled(build, folder)
    for seed, each in enumerate(samples):
        for name, tally in each.fuzz(tool, 200, seed).items():
            decoded, _, program, _, damaged, stopped, pixels, wrong = tally["answers"]
            assert not stopped and not wrong and tally["longest_seconds"] < 2
            assert min(decoded, program if name == "programs" else min(damaged, pixels)) > 0


@pytest.mark.slow
def test_the_sanitised_tool_is_heard(tmp_path):
    """A fault that is planted ends the tool: its silence means something."""
    build = SANITIZED[0]
    compiled(build, tmp_path)
    planted = tmp_path / "planted.c"
    planted.write_text("#include <stdlib.h>\nint main(void) {return ((char *)malloc(3))[3];}\n")
    command = [*build.compiler, *build.flags, str(planted), "-o", str(tmp_path / "planted")]
    subprocess.run(command, check=True)
    ended = subprocess.run([tmp_path / "planted"], capture_output=True, check=False)
    assert ended.returncode and b"planted.c:2" in ended.stderr


@pytest.mark.slow
def test_a_build_that_joins_products_and_sums_is_told_by_its_fingerprint(folder, samples):
    """A planted fault: the comparison sees another arithmetic, and so does who decodes."""
    tool = Build("gcc, joined", ("gcc",), ("-march=x86-64-v3", "-ffp-contract=fast"))
    reference = compiled(BUILDS[1], folder)
    rows = list(compare(samples[:1], {"reference": reference, tool.name: compiled(tool, folder)}))
    assert not rows[1]["same_fingerprint"] and not rows[1]["same_bytes"]


def test_loose_arithmetic_is_refused(tmp_path):
    loose = Build("loose", ("cc",), ("-ffast-math",))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        loose.compile(tmp_path)
    assert "compile without -ffast-math" in refused.value.stderr


def test_a_tool_says_what_it_refuses(reference, tmp_path):
    each = sample("fast classes", tmp_path, 4)
    each.encode(reference, "block")
    assert each.decode(reference, "block")
    block = bytearray((each.folder / "block").read_bytes())
    block[-20] ^= 1
    (each.folder / "block").write_bytes(block)
    assert not each.decode(reference, "block")
    (each.folder / "program").write_bytes((each.folder / "program").read_bytes()[:-8])
    with pytest.raises(Failed, match="code 10"):
        each.decode(reference, "block")
