"""Errors that a user can do something about, told in one line."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from huiyin.common import starting
from huiyin.common.chinese import translated

GRACE_SECONDS = 1.0  # from a signal to the end; what has not ended by itself then is left as a kill would leave it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: FAT32 takes no file beyond 4 GB


class UserError(Exception):
    """What is wrong, where, and what to do: one line for the reader, exit status 1, no traceback."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; an error that the user can fix becomes one line on stderr, any other stays a traceback. SIGINT and
    SIGTERM end the process, with one line."""
    os.umask(0o077)  # files made from a history are for their owner only
    try:
        with signals_end_it():
            main()
    except UserError as error:
        fail(" ".join(str(error).split()))
    except BrokenPipeError:  # `make members | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # polars has a PanicException, which is no Exception
        if line := used_up(error):
            fail(line)
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            fail(f"{error.filename}: {os.strerror(error.errno).lower()}; make it readable and writable for you")
        if line := damaged(error):
            fail(line)
        raise


def used_up(error: BaseException) -> str:
    """Return the line for an error because space, files or memory are used up, "" for any other. polars, SQLite and
    Python's threads have errors of their own for it, known by their words."""
    number, message = getattr(error, "errno", None), str(error).lower()
    if number in DISK_FULL or "no space left" in message or "disk is full" in message:
        return f"{getattr(error, 'filename', None) or 'disk'}: no space left; free some and start again"
    if number in (errno.EMFILE, errno.ENFILE) or "too many open files" in message:
        return "too many open files; raise the limit (ulimit -n) and start again"
    no_thread = "can't start new thread" in message or "could not spawn threads" in message
    if isinstance(error, MemoryError) or number == errno.ENOMEM or no_thread:
        return "too little memory, or too many threads; close other programs or raise the limits (ulimit -v, -u)"
    return ""


def damaged(error: BaseException) -> str:
    """Return the line for an error of polars that damage in the middle of a parquet file gives, "" for any other: most
    often a PanicException, since it takes what stands behind a sound header for granted."""
    message = " ".join(str(error).split())
    if type(error).__name__ == "PanicException" or (type(error).__name__ == "ComputeError" and "parquet" in message):
        return f"polars cannot go on ({message[:200]}); a file of an earlier stage may be damaged: `make verify` tells"
    return ""


@contextmanager
def signals_end_it() -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, so that `finally` runs. What
    leaves the block then, or a GRACE_SECONDS that a server, a thread or a library takes, ends the process."""
    received: list[int] = []

    def interrupt(number: int, _: Any) -> None:
        received.append(number)
        raise KeyboardInterrupt

    def wake(*_: Any) -> None:
        """Do nothing: the main thread, woken from its wait, calls the handlers of the other signals."""

    # SIGURG is one that no process dies of
    handlers: dict[int, Callable[[int, Any], None]] = {
        signal.SIGINT: interrupt,
        signal.SIGTERM: interrupt,
        signal.SIGURG: wake,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    arrived, write = os.pipe()
    os.set_blocking(write, False)
    written_before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watch = threading.Thread(target=end_after_signal, args=(arrived, threading.get_ident()), daemon=True)
    watch.start()
    try:
        yield
    except BaseException:
        if received:  # be it another error: one that a half-loaded package makes of it
            starting.stop(received[0])
        raise
    finally:
        signal.set_wakeup_fd(written_before)
        os.close(write)
        if not received:
            watch.join(GRACE_SECONDS)  # it closes the other end
        for number, handler in before.items():
            signal.signal(number, handler)


def end_after_signal(arrived: int, main_thread: int) -> None:
    """Wait for the number of a signal from `arrived`, a descriptor; then the process has GRACE_SECONDS."""
    while (number := os.read(arrived, 1)) and number[0] not in starting.STOPPED:
        pass
    if number:
        # after the handler of polars, with SA_RESTART, a wait for a lock goes on as if no signal had come
        signal.pthread_kill(main_thread, signal.SIGURG)
        time.sleep(GRACE_SECONDS)
        starting.stop(number[0])
    os.close(arrived)  # `main` has ended


def fail(line: str, status: int = 1) -> NoReturn:
    if sys.stdout:  # None where it was closed
        sys.stdout.flush()
    print(f"{Path(sys.argv[0]).name}: {translated(line)}", file=sys.stderr)
    sys.exit(status)
