"""Work shared out to the processor's cores, results in order."""

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from contextlib import contextmanager

AHEAD = 2  # tasks a worker may be ahead of what was fetched: results shall not pile up in memory


@contextmanager
def workers(initializer=None, *given, tasks):
    """Give a function `run(work, arguments)`, which yields `work(*each)` for each of `arguments`, in order.

    Every process calls `initializer(*given)` once, if there is one; `work` and it must be functions of a module. With fewer than two
    `tasks` expected, or one core, all is done in this process.
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
        yield lambda work, arguments: in_order(pool, work, arguments, count * AHEAD)
    finally:
        pool.terminate()
        pool.join()


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def in_order(pool, work, arguments, ahead):
    waiting = deque()
    for each in arguments:
        waiting.append(pool.apply_async(work, each))
        if len(waiting) > ahead:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()


def start(initializer, given):
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells the user
    threading.Thread(target=follow_parent, daemon=True).start()
    gc.disable()  # no work here makes cycles, and looking for them among millions of tuples takes a tenth of the time
    if initializer:
        initializer(*given)


def follow_parent():
    """End when the parent does, even if it was killed and could tell nobody."""
    multiprocessing.parent_process().join()
    os._exit(1)
