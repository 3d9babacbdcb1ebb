"""The GPU benchmark runs, keeps its time, and loses nothing to a section that fails."""

import json
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import gpu
from benchmarks.gpu import Options, Outcome, Section, Setup, attempt, error_line, run_group

from mixerflow.transforms import kernel_check

QUICK = Options(batches=(2,), seconds=0.01, quick=True)
FAKES = """
import os, signal, subprocess, sys, time

def good(options, setup, tbs=5.0):
    yield {"what": "copy", "tbs": tbs}

def raises(options, setup):
    yield {"what": "copy", "tbs": 1.0}
    raise MemoryError("no room\\nfor more")

def hangs(options, setup, file):
    yield {"what": "copy", "tbs": 2.0}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(file, "w").write(str(child.pid))
    time.sleep(60)

def dies(options, setup):
    yield {"what": "copy", "tbs": 3.0}
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Sections that do as they are told."""
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def section(name, limit=60.0, **more):
        return Section(f"ceilings {name}", f"fakes:{name}", limit=limit, more=more)

    return section


@pytest.mark.slow
def test_a_section_that_fails_loses_no_other_and_nothing_it_had(fake, tmp_path):
    raised, died, good = run_group([fake("raises"), fake("dies"), fake("good")], QUICK, 60.0)
    assert [each.status for each in (raised, died, good)] == ["failed", "failed", "measured"]
    assert [each.rows[0]["tbs"] for each in (raised, died, good)] == [1.0, 3.0, 5.0]
    assert raised.error == "MemoryError: no room for more"
    assert any("Traceback" in line for line in raised.log)
    assert died.error == "killed by SIGKILL: about to die"
    assert (good.error, good.log) == (None, [])

    file, written, limit = tmp_path / "pid", [], 5 + good.seconds
    groups, begin = [[fake("hangs", file=str(file))], [fake("good")]], time.monotonic()
    hung, late = gpu.measure(groups, QUICK, limit, written.append)  # no time is left for the second
    assert time.monotonic() - begin < limit + 5
    assert (hung.status, hung.rows[0]["tbs"]) == ("timed out", 2.0)
    assert hung.error == f"not done after {limit:.0f} s"
    assert late.status == "no time"
    assert [each.status for each in written[0]] == ["no time"] * 2  # before any has run
    child = int(file.read_text())  # what a section started ends with it
    for _ in range(50):
        if not _runs(child):
            break
        time.sleep(0.1)
    assert not _runs(child)


def _runs(process):
    status = Path(f"/proc/{process}/status")
    return status.exists() and "\nState:\tZ" not in status.read_text()


def test_rows_are_written_and_decide_the_exit_code(fake, tmp_path, monkeypatch):
    good = Outcome("ceilings good", "measured", rows=[{"what": "copy", "tbs": 7.0}])
    failed = Outcome("ceilings raises", "failed", error="MemoryError: no room")
    monkeypatch.setattr(gpu, "sections", lambda _: [[fake("good")]])
    monkeypatch.setattr(gpu, "run_group", lambda *_: [good])
    assert gpu.main(["--quick", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(gpu, "sections", lambda _: [[fake("raises")]])
    monkeypatch.setattr(gpu, "run_group", lambda *_: [failed])
    assert gpu.main(["--quick", "--out", str(tmp_path)]) == 1
    result, text = (
        json.loads((tmp_path / "gpu.json").read_text()),
        (tmp_path / "gpu.md").read_text(),
    )
    assert result["torch"] == result["sections"][0]["machine"]["torch"] == torch.__version__
    assert Outcome(**result["sections"][0]).error == "MemoryError: no room"
    assert "| ceilings good | copy | 7 |" in text
    assert "- ceilings raises: failed: MemoryError: no room" in text
    names = [each["name"] for each in result["sections"]]
    assert names == ["ceilings raises", "ceilings good"]  # a section that is not measured now stays


def test_sections_are_named_once_and_chosen_by_their_names(capsys):
    found = [section for group in gpu.sections(Options()) for section in group]
    names = [section.name for section in found]
    assert len(set(names)) == len(names)
    assert names.index("proof bfloat16 inputs 1/4") < names.index("train kernels bfloat16 graph")
    for section in found:
        stored = json.loads(json.dumps(asdict(section)))
        assert Setup(**stored["setup"]) == section.setup and stored["more"] == section.more
        assert callable(getattr(gpu, section.run.partition(":")[2]))
    asked = ["--only", "train kernels", "--skip", "train kernels float32"]
    assert gpu.main(["--list", *asked]) == 0
    listed = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    graph = "train kernels bfloat16 graph"
    assert sorted(listed) == ["train kernels bfloat16", graph, f"{graph}, keep output"]
    with pytest.raises(SystemExit, match="no section of that name"):
        gpu.main(["--only", "nothing"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
@pytest.mark.slow
def test_a_quick_run_from_the_command_line(tmp_path, capsys):
    asked = ["--only", "train operators tf32", "--minutes", "4"]
    assert gpu.main(["--quick", "--out", str(tmp_path), *asked]) == 0
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert [each["status"] for each in sections] == ["measured"]
    row = sections[0]["rows"][0]
    assert row["finite"] and row["images_per_second"] > 0
    assert "## train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no GPU here"):
        gpu.main(["--out", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
@pytest.mark.timeout(1800)
def test_everything_runs(tmp_path):
    asked = ["--skip", "train operators bfloat16, compiled", "rival", "--minutes", "25"]
    assert gpu.main(["--quick", "--out", str(tmp_path), *asked]) == 0
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert {section["status"] for section in sections} == {"measured"}
    rows = [row for section in sections for row in section["rows"]]
    assert not [row for row in rows if row.get("error")]
    assert all(row["right"] for row in rows if "right" in row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
def test_kernels_run_where_the_setup_has_them():
    options, paths = replace(QUICK, batches=(1,)), []
    for setup in (Setup(kernels=True), Setup(kernels=False)):
        with setup.active():
            paths.append(gpu.paths_of(gpu.flow_of(options)))
    assert paths[0] == {"kernel": 2} and "kernel" not in paths[1]
    with Setup().active():
        found = gpu.row_flows(gpu.flow_of(options))
    assert {(place.within, len(place.column_table)) for _, place in found} == {
        (9, 4),
        (4, 9),
        (4, 4),
    }


def test_times_are_of_calls_and_in_their_unit():
    calls = []
    seconds = gpu.time_calls(lambda: calls.append(time.sleep(0.002)), seconds=0.02)
    assert len(calls) == len(seconds) + 1 and 3 <= len(seconds) <= 12
    assert all(each >= 0.002 for each in seconds)
    found = gpu.summary([0.001, 0.003, 0.002, 0.010])
    assert found == {"median": 2.5, "least": 1.0, "most": 10.0}


def test_a_row_that_fails_tells_the_cause():
    def fails():
        try:
            raise TypeError("Return type mismatch\nby far")
        except TypeError as error:
            raise RuntimeError("at 33:22:\n    first = normed(h)\n    ^") from error

    assert attempt({"batch": 3}, fails) == {
        "batch": 3,
        "error": "TypeError: Return type mismatch by far",
    }
    message = "RuntimeError: unsupported"
    assert error_line(RuntimeError("at 1:0:\ndef f():\n^\nunsupported")) == message
    assert error_line(ValueError()) == "ValueError: "


@pytest.mark.skipif(torch.cuda.is_available(), reason="takes long to compile")
def test_a_wrong_kernel_is_not_right(monkeypatch):
    for error in (3.5, math.inf, math.nan):
        monkeypatch.setattr(kernel_check, "worst_error", lambda *_, error=error, **__: error)
        rows = list(gpu.proof(QUICK, Setup(precision="float32")))
        assert [row["right"] for row in rows] == [False] * 3
        assert rows[0]["worst_error"] == (error if error == 3.5 else None)
    torch.use_deterministic_algorithms(False)


def test_floors_take_the_measured_rates(tmp_path):
    options = replace(QUICK, results=str(tmp_path / "gpu.json"))

    def us(precision="bfloat16"):
        return gpu.counted(options, 8, precision).kinds[0].kernels[0].us

    default = us()
    rows = [{"what": "copy", "tbs": 8.6}, {"what": "bfloat16", "tflops": 390.0}]
    rows += [{"what": "tf32", "tflops": 390.0}, {"what": "chip", "error": "unknown"}]
    (tmp_path / "gpu.json").write_text(json.dumps({"sections": [{"rows": rows}]}))
    measured = us()
    assert measured["memory"] == pytest.approx(default["memory"] / 2)
    assert measured["matrix"] == pytest.approx(default["matrix"] * 2)
    assert us("float32")["matrix"] == pytest.approx(3 * measured["matrix"])


def test_the_flow_is_far_from_the_identity_and_in_bounds():
    flow = gpu.flow_of(QUICK)
    x = torch.randint(0, 256, (16, *flow.shape), dtype=torch.uint8, device=gpu.current_device())
    with torch.no_grad(), Setup(kernels=False).active():
        z = flow.eval()(x).z
    assert 0.3 < float(z.std()) < 3
    assert all(p.any() for p in flow.parameters() if p.dim() > 1)


def test_training_goes_on_after_a_batch_that_does_not_fit(monkeypatch):
    def train_batch(options, setup, batch):
        if batch == 4:
            raise MemoryError("no room")
        return {"images_per_second": 1.0}

    monkeypatch.setattr(gpu, "train_batch", train_batch)
    found = list(gpu.train(replace(QUICK, batches=(8, 4, 2)), Setup(kernels=False)))
    assert [row["batch"] for row in found] == [2, 4, 8]
    assert [row.get("error") for row in found] == [None, "MemoryError: no room", None]
    page = gpu.page(
        {
            "options": {"recipe": "r"},
            "command": "c",
            "sections": [asdict(Outcome("train x", rows=[{"error": "a | b"}, {"new": None}]))],
        }
    )
    assert "| train x | a / b |" in page and "| train x | None |" in page
    assert "- train x: no time: -" in page


def test_ceilings_are_rates_of_the_work_done():
    found = {row["what"]: row for row in gpu.ceilings(QUICK, Setup())}
    copy, product = found["copy"], found["float32"]
    assert copy["tbs"] == pytest.approx(2 * 4096 / copy["seconds"]["median"] / 1e12)
    assert product["tflops"] == pytest.approx(2 * 64**3 / product["seconds"]["median"] / 1e12)
