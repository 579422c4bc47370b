"""What the files between the stages hold, and the functions that read them and check that it is so.

Columns and their types stand here in the words of data/README.md. Files may hold more: people's own scripts add fields.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from huiyin.common.errors import UserError
from huiyin.common.lazy import polars as pl
from huiyin.common.stage import anew

COMMA = "，"  # combine joins the messages of a turn with it
NOT_ONE_PERSON = ["", "80000000"]  # senders without a number, and QQ's number for whoever is anonymous
EVERYBODY = "all"  # in `mentions`
GROUP_MESSAGES = "group_msg_table"  # QQNT's table of the messages of groups
DECRYPTED = [GROUP_MESSAGES, "nt_uid_mapping_table"]  # what is taken of nt_msg.db

MESSAGES = {  # messages.parquet
    **{"message_id": "Int64", "group_id": "String", "time": "Datetime(ms, UTC)", "seq": "Int64"},
    **{"user_id": "String", "nickname": "String"},
    **dict.fromkeys(["fragments", "kinds", "mentions"], "List(String)"),
    **{"reply_to": "Int64", "reply_dangling": "Boolean"},
}
SAME_PERSON = "same_person"  # metadata of messages and turns: {other id: the id that it is read as}, as JSON
MESSAGES_ORDER = ["group_id", "time", "seq", "message_id"]  # nulls first

TURNS = {  # turns.parquet
    **{"turn_id": "Int64", "group_id": "String", "user_id": "String", "nickname": "String"},
    **dict.fromkeys(["time", "first_time", "last_time"], "Datetime(ms, UTC)"),
    "text": "String",
    **{"texts": "List(String)", "times": "List(Datetime(ms, UTC))", "mentioned": "List(List(String))"},
    **{"message_ids": "List(Int64)", "mentions": "List(String)"},
    **{"reply_to_turn": "Int64", "quotes_outside": "Boolean", "seconds_since_previous": "Int64"},
}

NULLABLE = ["seq", "reply_to", "reply_to_turn"]

# Fields of the lines of a file, and their types
TurnId = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
REPLY = {
    **{"turn_id": TurnId, "turn_ids": list[TurnId], "group_id": str, "reply": str},
    "time": Annotated[datetime, Meta(tz=True)],
}
DECIDED = {"decided_by": str, "confidence": float | None}
PAIR = {**REPLY, "prompt_turn_id": TurnId, "prompt": str, **DECIDED, "candidates": list[TurnId]}  # of pairs.jsonl
UNPAIRED = {**REPLY, "reason": str}  # of unpaired.jsonl
ORIGIN = {"turn_ids": list[TurnId], **DECIDED}
SOURCE = {"row": int, **ORIGIN, "samples": list[dict[str, Any]]}  # of sources.jsonl


def schema(columns: Mapping[str, str]) -> dict[str, Any]:
    """Return `columns` with polars' types in place of their names."""
    types = {
        **{"Int64": pl.Int64(), "String": pl.String(), "Boolean": pl.Boolean()},
        **{"Datetime(ms, UTC)": pl.Datetime("ms", "UTC")},
        **{"List(String)": pl.List(pl.String), "List(Int64)": pl.List(pl.Int64)},
        "List(Datetime(ms, UTC))": pl.List(pl.Datetime("ms", "UTC")),
        "List(List(String))": pl.List(pl.List(pl.String)),
    }
    return {name: types[type_name] for name, type_name in columns.items()}


def scan_table(path: Path, columns: Mapping[str, str], made_by: str) -> "pl.LazyFrame":
    """Return `columns` of the parquet file at `path`, unread; `UserError` unless it has each of them in its type, and
    in them what the stages count on. `made_by`: what makes such a file, as in "`make parse` makes it"."""
    try:
        found = pl.read_parquet_schema(path)
        for name, wanted in schema(columns).items():
            if found.get(name) != wanted:
                held = f"{name} is {found[name]}" if name in found else f"no column {name}"
                raise UserError(f"{path}: {held}, it must be {columns[name]}; {anew(path, made_by)}")
        table = pl.scan_parquet(path).select(*columns)
        broken = table.select(**rules_broken(columns)).collect(engine="streaming").row(0, named=True)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a parquet file ({error}); {anew(path, made_by)}") from None
    if problem := next((rule for rule, is_broken in broken.items() if is_broken), ""):
        raise UserError(f"{path}: {problem}; {anew(path, made_by)}")
    return table


def other_ids(path: Path) -> dict[str, str]:
    """Return {another id of a person: the id} that the parquet file at `path`, of messages or turns, was made with."""
    try:
        return dict(json.loads(pl.read_parquet_metadata(path).get(SAME_PERSON, "{}")))
    except (ValueError, TypeError):
        return {}


def rules_broken(columns: Mapping[str, str]) -> dict[str, "pl.Expr"]:
    """Return {what is wrong, in words: is it so in a table with these columns?}."""
    wrong = {f"nulls in {name}": pl.col(name).null_count() > 0 for name in columns if name not in NULLABLE}
    for name in (name for name, kind in columns.items() if kind.startswith("List")):
        wrong[f"nulls in lists of {name}"] = pl.col(name).list.contains(None).any()
    if "turn_id" in columns:
        wrong["turn_id is not 0, 1, 2, ..."] = (pl.col("turn_id") != pl.int_range(pl.len())).any()
        number = pl.col("message_ids").list.len()
        wrong["empty lists in message_ids"] = (number == 0).any()
        for name in ("texts", "times", "mentioned"):
            if name in columns:
                wrong[f"{name} and message_ids of different lengths"] = (pl.col(name).list.len() != number).any()
    return wrong


def read_records(path: Path, fields: Mapping[str, Any], made_by: str) -> list[dict[str, Any]]:
    """Return the lines of a .jsonl file as dicts; `UserError` for one that has not all of `fields` in their types."""
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line.decode())
                if not isinstance(record, dict):
                    raise TypeError
                if b"\\ud" in line.lower():  # half a character, which no file can be written with
                    json.dumps(record, ensure_ascii=False).encode()
            except (ValueError, TypeError, RecursionError):
                raise UserError(f"{path} line {number}: not a JSON object; {anew(path, made_by)}") from None
            if problem := problem_with(record, fields):
                raise UserError(f"{path} line {number}: {problem}; {anew(path, made_by)}")
            records.append(record)
    return records


def problem_with(record: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Return which of `fields`, {name: type}, a record has not, or has in another type; "" for none."""
    for name, kind in fields.items():
        if name not in record:
            return f"no field {name}"
        try:
            msgspec.convert(record[name], kind)
        except msgspec.ValidationError:
            return f"{name} is of another type or out of range"
    return ""


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write each record as a line of JSON."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
