"""Worker processes: results in order, and one line when one of them ends before its work."""

import multiprocessing
import multiprocessing.spawn
import os
import signal

import pytest

from huiyin.common.errors import UserError
from huiyin.common.workers import OUT_OF_MEMORY, workers


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr("huiyin.common.workers.cores", lambda: 2)


def work(number, signal_number=None):
    if signal_number:
        os.kill(os.getpid(), signal_number)
    return os.getpid(), number


def test_results_come_in_order_from_other_processes():
    with workers(tasks=20) as distribute:
        results = list(distribute(work, ((number,) for number in range(20))))
    assert [number for _, number in results] == list(range(20))
    assert os.getpid() not in {process for process, _ in results}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_worker_that_is_killed_ends_the_work(end):
    with pytest.raises(UserError, match=OUT_OF_MEMORY), workers(tasks=20) as distribute:
        list(distribute(work, ((number, end if number == 7 else None) for number in range(20))))
    assert not multiprocessing.active_children()


def test_workers_that_cannot_start_end_the_work(monkeypatch):
    monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: b"/bin/false")
    with pytest.raises(UserError, match=OUT_OF_MEMORY), workers(tasks=20) as distribute:
        list(distribute(work, ((number,) for number in range(20))))
    assert not multiprocessing.active_children()


def test_an_error_of_the_work_is_raised_here():
    with pytest.raises(TypeError), workers(tasks=2) as distribute:
        list(distribute(work, [(1,), (2, None, None)]))
