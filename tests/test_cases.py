"""Each stage does with every case folder what the folder expects."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl
import sqlcipher3

from case_folders import cases, compare, ledger_of, messages, read_lines, to_lines, turns
from helpers import run_script
from huiyin.qqnt.cipher import Cipher, build_header, encryption_key
from huiyin.qqnt.qqnt_pb2 import Body, Element, Header, Wallet
from llm_folder import arguments, succeeded


@cases("combine")
def test_combine(case, tmp_path):
    metadata = {"faces": "names", "placeholders": ""}
    messages(read_lines(case / "messages.jsonl")).write_parquet(tmp_path / "messages.parquet", metadata=metadata)
    config, out = case / "combine.yaml", tmp_path / "out"
    succeeded(run_script("combine", tmp_path / "messages.parquet", "--config", config, "--out", out))
    turns = pl.read_parquet(tmp_path / "out/turns.parquet")
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("turns.*.json")}
    written = to_lines(turns.iter_rows(named=True))
    compare(case, {**found, "ledger.json": ledger_of(tmp_path / "out"), "turns.jsonl": written})


@cases("pair")
def test_pair_without_a_model(case, tmp_path):
    turns(read_lines(case / "turns.jsonl")).write_parquet(tmp_path / "turns.parquet")
    config = {"config": case / "pair.yaml", "llm": "config/llm.yaml"}
    succeeded(run_script("pair", *arguments("pair", tmp_path, **config)))
    lines = {name: (tmp_path / "paired" / name).read_text("utf-8") for name in ("pairs.jsonl", "unpaired.jsonl")}
    compare(case, {"ledger.json": ledger_of(tmp_path / "paired"), **lines})
    assert not (tmp_path / "answers.db").exists()  # nobody was asked


# ---- parse: rows of QQNT (bodies as lists of elements), or a file of another tool


USUAL = json.loads(  # what a line of rows.jsonl leaves out
    '{"40011": 2, "40012": 1, "40013": 0, "40020": "u_ann", "40021": "1001", "40027": 51, "40030": 1001, "40033": 111,'
    ' "40060": 0, "40090": "Ann", "40093": "", "40850": 0}'
)


def blob_or(value):
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def element(fields):
    """The element with the given fields: text becomes bytes, {"hex": ...} stands for bytes that are no text."""

    def value(content):
        if isinstance(content, dict):
            return blob_or(content) if "hex" in content else Wallet(**element(content))
        if isinstance(content, list):
            return [Element(**element(item)) if isinstance(item, dict) else item.encode() for item in content]
        return content.encode() if isinstance(content, str) else content

    return {name: value(content) for name, content in fields.items()}


def body_of(row):
    if "body" not in row:
        return bytes.fromhex(row["body_hex"]) if row.get("body_hex") else None
    whole = Body(elements=[Element(**element(fields)) for fields in row["body"]]).SerializeToString()
    return whole[: len(whole) - row.get("cut", 0)]


def write_history(case, path):
    tables = {"group_msg_table": []}
    for index, row in enumerate(read_lines(case / "rows.jsonl"), 1):
        own = {"40001": index, "40003": index, "40050": 1_660_471_938 + index}
        given = {name: blob_or(value) for name, value in row.items() if name.isdigit()}
        tables["group_msg_table"].append({**USUAL, **own, **given, "40800": body_of(row)})
    if (case / "tables.json").exists():
        tables |= json.loads((case / "tables.json").read_text(encoding="utf-8"))
    with closing(sqlite3.connect(path)) as connection:
        for name, rows in tables.items():
            columns = list(rows[0])
            connection.execute(f"CREATE TABLE {name} ({', '.join(f'[{column}]' for column in columns)})")
            connection.executemany(
                f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})",
                [[row[column] for column in columns] for row in rows],
            )
        connection.commit()


REPORT = ["rows_by_outer_type", "elements_by_kind", "unknown_kinds", "undecodable_bodies", "invalid_utf8_texts"]
REPORT += ["share_with_text", "format", "quotes", "times_without_seconds", "odd", "assumed"]


@cases("parse")
def test_parse(case, tmp_path):
    given = [*case.glob("source.*"), *case.glob("source")]
    source = given[0] if given else tmp_path / "nt_msg.db"
    if not given:
        write_history(case, source)
    config = case / "parse.yaml" if (case / "parse.yaml").exists() else "config/parse.yaml"
    done = run_script("parse", source, "--config", config, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    receipt = json.loads((tmp_path / "out/receipt.json").read_text(encoding="utf-8"))
    metadata = pl.read_parquet_metadata(tmp_path / "out/messages.parquet")
    report = {name: receipt[name] for name in REPORT if name in receipt}
    report |= {name: metadata[name] for name in ("faces", "placeholders")}
    messages = to_lines(pl.read_parquet(tmp_path / "out/messages.parquet").iter_rows(named=True))
    ledger = ledger_of(tmp_path / "out")
    compare(case, {"ledger.json": ledger, "messages.jsonl": messages, "report.jsonl": to_lines(report.items())})


@cases("to_the_dataset")
def test_from_rows_to_the_dataset(case, tmp_path):
    parsed, combined, llm = tmp_path / "parsed", tmp_path / "combined", "config/llm.yaml"
    write_history(case, tmp_path / "nt_msg.db")
    succeeded(run_script("parse", tmp_path / "nt_msg.db", "--config", "config/parse.yaml", "--out", parsed))
    messages = parsed / "messages.parquet"
    succeeded(run_script("combine", messages, "--config", "config/combine.yaml", "--out", combined))
    succeeded(run_script("pair", *arguments("pair", combined, config=case / "pair.yaml", llm=llm, target="111")))
    succeeded(run_script("gen", *arguments("gen", combined, config=case / "gen.yaml", llm=llm)))
    compare(case, {"alpaca.json": (combined / "generated/alpaca.json").read_text(encoding="utf-8")})


# ---- decrypt: a database as each platform keeps it


@cases("decrypt")
def test_decrypt(case, tmp_path):
    variant = json.loads((case / "variant.json").read_text(encoding="utf-8"))
    source, key = tmp_path / "nt_msg.db", variant["key"]
    with closing(sqlcipher3.connect(str(source), isolation_level=None)) as connection:
        for statement in Cipher(hmac=variant["hmac"]).pragmas(key):
            connection.execute(statement)
        if variant.get("wal"):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE group_msg_table ([40001] INTEGER PRIMARY KEY, [40021] TEXT, [40800] BLOB)")
        connection.execute("CREATE TABLE c2c_msg_table ([40001] INTEGER PRIMARY KEY, [40021] TEXT)")
        connection.execute("INSERT INTO c2c_msg_table VALUES (1, 'private')")
        connection.executemany(
            "INSERT INTO group_msg_table VALUES (?, '1001', zeroblob(?))",
            [(number, number * 400) for number in range(1, 41)],
        )
        if variant.get("wal"):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("INSERT INTO group_msg_table VALUES (99, 'newest', zeroblob(20000))")
            connection.execute("UPDATE group_msg_table SET [40021] = 'changed' WHERE [40001] = 7")
            log = Path(f"{source}-wal").read_bytes()
        content = source.read_bytes()
    if variant.get("wal"):
        Path(f"{source}-wal").write_bytes(log)
    salt = content[:16]
    if header := variant.get("header"):
        fields = Header(**{name: value.encode() if isinstance(value, str) else value for name, value in header.items()})
        content = build_header(fields) + content
    source.write_bytes(content)
    if form := variant.get("form"):
        key = encryption_key(key, salt).hex() + (salt.hex() if form == "key and salt" else "")
    (tmp_path / "key.txt").write_bytes(key.encode() + b"\n")
    done = run_script(
        "decrypt", source, "--key", tmp_path / "key.txt", "--config", "config/decrypt.yaml", "--out", tmp_path / "out"
    )
    assert (done.returncode, done.stderr) == (0, "")
    with closing(sqlite3.connect(tmp_path / "out/nt_msg.db")) as connection:
        rows = connection.execute("SELECT [40001], [40021], length([40800]) FROM group_msg_table").fetchall()
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert tables == [("group_msg_table",)]
    compare(case, {"ledger.json": ledger_of(tmp_path / "out"), "rows.jsonl": to_lines(rows)})
