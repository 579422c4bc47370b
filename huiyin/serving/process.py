"""A child (ask.py) for what needs torch: it loads there, and the card is free when it ends."""

import ctypes
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any, NamedTuple

from huiyin.common.errors import UserError
from huiyin.common.progress import Progress

PR_SET_PDEATHSIG = 1  # linux/prctl.h
GREEDY = {"do_sample": False, "max_new_tokens": 60, **dict.fromkeys(["temperature", "top_p", "top_k"])}

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


def start(
    command: list[str | Path], variables: Mapping[str, str], errors: IO[str], stdout: int = DEVNULL
) -> Popen[bytes]:
    """Start a child, which ends when we do. variables: its environment; errors: the file for its standard error."""
    return Popen(command, env=variables, stdin=DEVNULL, stdout=stdout, stderr=errors, preexec_fn=end_with_parent)


@dataclass(frozen=True)
class Work:
    """What one model is asked; the rows are those of an Alpaca dataset."""

    folder: Path
    adapter: Path | None = None
    samples: Rows = field(default_factory=list)  # for the losses of their replies
    batches: list[dict[str, Any]] = field(default_factory=list)  # of `batch`
    prompts: Rows = field(default_factory=list)  # for the tokens that may follow them


class Answers(NamedTuple):
    losses: list[dict[str, Any]]  # of each sample {"words": nats of each token, "end": nats of the end mark}
    replies: list[dict[str, Any]]  # to each row of the batches {"text", "ended": by the model itself}
    next_tokens: list[dict[str, Any]]  # after each of the prompts {"prompt", "tokens", "likeliest"}, see ask.py


def batch(rows: Rows, options: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return rows that are replied to together. options: those of transformers' `generate`; a row may have a
    "beginning" of its reply."""
    return {"rows": rows, "options": options, "seed": seed}


def state_of(folder: Path | None) -> list[Any]:
    """Return name, size and date of the weights in `folder`."""
    files = sorted(folder.glob("*.safetensors")) if folder else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def do(
    works: list[Work], name: str, folder: Path, variables: Mapping[str, str], tokenizer: Path, lean: bool = False
) -> list[Answers]:
    """Return the answers of each model, in the order of `works`.

    name: of the work, for its progress; folder: for the files that the two processes exchange, in which the answers of
    a run that was killed are found again; variables: the environment of the child; tokenizer: the folder of the
    tokenizer and chat template that all models use; lean: save memory (ask.py, `load`). Raises `UserError` if the child
    fails.
    """
    given = {
        **{"tokenizer": str(tokenizer), "lean": lean, "device": variables.get("CUDA_VISIBLE_DEVICES")},
        "models": [
            {
                **{"folder": str(work.folder), "adapter": work.adapter and str(work.adapter)},
                **{"samples": work.samples, "batches": work.batches, "prompts": work.prompts},
                "weights": [state_of(work.folder), state_of(work.adapter)],
            }
            for work in works
        ],
    }
    questions, answers, log = (folder / f"ask.{end}" for end in ("questions.json", "answers.jsonl", "log"))
    text = json.dumps(given)
    if not (questions.exists() and questions.read_text(encoding="utf-8") == text):
        answers.unlink(missing_ok=True)
        questions.write_text(text, encoding="utf-8")
    sizes = [
        len(rows)
        for work in works
        for rows in [
            *([row] for row in work.samples),
            *(one["rows"] for one in work.batches),
            *([row] for row in work.prompts),
        ]
    ]
    done = answers.read_bytes().count(b"\n") if answers.exists() else 0
    if done:
        print(f"{name}: {sum(sizes[:done]):,} of {sum(sizes):,} rows are there from the run before", flush=True)
    command = [*program("ask.py"), questions, answers]
    with (
        open(log, "w", encoding="utf-8") as errors,
        Progress(name, sum(sizes[done:]), "rows") as progress,
        start(command, variables, errors, stdout=PIPE) as child,
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
    lines = map(json.loads, answers.read_text(encoding="utf-8").splitlines())
    return [
        Answers(
            losses=list(islice(lines, len(work.samples))),
            replies=[reply for replies in islice(lines, len(work.batches)) for reply in replies],
            next_tokens=list(islice(lines, len(work.prompts))),
        )
        for work in works
    ]


def mean_losses(losses: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return the mean over the words of all rows, and that over their end marks."""
    words = [loss for row in losses for loss in row["words"]]
    return {"words": fmean(words), "end": fmean(row["end"] for row in losses)} if losses else None


def ask(
    models: Models,
    rows: Rows,
    folder: Path,
    variables: Mapping[str, str],
    samples: Rows = [],  # noqa: B006  it is only read
    tokenizer: Path | None = None,
    lean: bool = False,
    prompts: Rows = [],  # noqa: B006
) -> list[dict[str, Any]]:
    """Return for each of `models`: its greedy "replies" to `rows`, its "loss" on `samples`, {"words": mean over the
    tokens of the replies, "end": mean over their end marks}, None without samples, and its "next_tokens" of `prompts`.

    tokenizer: default: the first model; the other arguments are those of `do`.
    """
    batches = [batch([row], GREEDY) for row in rows]
    works = [Work(model, adapter, samples, batches, prompts) for model, adapter in models]
    return [
        {
            "loss": mean_losses(answers.losses),
            "replies": [reply["text"] for reply in answers.replies],
            "next_tokens": answers.next_tokens,
        }
        for answers in do(works, "ask", folder, variables, tokenizer or models[0][0], lean)
    ]
