"""What is used up, of the machine or of what a process may have of it, is one line."""

import errno

import polars as pl
import pytest

from huiyin.common.errors import UserError, run

DAMAGED = "polars cannot go on ({}); a file of an earlier stage may be damaged: `make verify` tells"
MEMORY = "too little memory, or too many threads; close other programs or raise the limits (ulimit -v, -u)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "out/x: no space left; free some and start again"),
        (pl.exceptions.ComputeError("io: No space left"), "disk: no space left; free some and start again"),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "too many open files; raise the limit (ulimit -n) and start again",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), MEMORY),
        (MemoryError(), MEMORY),
        (RuntimeError("can't start new thread"), MEMORY),
        (pl.exceptions.PanicException("could not spawn threads"), MEMORY),  # no Exception
        (pl.exceptions.PanicException("OutOfSpec(\n)"), DAMAGED.format("OutOfSpec( )")),
        (pl.exceptions.ComputeError("parquet: no index"), DAMAGED.format("parquet: no index")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_used_up_or_damaged_is_one_line(monkeypatch, capsys, error, line):
    def main():
        raise error

    monkeypatch.setattr("sys.argv", ["scripts/parse.py"])
    with pytest.raises(SystemExit) as end:
        run(main)
    assert (end.value.code, capsys.readouterr().err) == (1, f"parse.py: {line}\n")


def test_without_a_standard_output_the_line_is_printed(monkeypatch, capsys):
    def main():
        raise UserError("bad input")

    monkeypatch.setattr("sys.argv", ["scripts/parse.py"])
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err == "parse.py: bad input\n"


@pytest.mark.parametrize("kind", [ValueError, pl.exceptions.ComputeError])
def test_any_other_error_stays_as_it_is(kind):
    def main():
        raise kind("a bug")

    with pytest.raises(kind, match="a bug"):
        run(main)
