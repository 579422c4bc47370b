"""parse: every row of a history is kept or dropped for a reason; from QQNT's tables, a CSV and JSON."""

import contextlib
import io
import json
import multiprocessing.process
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import helpers
from bench.written import qce
from helpers import EXAMPLES, run_script
from huiyin.common.errors import UserError
from huiyin.common.stage import sha256
from huiyin.common.tables import MESSAGES, schema
from huiyin.qqnt.body import MENTION, TEXT, BodyReader
from huiyin.qqnt.qqnt_pb2 import Body, Element
from huiyin.sources.browser_json import json_chunks
from huiyin.sources.csv_file import csv_records, to_id, write_csv
from huiyin.sources.files import Shallow
from huiyin.sources.history import to_chunk
from huiyin.sources.record import BAD_LINE
from scripts.demo.history import GROUPS, START, history

COUNT = 1500  # messages of the sample
TYPES = schema(MESSAGES)
DROPPED = {"duplicate": 6, "no_body": 8, "no_time": 4, "system": 20}
FIVE = ["group_id", "time", "nickname", "user_id", "fragments"]  # the columns of the CSV
FORM = "a line must be: group id,2022-08-14T10:12:18Z,nickname,user id,\"['text', ...]\""


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """To start processes would take longer than all else here."""
    monkeypatch.setattr("huiyin.common.workers.cores", lambda: 1)


def parse(source, out, settings=""):
    config = out.with_suffix(".yaml")
    config.write_text(settings)
    return run_script("parse", source, "--config", config, "--out", out)


def result(out):
    return pl.read_parquet(out / "messages.parquet")


def receipt(out):
    return json.loads((out / "receipt.json").read_text())


def assert_parsed(done, out, read, **dropped):
    assert (done.returncode, done.stderr) == (0, "")
    written = read - sum(dropped.values())
    assert receipt(out)["ledger"] == {"read": read, "written": written, "dropped": dropped}
    assert result(out).height == written


def assert_refused(source, line, settings=""):
    """The line is the only one on stderr, with the names of files beside the source instead of their paths."""
    out = source.parent / "out"
    done = parse(source, out, settings)
    assert (done.returncode, done.stderr.replace(f"{source.parent}/", "")) == (1, f"parse.py: {line}\n")
    assert not out.exists() or list(out.iterdir()) == []


# ---- the sample, every row


@pytest.fixture(scope="module")
def decrypted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    assert run_script("demo/history", "--seed", 1, "--messages", COUNT, "--out", folder).returncode == 0
    source, key, out = folder / "nt_msg.db", folder / "key.txt", folder / "decrypted"
    done = run_script("decrypt", source, "--key", key, "--config", "config/decrypt.yaml", "--out", out)
    assert done.returncode == 0
    return folder / "decrypted/nt_msg.db"


def expected(message):
    parts, quote = message.parts, message.quote
    return {
        "message_id": message.message_id,
        "group_id": str(message.group.number),
        "time": datetime.fromtimestamp(message.time, UTC),
        "seq": message.seq,
        "user_id": str(message.sender.qq),
        "nickname": message.sender.name_in(message.group),
        "fragments": [part.fragment for part in parts if part.fragment],
        "kinds": [part.kind for part in parts],
        "mentions": [part.user_id for part in parts if part.kind == "at"],
        "reply_to": quote.message_id if quote else None,
        "reply_dangling": quote is not None and quote.message_id is None,
    }


def test_every_message_of_the_sample(decrypted, tmp_path):
    out = tmp_path / "out"
    done = run_script("parse", decrypted, "--config", "config/parse.yaml", "--out", out)
    assert_parsed(done, out, COUNT, **DROPPED)
    kept = [expected(message) for message in history(1, COUNT) if not message.dropped]
    kept.sort(key=lambda row: (row["group_id"], row["time"], row["seq"], row["message_id"]))
    assert result(out).to_dicts() == kept
    assert dict(result(out).schema) == {
        **dict.fromkeys(["message_id", "seq", "reply_to"], pl.Int64),
        **dict.fromkeys(["group_id", "user_id", "nickname"], pl.String),
        **dict.fromkeys(["fragments", "kinds", "mentions"], pl.List(pl.String)),
        "time": pl.Datetime("ms", "UTC"),
        "reply_dangling": pl.Boolean,
    }
    kinds = [part.kind for message in history(1, COUNT) for part in message.parts or ()]
    assert receipt(out)["elements_by_kind"] == {kind: kinds.count(kind) for kind in set(kinds)}
    assert sum(receipt(out)["rows_by_outer_type"].values()) == COUNT
    assert receipt(out)["undecodable_bodies"] == 0
    with_text = sum(bool(row["fragments"]) for row in kept) / len(kept)
    assert receipt(out)["share_with_text"] == round(with_text, 4)


def test_the_csv_of_the_sample_reads_back(decrypted, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    parse(decrypted, first)
    assert_parsed(parse(first / "messages.csv", second), second, result(first).height)
    assert result(second).select(FIVE).equals(result(first).select(FIVE))
    assert (second / "messages.csv").read_bytes() == (first / "messages.csv").read_bytes()
    assert not (second / "messages.csv").read_text(encoding="utf-8").startswith("group")


def test_the_csv_of_the_sample_gives_the_turns_of_the_database(decrypted, tmp_path):
    """But for what a CSV lacks: quotes, so these must not start a turn here."""
    config = write(tmp_path / "combine.yaml", "quotes_start_a_turn: false\n")
    turns = []
    for name, source in (("first", decrypted), ("second", tmp_path / "first/messages.csv")):
        parse(source, tmp_path / name)
        messages, out = tmp_path / name / "messages.parquet", tmp_path / f"{name} turns"
        assert run_script("combine", messages, "--config", config, "--out", out).returncode == 0
        turns.append(pl.read_parquet(out / "turns.parquet"))
    assert any("all" in mentions for mentions in turns[0]["mentions"])
    same = ["group_id", "user_id", "nickname", "time", "text", "mentions"]
    assert turns[1].select(same).to_dicts() == turns[0].select(same).to_dicts()


def test_a_qce_export_of_the_sample_gives_the_turns_of_the_database(decrypted, tmp_path):
    """Byte for byte, so that pairs and dataset are the same, too. The export lacks the rows that are no messages."""
    shown = [of for of in history(1, COUNT) if not of.dropped and of.sender]
    for group in GROUPS:
        text = "".join(qce((of for of in shown if of.group == group), group))
        write(tmp_path / f"qce/{group.number}.json", text)
    turns = []
    for name, source in (("database", decrypted), ("export", tmp_path / "qce")):
        assert parse(source, tmp_path / name).returncode == 0
        messages, out = tmp_path / name / "messages.parquet", tmp_path / f"{name} turns"
        assert run_script("combine", messages, "--config", "config/combine.yaml", "--out", out).returncode == 0
        turns.append((out / "turns.parquet").read_bytes())
    database, export = (result(tmp_path / name) for name in ("database", "export"))
    same = [name for name in MESSAGES if name not in ("fragments", "kinds")]  # elements that it does not name
    assert export.select(same).to_dicts() == database.select(same).to_dicts()
    assert turns[1] == turns[0]


def test_several_processes_make_what_one_makes(decrypted, tmp_path, monkeypatch):
    started, start = [], multiprocessing.process.BaseProcess.start
    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", lambda self: (started.append(self), start(self)))
    monkeypatch.setattr("huiyin.sources.database.BYTES_A_TASK", 1 << 16)
    monkeypatch.setattr("huiyin.sources.database.CHUNK", 200)
    for cores in (1, 2):
        monkeypatch.setattr("huiyin.common.workers.cores", lambda cores=cores: cores)
        assert_parsed(parse(decrypted, tmp_path / str(cores)), tmp_path / str(cores), COUNT, **DROPPED)
        assert len(started) == 2 * (cores - 1)
    one, two = (receipt(tmp_path / str(cores)) for cores in (1, 2))
    for name in ("outputs", "rows_by_outer_type", "elements_by_kind", "unknown_kinds"):
        assert two[name] == one[name]


def test_columns_that_older_versions_lack_are_not_needed(decrypted, tmp_path):
    source = shutil.copy(decrypted, tmp_path)
    with closing(sqlite3.connect(source)) as connection:
        for column in (40060, 40093, 40850, 40030):
            connection.execute(f"ALTER TABLE group_msg_table DROP COLUMN [{column}]")
    assert_parsed(parse(tmp_path / "nt_msg.db", tmp_path / "out"), tmp_path / "out", COUNT, **DROPPED)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_no_body_raises(junk, offset, byte):
    words = [Element(kind=TEXT, text=word.encode()) for word in ("第一", "旧", "第二")]
    quote = Element(kind=7, quoted_seq=5, quoted_elements=words[1:2])
    good = bytearray(Body(elements=[words[0], quote, words[2]]).SerializeToString())
    good[offset % len(good)] = byte
    for content in (junk, bytes(good), bytes(good[:offset]) + junk):
        read = BodyReader().read(content)
        assert len(read.fragments) == sum(kind in (TEXT, MENTION) for kind in read.kinds)


# ---- CSV

LINE = "1001,2022-08-14T10:12:18Z,a,1,['x']\n"


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


AS_TEXT = "let the spreadsheet import all columns as text"
LOST = f"its last digits are lost; {AS_TEXT}"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\r", "\n", "\r\n", "\0", '"', "'", "\",'[]", "\\", "\ufeff", "\u2028", " ", "a,b", "\\ud83d", "=1+1", "''", "#"]
)


def is_id(text):
    try:
        return text == to_id("user id", text)
    except ValueError:
        return False


def test_reading_back_gives_the_same_whatever_the_characters(tmp_path):
    ids, nicknames = TEXTS.filter(is_id), TEXTS.filter(bool)

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.tuples(ids.filter(bool), nicknames, ids, st.lists(TEXTS, max_size=3)), min_size=1))
    def check(rows):
        frame = pl.DataFrame(rows, {name: TYPES[name] for name in FIVE if name != "time"}, orient="row")
        frame = frame.with_columns(time=START + pl.int_range(pl.len()))
        path = tmp_path / "messages.csv"
        write_csv(frame.with_columns((pl.col("time") * 1000).cast(TYPES["time"])), path)
        with open(path, "rb") as file:
            back = list(csv_records(path, file, skip_bad_lines=False))
        values = [(of.room, of.time, of.name, of.sender, [text for _, text in of.parts]) for of in back]
        assert values == frame.select(FIVE).rows()

    check()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1001,2022-08-14T10:12:18Z,a,1", "4 columns instead of 5"),
        ("1001,2022-08-14T10:12:18Z,a,1,['x'],", "6 columns instead of 5"),
        (",2022-08-14T10:12:18Z,a,1,['x']", "the group id is empty"),
        ("1001,2022-08-14 10:12:18,a,1,['x']", "the second column is no time"),
        ("1001,2022-13-14T10:12:18Z,a,1,['x']", "month must be in 1..12"),
        ("1001,2022-08-14T10:12:18Z,a,1,hello", "the fifth column is no list of texts"),
        ("1001,2022-08-14T10:12:18Z,a,1,[1]", "the fifth column is no list of texts"),
        ("1001,2022-08-14T10:12:18Z,a,1,__import__('os')", "the fifth column is no list of texts"),
        ("1001,2022-08-14T10:12:18Z,a,1,\"['x' 'y', 'z']\"", "the fifth column is no list of texts"),
        ("1001,2022-08-14T10:12:18Z,a,1,['x' ... 'y']", "the fifth column is no list of texts"),
        ("1E+09,2022-08-14T10:12:18Z,a,1,[]", f"the group id is in scientific notation, {LOST}"),
        ("1001,2022-08-14T10:12:18Z,a,3.21e+09,[]", f"the user id is in scientific notation, {LOST}"),
        ("1001,2022-08-14T10:12:18Z,a, 50001.0 ,[]", f"the user id is a number with a point; {AS_TEXT}"),
        ("1001,2022-08-14T10:12:18Z,a,'50002,[]", f"the user id is in quotes or a formula; {AS_TEXT}"),
        ('1001,2022-08-14T10:12:18Z,a,"=""50002""",[]', f"the user id is in quotes or a formula; {AS_TEXT}"),
        ("1001,2022-08-14T10:12:18Z,a,nan,[]", "the user id stands for a missing value; leave it empty"),
        ("1001,2022-08-14T10:12:18Z,a,５０００２,[]", "the user id has digits other than 0 to 9"),
        ('1001,2022-08-14T10:12:18Z,"a"b,1,[]', "',' expected after '\"'"),
        ('1001,2022-08-14T10:12:18Z,"a,1,[]', "unexpected end of data"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, why):
    source = write(tmp_path / "chat.csv", f"1001,2022-08-14T10:12:18Z,\"a\nb\",1,['x']\n{line}\n")
    assert_refused(source, f"chat.csv line 3: {why}; {FORM}")


PIECES = [b'"', b"\n", b"(" * 300, b"-" * 300, b",", b"1001,2022-08-14T10:12:18Z,a,1,["]
PIECES += [LINE.encode(), LINE.encode().replace(b"x", b"\\ud83d").replace(b"2022", b"9999")]
PIECES += [b'1001,2022-08-14T10:12:18Z,"a\n",1,"[\'x\', ""y""]"\r\n']


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=40).map(str.encode) | st.sampled_from(PIECES), max_size=8))
def test_no_line_raises_anything_but_a_user_error(pieces):
    lines = [line + b"\n" for line in b"".join(pieces).split(b"\n")]
    try:
        b"".join(pieces).decode()
    except UnicodeDecodeError:
        bad = True  # another encoding is refused, whatever the setting
    else:
        records = list(csv_records("chat.csv", lines, skip_bad_lines=True))
        bad = BAD_LINE in records
        assert len(records) <= len(lines)
    if bad:
        with pytest.raises(UserError):
            list(csv_records("chat.csv", lines, skip_bad_lines=False))


# ---- JSON

ROW = {"40001": 7_400_000_000_000_000_101, "40003": 1, "40010": 2, "40050": 1_720_000_000, "40021": "20001"}
ROW |= {"40027": 5, "40033": 10001, "40800": "gvYTCsj8FQHqghYCaGk="}


def without(*columns):
    return {name: value for name, value in ROW.items() if int(name) not in columns}


AGAIN = "export the table again with DB Browser 3.12 or newer"
NO_EXPORT = "no export of a chat that is known here but JSON with"
SEE = "see docs/sources.md"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"metadata": {}, "messages": [{"id": "1"}]}, f"{NO_EXPORT} the keys 'metadata', 'messages'; {SEE}"),
        ([{"id": "1", "content": {}}], f"{NO_EXPORT} the keys 'id', 'content'; {SEE}"),
        ([ROW, "secret"], f"row 2 is not an object but text; {AGAIN}"),
        ([ROW, {"id": 1}], f"row 2 is no row of group_msg_table; it has the keys 'id'; {AGAIN}"),
        ([None], f"{NO_EXPORT} no keys; {SEE}"),
        ("secret", f"{NO_EXPORT} no keys; {SEE}"),
        ([without(40003, 40020, 40033)], f"row 1 has no column 40003, 40033 or 40020; {AGAIN}"),
        ([ROW, without(40021, 40027)], f"row 2 has no column 40021 or 40030 or 40027; {AGAIN}"),
        (
            [without(40033) | {"40020": "u_noor"}],
            f"no sender has a number, 40033, nor is one known for their 40020; {AGAIN}",
        ),
        ([ROW | {"40001": 7.4e18}], f"row 1: 40001 is 7.4E+18, rounded as DB Browser 3.11 does; {AGAIN}"),
        (
            [ROW | {"40001": 7_400_000_000_000_000_000 // 1024 * 1024 + number} for number in range(0, 9000, 1024)],
            f"all ids are rounded, as DB Browser 3.11 does; {AGAIN}",
        ),
        (
            [ROW | {"40800": body} for body in ("\ufffd\ufffd\x13", "secret!", "soso", "c2VjcmV0/w==", {"a": 1})],
            "5 of 5 message bodies cannot be read (text: 2, other bytes: 2, text with U+FFFD, all that DB Browser 3.10 "
            f"leaves: 1); {AGAIN}",
        ),
        ([ROW | {"40050": "secret"}], f"row 1: 40050 is text, not a number; {AGAIN}"),
        ([ROW | {"40003": 1 << 63}], f"row 1: 40003 is a number too large for the table; {AGAIN}"),
        ([ROW, ROW | {"40010": 1}], "row 2 is of a private chat (40010 = 1); export group_msg_table"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, content, what):
    assert_refused(write(tmp_path / "chat.json", json.dumps(content)), f"chat.json: {what}")


@pytest.mark.parametrize("end", [-1, 40])
def test_truncated_json_is_refused(tmp_path, end):
    source = write(tmp_path / "chat.json", json.dumps([ROW, ROW])[:end])
    done = parse(source, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"parse.py: {source}: not whole JSON (")
    assert done.stderr.endswith(f"); {AGAIN}\n")
    assert list((tmp_path / "out").glob("*")) == []


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '[{"40001": 1}, ' + '[{"a": ' * 50_000])
def test_json_too_deep_for_its_parser_is_refused(tmp_path, content):
    line = "chat.json: more than 1,000 lists in one another; export it again"
    assert_refused(write(tmp_path / "chat.json", content), line)


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_brackets_in_texts_are_no_lists(size):
    content = json.dumps([{"a": '[{"\\' * 500, "b": text} for text in ("[" * 2000, '"', "\\\\", "")]).encode()
    file = Shallow("chat.json", io.BytesIO(content))
    assert b"".join(iter(lambda: file.read(size), b"")) == content
    assert (file.depth, file.in_string) == (0, False)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'[{"40001": 1, "40090": "sec\x01ret"}]', "lexical error: invalid character inside string, after row 0"),
        (f"[{json.dumps(ROW)}] [secret]", "parse error: trailing garbage, after row 1"),
        (b'[{"40001": 1, "40090": "\xff"}]', "lexical error: invalid bytes in UTF8 string, after row 0"),
        ('[{"40003": 1, "40001": 1e9999999999999999999}]', "a number that is too large, after row 0"),
    ],
)
def test_what_is_wrong_with_json_is_told_without_quoting_it(tmp_path, content, what):
    assert_refused(write(tmp_path / "chat.json", content), f"chat.json: not whole JSON ({what}); {AGAIN}")


@pytest.mark.parametrize("unreadable", [2, 3])
def test_up_to_one_in_a_hundred_bodies_may_be_unreadable(tmp_path, unreadable):
    bodies = {7: "gvYTCsj8FQHqghYC", 150: "gfYT", 199: "//8="}  # cut, another field, no protobuf at all
    rows = [ROW | {"40001": 100 + number, "40003": number} for number in range(200)]
    for number in list(bodies)[:unreadable]:
        rows[number]["40800"] = bodies[number]
    source, out = write(tmp_path / "chat.json", json.dumps([*rows, ROW | {"40800": None}])), tmp_path / "out"
    if unreadable == 2:
        assert_parsed(parse(source, out), out, 201, no_body=1, undecodable=2)
    else:
        line = f"chat.json: 3 of 200 message bodies cannot be read (other bytes: 3); {AGAIN}"
        assert_refused(source, line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(JSON | st.dictionaries(st.sampled_from(list(ROW)), JSON).map(lambda odd: ROW | odd), max_size=3) | JSON,
    st.integers(0, 20),
)
def test_no_json_raises_anything_but_a_user_error(tmp_path, content, cut):
    text = json.dumps(content)
    source = write(tmp_path / "chat.json", text[: len(text) - cut])
    with contextlib.suppress(UserError), open(source, "rb") as file:
        for rows in json_chunks(source, file):
            assert to_chunk(rows, (), True).rows.height == len(rows)


# ---- errors


EMPTY = "no message left (read 0, written 0, dropped 0); see out.yaml"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("nt_msg.db", None, ": no such file; give a decrypted nt_msg.db, or the export of a chat by another program"),
        ("chat.txt", "hello", f": no known form of a history in text; {SEE}"),
        (
            "encrypted.db",
            "SQLite header 3\0" * 600,
            ": cannot be read (file is not a database); if it is encrypted, decrypt it first",
        ),
        ("lines.jsonl", '{"id": "1", "sender": {}}\n' * 2, f": {NO_EXPORT} the keys 'id', 'sender'; {SEE}"),
        (
            "chat.csv",
            f"{LINE}1001,2022,".encode() + b"\xd0",
            ": neither UTF-8 nor GB18030 text; export it again, or save it as UTF-8",
        ),
        (
            "chat.csv",
            '1001,2022-08-14T10:12:18Z,"a' + "\n" * 2000 + '",1,[]\n',
            f" line 1000: more than 1000 lines; is a quote missing?; {FORM}",
        ),
        (
            "digits.json",
            json.dumps([ROW | {"40003": 12345}]).replace("12345", "9" * 5000),
            f": row 1: 40003 is a number too large for the table; {AGAIN}",
        ),
        ("empty.csv", "", ": is empty; export or copy it again"),
        ("blank.csv", "\n", f": no known form of a history in text; {SEE}"),
        ("empty.json", "[]", f": {EMPTY}"),
        ("empty.json", "null", f": {EMPTY}"),
    ],
)
def test_what_is_no_history_is_refused(tmp_path, name, content, line):
    source = tmp_path / name
    if content is not None:
        write(source, content)
    assert_refused(source, f"{name}{line}")


def test_a_csv_in_another_encoding_is_read_and_that_is_said(tmp_path):
    source = write(tmp_path / "chat.csv", (LINE + LINE.replace("x", "退潮了")).encode("gb18030"))
    done = parse(source, tmp_path / "out")
    assert_parsed(done, tmp_path / "out", 2)
    assert result(tmp_path / "out")["fragments"].to_list() == [["x"], ["退潮了"]]
    assert done.stdout.startswith("parse: chat.csv is read as gb18030\n")


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    states = iter(["before", "after"])
    monkeypatch.setattr("huiyin.common.stage.state", lambda path: next(states))
    line = "chat.csv: was written to while it was read; close the program that writes it and start again"
    assert_refused(write(tmp_path / "chat.csv", LINE), line)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("c2c_msg_table ([40001] INTEGER)", "no group_msg_table in it; give a decrypted nt_msg.db"),
        (
            "group_msg_table ([40001] INTEGER, [40003] INTEGER, name TEXT)",
            "group_msg_table has no column 40021 or 40030 or 40027, 40033 or 40020, 40050, 40800; is it QQNT's?",
        ),
    ],
)
def test_a_database_without_messages_is_refused(tmp_path, table, line):
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute(f"CREATE TABLE {table}")
    assert_refused(tmp_path / "other.db", f"other.db: {line}")


def test_a_damaged_database_of_ours_names_what_makes_it_anew(tmp_path):
    source = tmp_path / "nt_msg.db"
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("CREATE TABLE group_msg_table (a)")
    source.write_bytes(source.read_bytes().replace(b"TABLE", b"\xff" * 5))  # the message of SQLite's error quotes it
    damaged = "nt_msg.db: cannot be read (its schema is damaged)"
    assert_refused(source, f"{damaged}; if it is encrypted, decrypt it first")
    outputs = {"nt_msg.db": sha256(source)}
    source.with_name("receipt.json").write_text(json.dumps(helpers.receipt("decrypt", outputs=outputs)))
    assert_refused(source, f"{damaged}; delete receipt.json, then `make decrypt` makes it")


def test_a_view_is_not_asked(decrypted, tmp_path):
    source = shutil.copy(decrypted, tmp_path / "nt_msg.db")
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("DROP TABLE nt_uid_mapping_table")
        forever = (
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS [48902], x AS [1002] FROM n"
        )
        connection.execute(f"CREATE VIEW nt_uid_mapping_table AS {forever}")
    assert_refused(source, "nt_msg.db: cannot be read (not authorized); if it is encrypted, decrypt it first")


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("since: 2023-01-01", "chat.csv: no message left (read 1, written 0, dropped 1 (filtered 1)); see out.yaml"),
        ("groups: [5]", "out.yaml: groups: no group '5' in the history; there are: 1001"),
        ("since: tomorrow", "out.yaml: since: must be a day such as 2022-08-14 or empty, not tomorrow"),
        (
            "placeholders: [text]",
            "out.yaml: placeholders: must be a list such as [a, b], each item image or file or voice or video or face "
            "or wallet or ark or market_face or markdown or forward or call, not ['text']",
        ),
        (
            "colour: red",
            "out.yaml: unknown setting 'colour'; known are: preset, faces, placeholders, groups, since, until, "
            "leave_out, skip_bad_lines, zone, group, format, same_person",
        ),
    ],
)
def test_invalid_settings_are_one_line(tmp_path, setting, line):
    assert_refused(write(tmp_path / "chat.csv", LINE), line, setting)
