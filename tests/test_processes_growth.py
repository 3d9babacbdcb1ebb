"""A deeper flow begins from a shallower one in two processes as in one; process 0 alone reads."""

import dataclasses
import shutil

import pytest
import torch

import helpers
from helpers import settings, together
from mixerflow.processes import SINGLE
from mixerflow.runs import Checkpoints, RunFolder
from mixerflow.training import train
from mixers import mixer, vary

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

SHALLOW = mixer(layers=2, flow_layers=1, hidden=8, patch=2, shift=1, shift_every=2, norm="batch")
CONFIG = settings(steps=3, batch=4, schedule_steps=12)


def run(processes, out, model, config=CONFIG, begin=None):
    """Train; only process 0 can read what the run begins from."""
    data, flow = helpers.images(40), helpers.flow_of(model).double()
    where = begin if begin is None or processes.main else begin / "not here"
    return train(flow, data, out=out, begin=where, config=config, quiet=True).status


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    import torch.distributed.fsdp  # noqa: F401  # once, or each forked process would

    out = tmp_path_factory.mktemp("shallow")
    run(SINGLE, out, SHALLOW)
    return out


@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layers", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_begin_as_one(tmp_path, shallow, how, layers):
    """Four layers begin with moments, as many as before with the averaged weights alone."""
    model, given = vary(SHALLOW, layers=layers), dataclasses.replace(CONFIG, parallel=how)
    if layers == 2:
        given = dataclasses.replace(given, schedule_start=3)
    alone = dataclasses.replace(given, parallel="ddp")
    assert together(1, run, tmp_path / "one", model, alone, shallow) == ["finished"]
    assert together(2, run, tmp_path / "two", model, given, shallow) == ["finished"] * 2
    one, two = (Checkpoints(tmp_path / n / "checkpoints").load("last") for n in ("one", "two"))
    for name, tensor in one.model.items():
        assert torch.allclose(two.model[name], tensor, rtol=1e-6, atol=1e-9), name
    moments, others = (c.state["trainer"]["optimizer"]["state"] for c in (one, two))
    for i, values in moments.items():
        assert torch.allclose(others[i]["exp_avg"], values["exp_avg"], rtol=1e-6, atol=1e-9)
    headers = [RunFolder(tmp_path / name).read_metadata() for name in ("one", "two")]
    assert headers[0]["origin"] == headers[1]["origin"]
    assert headers[0]["train"]["schedule_start"] == 3


def test_a_run_that_is_damaged_is_refused_by_both_alike(tmp_path, shallow):
    damaged = shutil.copytree(shallow, tmp_path / "run")
    for path in damaged.glob("checkpoints/*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    deep = vary(SHALLOW, layers=4)
    first, second = helpers.collect(
        helpers.start(2, refused, tmp_path / "out", deep, CONFIG, damaged)
    )
    assert first == second
    assert "CheckpointError" in first


def refused(*given):
    try:
        return run(*given)
    except Exception as error:
        return repr(error)
