"""Children (ask.py, save_tokenizer.py) for what needs torch: it loads there, and the card is free when they end."""

import ctypes
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, run
from typing import Any

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress

PR_SET_PDEATHSIG = 1  # linux/prctl.h

Rows = list[dict[str, Any]]
Models = list[tuple[Path, Path | None]]  # (folder, adapter or None)


def end_with_parent() -> None:
    """Ask Linux to kill the child if we are killed; otherwise it keeps working next to our next run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def ended_by(returncode: int) -> str:
    """Return which signal ended a child with this `returncode`, and what to do; "" if none did."""
    if returncode == -signal.SIGKILL:
        return "was killed (signal 9), probably out of memory; close other programs and start again"
    return f"was ended by signal {-returncode}; start again" if returncode < 0 else ""


def program(name: str) -> list[str | Path]:
    return [sys.executable, Path(__file__).with_name(name)]


def save_tokenizer(base: Path, template: str, folder: Path, work: Path, variables: Mapping[str, str]) -> Path:
    """Save the tokenizer of `base` into `folder`, as LLaMA-Factory's `template` changes it; return the Modelfile that
    LLaMA-Factory writes for it, in the folder `work`. variables: the environment of the child, whose failure is a
    `UserError`."""
    modelfile, log = work / "Modelfile", work / "tokenizer.log"
    command = [*program("save_tokenizer.py"), base, template, folder, modelfile]
    with open(log, "w", encoding="utf-8") as errors:
        done = run(
            command,
            env=variables,
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=errors,
            preexec_fn=end_with_parent,
            check=False,
        )
    if killed := ended_by(done.returncode):
        raise UserError(f"the process that saves the tokenizer {killed}")
    if done.returncode:
        raise UserError(f"{base}: its tokenizer cannot be saved for the template {template}; the messages are in {log}")
    return modelfile


def ask(
    models: Models,
    rows: Rows,
    folder: Path,
    variables: Mapping[str, str],
    samples: Rows = [],  # noqa: B006  it is only read
    tokenizer: Path | None = None,
    lean: bool = False,
) -> list[dict[str, Any]]:
    """Return for each of `models`: its greedy "replies" to `rows`, its "loss" on `samples`, {"words": mean over the
    tokens of the replies, "end": mean over their end marks}.

    folder: for the files that the two processes exchange; variables: the environment of the child; tokenizer: the
    folder of the tokenizer and chat template that all models use (default: the first model); lean: save memory (ask.py,
    `load`). Raises `UserError` if the child fails.
    """
    given: dict[str, Any] = {
        "tokenizer": str(tokenizer or models[0][0]),
        "samples": samples,
        "asked": rows,
        "lean": lean,
    }
    given["models"] = [[str(model), adapter and str(adapter)] for model, adapter in models]
    questions, answers, log = (folder / f"ask.{end}" for end in ("questions.json", "answers.json", "log"))
    questions.write_text(json.dumps(given), encoding="utf-8")
    command = [*program("ask.py"), questions, answers]
    with (
        open(log, "w", encoding="utf-8") as errors,
        Progress("ask", len(models) * (len(samples) + len(rows)), "rows") as progress,
        Popen(command, env=variables, stdin=DEVNULL, stdout=PIPE, stderr=errors, preexec_fn=end_with_parent) as child,
    ):
        assert child.stdout is not None
        try:
            for _ in child.stdout:
                progress.add()
        except BaseException:  # such as a SIGTERM: the end of this block would wait until the child has answered all
            child.kill()
            raise
    if killed := ended_by(child.returncode):
        raise UserError(f"the process that asks the trained model {killed}")
    if child.returncode:
        raise UserError(f"the trained model cannot be asked; its messages are in {log}")
    return json.loads(answers.read_text(encoding="utf-8"))
