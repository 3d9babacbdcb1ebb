"""The GPU's kernels compile for a GPU, and fit one: the interpreter knows of neither."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[1]
TRAINING = {"step_kernel", "gradient_kernel", "hidden_kernel"}


def compiled(*options):
    """What `benchmarks.compiled` says of one layer of the paper's model."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.compiled", "--layers", "1", "--brief", *options]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def check(result, names):
    kernels = {each["kernel"]: each for each in result["kernels"]}
    assert names <= kernels.keys()
    for name, each in kernels.items():
        assert each["fits"], name
        assert (each["matrix"] > 0) == (name in TRAINING), name
    return kernels


@pytest.mark.slow
def test_the_paper_s_model_in_bfloat16():
    result = compiled()
    kernels = check(result, TRAINING | {"assemble_kernel", "disassemble_kernel", "copy_kernel"})
    # two groups of four warps: one computes while the other waits
    assert kernels["step_kernel"]["warps"] == 8
    assert result["floor_images_per_second"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("keep", ["inputs", "output"])
def test_other_norms_and_precisions(norm, precision, keep):
    check(compiled("--norm", norm, "--precision", precision, "--keep", keep), TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["16", "32", "64"])
def test_other_widths(hidden):
    check(compiled("--hidden", hidden), TRAINING)


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_sampling(precision):
    check(compiled("--job", "sample", "--precision", precision), {"step_kernel"})
