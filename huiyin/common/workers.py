"""Work distributed over the processor's cores, results in order."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from huiyin.common.errors import UserError

TASKS_AHEAD = 2  # of each worker: results that wait to be fetched take memory
OUT_OF_MEMORY = "a worker was killed, probably out of memory; close other programs and start again"

Distribute = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


@contextmanager
def workers(tasks: int) -> Iterator[Distribute]:
    """Give a function `distribute(work, arguments)`: it yields `work(*each)` for each of `arguments`, in order.

    `work` must be a function of a module. With fewer than two `tasks` expected, or one core, all is done in this
    process. `UserError` if a worker is killed or cannot start.
    """
    count = min(cores(), tasks)
    if count < 2:
        yield lambda work, arguments: (work(*each) for each in arguments)
        return
    # "spawn", since a fork of a process with threads (polars has them) can hang
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start)
    try:
        for _ in range(count):
            submit(pool, os.getpid)  # so that the processes start now
        yield lambda work, arguments: in_order(pool, work, arguments, count * TASKS_AHEAD)
    except BrokenProcessPool:
        raise UserError(OUT_OF_MEMORY) from None
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def submit(pool, work, *each):
    try:
        return pool.submit(work, *each)
    except (OSError, ValueError):  # no memory for another process, or one ended while another was started
        raise BrokenProcessPool from None


def in_order(pool, work, arguments, ahead):
    waiting: deque[Future[Any]] = deque()
    for each in arguments:
        waiting.append(submit(pool, work, *each))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def start():
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells the user
    threading.Thread(target=end_with_parent, daemon=True).start()
    gc.disable()  # no work here makes cycles; to look for them among millions of tuples takes a tenth of the time


def end_with_parent():
    """Exit when the parent process ends, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
