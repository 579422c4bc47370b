"""The rows of the dataset, and how they are fitted into `cutoff_len`, so that no reply is learnt without its end.

LLaMA-Factory cuts what is longer without a word, and a row ends with its reply (data/processor/supervised.py).

A row is its exchanges, [prompt, reply], the last one and those of its history before it. Each is a sample of gen, and
each reply is learnt; of a held-out row only the last exchange counts.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from huiyin.common.errors import UserError
from huiyin.common.stage import anew, need, need_receipt, read_text
from huiyin.common.tables import COMMA
from huiyin.training.template import Encoding

MADE_BY = "`make gen` makes it"
FILES = ("alpaca.json", "alpaca_eval.json", "dataset_info.json", "system.txt")


@dataclass
class Row:
    """A row of the dataset, as LLaMA-Factory reads it."""

    instruction: str
    output: str
    system: str = ""
    history: list[tuple[str, str]] = field(default_factory=list)
    input: str = ""

    def exchanges(self) -> list[tuple[str, str]]:
        """Return (prompt, reply) of each exchange, oldest first."""
        prompt = f"{self.instruction}\n{self.input}" if self.input else self.instruction
        return [*self.history, (prompt, self.output)]


@dataclass(frozen=True)
class Measured:
    """A row and the numbers of its tokens."""

    system: str
    exchanges: list[tuple[str, str]]
    first: list[int]  # tokens of each exchange as the first of a row, with all that stands before it
    later: list[int]  # and as a later one
    spare: int  # tokens that stay free

    def tokens(self, start: int = 0, stop: int | None = None) -> int:
        """Return the number of tokens of a row of the exchanges from `start` to before `stop`."""
        return self.first[start] + sum(self.later[start + 1 : stop]) + self.spare

    def alone(self) -> list[int]:
        """Return the number of tokens of each exchange in a row without history."""
        return [self.tokens(index, index + 1) for index in range(len(self.exchanges))]

    def parts(self, cutoff_len: int) -> list[tuple[int, int]]:
        """Return (start, stop) of the parts, oldest first, that the row is split into: the last one holds as many of
        the newest exchanges as fit, and so on. An exchange that does not fit is a part of its own."""
        parts: list[tuple[int, int]] = []
        stop = len(self.exchanges)
        while stop:
            start = stop - 1
            while start and self.tokens(start - 1, stop) <= cutoff_len:
                start -= 1
            parts.insert(0, (start, stop))
            stop = start
        return parts

    def learnt(self, cutoff_len: int) -> list[tuple[int, int]]:
        """Return (start, stop) of the parts to learn from, oldest first: those that fit."""
        return [part for part in self.parts(cutoff_len) if self.tokens(*part) <= cutoff_len]

    def part(self, start: int, stop: int) -> dict[str, Any]:
        """Return the exchanges from `start` to before `stop` as a row of the dataset."""
        *history, (prompt, reply) = self.exchanges[start:stop]
        row = {"instruction": prompt, "input": "", "output": reply, "system": self.system}
        return {**row, "history": history}


class MeasuredDataset(NamedTuple):
    rows: list[Measured]
    held_out: list[Measured]


@dataclass
class Fitted:
    """Rows that fit, and what became of the samples: read = written + too_long."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    written: int = 0
    too_long: int = 0

    def take(self, row: Measured, cutoff_len: int) -> None:
        """Take a row to learn from. If it is longer than `cutoff_len` it is split; an exchange that does not fit is
        left out."""
        parts = row.learnt(cutoff_len)
        written = sum(stop - start for start, stop in parts)
        self.read += len(row.exchanges)
        self.written += written
        self.too_long += len(row.exchanges) - written
        self.rows += [row.part(start, stop) for start, stop in parts]

    def hold_out(self, row: Measured, cutoff_len: int) -> None:
        """Take a row for evaluation, where only the last reply counts: of its history the newest that fits."""
        self.read += 1
        start, stop = row.parts(cutoff_len)[-1]
        if row.tokens(start, stop) > cutoff_len:
            self.too_long += 1
        else:
            self.written += 1
            self.held_out.append(row.part(start, stop))

    def write(self, folder: Path, generated: Path) -> None:
        """Write the rows into `folder`, as a dataset that is described as that in `generated`."""
        folder.mkdir(exist_ok=True)
        shutil.copyfile(generated / "dataset_info.json", folder / "dataset_info.json")
        for name, rows in (("alpaca.json", self.rows), ("alpaca_eval.json", self.held_out)):
            (folder / name).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Dataset:
    files: list[Path]  # FILES
    rows: list[Row]
    held_out: list[Row]
    system: str  # of rows that have none

    @property
    def size(self) -> int:
        """The bytes of the rows to learn from."""
        return self.files[0].stat().st_size

    def measure(self, encoding: Encoding, spare: int) -> MeasuredDataset:
        """Return the rows and the held-out rows with their tokens, and `spare` ones more in each row. `UserError` if
        the base model reads a text as a control token."""
        self.check_texts(encoding)

        def measured(row: Row) -> Measured:
            system, exchanges = row.system or self.system, row.exchanges()
            first = [encoding.opening(system, prompt) + encoding.reply(reply) for prompt, reply in exchanges]
            later = [encoding.prompt(prompt) + encoding.reply(reply) for prompt, reply in exchanges]
            return Measured(system, exchanges, first, later, spare)

        return MeasuredDataset(*([measured(row) for row in rows] for rows in (self.rows, self.held_out)))

    def check_texts(self, encoding: Encoding) -> None:
        """`UserError` if the base model reads a part of a text as a control token: whoever wrote it could end a turn
        and begin another, and a reply would be learnt that nobody wrote."""
        for file, rows in zip(self.files, (self.rows, self.held_out), strict=False):
            for number, row in enumerate(rows):
                texts = [row.system or self.system, *(text for exchange in row.exchanges() for text in exchange)]
                token = next(filter(None, map(encoding.control_token, texts)), None)
                if token:
                    raise UserError(
                        f"{file} row {number}: a text contains {token}, a control token of the base model; "
                        "`make clean-gen gen` makes the dataset again and such texts harmless"
                    )


def read_dataset(folder: Path) -> Dataset:
    """Return the dataset that gen has written into `folder`."""
    files = [need(folder / name, MADE_BY) for name in FILES]
    rows, held_out = (read_rows(file) for file in files[:2])
    if not rows:
        raise UserError(f"{files[0]}: no rows to learn from; the receipt beside it tells why turns were dropped")
    return Dataset(files, rows, held_out, read_system(folder))


def read_system(folder: Path) -> str:
    """Return the system text of the dataset that gen has written into `folder`."""
    return read_text(folder / "system.txt", MADE_BY)


def read_gen_settings(folder: Path) -> dict[str, Any]:
    """Return the settings with which gen has made the dataset in `folder`, from its receipt. Earlier versions joined
    the messages of a turn by commas, without a setting."""
    for used in need_receipt(folder, MADE_BY)["settings"].values():
        if "history_turns" in used.get("values", {}):
            return {"message_separator": COMMA, **used["values"]}
    raise UserError(f"{folder}/receipt.json: not the receipt of gen; `make clean-gen gen` makes it")


def read_times(folder: Path) -> dict[str, str | None]:
    """Return, of the receipt of gen, "learnt_until", the time of the newest sample to learn from, and "held_out_from",
    that of the oldest one held out; None where there is none, or an earlier version did not note it."""
    receipt = need_receipt(folder, MADE_BY)
    return {name: receipt.get(name) for name in ("learnt_until", "held_out_from")}


def read_rows(file: Path) -> list[Row]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Row])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:  # they name a place, and no text
        raise UserError(f"{file}: not the rows of a dataset ({error}); {anew(file, MADE_BY)}") from None


def fit(measured: MeasuredDataset, cutoff_len: int) -> Fitted:
    """Return the rows that fit; `UserError` if there are none to learn from."""
    fitted = Fitted()
    for row in measured.rows:
        fitted.take(row, cutoff_len)
    for row in measured.held_out:
        fitted.hold_out(row, cutoff_len)
    if not fitted.rows:
        raise UserError(
            f"no reply fits into {cutoff_len:,} tokens with its prompt and the system text; raise cutoff_len"
        )
    return fitted
