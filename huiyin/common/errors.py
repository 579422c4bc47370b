"""Errors that a user can do something about, told in one line."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: FAT32 takes no file beyond 4 GB


class UserError(Exception):
    """What is wrong, where, and what to do: one line for the reader, exit status 1, no traceback."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; an error that the user can fix becomes one line on stderr, any other stays a traceback."""
    os.umask(0o077)  # files made from a history are for their owner only
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` runs when Make is stopped
    try:
        main()
    except UserError as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        fail("interrupted; finished work is kept, start again to continue", 130)
    except BrokenPipeError:  # `make members | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = str(error).lower()  # polars and SQLite have errors of their own for a full disk
        if getattr(error, "errno", None) in DISK_FULL or "no space left" in message or "disk is full" in message:
            fail(f"{getattr(error, 'filename', None) or 'disk'}: no space left; free some and start again")
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
            fail(f"{error.filename}: {os.strerror(error.errno).lower()}; make it readable and writable for you")
        raise


def fail(line: str, status: int = 1) -> NoReturn:
    sys.stdout.flush()
    print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
    sys.exit(status)
