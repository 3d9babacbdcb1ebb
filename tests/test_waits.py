"""Threads spin at barriers while the cores are free, and sleep while others want them."""

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from mixerflow import waits

NEEDS_OPENMP = pytest.mark.skipif(waits._openmp() is None, reason="needs libgomp and schedstat")


class Clock:
    """Time, and what a thread ran and waited, as a test sets them."""

    def __init__(self, monkeypatch):
        self.now, self.ran, self.waited = 100.0, 1, 0
        monkeypatch.setattr(waits, "_look", waits._Look())
        monkeypatch.setattr(waits.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(waits, "_times", lambda: (self.ran, self.waited))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def pass_by(self, seconds, share):
        """Run for some seconds, with a share of waiting, and look."""
        self.now += seconds
        self.ran += round(seconds * 1e9 * (1 - share))
        self.waited += round(seconds * 1e9 * share)
        waits.adapt_waits()
        return waits._crowd is not None


def end_crowd():
    if waits._crowd is not None:
        waits._crowd.end()
        waits._crowd.join()
        waits._crowd = None


@pytest.fixture
def clock(monkeypatch):
    end_crowd()  # a test with two threads may have started one
    yield Clock(monkeypatch)
    end_crowd()


def crowds():
    return [each for each in threading.enumerate() if each.name == "mixerflow-crowd"]


@NEEDS_OPENMP
def test_threads_sleep_beside_a_neighbour_and_spin_again_a_second_after(clock):
    assert not clock.pass_by(0, 0), "the first look has nothing to compare with"
    assert not clock.pass_by(0.2, 0.04), "alone on the machine"
    before = len(os.listdir("/proc/self/task"))
    assert clock.pass_by(0.2, 0.4)
    (crowd,) = crowds()
    assert clock.pass_by(0.2, 0.4) and crowds() == [crowd], "one is enough"
    assert clock.pass_by(0.5, 0.01), "it stays for a second"
    assert clock.pass_by(0.4, 0.4) and clock.pass_by(0.9, 0.0), "a second from the last wait on"
    assert not clock.pass_by(0.2, 0.0)
    crowd.join(10)
    assert not crowd.is_alive()
    deadline = time.time() + 30  # `clock` set time.monotonic
    while len(os.listdir("/proc/self/task")) > before:
        assert time.time() < deadline, "idle threads stay"
        time.sleep(0.01)


@NEEDS_OPENMP
def test_looks_are_rare_and_need_time_in_which_the_thread_could_run(clock):
    clock.pass_by(0, 0)
    assert not clock.pass_by(0.05, 0.9), "too early"
    assert not clock.pass_by(0.0, 0.9)
    clock.now += 60  # asleep: it neither ran nor waited
    assert clock.pass_by(0.06, 0.9), "what came before counts with it"
    waits._crowd.end()
    waits._crowd = None
    clock.now += 60
    assert not clock.pass_by(0.01, 0.9), "ten milliseconds say nothing"


def test_one_thread_never_looks(clock, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(waits, "_times", lambda: pytest.fail("it looked"))
    assert not clock.pass_by(1, 0.9)


def test_small_tensors_take_one_thread_and_give_the_others_back(monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    with waits.one_thread_if_small([torch.zeros(10), torch.zeros(2**15)]):
        assert counts == [1]
    assert counts == [1, 4]
    with waits.one_thread_if_small([torch.zeros(2**16), torch.zeros(10)]):
        assert counts == [1, 4], "large ones keep theirs"
    with pytest.raises(KeyError), waits.one_thread_if_small([torch.zeros(1)]):
        raise KeyError
    assert counts == [1, 4, 1, 4]


SPIN = """
import sys, time, torch
from mixerflow import waits
x = torch.zeros(2**20)
if sys.argv[1] == "crowd":
    crowd = waits._Crowd(waits._openmp())
    crowd.start()
    time.sleep(0.2)
x += 1
begun = time.process_time()
for _ in range(15):
    x += 1
    time.sleep(0.03)
print(time.process_time() - begun)
"""


@pytest.mark.slow
@NEEDS_OPENMP
def test_idle_threads_keep_openmp_from_spinning():
    """CPU time of short parallel regions with pauses, in which a thread that spins burns it."""
    variables = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in variables}
    environment |= {"OMP_NUM_THREADS": str(max(2, waits._openmp().omp_get_num_procs()))}
    if waits._openmp().omp_get_num_procs() < 2:
        pytest.skip("OpenMP never spins on one core")
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SPIN, way], env=environment, stdout=subprocess.PIPE, text=True
        )
        for way in ("alone", "crowd")
    ]
    alone, beside = (float(job.communicate(timeout=60)[0]) for job in jobs)
    assert beside < alone / 2
