"""Exports of other programs: which one a file is, what is refused, and what all readers have in common."""

import io
import json
from datetime import datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import EXAMPLES, ROOT, run_script
from huiyin.common.errors import UserError
from huiyin.sources import files
from huiyin.sources.detect import detect
from huiyin.sources.export import Source, read_export
from huiyin.sources.files import Quoted, Repaired, Shallow, json_items, json_line
from huiyin.sources.record import to_user_id

CASES = ROOT / "tests/cases/parse"
SEE = "see docs/sources.md"


def parse(source, out, settings=""):
    config = out.with_suffix(".yaml")
    config.write_text(settings)
    return run_script("parse", source, "--config", config, "--out", out)


def refused(source, settings=""):
    """Return the only line on stderr, with the names of files beside the source instead of their paths."""
    done = parse(source, source.parent / "out", settings)
    assert done.returncode == 1
    return done.stderr.replace(f"{source.parent}/", "").removeprefix("parse.py: ").removesuffix("\n")


def telegram(*messages, **chat):
    return {"name": "Ruder", "type": "private_group", "id": 7, "messages": list(messages)} | chat


def said(number, **more):
    message = {"id": number, "type": "message", "date_unixtime": "1677632400", "from": "Mila", "from_id": "user1"}
    return message | {"text": "wir rudern"} | more


QCE = {"metadata": {}, "chatInfo": {"type": "group", "peerUid": "60001"}, "messages": []}
OF_C = {"messageId": "1", "sender": {}, "content": {}}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"PK\x03\x04 zip", "a zip or a spreadsheet; unpack it, or export as JSON"),
        (b"\xff\xfea\0", "UTF-16; save it as UTF-8"),
        (b" <!DOCTYPE html><p>", "HTML; export as JSON"),
        (b"[QQChatExporter V5 / x]\n", "a text of QQ Chat Exporter, without ids and quotes; export as JSON there"),
        (b"\x89PNG\0\0", "neither UTF-8 nor GB18030 text; export it again, or save it as UTF-8"),
        ([{"napcat_message_id": 1}], "an export of QCE 3 or older; export again with QCE 6"),
        (
            QCE | {"messages": [OF_C]},
            "written by QCE 4.9.7 to 5.0.10 in a form that is not read; export again with QCE 6",
        ),
        (QCE | {"chatInfo": {"type": "private", "peerUid": "u_x"}}, "a private chat; export a group"),
        (telegram(said(1), type="personal_chat"), "a private chat or a channel, no group; export a group"),
        (
            {"metadata": {}, "chatInfo": {}, "guild": {}, "channel": {}, "messages": []},
            "looks like qce and discord; say which in parse.yaml: format: qce",
        ),
        (
            {"id": "1", "sender": {}, "content": {}},
            "a chunk of an export, without its manifest.json; copy the whole folder",
        ),
    ],
)
def test_what_is_no_export_of_a_group_is_refused(tmp_path, content, line):
    source = tmp_path / "chat.x"
    source.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    assert refused(source) == f"chat.x: {line}"


def test_the_setting_format_overrules_what_it_looks_like(tmp_path):
    source = tmp_path / "chat.x"
    source.write_text(json.dumps({"guild": {}, "channel": {}, **telegram(said(1))}))
    assert refused(source) == "chat.x: looks like telegram and discord; say which in parse.yaml: format: telegram"
    assert parse(source, tmp_path / "out", "format: telegram").returncode == 0


def test_local_times_need_a_zone_and_that_zone_counts(tmp_path):
    source = tmp_path / "result.json"
    local = [said(number, date=f"2020-07-01T12:00:0{number}") for number in (1, 2, 3)]
    for message in local:
        del message["date_unixtime"]
    source.write_text(json.dumps(telegram(*local)))
    assert refused(source) == (
        "result.json: its times are local and name no zone (2020-07-01T12:00:01 and 2020-07-01T12:00:02); write into "
        "out.yaml where it was exported, such as zone: Asia/Shanghai (also Asia/Tokyo, Europe/Berlin, America/New_York)"
    )
    assert refused(source, "zone: Mars/Base") == (
        "out.yaml: zone: no such zone 'Mars/Base'; write a name such as Asia/Shanghai"
    )
    assert parse(source, tmp_path / "out", "zone: Europe/Berlin").returncode == 0
    assert (tmp_path / "out/messages.csv").read_text(encoding="utf-8").startswith("7,2020-07-01T10:00:01Z,")


def test_clocks_that_are_changed_count_from_their_hour(tmp_path):
    source = tmp_path / "own.csv"
    local = ["29 23:59:59", "30 1:59:59", "30 02:30:00", "30 03:00:00", "31 00:00:00"]  # 2:30 comes twice
    source.write_text("time,name,text\n" + "".join(f"2022-10-{time},Mila,wir rudern\n" for time in local))
    rows, _ = read_export(Source(detect(source), zone="Europe/Berlin"), True, [])
    utc = ["29 21:59:59", "29 23:59:59", "30 00:30:00", "30 02:00:00", "30 23:00:00"]
    assert rows["time"].to_list() == [int(datetime.fromisoformat(f"2022-10-{time}Z").timestamp()) for time in utc]


def test_a_clock_without_an_hour_is_none(tmp_path):
    source = tmp_path / "own.csv"
    source.write_text("time,name,text\n2022-10-29 09:05:07,Mila,wir\n2022-10-29 :05:07,Mila,rudern\n")
    assert refused(source, "zone: Europe/Berlin") == (
        "own.csv: 2022-10-29 09:05:07 and the times after it have not one form; write them all such as "
        "2024-05-31 18:05:09"
    )


def test_a_file_with_another_name_is_another_group(tmp_path):
    message = {"msgId": "1", "sendTime": 1783000001, "senderUin": "5", "elements": [{"type": "text", "data": {}}]}
    message["elements"][0]["data"]["textContent"] = "x"
    for name in ("60001", "60002"):
        source = tmp_path / f"{name}.json"
        source.write_text(json.dumps([message]))
        assert parse(source, tmp_path / "out").returncode == 0
        assert (tmp_path / "out/messages.csv").read_text(encoding="utf-8").startswith(f"{name},")
    assert "nothing has changed" in parse(source, tmp_path / "out").stdout


def test_an_id_of_another_type_is_none(tmp_path):
    sender = {"uid": ["u_7"], "uin": 10007, "name": "Uma"}
    content = {"elements": [{"type": "text", "data": {"text": "moin"}}]}
    message = {"id": "1", "timestamp": 1677632400000, "sender": sender, "content": content}
    (tmp_path / "source.json").write_text(json.dumps(QCE | {"messages": [message]}))
    rows, _ = read_export(Source(detect(tmp_path / "source.json")), True, [])
    assert rows["user_id"].to_list() == ["10007"]


def test_a_chunk_that_the_manifest_names_must_be_there(tmp_path):
    chunks = {"format": "jsonl", "chunks": [{"relativePath": "chunks/c1.jsonl"}]}
    (tmp_path / "manifest.json").write_text(json.dumps({"metadata": {}, "chatInfo": {}, "chunked": chunks}))
    assert refused(tmp_path / "manifest.json") == (
        "manifest.json: names c1.jsonl, which is not there or holds no messages; copy the whole folder"
    )


def test_a_folder_of_two_programs_is_refused(tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(telegram(said(1))))
    (folder / "b.json").write_text(json.dumps({"chatlab": {}, "meta": {}, "messages": []}))
    line = "exports of several programs in this folder (telegram, chatlab); name one file"
    assert refused(folder) == f"both: {line}"
    (folder / "b.json").unlink()
    assert parse(folder, tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["03/04/2024 10:00:00,Ann,hi"], "03/04/2024 10:00:00 may have the day or the month first"),
        (["soon,Ann,hi"], "soon and the times after it have not one form"),
    ],
)
def test_dates_that_are_not_certain_are_refused(tmp_path, lines, line):
    source = tmp_path / "own.csv"
    source.write_text("\n".join(["time,name,text", *lines]) + "\n")
    assert refused(source, "zone: UTC") == f"own.csv: {line}; write them all such as 2024-05-31 18:05:09"
    source.write_text("\n".join(["time,name,text", *lines, "31/04/2024 10:00:00,Ann"]) + "\n")
    assert refused(source, "zone: UTC").startswith("own.csv line 3: 2 columns instead of 3; mend the line")


def test_a_table_with_chinese_heads_and_dates(tmp_path):
    source = tmp_path / "chat.csv"
    lines = [
        "发送时间,发送人,QQ,消息内容,备注",
        "2024年5月3日 9:06,小梅,123,吃了吗,",
        "2024年5月3日 21:07,阿宝,456,没呢,x",
    ]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    done = parse(source, tmp_path / "out", "zone: Asia/Shanghai")
    assert "texts as they stand, without the columns 备注" in done.stdout
    rows = pl.read_parquet(tmp_path / "out/messages.parquet").select("user_id", "nickname", "time").rows()
    assert [(user, name, f"{time:%d %H:%M}") for user, name, time in rows] == [
        ("123", "小梅", "03 01:06"),
        ("456", "阿宝", "03 13:07"),
    ]


def test_several_accounts_are_one_person_from_parse_to_pair(tmp_path):
    source, settings = tmp_path / "result.json", "same_person:\n  user1: [user2]\n"
    source.write_text(json.dumps(telegram(said(1), said(2, from_id="user3"), said(3, from_id="user2"))))
    done = parse(source, tmp_path / "parsed", settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert pl.read_parquet(tmp_path / "parsed/messages.parquet")["user_id"].to_list() == ["user1", "user3", "user1"]
    messages, turns = tmp_path / "parsed/messages.parquet", tmp_path / "combined"
    assert run_script("combine", messages, "--config", "config/combine.yaml", "--out", turns).returncode == 0
    words = ["--config", "config/way2/pair.yaml", "--prompt", "config/prompts/pair.md"]
    words += ["--merge-prompt", "config/prompts/merge.md", "--llm", "config/llm.yaml"]
    words += ["--answers", tmp_path / "answers.db", "--out", tmp_path / "paired", "--ollama-url", "http://127.0.0.1:9"]
    (tmp_path / "pair.yaml").write_text("method: previous\n")
    words[1] = tmp_path / "pair.yaml"
    done = run_script("pair", turns / "turns.parquet", "--target=user2", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "paired/receipt.json").read_text())["ledger"]["read"] == 1
    twice = "same_person:\n  user1: [user2]\n  user2: [user3]\n"
    assert (
        refused(source, twice)
        == "out.yaml: same_person: user2 is listed twice; each other id stands under one id, once"
    )


@pytest.mark.parametrize(
    ("written", "user_id"),
    [
        ("10001", "10001"),
        ("wxid_a.b-c", "wxid_a.b-c"),
        ("", ""),
        ("..", "n-5ec1f7e700"),
        ("\u200e a\u0308@x.example ", to_user_id("\u00e4@x.example")),
    ],
)
def test_an_id_that_can_be_no_target_has_a_digest(written, user_id):
    assert to_user_id(written) == user_id


# ---- bytes of JSON

ESCAPES = [
    b"\\x0B",
    b"\\\\x41",
    b"\\ud83d",
    b"\\ud83d\\ude00",
    b"\\ude00",
    b'\\"',
    b"\\\\",
    b"\\n",
    b"a",
    "潮".encode(),
]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from(ESCAPES), max_size=30), st.integers(1, 40))
def test_repaired_escapes_do_not_depend_on_the_blocks(pieces, size):
    content = b'"' + b"".join(pieces) + b'"'
    file = Repaired(io.BytesIO(content))
    whole = b"".join(iter(lambda: file.read(size), b""))
    assert whole == Repaired(io.BytesIO(content)).read()
    text = json.loads(whole)
    text.encode()  # no half of a character is left
    assert text.count("\x0b") == pieces.count(b"\\x0B")


def test_names_without_quotes_get_them_in_blocks_of_any_size():
    line = b'"document_id": %s\n'
    values = [b"null", b"-1", b'"a.webp"', b"true", b"[1]"]
    content = line * 6 % (b'stickers/a "b" (2).webp', *values)
    quoted = line * 6 % (b'"stickers/a \\"b\\" (2).webp"', *values)
    for size in (*range(1, 60), -1):
        file = Quoted(io.BytesIO(content))
        assert b"".join(iter(partial(file.read, size), b"")) == quoted


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.recursive(
        st.text(st.sampled_from('[]{}"\\a')), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_brackets_are_counted_outside_of_strings_only(value):
    file = Shallow(Path("chat.json"), io.BytesIO(json.dumps(value).encode()))
    while file.read(7):
        pass
    assert (file.depth, file.in_string) == (0, False)


IN_ONE_ANOTHER = st.recursive(
    st.integers() | st.text(st.sampled_from('{},"\\id')),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "a"]), inner),
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(IN_ONE_ANOTHER, max_size=8), st.sampled_from([1, 40, 1 << 16]), st.sampled_from([None, 1]))
def test_values_of_a_list_do_not_depend_on_the_blocks(values, size, indent):
    content = json.dumps({"id": [values], "list": values, "more": {"list": values}}, indent=indent)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "BLOCK", size)
        assert list(json_items(Path("chat.json"), io.BytesIO(content.encode()), "list.item")) == values


def test_objects_in_objects_are_no_objects_of_the_list():
    people = [{"id": number} for number in range(300)]
    values = [{"id": number, "people": people[: number * 7 % 300]} for number in range(500)]
    content = json.dumps(values).encode()
    assert list(json_items(Path("chat.json"), io.BytesIO(content), "item")) == values


def test_numbers_of_any_size_are_read_by_both_parsers():
    numbers = [Decimal("2E+400"), 1 << 65, Decimal("0.1"), Decimal("-1E-400")]
    content = b'[{"a": 2E+400}, {"a": 36893488147419103232}, {"a": 0.1}, {"a": -1E-400}]'
    assert list(json_items(Path("chat.json"), io.BytesIO(content), "item")) == [{"a": number} for number in numbers]


@pytest.mark.parametrize(
    ("last", "reason"), [("{'a': 2}]", "lexical error: invalid char in json text"), ('{"a": 2', "premature EOF")]
)
def test_it_is_told_after_which_message_the_json_breaks(last, reason):
    content = f'{{"list": [{", ".join(json.dumps({"a": "x" * 100}) for _ in range(5000))}, {last}'
    items = json_items(Path("chat.json"), io.BytesIO(content.encode()), "list.item")
    with pytest.raises(UserError, match=rf"not whole JSON \(.*{reason}, after message 5000\)"):
        list(items)


# ---- damage


def test_a_line_with_the_bytes_of_half_a_character_is_none():
    with pytest.raises(ValueError, match="utf-8"):
        json_line(b'{"name": "\xed\xa0\x80"}')


def test_a_line_break_of_another_system_in_the_first_line_makes_no_table(tmp_path):
    source = tmp_path / "chat.csv"
    source.write_bytes("时间,昵称\r,内容\n".encode())
    assert refused(source).startswith("chat.csv: ")


SOURCES = [
    path for case in sorted(CASES.iterdir()) for path in case.glob("source.*") if not case.name.startswith("csv")
]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SOURCES), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=4))
def test_no_damage_raises_anything_but_a_user_error(tmp_path, source, damage):
    content = bytearray(source.read_bytes())
    for where, junk in damage:
        start = int(where * len(content))
        content[start : start + len(junk) + 1] = junk
    file = tmp_path / f"damaged{source.suffix}"
    file.write_bytes(content)
    try:
        found = detect(file)
        if found.format not in ("database", "db_browser"):
            rows, _ = read_export(Source(found, zone="Asia/Shanghai", skip_bad_lines=True), True, ["image"])
            kept = rows.filter(pl.col("dropped").is_null())
            assert kept["message_id"].n_unique() == kept.height
            assert set(kept["reply_to"].drop_nulls()) <= set(rows["message_id"])
    except UserError as error:
        assert str(error).startswith(str(tmp_path))
