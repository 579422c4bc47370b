"""The children that need torch, forked from a process that has loaded it: to load it takes ten seconds each time.

`make demo` starts the real ones.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
from unittest import mock

from helpers import run_script
from huiyin.serving import process

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["llamafactory.train.tuner"])


def execute(command, variables, errors):
    """Run a Python program in this process, which was forked for it."""
    import datasets

    os.closerange(3, 256)  # as exec does: the lock of the stage is not for its children
    for number, file in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(variables)
    datasets.config.HF_DATASETS_CACHE = variables["HF_DATASETS_CACHE"]  # it was read when this was loaded
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


class Forked(contextlib.AbstractContextManager):
    """In place of the Popen of huiyin.serving.process: what is used of that."""

    context, stdout = SERVER, ()

    def __init__(self, command, env, stderr, **_):
        self.process = self.context.Process(target=execute, args=([*map(str, command[1:])], env, stderr.name))
        self.process.start()

    def __exit__(self, *error):
        self.wait()

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def wait(self):
        self.process.join()

    def kill(self):
        self.process.kill()


def run_forking(name, *arguments, env=None):
    """As run_script."""
    with mock.patch.object(process, "Popen", Forked):
        return run_script(name, *arguments, env=env)


def start_forking(name, *arguments):
    """Start a script in a process of its own, of which its children are forked; return the process."""
    script = SERVER.Process(target=run_alone, args=(name, arguments))
    script.start()
    return script


def run_alone(name, arguments):
    Forked.context = multiprocessing.get_context("fork")
    run_forking(name, *arguments)
