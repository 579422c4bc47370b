"""Work distributed over the processor's cores, results in order."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

TASKS_AHEAD = 2  # of each worker: results that wait to be fetched take memory

Distribute = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


@contextmanager
def workers(initializer: Callable[..., None] | None = None, *given: Any, tasks: int) -> Iterator[Distribute]:
    """Give a function `distribute(work, arguments)`: it yields `work(*each)` for each of `arguments`, in order.

    Every process calls `initializer(*given)` once, if there is one; `work` and it must be functions of a module. With
    fewer than two `tasks` expected, or one core, all is done in this process.
    """
    count = min(cores(), tasks)
    if count < 2:
        if initializer:
            initializer(*given)
        yield lambda work, arguments: (work(*each) for each in arguments)
        return
    # "spawn", since a fork of a process with threads (polars has them) can hang
    pool = multiprocessing.get_context("spawn").Pool(count, start, (initializer, given))
    try:
        yield lambda work, arguments: in_order(pool, work, arguments, count * TASKS_AHEAD)
    finally:
        pool.terminate()
        pool.join()


def cores() -> int:
    return len(os.sched_getaffinity(0))


def in_order(pool, work, arguments, ahead):
    waiting: deque[Any] = deque()
    for each in arguments:
        waiting.append(pool.apply_async(work, each))
        if len(waiting) > ahead:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()


def start(initializer, given):
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells the user
    threading.Thread(target=end_with_parent, daemon=True).start()
    gc.disable()  # no work here makes cycles; to look for them among millions of tuples takes a tenth of the time
    if initializer:
        initializer(*given)


def end_with_parent():
    """Exit when the parent process ends, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
