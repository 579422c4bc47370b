"""What the files between the stages hold, and the functions that read them and check that it is so.

Columns and their types stand here in the words of data/README.md. Files may hold more: people's own scripts add fields.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huiyin.common.errors import UserError
from huiyin.common.lazy import polars as pl
from huiyin.common.stage import anew

COMMA = "，"  # combine joins the messages of a turn with it
NOT_ONE_PERSON = ["", "80000000"]  # senders without a number, and QQ's number for whoever is anonymous
EVERYBODY = "all"  # in `mentions`
GROUP_MESSAGES = "group_msg_table"  # QQNT's table of the messages of groups

MESSAGES = {  # messages.parquet
    **{"message_id": "Int64", "group_id": "String", "time": "Datetime(ms, UTC)", "seq": "Int64"},
    **{"user_id": "String", "nickname": "String"},
    **dict.fromkeys(["fragments", "kinds", "mentions"], "List(String)"),
    **{"reply_to": "Int64", "reply_dangling": "Boolean"},
}
MESSAGES_ORDER = ["group_id", "time", "seq", "message_id"]  # nulls first

TURNS = {  # turns.parquet
    **{"turn_id": "Int64", "group_id": "String", "user_id": "String", "nickname": "String"},
    **dict.fromkeys(["time", "first_time", "last_time"], "Datetime(ms, UTC)"),
    **{"text": "String", "message_ids": "List(Int64)", "mentions": "List(String)"},
    **{"reply_to_turn": "Int64", "quotes_outside": "Boolean", "seconds_since_previous": "Int64"},
}

REPLY = ["turn_id", "turn_ids", "group_id", "reply", "time"]
PAIR = [*REPLY, "prompt_turn_id", "prompt", "decided_by", "confidence", "candidates"]  # a line of pairs.jsonl
UNPAIRED = [*REPLY, "reason"]  # a line of unpaired.jsonl
SOURCE = ["row", "turn_ids", "decided_by", "confidence"]  # a line of sources.jsonl


def schema(columns: Mapping[str, str]) -> dict[str, Any]:
    """Return `columns` with polars' types in place of their names."""
    types = {
        **{"Int64": pl.Int64(), "String": pl.String(), "Boolean": pl.Boolean()},
        **{"Datetime(ms, UTC)": pl.Datetime("ms", "UTC")},
        **{"List(String)": pl.List(pl.String), "List(Int64)": pl.List(pl.Int64)},
    }
    return {name: types[type_name] for name, type_name in columns.items()}


def scan_table(path: Path, columns: Mapping[str, str], made_by: str) -> "pl.LazyFrame":
    """Return the parquet file at `path`, unread; `UserError` unless it has each of `columns` in its type. `made_by`:
    what makes such a file, as in "`make parse` makes it"."""
    try:
        found = pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: not a parquet file ({error}); {anew(path, made_by)}") from None
    for name, wanted in schema(columns).items():
        if found.get(name) != wanted:
            held = f"{name} is {found[name]}" if name in found else f"no column {name}"
            raise UserError(f"{path}: {held}, it must be {columns[name]}; {anew(path, made_by)}")
    return pl.scan_parquet(path)


def read_records(path: Path, fields: Iterable[str], made_by: str) -> list[dict[str, Any]]:
    """Return the lines of a .jsonl file as dicts; `UserError` for one that has not all of `fields`."""
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise TypeError
                missing = [name for name in fields if name not in record]
            except (ValueError, TypeError, RecursionError):
                raise UserError(f"{path} line {number}: not a JSON object; {anew(path, made_by)}") from None
            if missing:
                raise UserError(f"{path} line {number}: no field {missing[0]}; {anew(path, made_by)}")
            records.append(record)
    return records


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write each record as a line of JSON."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
