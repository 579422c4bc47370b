"""parse: every row of a history is kept or dropped for a reason; from QQNT's tables, a CSV and JSON."""

import contextlib
import json
import multiprocessing.process
import sqlite3
from contextlib import closing
from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import EXAMPLES, run_script
from huiyin.common.errors import UserError
from huiyin.common.tables import MESSAGES, schema
from huiyin.qqnt.body import KINDS, MENTION, TEXT, BodyReader
from huiyin.qqnt.qqnt_pb2 import Body, Element, Wallet
from huiyin.sources.browser_json import json_chunks
from huiyin.sources.csv_file import csv_chunks, write_csv
from huiyin.sources.history import to_chunk
from scripts.demo.history import COLUMNS, START, history

COUNT = 1500  # messages of the sample
TYPES = schema(MESSAGES)
DROPPED = {"duplicate": 6, "no_body": 8, "no_time": 4, "system": 20}
FIVE = ["group_id", "time", "nickname", "user_id", "fragments"]  # the columns of the CSV
FORM = "a line must be: group id,2022-08-14T10:12:18Z,nickname,user id,\"['text', ...]\""


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


def assert_refused(done, out, line):
    assert (done.returncode, done.stderr) == (1, f"parse.py: {line}\n")
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
        "fragments": [part.text for part in parts if part.kind in ("text", "at")],
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
    assert result(out).schema == {
        "message_id": pl.Int64,
        "group_id": pl.String,
        "time": pl.Datetime("ms", "UTC"),
        "seq": pl.Int64,
        "user_id": pl.String,
        "nickname": pl.String,
        "fragments": pl.List(pl.String),
        "kinds": pl.List(pl.String),
        "mentions": pl.List(pl.String),
        "reply_to": pl.Int64,
        "reply_dangling": pl.Boolean,
    }
    assert pl.read_parquet_metadata(out / "messages.parquet")["placeholders"] == ""
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


def test_placeholders_pair_up_with_kinds(decrypted, tmp_path):
    done = parse(decrypted, tmp_path / "out", "placeholders: [image, face, market_face, ark, file, voice]\n")
    assert_parsed(done, tmp_path / "out", COUNT, **DROPPED)
    metadata = pl.read_parquet_metadata(tmp_path / "out/messages.parquet")
    placeholders = metadata["placeholders"].split(",")
    assert placeholders == ["image", "face", "market_face", "ark", "file", "voice"]
    pairs = set()
    for fragments, kinds in result(tmp_path / "out").select("fragments", "kinds").iter_rows():
        with_fragment = [kind for kind in kinds if kind in ("text", "at", *placeholders)]
        pairs |= {pair for pair in zip(with_fragment, fragments, strict=True) if pair[0] not in ("text", "at")}
    faces = {("face", "/捂脸"), ("face", "/斜眼笑"), ("market_face", "[贴贴]")}
    others = {("image", "[图片]"), ("ark", "[分享]一首歌"), ("file", "[文件]作业.docx"), ("voice", "[语音]")}
    assert pairs == faces | others


# ---- rows written for one test


def body(*elements):
    return Body(elements=elements).SerializeToString()


def text(content, **fields):
    return Element(kind=1, text=content.encode(), **fields)


def row(message_id, **values):
    """Return an ordinary row, {column number: value}, changed by `values` (c40003=... and so on)."""
    usual = {
        40001: message_id,
        40002: message_id,
        40003: message_id,
        40011: 2,
        40012: 1,
        40013: 0,
        40020: "u_ann",
        40021: "1001",
        40027: 51,
        40030: 1001,
        40033: 111,
        40050: START + message_id,
        40060: 0,
        40090: "Ann",
        40093: "",
        40800: body(text(f"words {message_id}")),
        40850: 0,
    }
    return usual | {int(name[1:]): value for name, value in values.items()}


@pytest.fixture
def make(tmp_path):
    """Return a function that parses a history of the given rows and returns its messages by id."""

    def parsed(*rows, without=(), tables=(), settings="", **dropped):
        path, out = tmp_path / "nt_msg.db", tmp_path / "out"
        path.unlink(missing_ok=True)
        columns = [number for number in COLUMNS if number not in without]
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            types = ", ".join(f"[{number}] {COLUMNS[number]}" for number in columns)
            connection.execute(f"CREATE TABLE group_msg_table ({types})")
            connection.executemany(
                f"INSERT INTO group_msg_table VALUES ({', '.join('?' * len(columns))})",
                [[values.get(number) for number in columns] for values in rows],
            )
            for statement in tables:
                connection.execute(statement)
        assert_parsed(parse(path, out, settings), out, len(rows), **dropped)
        return {message["message_id"]: message for message in result(out).to_dicts()}

    return parsed


def test_the_first_reason_to_drop_a_row_counts(make):
    kept = make(
        row(1),
        row(2, c40013=3, c40050=0, c40800=None),
        row(3, c40011=1, c40012=0, c40800=None),
        row(4, c40011=1, c40012=0, c40800=b""),
        row(5, c40800=body(Element(kind=8), Element(kind=26))),
        row(6, c40050=0, c40800=None),
        row(7, c40050=-5),
        row(8, c40050=1 << 60),
        row(9, c40800=None),
        row(10, c40800=b""),
        row(11, c40800=b"\xff\xff"),
        row(12, c40800=body(Element(kind=8), text("but text"))),
        row(13, c40011=1, c40012=0),
        row(14, c40013=1_660_000_000),
        system=4,
        no_time=3,
        no_body=3,
    )
    assert sorted(kept) == [1, 12, 13, 14]
    assert kept[12]["fragments"] == ["but text"]
    assert kept[12]["kinds"] == ["tip", "text"]


def test_a_copy_of_a_message_is_a_duplicate_and_the_same_words_again_are_not(make):
    same = {"c40003": 5, "c40050": START, "c40800": body(text("said", element_id=9))}
    kept = make(
        row(3, **same),
        row(2, **same),
        row(4, **same),
        row(5, **{**same, "c40800": body(text("said", element_id=8))}),  # the same words, said again
        row(6, **{**same, "c40033": 222, "c40020": "u_bob"}),
        row(7, **{**same, "c40050": START + 1}),
        row(8, **{**same, "c40021": "1002", "c40027": 52}),
        row(9, c40003=9, c40800=body(Element(kind=7, quoted_seq=5, quoted_time=START, quoted_qq=111), text("yes"))),
        duplicate=2,
    )
    assert sorted(kept) == [2, 5, 6, 7, 8, 9]
    assert kept[9]["reply_to"] == 2


def test_filtered_comes_before_duplicate(make):
    same = {"c40003": 5, "c40050": START, "c40800": body(text("said"))}
    rows = row(1, **same), row(2, **same), row(3, c40021="1002")
    assert list(make(*rows, settings="groups: [1002]\n", filtered=2)) == [3]


def quoting(message_id, seq, time=0, number=0, uid="", column=0, **values):
    quote = Element(
        kind=7,
        quoted_seq=seq,
        quoted_time=time,
        quoted_qq=number,
        quoted_uid=uid.encode(),
        quoted_elements=[text("theirs")],
        quoted_summary=b"theirs",
    )
    return row(message_id, c40800=body(quote, text("mine")), c40850=column, **values)


@pytest.mark.parametrize(
    ("reply", "target"),
    [
        (quoting(50, 7), 10),  # no time, no sender: the smallest id
        (quoting(50, 7, time=START + 12), 12),
        (quoting(50, 7, number=222), 12),
        (quoting(50, 7, uid="u_bob"), 12),
        (quoting(50, 7, time=START + 11, number=222), 11),  # the time counts more
        (quoting(50, 7, time=START + 99, number=222), 12),
        (quoting(50, 0, column=7), 10),  # the column, where the element has none
        (quoting(50, 8, column=7), 20),  # the element, where they differ
        (row(50, c40850=8), 20),
        (quoting(50, 7, c40027=52, c40021="1002"), 30),  # numbers are reused across groups
        (quoting(50, 6), None),
        (quoting(50, 7, c40050=START + 1), None),  # later than the reply
        (quoting(50, 50), None),  # itself
        (quoting(50, 0), None),
    ],
)
def test_a_reply_refers_to_the_message_with_the_right_number_time_and_sender(make, reply, target):
    kept = make(
        row(10, c40003=7, c40050=START + 10),
        row(11, c40003=7, c40050=START + 11),
        row(12, c40003=7, c40050=START + 12, c40033=222, c40020="u_bob"),
        row(20, c40003=8),
        row(30, c40003=7, c40027=52, c40021="1002", c40050=START + 10),
        reply,
    )
    assert (kept[50]["reply_to"], kept[50]["reply_dangling"]) == (target, target is None)
    assert "theirs" not in kept[50]["fragments"]
    assert not any(kept[other]["reply_dangling"] for other in (10, 11, 12, 20, 30))


def test_a_quoted_message_that_was_dropped_is_still_in_the_history(make):
    kept = make(row(1, c40011=1, c40012=0, c40800=None), quoting(2, 1), system=1)
    assert (kept[2]["reply_to"], kept[2]["reply_dangling"]) == (1, False)


def test_names_come_from_the_next_best_source(make):
    nameless = {"c40090": "", "c40093": None}
    kept = make(
        row(1, c40090="卡片"),
        row(2, c40090="", c40093="昵称"),
        row(3, **nameless),
        row(4, c40020="u_bob", c40033=222, **nameless),
        row(5, c40020="u_cat", c40033=333, **nameless),
        row(6, c40020="u_dan", c40033=444, **nameless),
        row(7, c40020="u_eve", c40033=555, **nameless),
        row(8, c40020="", c40033=0, **nameless),
        row(9, c40021="1002", c40027=52, **nameless),  # the name of another group does not count
        row(10, c40090="老人(111)"),
        row(11, c40090="老人(112)"),
        row(12, c40090="老人(112)", c40060=1),
        row(13, c40090="老人<i@example.com>", c40060=1),
        row(14, c40090="老人<i@example.com>"),
        row(15, c40090="(111)", c40093="昵称"),
        row(16, c40090=b"\xff\xfe", c40093=""),
        tables=[
            "CREATE TABLE group_member3 ([60001] INTEGER, [1000] TEXT, [1002] INTEGER, [64003] TEXT, [20002] TEXT)",
            "INSERT INTO group_member3 VALUES (1001, 'u_bob', 222, 'Bob''s card', 'Bob'), (1001, 'u_cat', 333, '', "
            "'Cat'), (1002, 'u_dan', 444, 'elsewhere', ''), (1001, 'u_ann', 111, 'today', 'today')",
            "CREATE TABLE profile_info_v6 ([1000] TEXT, [1002] INTEGER, [20002] TEXT)",
            "INSERT INTO profile_info_v6 VALUES ('u_dan', 444, 'Dan'), ('u_ann', 111, 'Annette')",
        ],
    )
    names = [kept[number]["nickname"] for number in range(1, 17)]
    assert names[:9] == ["卡片", "昵称", "\ufffd\ufffd", "Bob's card", "Cat", "Dan", "555", "unknown", "Annette"]
    assert names[9:] == ["老人", "老人(112)", "老人", "老人", "老人<i@example.com>", "昵称", "\ufffd\ufffd"]


def test_user_ids_come_from_the_uid_where_the_number_is_missing(make):
    kept = make(
        row(1, c40033=0, c40020="u_map"),
        row(2, c40033=0, c40020="u_member"),
        row(3, c40033=0, c40020="u_ann"),
        row(4),
        row(5, c40033=0, c40020="u_nobody"),
        row(6, c40033=4_012_345_678, c40020="u_big"),
        row(7, c40033=80_000_000, c40020="u_anonymous"),
        tables=[
            "CREATE TABLE nt_uid_mapping_table ([48901] INTEGER, [48902] TEXT, [48912] TEXT, [1002] INTEGER)",
            "INSERT INTO nt_uid_mapping_table VALUES (1, 'u_map', NULL, 3456789012), (2, 'u_zero', NULL, 0)",
            "CREATE TABLE group_member3 ([60001] INTEGER, [1000] TEXT, [1002] INTEGER, [64003] TEXT, [20002] TEXT)",
            "INSERT INTO group_member3 VALUES (1001, 'u_member', 999, '', '')",
        ],
    )
    ids = [kept[number]["user_id"] for number in range(1, 8)]
    assert ids == ["3456789012", "999", "111", "111", "", "4012345678", "80000000"]


def test_the_group_number_replaces_a_peer_that_is_no_number(make):
    kept = make(row(1), row(2, c40021="u_peer"), row(3, c40021=None, c40030=0), row(4, c40021="", c40030=None))
    assert [kept[number]["group_id"] for number in range(1, 5)] == ["1001", "1001", "51", "51"]


def test_columns_that_older_versions_lack_are_not_needed(make):
    assert sorted(make(row(1), row(2), without=(40060, 40093, 40850, 40030))) == [1, 2]


def test_exported_copies_without_types_read_the_same(make):
    kept = make(row(1, c40033="111", c40050=str(START), c40800=body(text("words")), c40021=1001, c40090=7))
    assert (kept[1]["user_id"], kept[1]["group_id"], kept[1]["nickname"]) == ("111", "1001", "7")


def test_damaged_bodies_keep_the_elements_before_the_break(make, tmp_path):
    whole = body(text("first"), text("second"), text("third"))
    kept = make(
        row(1, c40800=whole[:-3]),
        row(2, c40800=whole[:12]),
        row(3, c40800=whole + b"\xff"),
        row(4, c40800=body(Element(kind=1, text=b"bad \xff byte"))),
        no_body=1,
    )
    assert kept[1]["fragments"] == ["first", "second"]
    assert kept[3]["fragments"] == ["first", "second", "third"]
    assert kept[4]["fragments"] == ["bad \ufffd byte"]
    assert receipt(tmp_path / "out")["undecodable_bodies"] == 3
    assert receipt(tmp_path / "out")["invalid_utf8_texts"] == 1


@pytest.mark.parametrize(
    ("element", "fragment"),
    [
        (Element(kind=2), "[图片]"),
        (Element(kind=2, picture_label=["动画".encode()]), "动画"),
        (Element(kind=3, file_name=b"a.zip"), "[文件]a.zip"),
        (Element(kind=4, voice_transcript=b"hello"), "hello"),
        (Element(kind=5, file_name=b"a.mp4"), "[视频]"),
        (Element(kind=6), "[表情]"),
        (Element(kind=27, bubble_face_label=b"/666"), "/666"),
        (Element(kind=11), "[表情]"),
        (Element(kind=9, wallet=Wallet(greeting="恭喜".encode())), "恭喜"),
        (Element(kind=10, ark_json=b"{"), "[卡片]"),
        (Element(kind=10, ark_json=b'{"prompt": 5}'), "[卡片]"),
        (Element(kind=10, ark_json=b'{"prompt": "p"}'), "p"),
        (Element(kind=14, markdown_text=b"# title"), "# title"),
        (Element(kind=16), "[聊天记录]"),
        (Element(kind=21, call_text=b"0:12"), "0:12"),
    ],
)
def test_a_placeholder_is_the_text_of_the_element_or_its_kind(element, fragment):
    assert BodyReader(set(KINDS.values()) - {"text", "reply", "tip"}).read(body(element)).fragments == [fragment]
    assert BodyReader().read(body(element)).fragments == []


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_no_body_raises(junk, offset, byte):
    good = bytearray(body(text("第一"), Element(kind=7, quoted_seq=5, quoted_elements=[text("旧")]), text("第二")))
    good[offset % len(good)] = byte
    for content in (junk, bytes(good), bytes(good[:offset]) + junk):
        read = BodyReader().read(content)
        assert len(read.fragments) == sum(kind in (TEXT, MENTION) for kind in read.kinds)


# ---- CSV


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_csv_of_another_tool(tmp_path):
    source = write(
        tmp_path / "chat.csv",
        (
            '\ufeff1001,2022-08-14T10:12:20Z,小雨,222,"[\'b\', ""it\'s""]"\r\n'
            "1001,2022-08-14T10:12:18Z,\"two\nlines\",111,['a']\r\n"
            "1000,2022-08-14T10:12:18Z,,0012,[]\r\n"
            "1001,2022-08-14T10:12:18Z,,,\"['\\ud83d\\ude00', '\\ud83d']\"\r\n"
            "\r\n"
            "1001,1970-01-01T00:00:00Z,a,1,['x']\r\n\n"
        ),
    )
    out = tmp_path / "out"
    assert_parsed(parse(source, out), out, 5, no_time=1)
    rows = result(out).to_dicts()
    assert [row["message_id"] for row in rows] == [2, 1, 3, 0]
    assert [row["user_id"] for row in rows] == ["0012", "111", "", "222"]
    assert [row["nickname"] for row in rows] == ["0012", "two\nlines", "unknown", "小雨"]
    assert [row["fragments"] for row in rows] == [[], ["a"], ["😀", "\ufffd"], ["b", "it's"]]
    assert [row["kinds"] for row in rows] == [[], ["text"], ["text", "text"], ["text", "text"]]
    for row in rows:
        assert (row["seq"], row["mentions"], row["reply_to"], row["reply_dangling"]) == (None, [], None, False)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\r", "\n", "\r\n", "\0", '"', "'", "\",'[]", "\\", "\ufeff", "\u2028", " ", "a,b", "\\ud83d", "=1+1", "''", "#"]
)


def test_reading_back_gives_the_same_whatever_the_characters(tmp_path):
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(st.tuples(TEXTS.filter(bool), TEXTS.filter(bool), TEXTS, st.lists(TEXTS, max_size=3)), min_size=1))
    def check(rows):
        frame = pl.DataFrame(rows, {name: TYPES[name] for name in FIVE if name != "time"}, orient="row")
        frame = frame.with_columns(time=START + pl.int_range(pl.len()))
        path = tmp_path / "messages.csv"
        write_csv(frame.with_columns((pl.col("time") * 1000).cast(TYPES["time"])), path)
        with open(path, "rb") as file:
            back = pl.concat(csv_chunks(path, file, None))
        assert back.select(FIVE).to_dicts() == frame.select(FIVE).to_dicts()

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
        ('1001,2022-08-14T10:12:18Z,"a"b,1,[]', "',' expected after '\"'"),
        ('1001,2022-08-14T10:12:18Z,"a,1,[]', "unexpected end of data"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, why):
    source = write(tmp_path / "chat.csv", "1001,2022-08-14T10:12:18Z,\"a\nb\",1,['x']\n" + line + "\n")
    assert_refused(parse(source, tmp_path / "out"), tmp_path / "out", f"{source} line 3: {why}; {FORM}")


def test_a_csv_that_is_not_utf_8_is_refused(tmp_path):
    source = write(tmp_path / "chat.csv", b"1001,2022-08-14T10:12:18Z,a,1,['x']\n1001,2022,\xd0\xd0,1,[]\n")
    line = f"{source} line 2: not UTF-8; save the file as UTF-8 text; {FORM}"
    assert_refused(parse(source, tmp_path / "out"), tmp_path / "out", line)


def test_bad_lines_can_be_skipped(tmp_path):
    good = "".join(f"1001,2022-08-14T10:12:{second:02}Z,a,1,['x{second}']\n" for second in range(60))
    lines = good.splitlines(keepends=True)
    bad = '1001,2022-08-14T10:12:18Z,"a quote that is not closed,1,[]\n'
    source = write(tmp_path / "chat.csv", "".join([*lines[:20], bad, *lines[20:], bad]))
    out = tmp_path / "out"
    assert_parsed(parse(source, out, "skip_bad_lines: true"), out, 62, bad_line=2)
    assert result(out)["fragments"].explode().to_list() == [f"x{second}" for second in range(60)]


def test_a_record_of_a_thousand_lines_is_refused(tmp_path):
    source = write(tmp_path / "chat.csv", '1001,2022-08-14T10:12:18Z,"a' + "\n" * 2000 + '",1,[]\n')
    line = f"{source} line 1000: more than 1000 lines; is a quote missing?; {FORM}"
    assert_refused(parse(source, tmp_path / "out"), tmp_path / "out", line)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(
        st.binary(max_size=60)
        | st.text(max_size=40).map(str.encode)
        | st.sampled_from(
            [
                b"1001,2022-08-14T10:12:18Z,a,1,['x']\n",
                b'1001,2022-08-14T10:12:18Z,"a\n",1,"[\'x\', ""y""]"\r\n',
                b'"',
                b"\n",
                b"1001,9999-12-31T23:59:59Z,a,1,['\\ud83d']\n",
                b"1001,2022-08-14T10:12:18Z,a,1,[",
                b"(" * 300,
                b"-" * 300,
                b",",
            ]
        ),
        max_size=8,
    )
)
def test_no_line_raises_anything_but_a_user_error(pieces):
    lines = [line + b"\n" for line in b"".join(pieces).split(b"\n")]
    bad = []
    frames = list(csv_chunks("chat.csv", lines, bad))
    assert sum(frame.height for frame in frames) + len(bad) <= len(lines)
    if bad:
        with pytest.raises(UserError):
            list(csv_chunks("chat.csv", lines, None))


# ---- JSON

ROW = {
    "40001": 7_400_000_000_000_000_101,
    "40003": 1,
    "40010": 2,
    "40050": 1_720_000_000,
    "40021": "20001",
    "40027": 5,
    "40033": 10001,
    "40800": "gvYTCsj8FQHqghYCaGk=",
}
AGAIN = "export the table again with DB Browser 3.12 or newer"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (
            {"metadata": {}, "chatInfo": {}, "messages": [{"id": "1"}]},
            f"not an export of group_msg_table but an object with the keys 'metadata', 'chatInfo', 'messages'; {AGAIN}",
        ),
        ([{"id": "1", "content": {}}], f"row 1 is no row of group_msg_table; it has the keys 'id', 'content'; {AGAIN}"),
        ([ROW, 5], f"row 2 is not an object but '5'; {AGAIN}"),
        ("text", f"not an array of rows but 'text'; {AGAIN}"),
        ([ROW | {"40001": 7.4e18}], f"row 1: 40001 is 7.4E+18, rounded as DB Browser 3.11 does; {AGAIN}"),
        (
            [ROW | {"40001": (7_400_000_000_000_000_101 + number) // 1024 * 1024} for number in range(0, 9000, 1024)],
            f"all ids are rounded, as DB Browser 3.11 does; {AGAIN}",
        ),
        ([ROW | {"40800": "\ufffd\ufffd\x13"}], f"the message bodies are destroyed, as DB Browser 3.10 does; {AGAIN}"),
        ([ROW | {"40050": "yesterday"}], f"row 1: 40050 is 'yesterday', not a number; {AGAIN}"),
        ([ROW | {"40003": 1 << 63}], f"row 1: 40003 is '9223372036854775808', not a number; {AGAIN}"),
        ([ROW, ROW | {"40010": 1}], "row 2 is of a private chat (40010 = 1); export group_msg_table"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, content, what):
    source = write(tmp_path / "chat.json", json.dumps(content))
    assert_refused(parse(source, tmp_path / "out"), tmp_path / "out", f"{source}: {what}")


def test_json_lines_are_refused(tmp_path):
    source = write(tmp_path / "chunk_0001.jsonl", '{"id": "1", "content": {}, "sender": {}}\n' * 2)
    line = f"{source}: not an export of group_msg_table but an object with the keys 'id', 'content', 'sender'; {AGAIN}"
    assert_refused(parse(source, tmp_path / "out"), tmp_path / "out", line)


@pytest.mark.parametrize("end", [-1, 40])
def test_truncated_json_is_refused(tmp_path, end):
    source = write(tmp_path / "chat.json", json.dumps([ROW, ROW])[:end])
    done = parse(source, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"parse.py: {source}: not whole JSON (")
    assert done.stderr.endswith(f"); {AGAIN}\n")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("content", ["null", "[]"])
def test_the_json_of_an_empty_table_has_no_messages(tmp_path, content):
    source, out = write(tmp_path / "chat.json", content), tmp_path / "out"
    line = f"{source}: no message left (read 0, written 0, dropped 0); see {out.with_suffix('.yaml')}"
    assert_refused(parse(source, out), out, line)


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
            assert to_chunk(rows, ()).rows.height == len(rows)


# ---- errors


def test_what_is_no_history_is_refused(tmp_path):
    out = tmp_path / "out"
    missing = tmp_path / "nt_msg.db"
    line = f"{missing}: no such file; give a decrypted nt_msg.db, its export to JSON, or a CSV"
    assert_refused(parse(missing, out), out, line)
    other = write(tmp_path / "chat.txt", "hello")
    line = f"{other}: not a kind of history known here; it must be *.db (QQNT), *.json or *.csv"
    assert_refused(parse(other, out), out, line)
    encrypted = write(tmp_path / "encrypted.db", b"SQLite header 3\0" * 600)
    line = f"{encrypted}: cannot be read (file is not a database); if it is encrypted, decrypt it first"
    assert_refused(parse(encrypted, out), out, line)
    empty = write(tmp_path / "empty.csv", "")
    line = f"{empty}: no message left (read 0, written 0, dropped 0); see {out.with_suffix('.yaml')}"
    assert_refused(parse(empty, out), out, line)


def test_a_database_without_messages_is_refused(tmp_path):
    out, path = tmp_path / "out", tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE c2c_msg_table ([40001] INTEGER)")
    line = f"{path}: no group_msg_table in it; give a decrypted nt_msg.db"
    assert_refused(parse(path, out), out, line)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE group_msg_table ([40001] INTEGER, [40003] INTEGER, name TEXT)")
    line = f"{path}: group_msg_table has no column 40021, 40027, 40033, 40050, 40800; is it QQNT's?"
    assert_refused(parse(path, out), out, line)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("groups: [5]", "groups: no group '5' in the history; there are: 1001"),
        ("since: tomorrow", "since: must be a day such as 2022-08-14 or empty, not tomorrow"),
        (
            "placeholders: [text]",
            "placeholders: must be a list such as [a, b], each item image or file or voice or video or face or "
            "wallet or ark or market_face or markdown or forward or call, not ['text']",
        ),
        (
            "colour: red",
            "unknown setting 'colour'; known are: preset, placeholders, groups, since, until, leave_out, "
            "skip_bad_lines",
        ),
    ],
)
def test_invalid_settings_are_one_line(tmp_path, setting, line):
    source = write(tmp_path / "chat.csv", "1001,2022-08-14T10:12:18Z,a,1,['x']\n")
    out = tmp_path / "out"
    assert_refused(parse(source, out, setting), out, f"{out.with_suffix('.yaml')}: {line}")


def test_settings_that_leave_no_message_are_one_line(tmp_path):
    source = write(tmp_path / "chat.csv", "1001,2022-08-14T10:12:18Z,a,1,['x']\n")
    out = tmp_path / "out"
    line = f"{source}: no message left (read 1, written 0, dropped 1 (filtered 1)); see {out.with_suffix('.yaml')}"
    assert_refused(parse(source, out, "since: 2023-01-01"), out, line)
