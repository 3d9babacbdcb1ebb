"""The GPU benchmark runs, loses nothing to a part that fails, keeps its time, and says it all."""

import json
import math
import os
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import gpu, gpu_check, gpu_kernels, gpu_micro, gpu_timing, gpu_train
from benchmarks.gpu_flow import Way, flow_of, shallow
from benchmarks.gpu_markdown import page
from benchmarks.gpu_parts import Given, groups
from benchmarks.gpu_process import Outcome, Part, attempted, said, together
from benchmarks.gpu_timing import figures, here, paced, replayed

from mixerflow.transforms import kernel_check

GIVEN = {
    "recipe": "mixerflow-cifar10",
    "batches": [2],
    "seconds": 0.01,
    "norm": "layer",
    "tiny": True,
    "results": "/nowhere/gpu.json",
}
FAKES = """
import os, signal, subprocess, sys, time

def good(given):
    yield {"what": "copy", "tbs": given["tbs"]}

def raises(given):
    yield {"what": "copy", "tbs": 1.0}
    raise MemoryError("no room\\nfor more")

def hangs(given):
    yield {"what": "copy", "tbs": 2.0}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(given["file"], "w").write(str(child.pid))
    time.sleep(60)

def dies(given):
    yield {"what": "copy", "tbs": 3.0}
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

def sleeps(given):
    time.sleep(given["seconds"])
    yield {"what": "copy", "tbs": 4.0}
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Parts that do as they are told."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def part(name, limit=20.0, **given):
        return Part(f"ceilings {name}", f"fakes:{name}", given, limit)

    return part


def test_a_part_that_fails_loses_no_other_and_nothing_it_had(fake, tmp_path):
    names = ("raises", "hangs", "dies", "missing", "good")
    file = str(tmp_path / "pid")
    parts = [fake(n, limit=3.0 if n == "hangs" else 20.0, file=file, tbs=5.0) for n in names]
    raised, hung, died, missing, good = together(parts, 30.0)
    statuses = [each.status for each in (raised, hung, died, missing, good)]
    assert statuses == ["failed", "timed out", "failed", "failed", "measured"]
    assert [each.rows[0]["tbs"] for each in (raised, hung, died, good)] == [1.0, 2.0, 3.0, 5.0]
    assert raised.error == "MemoryError: no room for more"
    assert any("Traceback" in line for line in raised.log)
    assert hung.error == "not done after 3 s" and 3 <= hung.seconds < 10
    assert died.error == "killed by SIGKILL: about to die"
    assert "has no attribute 'missing'" in missing.error and missing.rows == []
    assert (good.error, good.log) == (None, []) and good.machine["python"]
    child = int((tmp_path / "pid").read_text())  # what a part started ends with it
    for _ in range(50):
        if not _runs(child):
            break
        time.sleep(0.1)
    assert not _runs(child)


def _runs(process):
    status = Path(f"/proc/{process}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_the_time_is_kept_and_what_had_none_is_listed(fake):
    slow = [fake("sleeps", seconds=0.0), fake("sleeps", seconds=30)]
    told = []
    begun = time.monotonic()
    outcomes = gpu.measure([slow, [fake("good", tbs=1.0)]], 6.0, told.append)
    assert time.monotonic() - begun < 9
    assert [each.status for each in outcomes] == ["measured", "timed out", "no time"]
    assert outcomes[1].error == "not done after 6 s"
    assert [each.status for each in told[0]] == ["no time"] * 3  # as it stood at the beginning
    assert len(told[-1]) == 3


def test_what_was_measured_is_written_and_decides_the_exit_code(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "groups", lambda given: [[fake("good", tbs=7.0)], [fake("raises")]])
    out = tmp_path / "out"
    assert gpu.main(["--tiny", "--out", str(out)]) == 0
    result = json.loads((out / "gpu.json").read_text())
    assert [part["status"] for part in result["parts"]] == ["measured", "failed"]
    assert json.loads(json.dumps(result)) == result
    assert Outcome(**result["parts"][1]).error == "MemoryError: no room for more"
    text = (out / "gpu.md").read_text()
    assert "| ceilings good | 7 |" in text and "| ceilings raises | 1 |" in text
    assert "- ceilings raises: failed: MemoryError: no room for more" in text

    assert gpu.main(["--tiny", "--out", str(out), "--only", "ceilings raises"]) == 0
    names = [part["name"] for part in json.loads((out / "gpu.json").read_text())["parts"]]
    assert names == ["ceilings raises", "ceilings good"]  # the earlier run's stay

    monkeypatch.setattr(gpu, "groups", lambda given: [[fake("missing")]])
    assert gpu.main(["--tiny", "--out", str(tmp_path / "none")]) == 1


def test_parts_are_named_once_and_chosen_by_their_names(capsys, tmp_path):
    given = Given("mixerflow-cifar10", (512, 256), 3.0, "layer", False, "gpu.json")
    found = groups(given)
    names = [part.name for group in found for part in group]
    assert len(set(names)) == len(names)
    assert names.index("proof bfloat16") < names.index("train kernels bfloat16 graph")
    for part in (part for group in found for part in group):
        assert json.loads(json.dumps(part.given)) == json.loads(json.dumps(part.given))
        if "way" in part.given:
            Way(**part.given["way"])
    chosen = gpu.chosen(found, ["train kernels"], ["train kernels float32"])
    assert {part.name.split(",")[0] for group in chosen for part in group} == {
        "train kernels bfloat16",
        "train kernels bfloat16 graph",
    }
    assert gpu.main(["--list", "--only", "rival"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("rival nflows")


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
def test_a_tiny_run_from_the_command_line_on(tmp_path, capsys):
    only = ("ceilings", "train kernels bfloat16 graph", "train operators tf32")
    skip = ("train kernels bfloat16 graph, keeping", "train operators tf32 graph")
    asked = ["--only", *only, "--skip", *skip, "--minutes", "4"]
    assert gpu.main(["--tiny", "--out", str(tmp_path), *asked]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    parts = {part["name"]: part for part in result["parts"]}
    assert parts.keys() == set(only)
    for part in parts.values():
        assert part["status"] == "measured" and part["machine"]["torch"] == torch.__version__
    kernels, operators = (parts[name]["rows"][0] for name in only[1:])
    assert kernels["finite"] and operators["finite"]
    assert min(kernels["images_per_second"], operators["images_per_second"]) > 0
    assert "rows: kernel" in kernels["paths"]
    assert "rows: kernels are switched off" in operators["paths"]
    printed = capsys.readouterr().out
    assert "## Training" in printed and "| train operators tf32 | 4 |" in printed


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
@pytest.mark.timeout(900)
def test_everything_runs(tmp_path):
    compiled = [f"train operators bfloat16{how}" for how in (", flows", " graph, flows", ", nets")]
    asked = ["--skip", *compiled, "rival", "--minutes", "12"]
    assert gpu.main(["--tiny", "--out", str(tmp_path), *asked]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["status"] for part in result["parts"]} == {"measured"}
    rows = [row for part in result["parts"] for row in part["rows"]]
    assert not [row for row in rows if row.get("error") or row.get("errors")]
    assert all(row["right"] for row in rows if "right" in row)


def test_figures_are_of_calls_and_in_their_unit():
    calls = []
    seconds = paced(lambda: calls.append(time.sleep(0.002)), torch.device("cpu"), seconds=0.02)
    assert len(calls) == len(seconds) + 1 and 3 <= len(seconds) <= 12
    assert all(each >= 0.002 for each in seconds)
    found = figures([0.001, 0.003, 0.002, 0.010])
    assert found == {"mean": 4.0, "median": 2.5, "least": 1.0, "most": 10.0}
    order = []
    runs = [lambda: order.append("a"), lambda: order.append("b")]
    replayed(runs, torch.device("cpu"), times=2)()
    assert order == ["a", "b", "a", "b"]


def test_a_row_that_fails_says_what_it_came_from():
    def fails():
        try:
            raise TypeError("Return type mismatch\nby far")
        except TypeError as error:
            raise RuntimeError("at 33:22:\n    first = normed(h)\n    ^") from error

    assert attempted({"batch": 3}, fails) == {
        "batch": 3,
        "error": "TypeError: Return type mismatch by far",
    }
    assert said(RuntimeError("at 1:0:\ndef f():\n^\nunsupported")) == "RuntimeError: unsupported"
    assert said(ValueError()) == "ValueError: "


def test_a_wrong_kernel_is_not_right(monkeypatch):
    given = GIVEN | {"way": {"precision": "float32"}}
    monkeypatch.setattr(gpu_check, "poison", lambda: None)
    monkeypatch.setattr(kernel_check, "worst_error", lambda chain, device, low: 3.5)
    found = list(gpu_check.proofs(given))
    assert [row["right"] for row in found] == [False, False]
    assert {row["length"] for row in found} == {4, 9}
    monkeypatch.setattr(kernel_check, "worst_error", lambda chain, device, low: math.inf)
    assert [row["worst_error"] for row in gpu_check.proofs(given)] == [None, None]


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
def test_launches_are_caught_and_told_apart():
    way, flow = Way(), shallow(GIVEN)
    with way.holds(), gpu_kernels.unproved():
        with gpu_kernels.recorded(lambda name: False) as found:
            gpu_kernels.step_of(flow, way, 2)
    names = {launch.name for launch in found}
    assert {*gpu_micro.SWEPT, "assemble_kernel", "copy_kernel", "disassemble_kernel"} == names
    unlike = gpu_kernels.unlike(found)
    assert len(unlike) < len(found) and len({launch.key() for launch in unlike}) == len(unlike)
    step = next(launch for launch in found if launch.name == "step_kernel")
    other = step._replace(constants=step.constants | {"num_warps": 3})
    assert step.key() != other.key() and step.named()["BLOCK"] >= 16
    fresh = step.afresh().args[0]
    assert fresh is step.args[0]  # small ones stay
    big = torch.zeros(2**19)
    clone = step._replace(args=(big, big)).afresh().args
    assert clone[0] is not clone[1] and clone[0].std() > 0.9
    assert gpu_kernels.compiled(unlike)["compiled"] == len(unlike)  # nothing in the interpreter


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
def test_kernels_stand_beside_their_floors(monkeypatch):
    monkeypatch.setattr(gpu_micro, "timed", lambda given, runs: {"median": 2.0})
    rows = list(gpu_micro.kernels(GIVEN | {"way": {}}))
    kernels = {(row["kind"], row["kernel"]): row for row in rows if "kernel" in row}
    parts = {(row["kind"], row["part"]): row for row in rows if "part" in row}
    assert kernels["channels", "step_kernel"]["launches"] == 1
    assert kernels["", "assemble_kernel"]["launches"] == 4
    assert [parts["patches", part]["us"] for part in ("forward", "backward", "sum")] == [2, 4, 2]
    back = parts["patches", "backward"]
    assert back["of_matrix_peak"] == pytest.approx(back["floor_us"]["matrix"] / 4)
    assert back["of_floor"] == pytest.approx(back["floor_us"]["overlap"] / 4)


def test_floors_take_the_rates_that_were_measured(tmp_path):
    file = tmp_path / "gpu.json"
    given = GIVEN | {"results": str(file)}
    default = gpu_micro.counted(given, 8).kinds[0].kernels[0].us
    rows = [{"what": "copy", "tbs": 8.6}, {"what": "bfloat16", "tflops": 390.0}]
    rows += [{"what": "tf32", "tflops": 390.0}, {"what": "launch", "error": "said nothing"}]
    file.write_text(json.dumps({"parts": [{"rows": rows}]}))
    measured = gpu_micro.counted(given, 8).kinds[0].kernels[0].us
    assert measured["memory"] == pytest.approx(default["memory"] / 2)
    assert measured["matrix"] == pytest.approx(default["matrix"] * 2)
    three = gpu_micro.counted(given, 8, "float32").kinds[0].kernels[0].us
    assert three["matrix"] == pytest.approx(3 * measured["matrix"])


def test_a_flow_is_far_from_the_identity_and_in_bounds():
    flow = flow_of(GIVEN)
    x = torch.randint(0, 256, (16, *flow.shape), dtype=torch.uint8, device=here())
    with torch.no_grad(), Way(kernels=False).holds():
        z = flow.eval()(x).z
    assert 0.3 < float(z.std()) < 3
    assert all(p.any() for p in flow.parameters() if p.dim() > 1)


def test_a_page_has_every_row_even_one_it_does_not_know():
    rows = [{"batch": 512, "error": "OutOfMemoryError: a | b"}, {"unknown": 1}]
    parts = [
        {"name": "train x", "status": "measured", "rows": rows, "machine": {}, "error": None},
        {"name": "sweep", "status": "no time", "rows": [], "machine": {}, "error": None},
    ]
    result = {"given": {"recipe": "r"}, "command": "c", "seconds": 1.0}
    text = page(result | {"parts": [part | {"log": []} for part in parts]})
    assert "| train x | 512 |" in text and "OutOfMemoryError: a / b |" in text
    assert "- sweep: no time" in text
    assert page({}).startswith("no page: KeyError")


def test_training_goes_on_after_a_batch_that_does_not_fit(monkeypatch):
    def trained(given, way, batch):
        if batch == 4:
            raise MemoryError("no room")
        return {"images_per_second": 1.0}

    monkeypatch.setattr(gpu_train, "_trained", trained)
    given = GIVEN | {"batches": [8, 4, 2], "way": {"kernels": False}}
    found = list(gpu_train.training(given))
    assert [row["batch"] for row in found] == [2, 4, 8]
    assert [row.get("error") for row in found] == [None, "MemoryError: no room", None]


def test_ceilings_are_rates_of_what_was_done():
    found = {row["what"]: row for row in gpu_timing.ceilings(GIVEN)}
    copy, product = found["copy"], found["float32"]
    assert copy["tbs"] == pytest.approx(2 * 4096 / copy["seconds"]["median"] / 1e12)
    assert product["tflops"] == pytest.approx(2 * 64**3 / product["seconds"]["median"] / 1e12)
