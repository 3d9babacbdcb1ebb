"""The launcher ends as the command of the first process that failed did, and says it in a line."""

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mixerflow import launch


def failed(*codes):
    failures = {
        rank: ProcessFailure(rank, pid=1, exitcode=code, error_file="none")
        for rank, code in enumerate(codes)
    }
    for rank, failure in failures.items():
        failure.timestamp = 10 - rank  # the last of them failed first
    return ChildFailedError("mixerflow", failures)


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (None, 0, ""),
        (failed(143, 143), 143, ""),
        (failed(143, 2), 2, ""),
        (failed(5, -9), 5, "error: SIGKILL ended a process: process 1: start the same command"),
        (SignalException("", 15), 143, ""),
        (SignalException("", 2), 130, ""),
    ],
)
def test_the_end_is_that_of_the_command(monkeypatch, capsys, raised, code, line):
    given = []

    def launched(arguments):
        given.append(arguments)
        if raised is not None:
            raise raised

    monkeypatch.setattr(run, "run", launched)
    assert launch.main(["--nproc-per-node=2", "train", "mixerflow-tiny", "--steps", "3"]) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(line) and told.err.count("\n") == bool(line)
    (words,) = given
    assert (words.module, words.training_script, words.nproc_per_node) == (True, "mixerflow", "2")
    assert words.training_script_args == ["train", "mixerflow-tiny", "--steps", "3"]
