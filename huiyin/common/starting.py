"""The end by a signal. It is the first import of each script, so that Ctrl-C while the others load is one line, too."""

import os
import sys

STOPPED = {2: "interrupted", 15: "terminated"}  # SIGINT, SIGTERM; to import signal takes as long as Python's own start


def stop(number):
    """Say that the signal `number` ends us, and end at once: whatever threads and libraries still do, a kill would lose
    no more."""
    import signal

    signal.setitimer(signal.ITIMER_REAL, 0.5)  # its signal ends us where nobody reads what we print
    try:
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
        program = sys.argv[0].rpartition("/")[2]
        print(f"{program}: {STOPPED[number]}; finished work is kept, start again to continue", file=sys.stderr)
    finally:
        os._exit(128 + number)


def show(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        stop(2)
    sys.__excepthook__(kind, error, trace)


def show_unraisable(unraisable):
    """Python calls this for an exception within a callback, which nobody gets: Ctrl-C would have no effect."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        stop(2)
    sys.__unraisablehook__(unraisable)


sys.excepthook, sys.unraisablehook = show, show_unraisable
